"""Accounting: published values, closed forms of Gaussian composition, and monotonicity in every argument."""

import logging
import math
from collections.abc import Callable

import pytest
from dp_accounting.pld import PLDAccountant
from scipy.optimize import brentq
from scipy.special import erfc

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy import accounting
from dp_sinkhorn.privacy.accounting import (
    Charge,
    epsilon_pld,
    epsilon_rdp,
    epsilons,
    merged,
    privacy_profile,
)

DELTA = 1e-5

COARSE = 1e-3


def gaussian(noise_multiplier: float, count: int = 1, rate: float = 1.0, name: str = "step") -> Charge:
    return Charge(name=name, noise_multiplier=noise_multiplier, sample_rate=rate, count=count)


def normal_cdf(x: float) -> float:
    return 0.5 * float(erfc(-x / math.sqrt(2.0)))


def gaussian_delta(epsilon: float, noise_multiplier: float) -> float:
    """δ(ε) of one Gaussian release (Balle and Wang 2018, theorem 8)."""
    mu = 1.0 / noise_multiplier
    return normal_cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * normal_cdf(-mu / 2 - epsilon / mu)


def gaussian_epsilon(noise_multiplier: float, delta: float = DELTA) -> float:
    return float(brentq(lambda epsilon: gaussian_delta(epsilon, noise_multiplier) - delta, 0.0, 200.0))


@pytest.mark.quick
def test_published_values_are_reproduced() -> None:
    """σ = 1.1, 50 of 60,000 records per step, 100,000 steps, δ = 10⁻⁵."""
    spent = epsilons([gaussian(1.1, count=100_000, rate=50 / 60_000)], DELTA)
    assert spent.rdp == pytest.approx(1.243, abs=2e-3)
    assert spent.pld == pytest.approx(1.138, abs=2e-3)


@pytest.mark.parametrize("noise_multiplier", [0.7, 4.0, 30.0])
def test_one_gaussian_has_its_closed_form(noise_multiplier: float) -> None:
    exact = gaussian_epsilon(noise_multiplier)
    assert epsilon_pld([gaussian(noise_multiplier)], DELTA) == pytest.approx(exact, abs=1e-3)
    coarse = epsilon_pld([gaussian(noise_multiplier)], DELTA, COARSE)
    assert exact - 1e-9 <= coarse <= exact + 1e-2


@pytest.mark.quick
@pytest.mark.parametrize(("count", "noise_multiplier"), [(4, 2.0), (100, 30.0)])
def test_k_gaussians_are_one_with_the_noise_divided_by_root_k(count: int, noise_multiplier: float) -> None:
    exact = gaussian_epsilon(noise_multiplier / math.sqrt(count))
    # The discretization error adds up over the composition, upwards.
    assert exact - 1e-6 <= epsilon_pld([gaussian(noise_multiplier, count)], DELTA) <= exact + 5e-3


def test_different_gaussians_add_their_mu_squared() -> None:
    charges = [gaussian(3.0, name="a"), gaussian(4.0, name="b"), gaussian(12.0, count=2, name="c")]
    mu = math.sqrt(1 / 9 + 1 / 16 + 2 / 144)
    assert epsilon_pld(charges, DELTA) == pytest.approx(gaussian_epsilon(1.0 / mu), abs=2e-3)


@pytest.mark.parametrize("bound", [epsilon_pld, epsilon_rdp])
def test_more_steps_larger_rate_less_noise_and_smaller_delta_cost_more(bound: Callable[..., float]) -> None:
    base = bound([gaussian(3.0, count=200, rate=0.05)], DELTA)
    assert bound([gaussian(3.0, count=400, rate=0.05)], DELTA) > 1.2 * base
    assert bound([gaussian(3.0, count=200, rate=0.1)], DELTA) > 1.2 * base
    assert bound([gaussian(2.0, count=200, rate=0.05)], DELTA) > 1.2 * base
    assert bound([gaussian(3.0, count=200, rate=0.05)], 1e-7) > base
    assert bound([gaussian(3.0, count=200, rate=0.05), gaussian(5.0, name="once")], DELTA) > base


def test_subsampling_costs_less_than_releasing_on_all_records() -> None:
    assert epsilon_pld([gaussian(3.0, 20, rate=0.1)], DELTA) < 0.5 * epsilon_pld([gaussian(3.0, 20)], DELTA)


@pytest.mark.parametrize(("noise_multiplier", "count", "rate"), [(1.0, 1, 1.0), (2.5, 500, 0.1)])
def test_the_tight_bound_is_below_the_classical_one(noise_multiplier: float, count: int, rate: float) -> None:
    spent = epsilons([gaussian(noise_multiplier, count, rate)], DELTA)
    assert 0.0 < spent.pld <= spent.rdp


