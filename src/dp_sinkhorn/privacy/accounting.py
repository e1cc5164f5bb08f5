"""What a sequence of charged releases costs: PLD (tight) and RDP (classical) bounds on ε."""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Annotated, Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dp_sinkhorn.io.errors import InputError

# dp-accounting imports most of SciPy, which takes half as long as PyTorch. Functions import it when they need it.

NEIGHBORING_RELATION: Final = "add_or_remove_one"
ACCOUNTANT = f"dp-accounting {version('dp-accounting')}, PLD"
CHARGE_NAME: Final = r"^[a-z_]{1,40}(\.[a-z_]{1,40})?$"

# Discretization of privacy losses: a coarser one is faster, and its bound is larger. In units of ε/√T, T the number of
# subsampled releases, and not below `FINE`. It adds less than 0.03 % to ε: decision 17.
_GRID, FINE = 0.005, 1e-4
_FEW_ORDERS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)  # of RDP, for a rough ε

# Limits within which the bound takes bounded time and memory. No sensible run exceeds them. A damaged or hostile card,
# ledger or setting might, and its exact bound would take hours and hundreds of GiB.
MAX_COUNT = 10**9  # releases of one kind
MAX_SUBSAMPLED = 10**7  # subsampled releases of one kind; the PLD of so many takes seconds
MAX_KINDS = 32  # kinds of releases: they differ in noise or rate; a run has at most eight, two on subsamples
ANALYSABLE_NOISE = (0.01, 1e9)  # noise multipliers
MAX_NOISE = 2.0**23  # largest noise multiplier of a release, all its queries together: `mechanism.py`
MIN_SAMPLE_RATE = 1e-9
MIN_DELTA = 1e-13  # leaves room for `rounding_of_delta` and for the tails of 1e-15 that the PLD truncates
MAX_TARGET_EPSILON = 100.0  # e^100 hides nothing
MAX_EPSILON = 150.0  # of the Rényi bound, which is a little above the claim
MAX_CELLS = 2.5e6  # grid cells of all kinds together, at `FINE`: about 20 s and 1 GiB
_TAILS = 20.0  # width of one release's grid, in units of 1/noise_multiplier
# The PLD raises a Fourier transform to the power of the number of releases. Rounding then changes δ by up to 1e-16 per
# subsampled release, in either direction (measured up to 10⁷ releases: docs/explanation/privacy.md, section 3).
_ROUNDING, _ROUNDING_A_RELEASE = 1e-14, 3e-16


