"""Audit of a query: many answers on a worst-case pair of neighbouring data sets, compared with the claimed σ."""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from dp_sinkhorn.audit.checks import LEVEL, Check, NoiseSample, check_normal
from dp_sinkhorn.audit.intervals import binomial_fits, mean_interval, stddev_interval, threshold_attack
from dp_sinkhorn.audit.neighbouring import SILENT, PublicRecords, Releases, Target, Violation
from dp_sinkhorn.privacy.accounting import Charge, epsilon_pld
from dp_sinkhorn.privacy.random import CryptoRandom

CHECKS = ("sensitivity", "trade-off", "noise", "empty draws", "noise and draw", "subsampling")
# For a query on all records, which has no draw.
CHECKS_OF_ALL = ("sensitivity", "trade-off", "noise")
# Tolerance for rounding; clipping itself leaves a millionth of the bound free.
_ROUNDING = 1e-9
# The worst-case pair must come this close to the claim, or it is not the worst case.
_ATTAINED = 0.99
_FEW, _MANY, _NO_DRAW, _SOME = 12, 60, 1e-9, 0.3
_MOST_RECORDS, _WHOLE = 20_000, 0.05


@dataclass(frozen=True)
class TradeOff:
    """Measured Gaussian trade-off of one answer on the worst-case pair.

    Args:
        noise_multiplier: Interval for 1/μ; wrong with probability at most 3·LEVEL.
        epsilon: Lower bound by a threshold attack on ε of one query that surely includes the record.
        epsilon_claimed: ε that σ allows for such a query.
    """

    noise_multiplier: tuple[float, float]
    epsilon: float
    epsilon_claimed: float


@dataclass(frozen=True)
class QueryAudit:
    """The result of the audit of a query; `trade_off` is None if it was not or could not be measured."""

    checks: tuple[Check, ...]
    trade_off: TradeOff | None


