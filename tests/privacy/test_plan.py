"""The plan of a run: it spends its target and not more, and refuses what it cannot keep."""

import math

import pytest
from pydantic import ValidationError

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import epsilon_pld
from dp_sinkhorn.privacy.calibration import gaussian_noise_multiplier
from dp_sinkhorn.privacy.plan import (
    CLASS_COUNTS,
    CLASS_EMBEDDING,
    CLASS_MOMENTS,
    CLASSIFIER,
    FIRST_MOMENTS,
    SECOND_MOMENT,
    STEP,
    PrivacyPlan,
    budget_warnings,
    default_sanitize,
    delta_warning,
    make_plan,
    noise_warning,
)


@pytest.mark.parametrize(
    ("epsilon", "delta", "num_records", "batch", "num_steps"),
    [
        (10.0, 1e-5, 60_000, 6_000, 5_000),
        (1.0, 1e-5, 60_000, 6_000, 5_000),
        (0.2, 1e-5, 5_000, 500, 500),
        (10.0, 1e-4, 1_000, 1_000, 50),
        (1.0, 1e-4, 1_000, 1_000, 100),
        (0.2, 1e-4, 1_000, 1_000, 20),
        (1.0, 1e-3, 300, 3, 200),
    ],
)
def test_the_whole_plan_spends_its_target_and_no_more(
    epsilon: float, delta: float, num_records: int, batch: int, num_steps: int
) -> None:
    plan = make_plan(num_records, epsilon, delta, num_steps, batch)
    assert plan.sample_rate == batch / num_records
    assert plan.expected_batch_size == pytest.approx(batch)
    assert sum(charge.count for charge in plan.charges()) == num_steps + 3
    assert 0.99 * epsilon <= epsilon_pld(plan.charges(), delta) <= epsilon


def test_charges_are_what_the_plan_says() -> None:
    plan = make_plan(1_000, 1.0, 1e-4, 20, 100)
    once = {charge.name: charge for charge in plan.once_charges()}
    assert set(once) == {CLASS_COUNTS, FIRST_MOMENTS, SECOND_MOMENT}
    for name, charge in once.items():
        assert (charge.noise_multiplier, charge.sample_rate, charge.count) == (plan.once[name], 1.0, 1)
    (step,) = plan.step_charges(5, 7)
    assert (step.name, step.noise_multiplier, step.sample_rate) == (STEP, plan.noise_multiplier, 0.1)
    assert (step.first, step.count) == (5, 7)
    assert plan.charges() == (*plan.once_charges(), *plan.step_charges(0, 20))


@pytest.mark.parametrize(
    ("epsilon", "delta", "num_records"), [(10.0, 1e-5, 1_437), (1.0, 1e-4, 4_708), (0.2, 1e-5, 60_000)]
)
def test_with_an_embedding_the_whole_plan_spends_its_target_and_steps_cost_nothing(
    epsilon: float, delta: float, num_records: int
) -> None:
    plan = make_plan(num_records, epsilon, delta, sanitize="embedding", moments_share=0.25, classifier_share=0.15)
    assert {charge.name for charge in plan.charges()} == {
        CLASS_COUNTS, FIRST_MOMENTS, SECOND_MOMENT, CLASS_MOMENTS, CLASSIFIER, CLASS_EMBEDDING,
    }  # fmt: skip
    assert plan.once[CLASS_EMBEDDING] == plan.noise_multiplier
    assert (plan.num_steps, plan.queries_per_step, plan.step_charges(0, 500)) == (500, 0, ())
    assert 0.99 * epsilon <= epsilon_pld(plan.charges(), delta) <= epsilon
    # However many steps: the same noise.
    more = make_plan(num_records, epsilon, delta, 7, sanitize="embedding", moments_share=0.25, classifier_share=0.15)
    assert (more.num_steps, more.once) == (7, plan.once)


