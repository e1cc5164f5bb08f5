"""What a release promises to someone who has several records in it."""

import math
from collections.abc import Iterable, Set
from functools import lru_cache

import dp_accounting
from dp_accounting.dp_event import MixtureOfGaussiansDpEvent
from scipy.stats import binom

from dp_sinkhorn.privacy.accounting import FINE, Charge, check_analysable, epsilon_of_events, epsilon_pld, merged

# Discretization in units of ε/√(number of releases): such mixtures take long, and it adds less than 1 % to ε.
_GRID = 0.03


def epsilon_of_several(
    charges: Iterable[Charge], delta: float, records: int, whole_batches: Set[str] = frozenset()
) -> float:
    """Upper bound on ε for so many records together, at the same δ; inf if there is none.

    Guarantees: everything charged, taken together, is (ε, δ)-DP for any two data sets of which one is the other plus
    `records` records. Of a subsampled release each record throws its own coin, so it is a mixture: j of the records
    take part with the binomial probability of j and change it by at most j times the sensitivity, and all in
    one direction is the worst (docs/explanation/privacy.md, section 3). A whole batch's gradient changes by one sensitivity
    however many take part.

    Args:
        whole_batches: Names of the charges whose queries are clipped as a whole.

    Raises:
        InputError: See `check_analysable`.
    """
    return _epsilon_of_several(tuple(merged(charges)), delta, records, frozenset(whole_batches))


@lru_cache(maxsize=256)  # takes seconds, and a card's check, its signing and the report ask for the same
def _epsilon_of_several(kinds: tuple[Charge, ...], delta: float, records: int, whole: frozenset[str]) -> float:
    check_analysable(kinds, delta)
    releases = sum(kind.count for kind in kinds)
    grid = max(FINE, _GRID * epsilon_pld(kinds, delta) / math.sqrt(max(1, releases)))
    events = [_event(kind, records, bounded=kind.name in whole) for kind in kinds]
    return epsilon_of_events(kinds, events, delta, grid)


def _event(charge: Charge, records: int, *, bounded: bool) -> dp_accounting.DpEvent:
    noise, rate = charge.noise_multiplier, charge.sample_rate
    if rate == 1.0:
        one = dp_accounting.GaussianDpEvent(noise if bounded else noise / records)
    elif bounded:
        some = -math.expm1(records * math.log1p(-rate))
        one = dp_accounting.PoissonSampledDpEvent(some, dp_accounting.GaussianDpEvent(noise))
    else:
        taking_part = range(records + 1)
        one = MixtureOfGaussiansDpEvent(noise, list(taking_part), binom.pmf(taking_part, records, rate).tolist())
    return dp_accounting.SelfComposedDpEvent(one, charge.count)