def audit_query(
    target: Target, draws: int, seed: int, delta: float, names: Collection[str] | None = None
) -> QueryAudit:
    """Audit a query of a run.

    Args:
        draws: Answers on each data set of the worst-case pair, at least 100. seed: Of the audit's own coins and noise:
            the same seed repeats the audit. The data are public, so it need not be secret.
        delta: δ of the run. names: Names of the checks to make; None: all for such a query.
    """
    if names is None:
        names = CHECKS if target.is_drawn else CHECKS_OF_ALL
    sources = map(CryptoRandom, range(seed, seed + 10**9))
    measured: list[TradeOff] = []

    def trade_off() -> str:
        found, noise = _trade_off(target, draws, sources, delta)
        measured.append(found)
        _compare(target, found)
        check_normal(noise)
        return (
            f"noise multiplier {found.noise_multiplier[0]:.4g} to {found.noise_multiplier[1]:.4g}, claimed "
            f"{target.noise_multiplier:g}; a query that surely includes the record has epsilon at least "
            f"{found.epsilon:.3g} (allowed {found.epsilon_claimed:.3g})"
        )

    some = max(100, draws // 4)
    checks: dict[str, Callable[[], str]] = {
        "sensitivity": partial(_sensitivity, target),
        "trade-off": trade_off,
        "noise": partial(_noise, target, some, sources),
        "empty draws": partial(_empty_draws, target, some, sources),
        "noise and draw": partial(_noise_and_draw, target, sources),
        "subsampling": partial(_subsampling, target, some, sources),
    }
    done = tuple(judged(name, check) for name, check in checks.items() if name in names)
    return QueryAudit(done, measured[0] if measured else None)


def judged(name: str, check: Callable[[], str]) -> Check:
    """Run a check, which returns its finding or raises a `Violation`."""
    try:
        return Check(name, ok=True, finding=check())
    except Violation as finding:
        return Check(name, ok=False, finding=str(finding))


def _sensitivity(target: Target) -> str:
    """Add one record, at every place and in every class. With equal noise, answers differ by what the record adds."""
    few = _few(target)
    records, seed, largest, where = target.ordinary(few), 11, 0.0, ""
    base = target.on(records, 1.0).release(CryptoRandom(test_seed=seed))
    classes = target.data.num_classes
    # In whole batches, record 0 also fills the empty places of a query.
    places = [(position, target.far_label) for position in range(0 if target.by_record else 1, few + 1)]
    for position, label in [*places, *((few, label) for label in range(classes))]:
        stage = target.on(target.with_far(records, position, label), 1.0)
        released = stage.release(CryptoRandom(test_seed=seed))
        if released.shape != base.shape:
            raise Violation(f"one record more changes the shape of a release: {base.shape} to {released.shape}")
        change = float((released - base).norm()) / (target.charge.count * target.sensitivity)
        if not math.isfinite(change):
            raise Violation(f"with one record more ({position + 1} of {few + 1}) a release is not finite")
        if change > largest:
            largest, where = change, f"record {position + 1} of {few + 1}, class {label + 1} of {classes}"
    if not largest <= 1.0 + _ROUNDING:
        raise Violation(
            f"one record moves the released sum by {largest:.4g} times the sensitivity that the noise is scaled to "
            f"({where}): a clip or a factor is missing"
        )
    return f"one record at any place moves the sum by at most {largest:.6f} times the claimed sensitivity"


def _trade_off(
    target: Target, draws: int, sources: Iterator[CryptoRandom], delta: float
) -> tuple[TradeOff, np.ndarray]:
    """Releases without and with the worst record, projected on the direction in which it moves the sum.

    Both sides of a pair get equal noise (common random numbers). Each side has its true distribution, and the mean
    difference E[with] − E[without] is found without noise.

    Returns:
        The trade-off; and the noise of the first side in units of the claimed standard deviation.
    """
    few = _few(target)
    records = target.ordinary(few)
    both = (records, target.with_far(records, few))
    clean = [target.on(side, 1.0, SILENT).release(next(sources)) for side in both]
    if clean[0].shape != clean[1].shape or not bool(torch.isfinite(clean[1] - clean[0]).all()):
        raise Violation("the sums with and without a record cannot be compared: other shapes, or not finite")
    shift = clean[1] - clean[0]
    direction = shift / shift.norm()
    projections: list[list[float]] = [[], []]
    stages = [target.on(side, 1.0) for side in both]
    for source in _first(sources, draws):
        key = int(source.bits(1)[0] >> np.uint64(2))
        for values, stage in zip(projections, stages, strict=True):
            values.append(float((stage.release(CryptoRandom(test_seed=key)) * direction).sum()))
    without, with_record = (np.array(values) for values in projections)
    # K queries on the same subsample add up: K times the shift, √K times the noise, K charges.
    root = math.sqrt(target.charge.count)
    moved = mean_interval(with_record - without, LEVEL)
    spread = [
        stddev_interval(float(np.square(values - float((sums * direction).sum())).sum()), draws, LEVEL)
        for values, sums in zip((without, with_record), clean, strict=True)
    ]
    low, high = min(part[0] for part in spread), max(part[1] for part in spread)
    interval = (root * low / max(moved[1], 1e-300), root * high / max(moved[0], 1e-300))
    claim = Charge(name="step", noise_multiplier=target.noise_multiplier, count=target.charge.count)
    found = TradeOff(interval, threshold_attack(without, with_record, delta, LEVEL), epsilon_pld([claim], delta))
    return found, (without - float((clean[0] * direction).sum())) / target.stddev


def _compare(target: Target, found: TradeOff) -> None:
    """Check that the measured trade-off is the claimed one."""
    low, high = found.noise_multiplier
    if not high >= target.noise_multiplier * (1.0 - 1e-6):
        raise Violation(
            f"on the worst pair the noise multiplier is {low:.4g} to {high:.4g}, not {target.noise_multiplier:g}: "
            "less privacy than claimed"
        )
    if not low * _ATTAINED <= target.noise_multiplier:
        raise Violation(
            f"on the worst pair the noise multiplier is {low:.4g} to {high:.4g}, not {target.noise_multiplier:g}: "
            "more noise than claimed, or the record does not count in full"
        )
    if found.epsilon > found.epsilon_claimed:
        raise Violation(
            f"an attack on one step shows epsilon {found.epsilon:.4g}; its noise allows {found.epsilon_claimed:.4g}"
        )


def _noise(target: Target, draws: int, sources: Iterator[CryptoRandom]) -> str:
    records = target.ordinary(_few(target))
    sample = _sampled(target, records, 1.0, "with records drawn", draws, sources)
    return f"{sample.check_size()}; {sample.check_independence()}"


def _empty_draws(target: Target, draws: int, sources: Iterator[CryptoRandom]) -> str:
    """Check that an empty draw has the same shape, full noise, and nothing of the records."""
    clean = [
        target.on(target.ordinary(count, seed), _NO_DRAW, SILENT).release(next(sources))
        for count, seed in ((2, 5), (_few(target), 6))
    ]
    # The silent noise is far below this tolerance.
    if clean[0].shape != clean[1].shape or float((clean[0] - clean[1]).norm()) > 1e-6 * target.sensitivity:
        raise Violation("a release of an empty draw depends on the records")
    sample = _sampled(target, target.ordinary(2, 5), _NO_DRAW, "of an empty draw", draws, sources)
    return f"an empty draw is an ordinary release; {sample.check_size()}"


def _noise_and_draw(target: Target, sources: Iterator[CryptoRandom]) -> str:
    for count in (1, _MANY):
        sample = _sampled(target, target.ordinary(count), 1.0, f"where {count} are drawn", 40, sources)
        sample.check_size()
    return f"the same noise whether 1 record is drawn or {_MANY}"


def _subsampling(target: Target, steps: int, sources: Iterator[CryptoRandom]) -> str:
    """Count the worst-case records in sums without noise, and compare the counts with the binomial distribution."""
    for rate in (target.charge.sample_rate, _SOME):
        records = 1 if rate == 1.0 else min(_MOST_RECORDS, math.ceil((1.0 if target.by_record else 0.7) / rate))
        stage = target.on(target.many_far(records), rate, SILENT)
        counts = [_drawn(target, stage, source) for source in _first(sources, steps)]
        trials = records if target.by_record else target.charge.count
        chance = rate if target.by_record else 1.0 - (1.0 - rate) ** records
        if not binomial_fits(sum(counts), steps * trials, chance, LEVEL):
            raise Violation(
                f"records are drawn with probability {sum(counts) / (steps * trials):.4g}, not {chance:.4g}, at sample "
                f"rate {rate:.4g}: empty draws are skipped, or the rate is another one"
            )
        if not binomial_fits(counts.count(0), steps, (1.0 - chance) ** trials, LEVEL):
            raise Violation(
                f"{counts.count(0)} of {steps} draws were empty, where independent coins give "
                f"{steps * (1.0 - chance) ** trials:.1f}: the coins are not independent, or empty draws are skipped"
            )
    return f"each record enters by its own coin of probability {target.charge.sample_rate:.4g}; empty draws occur"


def _drawn(target: Target, releases: Releases, source: CryptoRandom) -> int:
    """Number of worst-case records in a sum; of whole batches, number of queries that hold one."""
    released = releases.release(source)
    if not target.by_record:
        # The worst gradient has no direction of its own, and half the sensitivity for its length.
        length = 2.0 * float(released.sum()) / math.sqrt(released.numel()) / target.sensitivity
        number = (target.charge.count + length) / 2.0
    else:
        number = float(released.norm()) / target.sensitivity
    if not math.isfinite(number) or abs(number - round(number)) > _WHOLE:
        raise Violation(
            f"equal records at the clip bound add up to {number:.4g} times the bound, not to a whole number"
        )
    return round(number)


def _sampled(
    target: Target, records: PublicRecords, rate: float, what: str, draws: int, sources: Iterator[CryptoRandom]
) -> NoiseSample:
    clean = target.on(records, rate, SILENT).release(next(sources))
    if clean.shape != target.shape:
        raise Violation(
            f"{what} an answer has shape {tuple(clean.shape)}, not {tuple(target.shape)}: it reveals the draw"
        )
    sample, stage = NoiseSample(clean, target.stddev, what), target.on(records, rate)
    for source in _first(sources, draws):
        sample.add(stage.release(source))
    return sample


def _few(target: Target) -> int:
    """Number of records in small data sets: all of them fit into a query."""
    capacity = target.query.capacity
    return _FEW if capacity is None else max(1, min(_FEW, capacity - 1))


def _first(sources: Iterator[CryptoRandom], count: int) -> Iterator[CryptoRandom]:
    return (next(sources) for _ in range(count))
