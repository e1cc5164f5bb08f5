"""Step audit: many releases of a run's own step on a worst-case pair of neighbours, against the claimed σ."""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from dp_sinkhorn.audit.checks import LEVEL, Check, NoiseSample, check_normal
from dp_sinkhorn.audit.intervals import binomial_fits, mean_interval, stddev_interval, threshold_attack
from dp_sinkhorn.audit.neighbouring import SILENT, Finding, Subject, World
from dp_sinkhorn.audit.stage import Stage, StepSubject
from dp_sinkhorn.privacy.accounting import Charge, epsilon_pld
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.settings import BatchRules, EmbeddingRules
from dp_sinkhorn.training.methods import BatchMethod

CHECKS = ("sensitivity", "trade-off", "noise", "empty draws", "noise and draw", "subsampling", "only the release")
# Of an embedding: it is made of all records, not of a draw.
EMBEDDING_CHECKS = ("sensitivity", "trade-off", "noise", "only the release")
# Rounding of a clipped sum: the clip leaves a millionth of the bound free.
_ROUNDING = 1e-9
# The worst pair must come this near to the claim, or the audit has not seen the worst.
_ATTAINED = 0.99
_FEW, _MANY, _NO_DRAW, _SOME = 12, 60, 1e-9, 0.3
_MOST_RECORDS, _WHOLE = 20_000, 0.05
_PUBLIC = {"images": "generated images", "labels": "labels", "potential": "potentials"}


@dataclass(frozen=True)
class TradeOff:
    """Gaussian trade-off of one release on the worst-case pair, measured.

    Args:
        noise_multiplier: 1/μ, interval; wrong with probability at most 3·LEVEL.
        epsilon: Lower bound on ε of one step whose record is drawn for certain, by a threshold attack.
        epsilon_claimed: What σ allows for such a step.
    """

    noise_multiplier: tuple[float, float]
    epsilon: float
    epsilon_claimed: float


@dataclass(frozen=True)
class StepAudit:
    """What the step audit found; `trade_off` is missing where the step would not be measured."""

    checks: tuple[Check, ...]
    trade_off: TradeOff | None


