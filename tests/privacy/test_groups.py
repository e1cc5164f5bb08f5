"""Group privacy: closed forms, integrals of one mixture, and monotonicity."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import binom, norm

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import Charge, epsilon_pld
from dp_sinkhorn.privacy.groups import epsilon_of_several

DELTA = 1e-5


def release(noise: float, rate: float = 1.0, count: int = 1, name: str = "step") -> Charge:
    return Charge(name=name, noise_multiplier=noise, sample_rate=rate, count=count)


def gaussian_epsilon(mu: float) -> float:
    """ε at `DELTA` of one Gaussian release of signal-to-noise ratio μ (Balle and Wang 2018, theorem 8)."""

    def excess(epsilon: float) -> float:
        return float(ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon) * ndtr(-mu / 2 - epsilon / mu)) - DELTA

    return float(brentq(excess, 0.0, 300.0))


def mixture_epsilon(shifts: dict[float, float], noise: float) -> float:
    """ε at `DELTA` of N(0, σ²) and Σ p·N(shift, σ²), in both directions, by the trapezoidal rule."""
    x = np.linspace(-15.0, 15.0, 300_001)
    without = norm.pdf(x, 0.0, noise)
    with_them = sum(p * norm.pdf(x, shift, noise) for shift, p in shifts.items())

    def delta(epsilon: float) -> float:
        there = np.maximum(with_them - math.exp(epsilon) * without, 0.0)
        back = np.maximum(without - math.exp(epsilon) * with_them, 0.0)
        return float(max(np.trapezoid(there, x), np.trapezoid(back, x)))

    return float(brentq(lambda epsilon: delta(epsilon) - DELTA, 1e-3, 30.0, xtol=1e-6))


@pytest.mark.parametrize("records", [1, 2, 5])
def test_on_all_records_the_signal_grows_with_the_number_of_records(records: int) -> None:
    charges = [release(6.0, name="class_counts"), release(8.0, name="first_moments")]
    exact = gaussian_epsilon(records * math.hypot(1 / 6, 1 / 8))
    assert exact - 1e-9 <= epsilon_of_several(charges, DELTA, records) <= 1.02 * exact


@pytest.mark.parametrize("records", [1, 2, 3])
def test_in_a_subsample_a_binomial_number_of_records_takes_part(records: int) -> None:
    """Records are drawn independently; j drawn records shift the release by j."""
    shifts = dict(zip(range(records + 1), binom.pmf(range(records + 1), records, 0.2), strict=True))
    exact = mixture_epsilon(shifts, noise=1.5)
    assert exact - 1e-6 <= epsilon_of_several([release(1.5, 0.2)], DELTA, records) <= 1.02 * exact


@pytest.mark.parametrize("records", [1, 2, 3])
def test_a_whole_batch_moves_by_one_sensitivity_however_many_take_part(records: int) -> None:
    none = (1 - 0.2) ** records
    exact = mixture_epsilon({0.0: none, 1.0: 1 - none}, noise=1.5)
    assert exact - 1e-6 <= epsilon_of_several([release(1.5, 0.2)], DELTA, records, {"step"}) <= 1.02 * exact


def test_vectors_reveal_less_than_numbers_of_their_lengths() -> None:
    """Two records with contributions of norm 1 at an angle: the bound is that of both in one direction."""
    noise, rate, random = 1.0, 0.3, np.random.default_rng(0)
    epsilon = epsilon_of_several([release(noise, rate)], 0.05, 2)
    points = random.normal(0.0, noise, (150_000, 2))
    weights = binom.pmf([0, 1, 2], 2, rate) / [1, 2, 1]

    def reached(second: np.ndarray) -> float:
        """δ(ε) of the mixture against the noise alone, by the noise's own samples."""
        first = np.array([1.0, 0.0])
        shifts = [(0 * first, weights[0]), (first, weights[1]), (second, weights[1]), (first + second, weights[2])]
        ratio = sum(p * np.exp((points @ c - c @ c / 2) / noise**2) for c, p in shifts)
        return float(np.maximum(ratio - math.exp(epsilon), 0.0).mean())

    angles = [reached(np.array([math.cos(a), math.sin(a)])) for a in (0.0, 0.5, 1.0, 2.0, math.pi)]
    assert angles == sorted(angles, reverse=True)
    assert angles[0] > 1.5 * angles[-1]
    # The sampling error is 4 %; the samples are always the same.
    assert angles[0] == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize(("whole_batches", "steps"), [(set(), 500), ({"step"}, 50_000)])
def test_one_record_costs_what_is_claimed_and_more_cost_more(whole_batches: set[str], steps: int) -> None:
    charges = [release(20.0, 0.1 * (500 / steps) ** 0.5, steps), release(30.0, name="class_counts")]
    claimed = epsilon_pld(charges, DELTA)
    found = [epsilon_of_several(charges, DELTA, records, whole_batches) for records in (1, 2, 3)]
    assert claimed * (1.0 - 1e-9) <= found[0] <= 1.01 * claimed
    # 2ε holds at a larger δ only.
    assert found[1] > 2.0 * claimed
    assert found[2] > 1.4 * found[1]


def test_what_cannot_be_accounted_for_is_refused() -> None:
    with pytest.raises(InputError, match=r"noise_multiplier=0\.001 cannot be accounted for"):
        epsilon_of_several([release(0.001)], DELTA, 2)