def test_the_measured_error_of_delta_is_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an accountant whose δ is too small by 1e-16 per subsampled release, as `dp-accounting` may be."""
    charges, delta = [gaussian(21.08, count=100_000, rate=0.01), gaussian(9.0, name="once")], 1e-10
    lost = 1e-16 * 100_000
    honest = accounting._pld_accountant(COARSE)
    for event in accounting.events_of(charges):
        honest.compose(event)

    class Wrong(PLDAccountant):  # type: ignore[misc]
        def get_epsilon(self, target_delta: float) -> float:
            return float(super().get_epsilon(target_delta + lost))

        def get_delta(self, target_epsilon: float) -> float:
            return float(super().get_delta(target_epsilon)) - lost

    monkeypatch.setattr("dp_accounting.pld.PLDAccountant", Wrong)
    accounting._epsilon_pld.cache_clear()
    accounting._privacy_profile.cache_clear()
    assert honest.get_epsilon(delta + lost) < honest.get_epsilon(delta) <= epsilon_pld(charges, delta, COARSE)
    values, deltas = privacy_profile(charges, 1e-12, 20, COARSE)
    assert all(found >= honest.get_delta(float(value)) for value, found in zip(values, deltas, strict=True))
    accounting._epsilon_pld.cache_clear()
    accounting._privacy_profile.cache_clear()


def test_a_delta_smaller_than_its_rounding_error_is_refused() -> None:
    charges = [gaussian(21.08, count=100_000, rate=0.01)]
    with pytest.raises(InputError, match=r"delta=1e-13 cannot be accounted for .* give at least 6e-11"):
        epsilons(charges, 1e-13)
    assert epsilons(charges, 1e-10).pld > epsilons(charges, 1e-9).pld > 0.0
    # Releases on all records have a closed form and take no power.
    assert epsilons([gaussian(21.08, count=100)], 1e-13).pld > 0.0


def test_merged_keeps_totals_and_only_joins_equal_releases() -> None:
    charges = [gaussian(2.0, count=3, rate=0.1), gaussian(5.0, name="once"), gaussian(2.0, count=4, rate=0.1)]
    charges += [gaussian(2.0, count=1, rate=0.2), gaussian(2.0, count=1), gaussian(7.0, count=0)]
    joined = merged(charges)
    assert {(c.name, c.noise_multiplier, c.sample_rate): c.count for c in joined} == {
        ("step", 2.0, 0.1): 7,
        ("once", 5.0, 1.0): 1,
        ("step", 2.0, 0.2): 1,
        ("step", 2.0, 1.0): 1,
    }
    assert len(joined) == 4


def test_blocks_cost_what_the_whole_costs() -> None:
    blocks = [Charge(name="step", noise_multiplier=3.0, sample_rate=0.05, first=k * 50, count=50) for k in range(4)]
    assert epsilon_pld(blocks, DELTA) == epsilon_pld([gaussian(3.0, count=200, rate=0.05)], DELTA)


def test_nothing_released_costs_nothing() -> None:
    assert epsilon_pld([], DELTA) == 0.0


@pytest.mark.quick
@pytest.mark.parametrize(
    "values",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"noise_multiplier": 1.0, "sample_rate": 0.0},
        {"noise_multiplier": 1.0, "sample_rate": 1.5},
        {"noise_multiplier": 1.0, "count": -1},
        {"noise_multiplier": 1.0, "first": -1},
        {"noise_multiplier": 1.0, "sampling": "shuffled"},
    ],
)
def test_what_cannot_be_analysed_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Charge(name="step", **values)


def test_the_bound_leaves_the_log_level_as_it_was() -> None:
    logger = logging.getLogger("absl")
    before = logger.level
    epsilon_rdp([gaussian(1.1, 10, 0.01)], DELTA)
    assert logger.level == before


def test_a_bound_is_computed_once_whatever_the_order_of_the_charges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []

    class Counting(PLDAccountant):  # type: ignore[misc]
        def __init__(self, *args: object, **kwargs: object) -> None:
            made.append(1)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr("dp_accounting.pld.PLDAccountant", Counting)
    # Numbers that no other test uses, so they are not in the cache.
    first, second = gaussian(3.21, name="a"), gaussian(4.56, count=2, name="b")
    bound = epsilon_pld([first, second], DELTA, COARSE)
    assert epsilon_pld([gaussian(4.56, name="b"), first, gaussian(4.56, name="b")], DELTA, COARSE) == bound
    assert len(made) == 1
    assert epsilon_pld([first, second], 2 * DELTA, COARSE) < bound
    assert epsilon_pld([first], DELTA, COARSE) < bound
    assert epsilon_pld([first, second], DELTA, 2 * COARSE) > bound
    assert len(made) == 4


def test_a_profile_that_is_handed_out_again_cannot_be_changed() -> None:
    for array in privacy_profile([gaussian(3.21)], 1e-6, 5, COARSE):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0.0
