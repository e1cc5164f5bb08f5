"""ε from guesses about many independent coins in one run (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846)."""

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import binom

# Shares of the canaries for which a guess is made. All are tried; they share the level.
_SHARES = (0.05, 0.1, 0.25, 0.5)
_LARGEST_EPSILON = 50.0


def chance_of_so_many(correct: int, guesses: int, coins: int, epsilon: float, delta: float) -> float:
    """Largest probability, for an (ε, δ)-DP algorithm, of at least `correct` right guesses out of `guesses`.

    With f(v) = P[Binomial(guesses, e^ε/(e^ε + 1)) ≥ v] it is at most

        f(v) + 2·coins·δ · max over i = 1..v of (f(v − i) − f(v))/i        (theorem 5.2; δ = 0: theorem 3.1)

    Args:
        correct: v. guesses: Number of coins that were guessed. coins: Number of all coins, independent and fair.
    """
    probability = float(expit(epsilon))
    tail = float(binom.sf(correct - 1, guesses, probability))
    if correct == 0 or delta == 0.0:
        return min(1.0, tail)
    steps = np.arange(1, correct + 1)
    gains = np.cumsum(binom.pmf(correct - steps, guesses, probability)) / steps
    return min(1.0, tail + 2.0 * coins * delta * float(gains.max()))


def epsilon_of_guesses(correct: int, guesses: int, coins: int, delta: float, level: float) -> float:
    """Lower bound on ε from the number of right guesses, wrong with probability at most `level`."""

    def excess(epsilon: float) -> float:
        return chance_of_so_many(correct, guesses, coins, epsilon, delta) - level

    if excess(0.0) >= 0.0:
        return 0.0
    if excess(_LARGEST_EPSILON) < 0.0:
        return _LARGEST_EPSILON
    return float(brentq(excess, 0.0, _LARGEST_EPSILON, xtol=1e-6))


def epsilon_of_scores(scores: np.ndarray, included: np.ndarray, delta: float, level: float) -> float:
    """Lower bound on ε: the canaries with the highest scores are guessed to be in, those with the lowest to be out.

    Args:
        scores: (m,). included: (m,) bool, the coins. level: Chance of being wrong, over all shares that are tried.
    """
    order, coins = np.argsort(scores), len(scores)
    best = 0.0
    for share in _SHARES:
        each_side = max(1, round(share * coins / 2))
        correct = int(included[order[-each_side:]].sum() + (~included[order[:each_side]]).sum())
        best = max(best, epsilon_of_guesses(correct, 2 * each_side, coins, delta, level / len(_SHARES)))
    return best
