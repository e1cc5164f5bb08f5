"""Calibration: the noise that meets a target ε, or the length of a run with given noise."""

import math
from collections.abc import Callable

from scipy.special import log_ndtr, ndtr

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import MAX_NOISE, MAX_SUBSAMPLED, Charge, epsilon_pld

MIN_NOISE = 0.05
TOLERANCE = 0.002


def gaussian_noise_multiplier(epsilon: float, delta: float) -> float:
    """Smallest σ at which one Gaussian release is (epsilon, delta)-DP (Balle and Wang 2018, theorem 8).

    Raises:
        InputError: This σ is not in [0.001, 2²³].
    """

    from scipy.optimize import brentq  # takes a fifth of a second

    def excess(log_sigma: float) -> float:
        mu = math.exp(-log_sigma)
        first = ndtr(mu / 2 - epsilon / mu)
        second = math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))
        return float(first - second - delta)

    low, high = math.log(MIN_NOISE / 50), math.log(MAX_NOISE)
    if not excess(low) > 0.0 > excess(high):
        raise InputError(
            f"no useful noise gives epsilon={epsilon:g} at delta={delta:g}; give values nearer to 1 and 1e-5"
        )
    return math.exp(float(brentq(excess, low, high)))


def step_noise_multiplier(
    target_epsilon: float, target_delta: float, sample_rate: float, num_steps: int, once: tuple[Charge, ...]
) -> float:
    """A σ of four digits at which `num_steps` subsampled releases and `once` meet the target.

    Args:
        once: The other charges of the run.

    Guarantees: the PLD bound of all charges together is at most `target_epsilon`. It is within 1 % of it, or
    the next smaller σ exceeds it.

    Raises:
        InputError: No noise in [0.05, 2²³] meets the target.
    """

    def spent(sigma: float) -> float:
        steps = Charge(name="step", noise_multiplier=sigma, sample_rate=sample_rate, count=num_steps)
        return epsilon_pld((*once, steps), target_delta)

    whole = gaussian_noise_multiplier(target_epsilon, target_delta) ** -2.0
    left = max(whole - sum(map(precision, once)), 0.01 * whole)
    guess = subsampled_noise(left, sample_rate, num_steps)
    return _crossing(spent, target_epsilon, start=max(guess, 2.0 * MIN_NOISE))


def subsampled_noise(wanted: float, sample_rate: float, count: int) -> float:
    """About the σ at which `count` releases on subsamples have this precision: the inverse of `precision`."""
    return float(math.log1p(wanted / (sample_rate**2 * count)) ** -0.5)


def precision(charge: Charge) -> float:
    """About 1/σ² of the Gaussian release on all records that costs as much as this charge.

    T releases on subsamples of rate q are about one of 1/σ² = q²·T·(e^(1/σ²) − 1) (Bu, Dong, Long and Su 2020, "Deep
    learning with Gaussian differential privacy", corollary 3).
    """
    one = float(charge.noise_multiplier**-2.0)
    if charge.sample_rate == 1.0:
        return charge.count * one
    return float(charge.sample_rate**2) * charge.count * math.expm1(min(one, 300.0))


def longest_run(
    target_epsilon: float, target_delta: float, sample_rate: float, noise_multiplier: float, once: tuple[Charge, ...]
) -> int:
    """Largest number of subsampled releases of the given noise that meets the target together with `once`.

    It may be too small by up to one in a thousand, never too large. 0 if not even one release fits.

    Args:
        once: The other charges of the run.

    Raises:
        InputError: `noise_multiplier` is not in [0.05, 2²³], or the target allows more than 10⁷ releases.
    """
    if not MIN_NOISE <= noise_multiplier <= MAX_NOISE:
        raise InputError(f"noise_multiplier={noise_multiplier:g} is not in [{MIN_NOISE}, {MAX_NOISE:g}]; give about 1")

    def fits(count: int) -> bool:
        steps = Charge(name="step", noise_multiplier=noise_multiplier, sample_rate=sample_rate, count=count)
        return epsilon_pld((*once, steps), target_delta) <= target_epsilon

    if not fits(1):
        return 0
    one = Charge(name="step", noise_multiplier=noise_multiplier, sample_rate=sample_rate)
    guess = gaussian_noise_multiplier(target_epsilon, target_delta) ** -2.0 / precision(one)
    if guess > MAX_SUBSAMPLED:
        raise InputError(
            f"noise_multiplier={noise_multiplier:g} hardly spends epsilon={target_epsilon:g}; give num_steps"
        )
    low, high = 1, max(2, math.ceil(1.02 * guess))
    while fits(high):
        low, high = high, math.ceil(1.3 * high) + 1
    while high > 2 * low:
        middle = max(low + 1, math.floor(high / 1.3))
        low, high = (middle, high) if fits(middle) else (low, middle)
        if low == middle:
            break
    while high - low > max(1, low // 1000):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _crossing(epsilon_of: Callable[[float], float], target: float, start: float) -> float:
    """A σ of four digits with target·(1 − TOLERANCE) ≤ ε(σ) ≤ target, or the smallest one with ε(σ) ≤ target.

    It is bracketed first, then come regula falsi and bisection in turn, on logarithms.
    """
    low = high = _rounded_up(start)
    value = epsilon_of(low)
    at_low = at_high = value
    while at_high > target:
        low, at_low, high = high, at_high, _rounded_up(high * _stride(at_high, target))
        if high > MAX_NOISE:
            raise InputError(f"no noise reaches epsilon={target:g}; give a larger epsilon or fewer steps")
        at_high = epsilon_of(high)
    while at_low <= target:
        if target - at_low <= TOLERANCE * target:
            return low
        high, at_high, low = low, at_low, _rounded_up(low / _stride(target, at_low))
        if low < MIN_NOISE:
            raise InputError(f"epsilon={target:g} needs almost no noise, which hides nothing; give a smaller epsilon")
        at_low = epsilon_of(low)
    aim, falsi = target * (1 - TOLERANCE / 2), True
    while target - at_high > TOLERANCE * target:
        share = math.log(at_low / aim) / math.log(at_low / max(at_high, 1e-9)) if falsi else 0.5
        middle = _rounded_up(low * (high / low) ** min(max(share, 0.02), 0.98))
        if middle >= high and (middle := _rounded_up(math.sqrt(low * high))) >= high:
            return high  # no number of four digits lies between
        falsi = not falsi
        at_middle = epsilon_of(middle)
        if at_middle > target:
            low, at_low = middle, at_middle
        else:
            high, at_high = middle, at_middle
    return high


def _stride(larger: float, smaller: float) -> float:
    """Factor by which to move σ: ε falls at least as the root of σ, unless other releases spend most of it."""
    return min(max((larger / max(smaller, 1e-6)) ** 2, 1.0 + 2.0 * TOLERANCE), 8.0)


def _rounded_up(sigma: float) -> float:
    """The smallest number of four digits that is not below."""
    near = float(f"{sigma:.4g}")
    return near if near >= sigma else float(f"{near + 10.0 ** (math.floor(math.log10(sigma)) - 3):.4g}")