class Charge(BaseModel):
    """`count` Gaussian releases, each on a Poisson subsample (sample_rate 1: on all records).

    Args:
        name: The stage that asks, or `stage.part` if it asks for several things.
        noise_multiplier: Standard deviation of the noise / sensitivity. Neighbours add or remove one record.
        first: Index of the first release among all releases of this name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=CHARGE_NAME)]
    noise_multiplier: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    sample_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    first: Annotated[int, Field(ge=0, le=10**12)] = 0
    count: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 1


@dataclass(frozen=True)
class Epsilons:
    """Two upper bounds on the same ε. `pld` is the claim; `rdp` is looser and guards against a mistake in the first."""

    pld: float
    rdp: float


def merged(charges: Iterable[Charge]) -> list[Charge]:
    """The same charges, equal ones joined into one. The order of composition does not change ε.

    Raises:
        InputError: A release is charged more than `MAX_COUNT` times.
    """
    counts: dict[tuple[str, float, float], int] = {}
    for charge in charges:
        key = (charge.name, charge.noise_multiplier, charge.sample_rate)
        counts[key] = counts.get(key, 0) + charge.count
        if counts[key] > MAX_COUNT:
            raise InputError(f"{charge.name} is charged more than {MAX_COUNT} times, which cannot be accounted for")
    return [
        Charge(name=name, noise_multiplier=noise, sample_rate=rate, count=count)
        for (name, noise, rate), count in counts.items()
        if count > 0
    ]


def epsilon_pld(charges: Iterable[Charge], delta: float, interval: float | None = None) -> float:
    """Upper bound on ε by privacy-loss distributions; default interval: `discretization`."""
    return _epsilon_pld(_costly(charges), delta, interval)


def epsilon_rdp(charges: Iterable[Charge], delta: float) -> float:
    """Upper bound on ε by Rényi differential privacy."""
    return _epsilon_rdp(_costly(charges), delta)


def discretization(charges: Iterable[Charge], delta: float, grid: float = _GRID) -> float:
    """Interval of the grid of privacy losses, so that its error is a small share of ε.

    Args:
        grid: In units of ε/√T.
    """
    costly = _costly(charges)
    releases = sum(charge.count for charge in costly)
    about = _epsilon(_rdp_accountant(_FEW_ORDERS), events_of(costly), delta)
    return max(FINE, grid * about / math.sqrt(max(1, releases)))


def events_of(charges: Iterable[Charge]) -> list[Any]:
    """The charges as events of dp-accounting."""
    import dp_accounting

    events = []
    for charge in _costly(charges):
        one = dp_accounting.GaussianDpEvent(charge.noise_multiplier)
        if charge.sample_rate < 1.0:
            one = dp_accounting.PoissonSampledDpEvent(charge.sample_rate, one)
        events.append(dp_accounting.SelfComposedDpEvent(one, charge.count))
    return events


def rounding_of_delta(charges: Iterable[Charge]) -> float:
    """Largest rounding error of δ. ε is computed at δ minus this error, and the error is added to every δ(ε)."""
    powers = [charge.count if charge.sample_rate < 1.0 else 0 for charge in merged(charges)]
    return float(sum(_ROUNDING + _ROUNDING_A_RELEASE * count for count in powers))


def epsilon_of_events(charges: Sequence[Charge], events: Iterable[Any], delta: float, interval: float) -> float:
    """Upper bound on ε of events that represent `charges`, by privacy-loss distributions; inf if there is none."""
    return _epsilon(_pld_accountant(interval), events, _less_rounding(delta, charges))


def check_analysable(charges: Iterable[Charge], delta: float) -> None:
    """Refuse charges whose bound would take unbounded time or memory.

    Raises:
        InputError: A number is out of range, or the charges together spend more than `MAX_EPSILON`.
    """
    kinds = merged(charges)
    if not MIN_DELTA <= delta < 1.0:
        raise InputError(f"delta={delta:g} cannot be accounted for; it must lie in [{MIN_DELTA:g}, 1)")
    low, high = ANALYSABLE_NOISE
    for kind in kinds:
        if not low <= kind.noise_multiplier <= high:
            raise InputError(
                f"{kind.name}: noise_multiplier={kind.noise_multiplier:g} cannot be accounted for; "
                f"it must lie in [{low:g}, {high:g}]"
            )
        if kind.sample_rate < MIN_SAMPLE_RATE:
            raise InputError(
                f"{kind.name}: sample_rate={kind.sample_rate:g} cannot be accounted for; "
                f"it must be at least {MIN_SAMPLE_RATE:g}"
            )
        if kind.sample_rate < 1.0 and kind.count > MAX_SUBSAMPLED:
            raise InputError(
                f"{kind.name}: {kind.count} releases cannot be accounted for; at most {MAX_SUBSAMPLED} can"
            )
    costly = _costly(kinds)
    if len(costly) > MAX_KINDS:
        raise InputError(f"{len(costly)} kinds of releases cannot be accounted for; at most {MAX_KINDS} can")
    if sum(_TAILS / kind.noise_multiplier / FINE for kind in costly) > MAX_CELLS:
        raise InputError("releases with so little noise cannot be accounted for and hide nothing; give more noise")
    _less_rounding(delta, kinds)
    if (bound := epsilon_rdp(kinds, delta)) > MAX_EPSILON:
        raise InputError(
            f"the releases spend epsilon={bound:.4g} (Rényi bound), more than {MAX_EPSILON:g}, which hides nothing; "
            "give more noise or fewer steps"
        )


def epsilons(charges: Iterable[Charge], delta: float, claimed: float = math.inf) -> Epsilons:
    """Both bounds.

    Args:
        claimed: If the bound exceeds it, the tighter bound of the finest grid takes its place.

    Raises:
        InputError: See `check_analysable`.
    """
    kept = merged(charges)
    check_analysable(kept, delta)
    pld = epsilon_pld(kept, delta)
    return Epsilons(pld=pld if pld <= claimed else epsilon_pld(kept, delta, FINE), rdp=epsilon_rdp(kept, delta))


def privacy_profile(
    charges: Iterable[Charge], smallest_delta: float, points: int, interval: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(ε, δ(ε)) on an even grid from ε = 0 to the ε at which δ is `smallest_delta`, by privacy-loss distributions.

    Guarantees: the composition of all charges is (ε, δ)-DP for each pair.
    """
    return _privacy_profile(_costly(charges), smallest_delta, points, interval)