def test_an_embedding_takes_the_noise_that_is_given_if_the_target_allows_it() -> None:
    plan = make_plan(5_000, 1.0, 1e-4, sanitize="embedding", noise_multiplier=9.0)
    assert plan.once[CLASS_EMBEDDING] == 9.0
    assert epsilon_pld(plan.charges(), 1e-4) < 0.6
    with pytest.raises(InputError, match=r"noise_multiplier=2 spend epsilon=.*, more than 1; give more noise"):
        make_plan(5_000, 1.0, 1e-4, sanitize="embedding", noise_multiplier=2.0)


def test_steps_without_queries_and_an_embedding_belong_together() -> None:
    embedded = make_plan(5_000, 1.0, 1e-4, sanitize="embedding").model_dump()
    by_record = make_plan(5_000, 1.0, 1e-4).model_dump()
    for damaged in (
        {**embedded, "noise_multiplier": 1.0},
        {**by_record, "queries_per_step": 0},
    ):
        with pytest.raises(ValidationError, match="does not fit the noise of class_embedding"):
            PrivacyPlan.model_validate(damaged)


@pytest.mark.parametrize(("epsilon", "delta", "num_records"), [(10.0, 1e-4, 4_708), (1.0, 1e-5, 60_000)])
def test_an_embedding_beside_steps_takes_its_share_and_the_whole_plan_spends_its_target(
    epsilon: float, delta: float, num_records: int
) -> None:
    alone, shared = (make_plan(num_records, epsilon, delta, embedding_share=share) for share in (0.0, 0.2))
    assert CLASS_EMBEDDING not in alone.once
    # A fifth of the μ² of one release that spends everything.
    whole = gaussian_noise_multiplier(epsilon, delta)
    assert shared.once[CLASS_EMBEDDING] == pytest.approx(whole / 0.2**0.5, rel=1e-3)
    assert shared.noise_multiplier > alone.noise_multiplier
    assert (shared.num_steps, shared.queries_per_step) == (alone.num_steps, 1)
    for plan in (alone, shared):
        assert 0.99 * epsilon <= epsilon_pld(plan.charges(), delta) <= epsilon


@pytest.mark.parametrize(
    ("epsilon", "delta", "num_records", "chosen"),
    [
        (10.0, 1e-5, 60_000, "record"),
        (1.0, 1e-5, 60_000, "record"),
        (0.2, 1e-5, 60_000, "embedding"),
        (0.2, 1e-5, 10_000, "record"),
        (10.0, 1e-4, 4_708, "record"),
        (1.0, 1e-4, 4_708, "record"),
        (1.0, 1e-5, 15_000, "embedding"),
        (0.2, 1e-4, 4_708, "record"),
        (10.0, 1e-5, 2_000, "embedding"),
        (10.0, 1e-5, 1_437, "record"),
        (10.0, 1e-5, 300, "record"),
    ],
)
def test_a_small_budget_is_spent_on_an_embedding_and_a_smaller_one_on_steps(
    epsilon: float, delta: float, num_records: int, chosen: str
) -> None:
    """From 1e-4 to 3e-4 of noise a record: 0.5 / N at ε = 10, 3.7 (δ = 1e-4: 3.2) / N at 1, 16.3 (13.3) / N at 0.2."""
    assert default_sanitize(epsilon, delta, num_records) == chosen


def test_what_is_released_once_takes_a_twentieth_of_the_budget() -> None:
    """μ² of the releases made once, against μ² of one Gaussian that spends everything: 1 + 1 + 3 %."""
    plan = make_plan(60_000, 1.0, 1e-5, 20, 6_000)
    whole = 1.0 / 3.7306**2
    assert sum(1.0 / noise**2 for noise in plan.once.values()) == pytest.approx(0.05 * whole, rel=2e-3)


@pytest.mark.parametrize(
    ("num_records", "share"),
    [(60_000, 0.01), (5_276, 0.01), (3_731, 0.02), (1_865, 0.08), (1_000, 0.1)],
)
def test_few_records_give_the_first_moments_a_larger_share(num_records: int, share: float) -> None:
    """√2·3.7306/(N·√share) is to be 0.01, for shares of 1 to 10 % of the budget."""
    plan = make_plan(num_records, 1.0, 1e-5, 20, 500)
    assert (3.7306 / plan.once[FIRST_MOMENTS]) ** 2 == pytest.approx(share, rel=2e-3)
    assert (3.7306 / plan.once[SECOND_MOMENT]) ** 2 == pytest.approx(0.03, rel=2e-3)


