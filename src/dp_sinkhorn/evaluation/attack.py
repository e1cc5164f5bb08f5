"""Membership attack by a score: its success with confidence intervals, and what ε allows."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, binom, norm

from dp_sinkhorn.io.errors import InputError

FALSE_POSITIVE_RATES = (0.01, 0.001)
LEVEL = 0.95
"""Confidence level of all intervals."""


@dataclass(frozen=True)
class Estimate:
    """A share in [0, 1] and its 95 % confidence interval."""

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Attack:
    """The success of an attacker who calls records with a high score members.

    Args:
        auc: Chance that a member scores higher than a non-member; 0.5: the score says nothing.
        interval: Its 95 % interval (DeLong, DeLong and Clarke-Pearson 1988).
        tpr_at_fpr: Share of the members found, by the share of non-members wrongly accused.
        num_members: Training records attacked.
        num_non_members: Held-out records attacked.
    """

    auc: float
    interval: tuple[float, float]
    tpr_at_fpr: dict[str, Estimate]
    num_members: int
    num_non_members: int


@dataclass(frozen=True)
class Bound:
    """Bounds on every attack against a release, on average over fresh records.

    Args:
        epsilon: ε of the release.
        delta: δ of the release.
        auc: The largest area under the curve of (FPR, TPR).
        tpr_at_fpr: The largest true-positive rate by false-positive rate.
    """

    epsilon: float
    delta: float
    auc: float
    tpr_at_fpr: dict[str, float]


def membership_attack(members: np.ndarray, non_members: np.ndarray) -> Attack:
    """Measure how well a score separates members from non-members: its values, float64, two or more of each.

    Raises:
        InputError: There are fewer than two of either.
    """
    if min(len(members), len(non_members)) < 2:
        raise InputError(
            f"{len(members)} training and {len(non_members)} held-out images are too few for an attack; give 2 or more"
        )
    auc, interval = _auc(members, non_members)
    return Attack(
        auc=auc,
        interval=interval,
        tpr_at_fpr={f"{rate:g}": tpr_at_fpr(members, non_members, rate) for rate in FALSE_POSITIVE_RATES},
        num_members=len(members),
        num_non_members=len(non_members),
    )


def tpr_at_fpr(members: np.ndarray, non_members: np.ndarray, rate: float) -> Estimate:
    """The true-positive rate at a false-positive rate, with an interval that holds for any distribution of scores.

    The threshold is a quantile of the non-members' scores. A binomial interval brackets it between two of these scores.
    Clopper-Pearson intervals bracket the share of members above either. Each of these steps gets half of the 5 %
    (Bonferroni), so the interval is conservative.
    """
    count = len(non_members)
    falling = np.concatenate([[np.inf], np.sort(non_members)[::-1], [-np.inf]])  # falling[i]: the i-th largest

    def found(threshold: float) -> int:
        return int((members > threshold).sum())

    tail = (1.0 - LEVEL) / 4.0
    fewest, most = (int(binom.ppf(p, count, rate)) for p in (tail, 1.0 - tail))
    low, _ = clopper_pearson(found(falling[fewest]), len(members), tail)
    _, high = clopper_pearson(found(falling[min(most, count) + 1]), len(members), tail)
    value = found(falling[math.floor(rate * count) + 1]) / len(members)
    return Estimate(value=value, interval=(low, high))


def clopper_pearson(successes: int, trials: int, tail: float) -> tuple[float, float]:
    """The exact interval of a share, which misses on either side with probability at most `tail`."""
    low = float(beta.ppf(tail, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.ppf(1.0 - tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def normal_interval(value: float, deviation: float) -> tuple[float, float]:
    """The 95 % interval of a share with an approximately normal estimate, inside [0, 1]."""
    reach = float(norm.ppf((1.0 + LEVEL) / 2.0)) * deviation
    return max(0.0, value - reach), min(1.0, value + reach)


def _auc(members: np.ndarray, non_members: np.ndarray) -> tuple[float, tuple[float, float]]:
    above = _share_below(members, non_members)
    below = 1.0 - _share_below(non_members, members)
    auc = float(above.mean())
    variance = above.var(ddof=1) / len(members) + below.var(ddof=1) / len(non_members)
    return auc, normal_interval(auc, math.sqrt(variance))


def _share_below(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each score, the share of the others that are smaller; equal ones count half."""
    ordered = np.sort(others)
    return (np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")) / (2.0 * len(others))
