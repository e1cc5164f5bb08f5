"""Group privacy: the guarantee for a person with several records."""

import math
from collections.abc import Iterable, Set
from functools import lru_cache

import dp_accounting
from dp_accounting.dp_event import MixtureOfGaussiansDpEvent
from scipy.stats import binom

from dp_sinkhorn.privacy.accounting import FINE, Charge, check_analysable, epsilon_of_events, epsilon_pld, merged

# Discretization in units of ε/√(number of releases). Mixtures are slow to account for, and this coarse grid adds less
# than 1 % to ε.
_GRID = 0.03


def epsilon_of_several(
    charges: Iterable[Charge], delta: float, records: int, whole_batches: Set[str] = frozenset()
) -> float:
    """Upper bound on ε for a group of `records` records, at the same δ; inf if there is none.

    Guarantees: the composition of all charges is (ε, δ)-DP for any two data sets of which one is the other plus
    `records` records. In a subsampled release each record is drawn independently, so the release is a mixture: j of
    the records take part with their binomial probability and change it by at most j times the sensitivity. The worst
    case is that all change it in one direction (docs/explanation/privacy.md, section 3). The clipped gradient of a
    whole batch changes by at most one sensitivity, for any number of records.

    Args:
        whole_batches: Names of the charges whose queries are clipped as a whole.

    Raises:
        InputError: See `check_analysable`.
    """
    return _epsilon_of_several(tuple(merged(charges)), delta, records, frozenset(whole_batches))


@lru_cache(maxsize=256)  # it takes seconds, and a card's check, its signing and the report need the same bound
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