def _costly(charges: Iterable[Charge]) -> tuple[Charge, ...]:
    """Charges of equal cost, as few as possible, in one order and without names.

    Gaussian releases on all records are together one Gaussian release: their 1/σ² add up (Dong, Roth and Su 2022,
    corollary 3.3).
    """
    counts: dict[tuple[float, float], int] = {}
    precision = 0.0
    for charge in merged(charges):
        if charge.sample_rate == 1.0:
            precision += charge.count / charge.noise_multiplier**2
        else:
            key = (charge.noise_multiplier, charge.sample_rate)
            counts[key] = counts.get(key, 0) + charge.count
    found = [
        Charge(name="all", noise_multiplier=noise, sample_rate=rate, count=count)
        for (noise, rate), count in sorted(counts.items())
    ]
    return (*found, *([Charge(name="all", noise_multiplier=precision**-0.5)] if precision > 0.0 else []))


# Each bound takes seconds, and a run's plan, its card and the card's check need the same ones.
_cached = lru_cache(maxsize=256)


@_cached
def _epsilon_pld(charges: tuple[Charge, ...], delta: float, interval: float | None) -> float:
    return epsilon_of_events(charges, events_of(charges), delta, interval or discretization(charges, delta))


@_cached
def _epsilon_rdp(charges: tuple[Charge, ...], delta: float) -> float:
    with _quiet_about_skipped_orders():
        return _epsilon(_rdp_accountant(), events_of(charges), delta)


@_cached
def _privacy_profile(
    charges: tuple[Charge, ...], smallest_delta: float, points: int, interval: float | None
) -> tuple[np.ndarray, np.ndarray]:
    interval = interval or discretization(charges, smallest_delta)
    accountant = _pld_accountant(interval)
    rounding = rounding_of_delta(charges)
    reach = _epsilon(accountant, events_of(charges), max(smallest_delta, 2.0 * rounding))
    if not math.isfinite(reach):
        raise InputError(f"the charges bound no epsilon at delta={smallest_delta:g}; give more noise")
    grid = np.linspace(0.0, reach, points if reach > 0.0 else 1)
    # One call per point: it is vectorised over the losses, while a call with a list loops over them in Python.
    profile = np.array([min(1.0, max(0.0, float(accountant.get_delta(float(value)))) + rounding) for value in grid])
    for array in (grid, profile):
        array.setflags(write=False)  # the cache returns the same arrays again
    return grid, profile


def _less_rounding(delta: float, charges: Sequence[Charge]) -> float:
    rounding = rounding_of_delta(charges)
    if delta < 2.0 * rounding:
        raise InputError(
            f"delta={delta:g} cannot be accounted for with so many subsampled releases; give at least "
            f"{2.0 * rounding:.1g}, or fewer releases"
        )
    return delta - rounding


def _pld_accountant(interval: float) -> Any:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import PLDAccountant

    return PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=interval)


def _rdp_accountant(orders: Sequence[int] | None = None) -> Any:
    from dp_accounting import NeighboringRelation
    from dp_accounting.rdp import RdpAccountant

    return RdpAccountant(orders, NeighboringRelation.ADD_OR_REMOVE_ONE)


def _epsilon(accountant: Any, events: Iterable[Any], delta: float) -> float:
    for event in events:
        accountant.compose(event)
    return float(accountant.get_epsilon(delta))


@contextmanager
def _quiet_about_skipped_orders() -> Iterator[None]:
    """Silence notes on RDP orders whose series does not converge. Without these orders the bound is only looser."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
