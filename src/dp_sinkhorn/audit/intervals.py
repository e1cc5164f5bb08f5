"""Confidence limits for the audit. `level` is the chance of being wrong, both sides together."""

import math

import numpy as np
from scipy.stats import beta, binom, chi2, kstest, norm, t


def clopper_pearson(successes: int, trials: int, level: float) -> tuple[float, float]:
    """Exact interval for a probability (Clopper and Pearson 1934)."""
    low = 0.0 if successes == 0 else float(beta.ppf(level / 2, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(beta.isf(level / 2, successes + 1, trials - successes))
    return low, high


def stddev_interval(square_sum: float, freedom: int, level: float) -> tuple[float, float]:
    """Interval for the standard deviation of normals of known mean, from the sum of `freedom` squares."""
    return (
        math.sqrt(square_sum / float(chi2.isf(level / 2, freedom))),
        math.sqrt(square_sum / float(chi2.ppf(level / 2, freedom))),
    )


def mean_interval(values: np.ndarray, level: float) -> tuple[float, float]:
    """Student's interval for a mean; a point where all values agree."""
    half = float(t.isf(level / 2, len(values) - 1)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


def chi_square_fits(square_sum: float, freedom: int, level: float) -> bool:
    """Whether a sum of `freedom` squared standard normals is neither too small nor too large."""
    return min(float(chi2.cdf(square_sum, freedom)), float(chi2.sf(square_sum, freedom))) >= level / 2


def binomial_fits(successes: int, trials: int, probability: float, level: float) -> bool:
    """Whether the number of successes is neither too small nor too large for a binomial law."""
    below = float(binom.cdf(successes, trials, probability))
    above = float(binom.sf(successes - 1, trials, probability))
    return min(below, above) >= level / 2


def normal_fits(values: np.ndarray, level: float) -> bool:
    """Whether the values look like independent standard normals (test of Kolmogorov and Smirnov)."""
    return float(kstest(values, norm.cdf).pvalue) >= level


def threshold_attack(without: np.ndarray, with_record: np.ndarray, delta: float, level: float) -> float:
    """Lower bound on ε from an attack that says "the record is there" above a threshold.

    The first half of both samples chooses threshold and direction, the second half is judged. For any test,
    (ε, δ)-DP gives TPR ≤ e^ε · FPR + δ, so ε ≥ log((TPR − δ)/FPR) with Clopper-Pearson limits for both rates
    (Jagielski, Ullman and Oprea 2020). With the roles exchanged the same holds for 1 − FPR and 1 − TPR.
    """
    half = len(without) // 2
    cuts = np.quantile(np.concatenate([without[:half], with_record[:half]]), np.linspace(0.02, 0.98, 49))

    def bounds(cut: float, out: np.ndarray, inside: np.ndarray) -> tuple[float, float]:
        false = clopper_pearson(int((out > cut).sum()), len(out), level / 2)
        true = clopper_pearson(int((inside > cut).sum()), len(inside), level / 2)
        return _log_ratio(true[0] - delta, false[1]), _log_ratio(1.0 - false[1] - delta, 1.0 - true[0])

    guesses = [bounds(cut, without[:half], with_record[:half]) for cut in cuts]
    best = max(range(len(cuts)), key=lambda index: max(guesses[index]))
    side = 0 if guesses[best][0] >= guesses[best][1] else 1
    return max(0.0, bounds(cuts[best], without[half:], with_record[half:])[side])


def _log_ratio(above: float, below: float) -> float:
    return math.log(above / below) if above > 0.0 and below > 0.0 else 0.0
