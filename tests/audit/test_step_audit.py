"""The step audit passes the code as it is and catches every planted bug, with a sentence that names it."""

import math

import pytest

from dp_sinkhorn.audit.freshness import check_fresh_randomness
from dp_sinkhorn.audit.neighbouring import Finding
from dp_sinkhorn.audit.stage import StepSubject
from dp_sinkhorn.audit.stand_in import embedding_alone
from dp_sinkhorn.audit.step_audit import StepAudit, audit_step
from dp_sinkhorn.settings import RunConfig
from support import planted

DRAWS, SEED = 100, 20


def failures(result: StepAudit) -> dict[str, str]:
    return {check.name: check.finding for check in result.checks if not check.ok}


@pytest.mark.parametrize(
    "config",
    [
        planted.record_config(potential_iterations=3),
        planted.record_config(expected_batch_size=200),
        planted.batch_config(),
        planted.batch_config(queries_per_step=1, l1_weight=1.0, debias_fraction=0.0),
    ],
    ids=["record, fitted potential", "record, everybody drawn", "batch, 3 queries", "batch, mixed cost"],
)
def test_the_code_as_it_is_passes_and_its_noise_multiplier_is_found(config):
    result = audit_step(StepSubject(config), DRAWS, SEED)
    assert failures(result) == {}
    assert len(result.checks) == 7
    low, high = result.trade_off.noise_multiplier
    # The interval of a standard deviation from 100 normals, at level 2e-6, is about ±4.75/√200.
    assert 1.5 / 1.7 < low < 1.5 < high < 1.5 * 1.7
    assert 0.0 <= result.trade_off.epsilon <= result.trade_off.epsilon_claimed


def test_the_embedding_as_it_is_passes_and_its_noise_multiplier_is_found():
    result = audit_step(StepSubject(planted.embedding_config()), DRAWS, SEED)
    assert failures(result) == {}
    assert [check.name for check in result.checks] == ["sensitivity", "trade-off", "noise", "only the release"]
    low, high = result.trade_off.noise_multiplier
    assert 1.5 / 1.7 < low < 1.5 < high < 1.5 * 1.7
    assert 0.0 <= result.trade_off.epsilon <= result.trade_off.epsilon_claimed


def test_an_embedding_beside_the_steps_is_audited_as_one_in_their_place():
    beside = planted.record_config(embedding_share=0.2, num_frequencies=50)
    alone = embedding_alone(beside)
    assert RunConfig.model_validate(alone.model_dump()) == alone
    noise = beside.privacy.once["class_embedding"]
    assert (alone.privacy.noise_multiplier, alone.rules.wavelet_weight) == (noise, beside.matching.wavelet_weight)
    result = audit_step(StepSubject(alone), DRAWS, SEED)
    assert failures(result) == {}
    low, high = result.trade_off.noise_multiplier
    assert noise / 1.7 < low < noise < high < noise * 1.7
    # The steps know nothing of it.
    assert StepSubject(beside).config.matching is not None
    assert failures(audit_step(StepSubject(beside), DRAWS, SEED, ["sensitivity"])) == {}


@pytest.mark.parametrize(
    ("bug", "check", "words"),
    [
        (planted.features_not_bounded, "sensitivity", "by 7.071 times the sensitivity"),
        (planted.features_not_bounded, "trade-off", "less privacy than claimed"),
        (planted.record_in_every_class, "sensitivity", "by 1.414 times the sensitivity"),
        (planted.noise_on_half, "noise", "200 of 400 numbers carry next to none"),
        (planted.noise_on_the_wrong_block, "noise", "200 of 400 numbers carry next to none"),
        (planted.noise_that_comes_back, "noise", "comes back"),
        (planted.noise_ten_times_too_small, "trade-off", "less privacy than claimed"),
        (planted.noise_ten_times_too_small, "noise", "to 0.1"),
        (planted.weights_by_the_number_of_records, "only the release", "update depends on the records"),
    ],
)
def test_a_bug_planted_into_the_embedding_is_caught_and_named(monkeypatch, bug, check, words):
    bug(monkeypatch)
    found = failures(audit_step(StepSubject(planted.embedding_config()), DRAWS, SEED, [check]))
    assert words in found[check], found


