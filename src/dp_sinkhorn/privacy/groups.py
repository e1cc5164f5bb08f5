"""Group privacy: the guarantee for a person with several records."""

import math
from collections.abc import Iterable, Set
from functools import lru_cache

from dp_sinkhorn.privacy.accounting import (
    Charge,
    check_analysable,
    discretization,
    epsilon_of_events,
    events_of,
    merged,
)

# Discretization for mixtures, which are slow to account for, per record of the group, with which ε grows. It adds about
# 1 % to ε at most: decision 17.
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
    from dp_accounting.dp_event import MixtureOfGaussiansDpEvent, SelfComposedDpEvent
    from scipy.stats import binom

    check_analysable(kinds, delta)
    plain, mixtures = [], []
    for kind in kinds:
        noise, rate = kind.noise_multiplier, kind.sample_rate
        if rate == 1.0:
            noise = noise if kind.name in whole else noise / records
            plain.append(kind.model_copy(update={"noise_multiplier": noise}))
        elif kind.name in whole:
            some = -math.expm1(records * math.log1p(-rate))
            plain.append(kind.model_copy(update={"sample_rate": some}))
        else:
            taking_part = range(records + 1)
            one = MixtureOfGaussiansDpEvent(noise, list(taking_part), binom.pmf(taking_part, records, rate).tolist())
            mixtures.append(SelfComposedDpEvent(one, kind.count))
    return epsilon_of_events(kinds, events_of(plain) + mixtures, delta, discretization(kinds, delta, _GRID * records))
