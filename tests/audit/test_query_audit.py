"""Every query of the present code passes its audit, and every planted bug is caught by its own check."""

import math

import pytest

from dp_sinkhorn.audit.freshness import check_fresh_randomness
from dp_sinkhorn.audit.neighbouring import SILENT, Target, Violation
from dp_sinkhorn.audit.query_audit import CHECKS, CHECKS_OF_ALL, audit_query
from dp_sinkhorn.audit.targets import check_only_the_answers, targets_of
from dp_sinkhorn.method import STAGES
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.settings import RunConfig
from support import planted

DRAWS, SEED, DELTA = 100, 20, 1e-5
BEFORE = [
    "class_counts", "principal_subspace.first_moments", "principal_subspace.second_moment", "class_moments",
    "class_features", "label_classifier", "class_embedding",
]  # fmt: skip
CONFIGS = {
    "transport_steps": planted.record_config,
    "batch_steps": planted.batch_config,
    "embedding": planted.embedding_config,
}


@pytest.fixture(scope="module")
def sound() -> dict[str, dict[str, list[Target]]]:
    """The queries of a small run of each mode, from before bugs are planted."""
    return {name: targets_of(config(), STAGES) for name, config in CONFIGS.items()}


def failures(target: Target, names: list[str] | None = None) -> dict[str, str]:
    return {
        check.name: check.finding for check in audit_query(target, DRAWS, SEED, DELTA, names).checks if not check.ok
    }


def only_the_answers(config: RunConfig) -> str:
    target = targets_of(config, STAGES)[config.plan.learns][0]
    return check_only_the_answers(config, STAGES, (target.ordinary(3, 8), target.with_far(target.ordinary(60, 9), 30)))


def test_every_charge_of_a_run_is_audited_with_later_queries(sound):
    assert list(sound["transport_steps"]) == [*BEFORE[:5], "label_classifier", "class_embedding", "transport_steps"]
    assert [len(found) for found in sound["transport_steps"].values()] == [1, 1, 1, 1, 1, 3, 1, 3]
    assert list(sound["batch_steps"]) == ["batch_steps"]
    assert [len(found) for found in sound["batch_steps"].values()] == [3]


@pytest.mark.parametrize("name", BEFORE)
def test_each_query_passes_and_the_worst_record_counts_nearly_in_full(sound, name):
    for target in sound["transport_steps"][name]:
        assert failures(target, ["sensitivity", "noise"]) == {}
        assert shift(target, 3) > 0.95
        assert shift(target, 3) <= 1.0 + 1e-9


def shift(target: Target, count: int) -> float:
    """How far the worst-case record moves the sum, in units of the sensitivity."""
    records = target.ordinary(count)
    without, with_record = (
        target.on(side, 1.0, SILENT).release(CryptoRandom(test_seed=0))
        for side in (records, target.with_far(records, count))
    )
    return float((with_record - without).norm()) / target.sensitivity


@pytest.mark.parametrize("name", ["transport_steps", "batch_steps"])
def test_sound_steps_pass_and_their_noise_multiplier_is_found(sound, name):
    found = sound[name][name]
    result = audit_query(found[0], DRAWS, SEED, DELTA)
    assert {check.name: check.finding for check in result.checks if not check.ok} == {}
    assert tuple(check.name for check in result.checks) == CHECKS
    low, high = result.trade_off.noise_multiplier
    # The interval of a standard deviation from 100 normals, at level 2e-6, is about ±4.75/√200.
    assert 1.5 / 1.7 < low < 1.5 < high < 1.5 * 1.7
    assert 0.0 <= result.trade_off.epsilon <= result.trade_off.epsilon_claimed
    for later in found[1:]:
        assert failures(later, ["sensitivity", "noise"]) == {}


def test_a_sound_embedding_passes_and_its_noise_is_found(sound):
    result = audit_query(sound["embedding"]["class_embedding"][0], DRAWS, SEED, DELTA)
    assert [check.ok for check in result.checks] == [True] * 3
    assert tuple(check.name for check in result.checks) == CHECKS_OF_ALL
    low, high = result.trade_off.noise_multiplier
    assert 1.5 / 1.7 < low < 1.5 < high < 1.5 * 1.7


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_run_depends_on_nothing_but_the_answers(config):
    assert "change no public input and no bit" in only_the_answers(config())