@pytest.mark.parametrize(
    ("num_records", "epsilon", "small", "tiny"),
    [
        (60_000, 1.0, False, False),  # noise a record of one release of all: 6.2e-5
        (60_000, 0.2, True, False),  # 2.7e-4
        (4_708, 1.0, True, False),  # 6.8e-4
        (8_009, 0.3, True, True),  # 1.2e-3
        (4_708, 0.2, True, True),  # 2.8e-3
    ],
)
def test_how_little_a_budget_is_depends_on_the_noise_a_record(
    num_records: int, epsilon: float, small: bool, tiny: bool
) -> None:
    plan = make_plan(num_records, epsilon, 1e-5 if num_records > 10_000 else 1e-4, 100)
    assert (plan.small_budget, plan.tiny_budget) == (small, tiny)


def test_declared_classes_are_not_counted() -> None:
    plan = make_plan(1_000, 1.0, 1e-4, 20, 100, count_classes=False)
    assert CLASS_COUNTS not in plan.once
    assert all(charge.name != CLASS_COUNTS for charge in plan.charges())
    assert 0.99 <= epsilon_pld(plan.charges(), 1e-4) <= 1.0


@pytest.mark.parametrize(("num_records", "batch"), [(100_000, 10_000), (5_000, 2_000), (300, 300), (1, 1)])
def test_default_batch_is_a_public_rule(num_records: int, batch: int) -> None:
    assert make_plan(num_records, 1.0, 1e-6, 5).expected_batch_size == pytest.approx(batch)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_epsilon": 0.0}, "epsilon=0 "),
        ({"target_epsilon": -1.0}, "epsilon=-1 "),
        ({"target_epsilon": math.nan}, "epsilon=nan "),
        ({"target_epsilon": math.inf}, "epsilon=inf "),
        ({"target_delta": 0.0}, "delta=0 "),
        ({"target_delta": 1.0}, "delta=1 "),
        ({"target_delta": 2.0}, "delta=2 "),
        ({"target_delta": math.nan}, "delta=nan "),
        ({"num_records": 0}, "num_records=0 "),
        ({"num_steps": 0}, "num_steps=0 "),
        ({"expected_batch_size": 0}, "expected_batch_size=0 "),
        ({"expected_batch_size": -5}, "expected_batch_size=-5 "),
        ({"expected_batch_size": 1_001}, "expected_batch_size=1001 exceeds the 1000 records"),
        ({"target_epsilon": 1e6}, "epsilon=1e"),
        ({"target_epsilon": 1e-9, "target_delta": 1e-10}, "epsilon=1e-09"),
        ({"moments_share": 0.6, "classifier_share": 0.5}, "takes 1.24 of the budget, which leaves none for training"),
        ({"classifier_share": 1e-20}, "times the sensitivity, more than 8.38861e+06"),
        ({"moments_share": 1e-13}, "epsilon=1 needs noise of 1.18e+07 times the sensitivity, more than 8.38861e+06"),
        (
            {"sanitize": "batch", "expected_batch_size": 1_000, "queries_per_step": 400, "target_epsilon": 1e-4},
            "times the sensitivity, more than 8.38861e+06",
        ),
    ],
)
def test_a_value_out_of_range_is_named_in_one_line(values: dict[str, float], message: str) -> None:
    usual = {"num_records": 1_000, "target_epsilon": 1.0, "target_delta": 1e-5, "num_steps": 10}
    with pytest.raises(InputError) as caught:
        make_plan(**(usual | values))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("delta", "num_records"), [(1e-5, 100_000), (0.5, 10), (1e-3, 1_000)])
def test_a_delta_of_1_over_n_or_more_is_warned_about(delta: float, num_records: int) -> None:
    warning = delta_warning(delta, num_records)
    assert warning is not None
    assert f"delta={delta:g}" in warning
    assert "\n" not in warning


