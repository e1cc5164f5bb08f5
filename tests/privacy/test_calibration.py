"""Calibration: the noise meets the target, and hardly exceeds what it needs."""

import math

import pytest
from hypothesis import given, settings
from hypothesis.strategies import floats
from scipy.special import erfc

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy import calibration
from dp_sinkhorn.privacy.accounting import Charge, epsilon_pld
from dp_sinkhorn.privacy.calibration import gaussian_noise_multiplier, step_noise_multiplier


def gaussian_delta(epsilon: float, noise_multiplier: float) -> float:
    """δ(ε) of one Gaussian release (Balle and Wang 2018, theorem 8)."""
    mu = 1.0 / noise_multiplier

    def cdf(x: float) -> float:
        return 0.5 * float(erfc(-x / math.sqrt(2.0)))

    return cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * cdf(-mu / 2 - epsilon / mu)


@pytest.mark.quick
@pytest.mark.parametrize("epsilon", [0.01, 0.2, 1.0, 10.0, 50.0])
@pytest.mark.parametrize("delta", [1e-8, 1e-5, 1e-2])
def test_one_gaussian_meets_its_delta_exactly(epsilon: float, delta: float) -> None:
    sigma = gaussian_noise_multiplier(epsilon, delta)
    assert gaussian_delta(epsilon, sigma) == pytest.approx(delta, rel=1e-4)


def test_a_known_value_is_reproduced() -> None:
    """ε = 1, δ = 10⁻⁵: σ = 3.7306, against 4.8448 by the classical √(2 log(1.25/δ))/ε."""
    assert gaussian_noise_multiplier(1.0, 1e-5) == pytest.approx(3.7306, abs=1e-3)


@pytest.mark.parametrize(("epsilon", "delta", "sample_rate", "num_steps"), [(1.0, 1e-5, 1.0, 10), (3.0, 1e-4, 0.1, 50)])
def test_steps_beside_other_releases_meet_the_target(
    epsilon: float, delta: float, sample_rate: float, num_steps: int
) -> None:
    once = (Charge(name="once", noise_multiplier=10.0 * gaussian_noise_multiplier(epsilon, delta)),)
    sigma = step_noise_multiplier(epsilon, delta, sample_rate, num_steps, once)
    steps = Charge(name="step", noise_multiplier=sigma, sample_rate=sample_rate, count=num_steps)
    assert 0.99 * epsilon <= epsilon_pld((*once, steps), delta) <= epsilon
    assert float(f"{sigma:.4g}") == sigma


def test_other_releases_that_exhaust_the_target_are_refused() -> None:
    once = (Charge(name="once", noise_multiplier=0.5),)
    with pytest.raises(InputError, match="no noise reaches epsilon=1;") as caught:
        step_noise_multiplier(1.0, 1e-5, 0.1, 10, once)
    assert "\n" not in str(caught.value)


@pytest.mark.quick
@pytest.mark.parametrize("start", [0.1, 1.2, 1.234, 1.2345, 1.235, 7.0, 100.0])
@pytest.mark.parametrize("after", [0.9, 0.5, 0.0])
def test_a_jump_over_the_target_ends_at_the_next_four_digits(start: float, after: float) -> None:
    tried = []

    def epsilon_of(sigma: float) -> float:
        tried.append(sigma)
        return 3.0 if sigma < 1.2345 else after

    assert calibration._crossing(epsilon_of, 1.0, start) == 1.235
    assert len(tried) < 60


@pytest.mark.quick
@given(sigma=floats(0.05, 1e6))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_noise_is_rounded_up_to_four_digits_once(sigma: float) -> None:
    rounded = calibration._rounded_up(sigma)
    assert sigma <= rounded <= sigma * 1.001
    assert float(f"{rounded:.4g}") == rounded == calibration._rounded_up(rounded)