@pytest.mark.parametrize(
    ("bug", "config", "check", "words"),
    [
        (planted.factor_two_forgotten, planted.batch_config(), "sensitivity", "by 2 times the sensitivity"),
        (planted.factor_two_forgotten, planted.batch_config(), "trade-off", "less privacy than claimed"),
        (planted.clip_skipped_for_one, planted.record_config(), "sensitivity", "a clip or a factor is missing"),
        (planted.clip_skipped_for_one, planted.batch_config(), "sensitivity", "a clip or a factor is missing"),
        (planted.twice_the_sum, planted.record_config(), "sensitivity", "by 2 times the sensitivity"),
        (planted.one_release_not_finite, planted.record_config(), "sensitivity", "a release is not finite"),
        (planted.noise_on_half, planted.record_config(), "noise", "carry next to none"),
        (planted.noise_on_half, planted.batch_config(), "noise", "256 of 512 numbers carry next to none"),
        (planted.noise_on_the_wrong_block, planted.record_config(), "noise", "carry next to none"),
        (planted.noise_on_the_wrong_block, planted.batch_config(), "noise", "256 of 512 numbers carry next to none"),
        (planted.noise_shared_by_all_images, planted.record_config(), "noise", "some share theirs"),
        (planted.noise_that_comes_back, planted.record_config(), "noise", "comes back"),
        (planted.noise_scaled_by_the_drawn_batch, planted.record_config(), "empty draws", "carry next to none"),
        (planted.noise_scaled_by_the_drawn_batch, planted.batch_config(), "empty draws", "carry next to none"),
        (planted.empty_draws_drawn_again, planted.record_config(), "subsampling", "empty draws are skipped"),
        (planted.empty_draws_drawn_again, planted.batch_config(queries_per_step=1), "subsampling", "empty draws"),
        (planted.empty_draws_skipped, planted.record_config(), "empty draws", "made 0 releases, not one"),
        (planted.empty_draws_without_noise, planted.record_config(), "empty draws", "carry next to none"),
        (planted.potential_from_private_records, planted.record_config(), "only the release", "the potentials"),
        (planted.images_tied_to_the_draw, planted.record_config(), "noise and draw", "it tells the draw"),
        (planted.images_tied_to_the_draw, planted.batch_config(), "noise and draw", "it tells the draw"),
        (planted.field_divided_by_the_drawn_number, planted.record_config(), "only the release", "update depends"),
        (planted.noise_ten_times_too_small, planted.record_config(), "trade-off", "less privacy than claimed"),
        (planted.noise_ten_times_too_small, planted.batch_config(), "noise", "to 0.1"),
    ],
)
def test_a_planted_bug_is_caught_and_named(monkeypatch, bug, config, check, words):
    bug(monkeypatch)
    found = failures(audit_step(StepSubject(config), DRAWS, SEED, [check]))
    assert words in found[check], found


def test_randomness_of_the_code_as_it_is_is_fresh():
    for config in (planted.record_config(), planted.embedding_config()):
        assert "share no random number" in check_fresh_randomness(config)


def test_the_same_seed_after_resume_is_caught(monkeypatch):
    planted.same_seed_after_resume(monkeypatch)
    with pytest.raises(Finding, match="a seed is fixed"):
        check_fresh_randomness(planted.batch_config())


def test_a_test_seed_is_caught():
    with pytest.raises(Finding, match="a seed is fixed"):
        check_fresh_randomness(planted.record_config(test_seed=3))


def test_the_worst_record_in_a_whole_batch_moves_a_query_from_one_end_of_the_ball_to_the_other():
    """Without noise: the K queries of a step on the same subsample differ by K·2·clip_norm, and not in direction."""
    config = planted.batch_config(clip_norm=0.25)
    subject = StepSubject(config)
    world = subject.ordinary(4)
    without, with_record = (
        subject.stage(records, 1.0, 1e-12).release(planted.CryptoRandom(test_seed=0))
        for records in (world, subject.with_far(world, 4))
    )
    assert float((with_record - without).norm()) == pytest.approx(3 * 2 * 0.25, rel=1e-5)
    assert subject.stddev == pytest.approx(math.sqrt(3) * 1.5 * 2 * 0.25)