@pytest.mark.parametrize(("delta", "num_records"), [(0.99e-5, 100_000), (1e-9, 10), (1e-5, 60_000)])
def test_a_delta_below_1_over_n_is_not(delta: float, num_records: int) -> None:
    assert delta_warning(delta, num_records) is None


@pytest.mark.parametrize(("epsilon", "num_records", "needed"), [(10.0, 5, "200"), (0.05, 60, "20,000")])
def test_too_few_records_for_a_budget_are_warned_about(epsilon: float, num_records: int, needed: str) -> None:
    warning = noise_warning(epsilon, 1e-5, num_records)
    assert warning is not None
    assert f"{num_records} records are too few for epsilon={epsilon:g}" in warning
    assert f"need about {needed} records" in warning
    assert budget_warnings(epsilon, 1e-5, num_records) == (warning,)


@pytest.mark.parametrize(("epsilon", "num_records"), [(0.2, 60_000), (0.2, 4_708), (1.0, 1_437), (10.0, 60)])
def test_records_that_show_in_the_images_are_not(epsilon: float, num_records: int) -> None:
    assert noise_warning(epsilon, 1e-5, num_records) is None


def test_batch_and_steps_depend_on_the_number_of_records() -> None:
    small, large = make_plan(3_000, 10.0, 1e-5), make_plan(60_000, 10.0, 1e-5)
    assert (small.num_steps, small.expected_batch_size) == (2_000, 2_000)
    assert (large.num_steps, large.expected_batch_size) == (1_000, 6_000)
    assert make_plan(500, 10.0, 1e-5).sample_rate == 1.0


def test_queries_of_whole_batches_are_charged_one_by_one() -> None:
    plan = make_plan(1_000, 1.0, 1e-4, 20, 100, count_classes=False, sanitize="batch", queries_per_step=8)
    assert plan.once == {}
    assert plan.charges() == plan.step_charges(0, 20)
    assert [(charge.first, charge.count) for charge in plan.step_charges(5, 7)] == [(40, 56)]
    one_each = make_plan(1_000, 1.0, 1e-4, 160, 100, count_classes=False, sanitize="batch")
    assert plan.noise_multiplier == one_each.noise_multiplier


def test_with_given_noise_the_run_is_as_long_as_epsilon_allows() -> None:
    plan = make_plan(1_000, 2.0, 1e-4, None, 20, False, "batch", queries_per_step=3, noise_multiplier=1.1)
    spent = epsilon_pld(plan.charges(), 1e-4)
    longer = plan.model_copy(update={"num_steps": math.ceil(1.002 * plan.num_steps) + 1})
    assert spent <= 2.0 < epsilon_pld(longer.charges(), 1e-4)
    assert plan.noise_multiplier == 1.1


def test_the_papers_noise_allows_millions_of_queries() -> None:
    """(10, 1e-5) with σ = 1.1 at 50 of 60,000: 4.4 million by privacy-loss distributions."""
    plan = make_plan(60_000, 10.0, 1e-5, None, 50, False, "batch", noise_multiplier=1.1)
    assert plan.num_steps == pytest.approx(4.46e6, rel=0.01)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"noise_multiplier": 0.9, "num_steps": 500}, "500 steps with noise_multiplier=0.9 spend epsilon="),
        ({"noise_multiplier": 1e-3}, "noise_multiplier=0.001 is not in"),
        ({"noise_multiplier": 1e6}, "hardly spends epsilon=1; give num_steps"),
        ({"noise_multiplier": 0.5}, "1 steps with noise_multiplier=0.5 spend epsilon="),
        ({"queries_per_step": 0}, "queries_per_step=0"),
    ],
)
def test_given_noise_that_does_not_fit_is_refused(values: dict[str, float], named: str) -> None:
    usual = {"num_records": 1_000, "target_epsilon": 1.0, "target_delta": 1e-4, "expected_batch_size": 100}
    with pytest.raises(InputError, match=named):
        make_plan(**(usual | {"sanitize": "batch"} | values))  # type: ignore[arg-type]
