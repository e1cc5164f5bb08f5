"""Bounds on membership attacks: closed forms of Gaussian tests, exact likelihood-ratio tests, and their shape."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import Charge
from dp_sinkhorn.privacy.tradeoff import attack_bounds, tpr_bound


def charge(noise_multiplier: float, count: int = 1, rate: float = 1.0, name: str = "step") -> Charge:
    return Charge(name=name, noise_multiplier=noise_multiplier, sample_rate=rate, count=count)


def gaussian_tpr(fpr: np.ndarray, mu: float) -> np.ndarray:
    """The best test of N(0, 1) against N(μ, 1) (Neyman and Pearson)."""
    return norm.cdf(norm.ppf(fpr) + mu)


def exact_tests(sigma: float, rate: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(FPR, TPR) of all likelihood-ratio tests of `count` Poisson-subsampled Gaussians, in both directions.

    Computed on a grid over the outputs of all releases together, without privacy-loss distributions.
    """
    axis = np.linspace(-9.0 * sigma, 1.0 + 9.0 * sigma, 1000 if count > 1 else 100_001)
    width = axis[1] - axis[0]
    without = norm.pdf(axis, 0.0, sigma) * width
    within = (1.0 - rate) * without + rate * norm.pdf(axis, 1.0, sigma) * width
    for _ in range(count - 1):
        without, within = (np.outer(one, one[: axis.size]).ravel() for one in (without, within))
    order = np.argsort(-within / without)
    false, true = np.cumsum(without[order]), np.cumsum(within[order])
    # "Record out" against "record in", and the reverse, where the attack guesses the opposite.
    return np.concatenate([false, 1.0 - true]), np.concatenate([true, 1.0 - false])


@pytest.mark.parametrize(("count", "sigma"), [(1, 20.0), (9, 6.0), (4, 0.7)])
def test_gaussian_releases_reach_their_closed_form_and_are_never_below(count: int, sigma: float) -> None:
    bounds = attack_bounds([charge(sigma, count)])
    mu = math.sqrt(count) / sigma
    fpr, tpr = np.array(bounds.curve).T
    excess = tpr - gaussian_tpr(fpr, mu)
    assert excess.min() >= -1e-12
    assert excess.max() <= 3e-4
    for found, at in ((bounds.tpr_at_1_percent, 0.01), (bounds.tpr_at_01_percent, 0.001)):
        exact = float(gaussian_tpr(np.array(at), mu))
        assert exact <= found <= 1.002 * exact
    # The area under Φ(Φ⁻¹(FPR) + μ) is Φ(μ/√2).
    assert 0.0 <= bounds.auc - norm.cdf(mu / math.sqrt(2.0)) <= 3e-4
    assert bounds.advantage == pytest.approx(2.0 * norm.cdf(mu / 2.0) - 1.0, abs=1e-6)


def test_different_gaussians_add_their_mu_squared() -> None:
    mu = math.sqrt(1 / 9 + 1 / 16 + 2 / 144)
    bounds = attack_bounds([charge(3.0, name="a"), charge(4.0, name="b"), charge(12.0, 2, name="c")])
    exact = float(gaussian_tpr(np.array(0.01), mu))
    assert exact <= bounds.tpr_at_1_percent <= 1.005 * exact


@pytest.mark.parametrize(("sigma", "rate", "count"), [(0.7, 0.05, 1), (1.5, 0.4, 2)])
def test_no_exact_test_of_subsampled_releases_is_above_and_some_reach_it(sigma: float, rate: float, count: int) -> None:
    bounds = attack_bounds([charge(sigma, count, rate)])
    fpr, tpr = exact_tests(sigma, rate, count)
    grid, curve = np.array(bounds.curve).T
    # The bound is concave, so it lies above the chords: compare with the tests at its points.
    for at, bound in zip(grid, curve, strict=True):
        best = max(np.interp(at, *half) for half in _halves(fpr, tpr))
        assert best <= bound + 1e-4
    assert max(tpr - fpr) == pytest.approx(bounds.advantage, abs=2e-3)
    reached = max(np.interp(0.01, *half) for half in _halves(fpr, tpr))
    assert reached == pytest.approx(bounds.tpr_at_1_percent, rel=0.03)