def audit_step(subject: StepSubject, draws: int, seed: int, names: Collection[str] | None = None) -> StepAudit:
    """Audit the step of a run, or the embedding that its steps learn from.

    Args:
        draws: Releases on each side of the worst-case pair, at least 100. seed: Of the audit's own coins and noise;
            a fixed one repeats the audit. The data are public, so it need not be secret.
        names: Of the checks to make; None: all that there are for such a run.
    """
    if names is None:
        names = EMBEDDING_CHECKS if isinstance(subject.config.rules, EmbeddingRules) else CHECKS
    sources = map(CryptoRandom, range(seed, seed + 10**9))
    measured: list[TradeOff] = []

    def trade_off() -> str:
        found, noise = _trade_off(subject, draws, sources)
        measured.append(found)
        _compare(subject, found)
        check_normal(noise)
        return (
            f"noise multiplier {found.noise_multiplier[0]:.4g} to {found.noise_multiplier[1]:.4g}, claimed "
            f"{subject.noise_multiplier:g}; a step with the record in for certain has epsilon at least "
            f"{found.epsilon:.3g} (allowed {found.epsilon_claimed:.3g})"
        )

    some = max(100, draws // 4)
    looks: tuple[Callable[[], str], ...] = (
        partial(_sensitivity, subject, sources),
        trade_off,
        partial(_noise, subject, some, sources),
        partial(_empty_draws, subject, some, sources),
        partial(_noise_and_draw, subject, sources),
        partial(_subsampling, subject, some, sources),
        partial(_only_the_release, subject, sources),
    )
    done = tuple(judged(name, look) for name, look in zip(CHECKS, looks, strict=True) if name in names)
    return StepAudit(done, measured[0] if measured else None)


def audit_release(subject: Subject, draws: int, seed: int) -> tuple[Check, ...]:
    """Audit a release by its own sensitivity and noise; arguments as in `audit_step`, `draws` for its noise alone."""
    sources = map(CryptoRandom, range(seed, seed + 10**9))
    return (
        judged("sensitivity", partial(_sensitivity, subject, sources)),
        judged("noise", partial(_noise, subject, draws, sources)),
    )


def judged(name: str, look: Callable[[], str]) -> Check:
    """Look, and write down what was found."""
    try:
        return Check(name, ok=True, finding=look())
    except Finding as finding:
        return Check(name, ok=False, finding=str(finding))


def _sensitivity(subject: Subject, sources: Iterator[CryptoRandom]) -> str:
    """One record more, at every place and in every class: with equal noise the difference is that of the sums."""
    few = _few(subject)
    world, seed, largest, where = subject.ordinary(few), 11, 0.0, ""
    base = subject.stage(world, 1.0).release(CryptoRandom(test_seed=seed))
    classes = len(subject.config.data.class_names)
    # In a whole batch, record 0 is also what fills the empty places of a query.
    places = [(position, subject.far_label) for position in range(0 if subject.by_record else 1, few + 1)]
    for position, label in [*places, *((few, label) for label in range(classes))]:
        stage = subject.stage(subject.with_far(world, position, label), 1.0)
        released = stage.release(CryptoRandom(test_seed=seed))
        if released.shape != base.shape:
            raise Finding(f"one record more changes the shape of a release: {base.shape} to {released.shape}")
        change = float((released - base).norm()) / (subject.charges * subject.sensitivity)
        if not math.isfinite(change):
            raise Finding(f"with one record more ({position + 1} of {few + 1}) a release is not finite")
        if change > largest:
            largest, where = change, f"record {position + 1} of {few + 1}, class {label + 1} of {classes}"
    if not largest <= 1.0 + _ROUNDING:
        raise Finding(
            f"one record moves the released sum by {largest:.4g} times the sensitivity that the noise is made for "
            f"({where}): a clip or a factor is missing"
        )
    return f"one record at any place moves the sum by at most {largest:.6f} times the claimed sensitivity"


def _trade_off(subject: StepSubject, draws: int, sources: Iterator[CryptoRandom]) -> tuple[TradeOff, np.ndarray]:
    """Releases without and with the worst record, projected on the direction in which it moves the sum.

    Both sides of a pair get equal noise (common random numbers): each side by itself has its true law, and the
    mean of the differences, E[with] − E[without], is found without the noise in the way.

    Returns:
        The trade-off; and the noise of the first side in units of the claimed standard deviation.
    """
    few = _few(subject)
    world = subject.ordinary(few)
    both = (world, subject.with_far(world, few))
    clean = [subject.stage(side, 1.0, SILENT).release(next(sources)) for side in both]
    if clean[0].shape != clean[1].shape or not bool(torch.isfinite(clean[1] - clean[0]).all()):
        raise Finding("the sums with and without a record cannot be compared: other shapes, or not finite")
    shift = clean[1] - clean[0]
    direction = shift / shift.norm()
    projections: list[list[float]] = [[], []]
    stages = [subject.stage(side, 1.0) for side in both]
    for source in _first(sources, draws):
        key = int(source.bits(1)[0] >> np.uint64(2))
        for values, stage in zip(projections, stages, strict=True):
            values.append(float((stage.release(CryptoRandom(test_seed=key)) * direction).sum()))
    without, with_record = (np.array(values) for values in projections)
    # K queries on the same subsample add up: K times the shift, √K times the noise, K charges.
    root = math.sqrt(subject.charges)
    moved = mean_interval(with_record - without, LEVEL)
    spread = [
        stddev_interval(float(np.square(values - float((sums * direction).sum())).sum()), draws, LEVEL)
        for values, sums in zip((without, with_record), clean, strict=True)
    ]
    low, high = min(part[0] for part in spread), max(part[1] for part in spread)
    interval = (root * low / max(moved[1], 1e-300), root * high / max(moved[0], 1e-300))
    claim = Charge(name="step", noise_multiplier=subject.noise_multiplier, count=subject.charges)
    delta = subject.config.privacy.target_delta
    found = TradeOff(interval, threshold_attack(without, with_record, delta, LEVEL), epsilon_pld([claim], delta))
    return found, (without - float((clean[0] * direction).sum())) / subject.stddev


def _compare(subject: StepSubject, found: TradeOff) -> None:
    """Whether the measured trade-off is the claimed one."""
    low, high = found.noise_multiplier
    if not high >= subject.noise_multiplier * (1.0 - 1e-6):
        raise Finding(
            f"on the worst pair the noise multiplier is {low:.4g} to {high:.4g}, not {subject.noise_multiplier:g}: "
            "less privacy than claimed"
        )
    if not low * _ATTAINED <= subject.noise_multiplier:
        raise Finding(
            f"on the worst pair the noise multiplier is {low:.4g} to {high:.4g}, not {subject.noise_multiplier:g}: "
            "more noise than claimed, or the record does not count in full"
        )
    if found.epsilon > found.epsilon_claimed:
        raise Finding(
            f"an attack on one step shows epsilon {found.epsilon:.4g}; its noise allows {found.epsilon_claimed:.4g}"
        )


def _noise(subject: Subject, draws: int, sources: Iterator[CryptoRandom]) -> str:
    world = subject.ordinary(_few(subject))
    sample = _sampled(subject, world, 1.0, "with records drawn", draws, sources)
    return f"{sample.check_size()}; {sample.check_independence()}"


def _empty_draws(subject: StepSubject, draws: int, sources: Iterator[CryptoRandom]) -> str:
    """Nobody is drawn: the same shape, all the noise, and nothing of the records."""
    clean = [
        subject.stage(subject.ordinary(count, seed), _NO_DRAW, SILENT).release(next(sources))
        for count, seed in ((2, 5), (_few(subject), 6))
    ]
    # What is left of the silent noise is far below this.
    if clean[0].shape != clean[1].shape or float((clean[0] - clean[1]).norm()) > 1e-6 * subject.sensitivity:
        raise Finding("a release of an empty draw depends on the records")
    sample = _sampled(subject, subject.ordinary(2, 5), _NO_DRAW, "of an empty draw", draws, sources)
    return f"an empty draw is an ordinary release; {sample.check_size()}"


def _noise_and_draw(subject: StepSubject, sources: Iterator[CryptoRandom]) -> str:
    for count in (1, _MANY):
        sample = _sampled(subject, subject.ordinary(count), 1.0, f"where {count} are drawn", 40, sources)
        sample.check_size()
    return f"the same noise whether 1 record is drawn or {_MANY}"


def _subsampling(subject: StepSubject, steps: int, sources: Iterator[CryptoRandom]) -> str:
    """Worst-case records show in the noise-free sum whether they were drawn: counted, against the binomial law."""
    for rate in (subject.sample_rate, _SOME):
        records = 1 if rate == 1.0 else min(_MOST_RECORDS, math.ceil((1.0 if subject.by_record else 0.7) / rate))
        stage = subject.stage(subject.many_far(records), rate, SILENT)
        counts = [_drawn(subject, stage, source) for source in _first(sources, steps)]
        trials = records if subject.by_record else subject.charges
        chance = rate if subject.by_record else 1.0 - (1.0 - rate) ** records
        if not binomial_fits(sum(counts), steps * trials, chance, LEVEL):
            raise Finding(
                f"records are drawn with probability {sum(counts) / (steps * trials):.4g}, not {chance:.4g}, at sample "
                f"rate {rate:.4g}: empty draws are skipped, or the rate is another one"
            )
        if not binomial_fits(counts.count(0), steps, (1.0 - chance) ** trials, LEVEL):
            raise Finding(
                f"{counts.count(0)} of {steps} draws were empty, where independent coins give "
                f"{steps * (1.0 - chance) ** trials:.1f}: the coins are not independent, or empty draws are skipped"
            )
    return f"each record enters by its own coin of probability {subject.sample_rate:.4g}; empty draws occur"


def _drawn(subject: StepSubject, stage: Stage, source: CryptoRandom) -> int:
    """How many worst-case records (record by record) or queries that hold one (whole batch) are in a sum."""
    released = stage.release(source)
    if isinstance(stage.method, BatchMethod):
        length = float(released.sum()) / math.sqrt(released.numel()) / stage.method.clip_norm
        number = (subject.charges + length) / 2.0
    else:
        number = float(released.norm()) / subject.sensitivity
    if not math.isfinite(number) or abs(number - round(number)) > _WHOLE:
        raise Finding(f"equal records at the clip bound add up to {number:.4g} times the bound, not to a whole number")
    return round(number)


def _only_the_release(subject: StepSubject, sources: Iterator[CryptoRandom]) -> str:
    """Quite different records, the same released tensor: the run's own generator must move alike, to the last bit."""
    worlds = (subject.ordinary(3, 8), subject.with_far(subject.ordinary(_MANY, 9), _MANY // 2))
    released = subject.stage(worlds[0], 1.0).release(next(sources))
    stages = [subject.stage(world, 1.0, released, subject.own_generator) for world in worlds]
    (seen, size), (other, other_size) = (stage.step(next(sources)) for stage in stages)
    for name in ("images", "labels", "potential"):
        if not torch.equal(getattr(seen, name), getattr(other, name)):
            raise Finding(f"the {_PUBLIC[name]} of a step depend on the records, beside what the mechanism released")
    if size != other_size or not all(map(torch.equal, stages[0].parameters(), stages[1].parameters())):
        raise Finding("the generator's update depends on the records, beside what the mechanism released")
    if all(map(torch.equal, stages[0].parameters(), list(subject.own_generator.parameters()))):
        raise Finding("the generator did not move, so nothing was tested")
    return "with the same released tensor, other records (3 or 61) change no public input and no bit of the update"


def _sampled(
    subject: Subject, world: World, rate: float, what: str, draws: int, sources: Iterator[CryptoRandom]
) -> NoiseSample:
    clean = subject.stage(world, rate, SILENT).release(next(sources))
    if clean.shape != subject.shape:
        raise Finding(f"{what} a release has shape {tuple(clean.shape)}, not {tuple(subject.shape)}: it tells the draw")
    sample, stage = NoiseSample(clean, subject.stddev, what), subject.stage(world, rate)
    for source in _first(sources, draws):
        sample.add(stage.release(source))
    return sample


def _few(subject: Subject) -> int:
    """Records of the small worlds: all of them fit into a query."""
    rules = subject.config.rules
    return max(1, min(_FEW, rules.capacity - 1)) if isinstance(rules, BatchRules) else _FEW


def _first(sources: Iterator[CryptoRandom], count: int) -> Iterator[CryptoRandom]:
    return (next(sources) for _ in range(count))
