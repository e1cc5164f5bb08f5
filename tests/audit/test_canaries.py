"""Audits with canaries: the present code shows less than it claims; with a tenth of the noise it shows more."""

import pytest

from dp_sinkhorn.audit.audit import judge_canaries
from dp_sinkhorn.audit.canaries import CanaryAudit, audit_canaries
from dp_sinkhorn.audit.neighbouring import Violation
from dp_sinkhorn.audit.stand_in import smooth_images
from dp_sinkhorn.method import STAGES
from dp_sinkhorn.privacy.random import CryptoRandom
from support import planted

# The fixed seed makes the test repeatable; images of 400 pixels have room for many dissimilar canaries.
FACTS = planted.FACTS.model_copy(update={"shape": (1, 20, 20)})
SETTINGS = planted.RECORD | {
    "expected_batch_size": 200,
    "noise_multiplier": 20.0,
    "principal_subspace": {"min_dimensions": 400},
    "num_generated": 120,
    "target_epsilon": 2.0,
    "class_counts": {"prior": "uniform"},
    "test_seed": 1,
}


def audited(num_steps: int = 30, num_canaries: int = 1600, **changes: object) -> CanaryAudit:
    config = planted.config_of(SETTINGS | changes, FACTS)
    stand_in = smooth_images(config.data, 40, seed=9)
    return audit_canaries(config, stand_in, num_canaries, num_steps, CryptoRandom(test_seed=5), STAGES)


def test_the_present_code_shows_less_than_it_claims():
    found = audited()
    assert 0.3 < found.epsilon_claimed < 3.0
    assert found.epsilon <= found.epsilon_claimed
    assert found.epsilon_for_sure <= found.claimed_for_sure


def test_little_noise_shows_canaries_but_less_than_the_claim():
    found = audited(
        num_steps=10, num_canaries=400, noise_multiplier=1.0, target_epsilon=50.0, class_embedding={"budget_share": 0}
    )
    assert found.epsilon > 2.0
    assert found.epsilon_for_sure <= found.claimed_for_sure


def test_a_tenth_of_the_noise_shows_more_than_is_claimed(monkeypatch):
    planted.noise_ten_times_too_small(monkeypatch)
    found = audited()
    assert found.epsilon > 1.3 * found.epsilon_claimed


def test_a_hundredth_of_the_noise_fails_the_audit(monkeypatch):
    """A tenth of the noise would need more canaries to fail here; the audit of the step fails then."""
    planted.noise_hundred_times_too_small(monkeypatch)
    found = audited()
    assert found.epsilon_for_sure > found.claimed_for_sure
    with pytest.raises(Violation, match="canaries show epsilon at least"):
        judge_canaries(found)


def test_whole_batches_can_be_audited_with_canaries():
    config = planted.batch_config()
    found = audit_canaries(config, smooth_images(config.data, 40, seed=9), 60, 5, CryptoRandom(test_seed=6), STAGES)
    assert (found.num_steps, found.num_canaries) == (5, 60)
    assert found.epsilon <= found.epsilon_claimed


EMBEDDING = planted.EMBEDDING | {
    "class_embedding": {"num_frequencies": 256},
    "class_counts": {"prior": "uniform"},
    "test_seed": 1,
}


def audited_embedding(**changes: object) -> CanaryAudit:
    config = planted.config_of(EMBEDDING | changes, FACTS)
    return audit_canaries(config, smooth_images(config.data, 40, seed=9), 800, 0, CryptoRandom(test_seed=5), STAGES)


def test_an_embedding_with_little_noise_shows_its_canaries():
    found = audited_embedding(noise_multiplier=0.7)
    assert found.num_steps == 0
    assert 1.0 < found.epsilon <= found.epsilon_claimed
    assert found.epsilon_for_sure <= found.claimed_for_sure
    assert "by 800 canaries in the embedding" in judge_canaries(found)
    much = audited_embedding(noise_multiplier=20.0, target_epsilon=2.0)
    assert much.epsilon <= much.epsilon_claimed < 3.0


def test_a_hundredth_of_the_embedding_s_noise_fails_the_audit(monkeypatch):
    planted.noise_hundred_times_too_small(monkeypatch)
    with pytest.raises(Violation, match="canaries show epsilon at least"):
        judge_canaries(audited_embedding(noise_multiplier=20.0, target_epsilon=2.0))