def test_the_curve_is_concave_from_0_to_1_and_its_own_mirror_image() -> None:
    fpr, tpr = np.array(attack_bounds([charge(1.2, 20, 0.2), charge(4.0, name="once")]).curve).T
    assert (fpr[0], fpr[-1], tpr[-1]) == (0.0, 1.0, 1.0)
    assert tpr[0] <= 1e-8
    assert (np.diff(fpr) > 0.0).all()
    assert (tpr >= fpr).all()
    slopes = np.diff(tpr) / np.diff(fpr)
    assert (slopes >= 0.0).all()
    assert (np.diff(slopes) <= 1e-9).all()
    # f = f⁻¹: (FPR, TPR) on the curve means (1 − TPR, 1 − FPR) on it, up to the chords of the interpolation.
    mirrored = np.interp(1.0 - tpr, fpr, tpr)
    np.testing.assert_allclose(mirrored, 1.0 - fpr, atol=4e-3)


def test_more_releases_a_larger_rate_and_less_noise_help_the_attacker() -> None:
    base = attack_bounds([charge(3.0, 20, 0.1)])
    for worse in (
        [charge(3.0, 40, 0.1)],
        [charge(3.0, 20, 0.2)],
        [charge(2.0, 20, 0.1)],
        [charge(3.0, 20, 0.1), charge(5.0, name="once")],
    ):
        other = attack_bounds(worse)
        assert other.tpr_at_1_percent > 1.02 * base.tpr_at_1_percent
        assert other.tpr_at_01_percent > 1.02 * base.tpr_at_01_percent
        assert other.advantage > base.advantage
        assert all(b >= a for (_, a), (_, b) in zip(base.curve, other.curve, strict=True))


def test_without_releases_an_attacker_can_only_guess() -> None:
    bounds = attack_bounds([])
    assert bounds.tpr_at_1_percent == 0.01
    assert bounds.advantage == 0.0
    assert 0.5 <= bounds.auc <= 0.5001
    assert all(fpr == tpr for fpr, tpr in bounds.curve)


def test_epsilon_and_delta_alone_bound_by_the_closed_form() -> None:
    # f(α) = max(0, 1 − δ − e^ε·α, e^−ε·(1 − δ − α)) with ε = log 2, δ = 0.1.
    epsilon, delta = math.log(2.0), 0.1
    assert tpr_bound(0.0, epsilon, delta) == pytest.approx(0.1)
    assert tpr_bound(0.1, epsilon, delta) == pytest.approx(0.3)
    assert tpr_bound(0.3, epsilon, delta) == pytest.approx(0.7)
    assert tpr_bound(0.5, epsilon, delta) == pytest.approx(1.0 - 0.5 * 0.4)
    assert tpr_bound(0.95, epsilon, delta) == pytest.approx(1.0)
    assert tpr_bound(0.2, 0.0, 0.0) == 0.2
    assert tpr_bound(1e-300, 1e4, 0.0) == 1.0
    assert tpr_bound(0.0, math.inf, 1e-5) == pytest.approx(1e-5)


def test_the_charges_bound_at_least_as_well_as_one_epsilon_and_delta() -> None:
    # (ε, δ) of one Gaussian release with μ = 1 (Balle and Wang 2018, theorem 8).
    epsilon = 2.0
    delta = norm.cdf(0.5 - epsilon) - math.exp(epsilon) * norm.cdf(-0.5 - epsilon)
    for fpr, tpr in attack_bounds([charge(1.0)]).curve:
        assert tpr <= tpr_bound(fpr, epsilon, delta) + 1e-4


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((-0.1, 1.0, 0.1), "fpr=-0.1"),
        ((math.nan, 1.0, 0.1), "fpr=nan"),
        ((0.1, -1.0, 0.1), "epsilon=-1.0"),
        ((0.1, 1.0, 1.5), "delta=1.5"),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple[float, float, float], word: str) -> None:
    with pytest.raises(InputError, match=word):
        tpr_bound(*arguments)


def _halves(fpr: np.ndarray, tpr: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two families of tests, each sorted by FPR."""
    middle = fpr.size // 2
    parts = [(fpr[:middle], tpr[:middle]), (fpr[middle:][::-1], tpr[middle:][::-1])]
    return [(np.concatenate([[0.0], x, [1.0]]), np.concatenate([[0.0], y, [1.0]])) for x, y in parts]