@pytest.mark.parametrize(
    ("bug", "mode", "name", "check", "words"),
    [
        (planted.records_counted_twice, "transport_steps", "class_counts", "sensitivity", "by 2 times the"),
        (planted.mean_and_square_not_shared, "transport_steps", BEFORE[1], "sensitivity", "by 1.414 times the"),
        (planted.directions_not_normalised, "transport_steps", BEFORE[2], "sensitivity", "a clip or a factor"),
        (planted.moments_not_shared, "transport_steps", "class_moments", "sensitivity", "by 1.408 times the"),
        (planted.features_counted_twice, "transport_steps", "class_features", "sensitivity", "by 1.999 times the"),
        (planted.record_in_every_class_s_features, "transport_steps", "class_features", "sensitivity", "by 1.414"),
        (planted.classifier_not_clipped, "transport_steps", "label_classifier", "sensitivity", "a clip or a factor"),
        (planted.features_not_bounded, "embedding", "class_embedding", "sensitivity", "by 7.071 times the"),
        (planted.features_not_bounded, "embedding", "class_embedding", "trade-off", "less privacy than claimed"),
        (planted.record_in_every_class, "embedding", "class_embedding", "sensitivity", "by 1.414 times the"),
        (planted.clip_skipped_for_one, "transport_steps", "transport_steps", "sensitivity", "a clip or a factor"),
        (planted.clip_skipped_for_one, "batch_steps", "batch_steps", "sensitivity", "a clip or a factor is missing"),
        (planted.twice_the_sum, "transport_steps", "transport_steps", "sensitivity", "by 2 times the sensitivity"),
        (planted.one_release_not_finite, "transport_steps", "transport_steps", "sensitivity", "is not finite"),
        (planted.noise_on_half, "transport_steps", "transport_steps", "noise", "have almost none"),
        (planted.noise_on_half, "batch_steps", "batch_steps", "noise", "256 of 512 numbers have almost none"),
        (planted.noise_on_the_wrong_block, "transport_steps", "transport_steps", "noise", "have almost none"),
        (planted.noise_shared_by_all_images, "transport_steps", "transport_steps", "noise", "have the same noise"),
        (planted.noise_that_comes_back, "transport_steps", "transport_steps", "noise", "is reused"),
        (planted.noise_scaled_by_the_drawn_batch, "transport_steps", "transport_steps", "empty draws", "almost none"),
        (planted.empty_draws_drawn_again, "transport_steps", "transport_steps", "subsampling", "are skipped"),
        (planted.empty_draws_without_noise, "transport_steps", "transport_steps", "empty draws", "almost none"),
        (planted.noise_ten_times_too_small, "transport_steps", "transport_steps", "trade-off", "less privacy"),
        (planted.noise_ten_times_too_small, "batch_steps", "batch_steps", "noise", "to 0.1"),
        (planted.noise_of_another_charge, "transport_steps", "class_counts", "noise", "times the claimed standard"),
        (planted.one_noise_for_all_releases, "transport_steps", "class_moments", "noise", "times the claimed standard"),
    ],
)
def test_a_planted_bug_fails_the_right_check(monkeypatch, sound, bug, mode, name, check, words):
    bug(monkeypatch)
    found = failures(sound[mode][name][0], [check])
    assert words in found[check], found


def test_a_forgotten_factor_two_of_whole_batches_is_caught(monkeypatch):
    planted.factor_two_forgotten(monkeypatch)
    target = targets_of(planted.batch_config(), STAGES)["batch_steps"][0]
    found = failures(target, ["sensitivity", "trade-off"])
    assert "by 2 times the sensitivity" in found["sensitivity"]
    assert "less privacy than claimed" in found["trade-off"]


@pytest.mark.parametrize(
    ("bug", "config", "words"),
    [
        (planted.potential_from_private_records, planted.record_config, "the potentials"),
        (planted.field_divided_by_the_drawn_number, planted.record_config, "depend on the records"),
        (planted.steps_by_the_number_of_records, planted.embedding_config, "update depends on the records"),
        (planted.images_tied_to_the_draw, planted.batch_config, "of a query depend on the records"),
    ],
)
def test_use_of_records_without_the_curator_is_caught(monkeypatch, bug, config, words):
    bug(monkeypatch)
    with pytest.raises(Violation, match=words):
        only_the_answers(config())


@pytest.mark.parametrize("config", [planted.record_config, planted.embedding_config])
def test_the_present_code_draws_fresh_randomness(config):
    assert "share no random number" in check_fresh_randomness(config(), STAGES)


def test_the_same_seed_after_resume_is_caught(monkeypatch):
    planted.same_seed_after_resume(monkeypatch)
    with pytest.raises(Violation, match="a seed is fixed"):
        check_fresh_randomness(planted.batch_config(), STAGES)


def test_a_test_seed_is_caught():
    with pytest.raises(Violation, match="a seed is fixed"):
        check_fresh_randomness(planted.config_of(planted.RECORD | {"test_seed": 3}), STAGES)


def test_the_worst_record_moves_a_whole_batch_across_the_ball(sound):
    """The K queries of a step on the same subsample differ by K·2·clip_norm, and not in direction."""
    target = sound["batch_steps"]["batch_steps"][0]
    assert shift(target, 4) == pytest.approx(3.0, rel=1e-5)
    assert target.stddev == pytest.approx(math.sqrt(3) * 1.5 * 2 * 0.5)
