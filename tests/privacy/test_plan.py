"""Shares of a budget, and checks and warnings about ε and δ before anything is spent."""

import math

import pytest

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import epsilon_pld
from dp_sinkhorn.privacy.calibration import gaussian_noise_multiplier
from dp_sinkhorn.privacy.plan import (
    Budget,
    budget_warnings,
    check_count,
    check_target,
    delta_warning,
    noise_per_record,
    noise_warning,
)

pytestmark = pytest.mark.quick


def budget(epsilon: float = 1.0, sample_rate: float = 0.1) -> Budget:
    whole = gaussian_noise_multiplier(epsilon, 1e-5)
    return Budget(mode="record", whole=whole, num_records=1000, num_classes=2, sample_rate=sample_rate)


def test_releases_that_share_the_whole_budget_spend_its_epsilon() -> None:
    shared = budget()
    charges = [shared.once(name, share) for name, share in (("a", 0.2), ("b", 0.3), ("c.d", 0.5))]
    assert shared.taken == pytest.approx(1.0)
    assert [(charge.name, charge.sample_rate, charge.count) for charge in charges] == [
        (name, 1.0, 1) for name in ("a", "b", "c.d")
    ]
    assert epsilon_pld(charges, 1e-5) == pytest.approx(1.0, rel=2e-3)


def test_subsampled_releases_take_about_their_share() -> None:
    """By a central limit theorem: with the rest in one release on all records they spend about the whole."""
    shared = budget(sample_rate=0.05)
    charges = [shared.subsampled("steps", 0.4, 300), shared.once("rest", 0.6)]
    assert shared.taken == pytest.approx(1.0)
    assert (charges[0].sample_rate, charges[0].count) == (0.05, 300)
    assert epsilon_pld(charges, 1e-5) == pytest.approx(1.0, rel=0.1)


def test_noise_multipliers_are_written_with_four_digits() -> None:
    """Cards and ledgers hold them as decimals."""
    noise = budget().once("a", 0.123).noise_multiplier
    assert noise == float(f"{noise:.4g}")


def test_noise_per_record_is_that_of_one_release_of_all() -> None:
    assert noise_per_record(1.0, 1e-5, 2000) == pytest.approx(3.7306 / 2000, rel=1e-4)


@pytest.mark.parametrize(
    ("num_records", "wrong"), [(-1, "below 1"), (0, "below 1"), (10**12 + 1, "above 1000000000000")]
)
def test_a_number_of_records_that_nobody_has_is_refused(num_records: int, wrong: str) -> None:
    with pytest.raises(InputError, match=f"num_records={num_records} is {wrong}; give the number of private records"):
        noise_per_record(1.0, 1e-5, num_records)


@pytest.mark.parametrize(
    ("epsilon", "delta", "words"),
    [
        (0.0, 1e-5, "epsilon=0 "),
        (math.nan, 1e-5, "epsilon=nan "),
        (101.0, 1e-5, "hides nothing"),
        (1.0, 1e-15, "cannot be accounted for"),
        (1.0, 0.0, "delta=0 "),
        (1.0, 1.0, "delta=1 "),
    ],
)
def test_a_target_that_no_run_can_have_is_refused(epsilon: float, delta: float, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_target(epsilon, delta)


def test_more_queries_than_can_be_accounted_for_are_refused() -> None:
    check_count(10**9)
    with pytest.raises(InputError, match="1000000001 queries in all are more than 1000000000"):
        check_count(10**9 + 1)


@pytest.mark.parametrize(("delta", "num_records"), [(1e-5, 100_000), (0.5, 10), (1e-3, 1_000)])
def test_a_delta_of_1_over_n_or_more_is_warned_about(delta: float, num_records: int) -> None:
    warning = delta_warning(delta, num_records)
    assert warning is not None
    assert f"delta={delta:g}" in warning
    assert "\n" not in warning


@pytest.mark.parametrize(("delta", "num_records"), [(0.99e-5, 100_000), (1e-9, 10), (1e-5, 60_000)])
def test_a_delta_below_1_over_n_is_not_warned_about(delta: float, num_records: int) -> None:
    assert delta_warning(delta, num_records) is None


@pytest.mark.parametrize(("epsilon", "num_records", "needed"), [(10.0, 5, "200"), (0.05, 60, "20,000")])
def test_too_few_records_for_a_budget_are_warned_about(epsilon: float, num_records: int, needed: str) -> None:
    warning = noise_warning(epsilon, 1e-5, num_records)
    assert warning is not None
    assert f"{num_records} records are too few for epsilon={epsilon:g}" in warning
    assert f"need about {needed} records" in warning
    assert budget_warnings(epsilon, 1e-5, num_records) == (warning,)


@pytest.mark.parametrize(("epsilon", "num_records"), [(0.2, 60_000), (0.2, 4_708), (1.0, 1_437), (10.0, 60)])
def test_enough_records_for_a_budget_are_not_warned_about(epsilon: float, num_records: int) -> None:
    assert noise_warning(epsilon, 1e-5, num_records) is None
