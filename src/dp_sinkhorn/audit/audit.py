"""The audit of a run or a recipe: its randomness, every query that it asks, and canaries."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from dp_sinkhorn.audit.canaries import FAILING_LEVEL, STATED_LEVEL, CanaryAudit, audit_canaries
from dp_sinkhorn.audit.checks import Check
from dp_sinkhorn.audit.freshness import check_fresh_randomness
from dp_sinkhorn.audit.neighbouring import Violation
from dp_sinkhorn.audit.query_audit import TradeOff, audit_query, judged
from dp_sinkhorn.audit.stand_in import smooth_images
from dp_sinkhorn.audit.targets import check_only_the_answers, targets_of
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.data.sources import load_images
from dp_sinkhorn.generators.device import find_device
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.paths import AnyPath
from dp_sinkhorn.method import resolve
from dp_sinkhorn.privacy.accounting import MAX_NOISE, epsilon_pld, epsilons
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.release.verify import verify
from dp_sinkhorn.release.weights import CARD
from dp_sinkhorn.settings import RunConfig, Settings
from dp_sinkhorn.stages.base import Stages
from dp_sinkhorn.training.run_folder import CONFIG, facts_of, stored_config

_STAND_INS = 200
_LEAST_DRAWS = 100
_SLACK = 1e-6


@dataclass(frozen=True)
class Effort:
    """How much an audit measures. The defaults take a few minutes.

    Args:
        draws: Answers on each data set of the worst-case pair, at least 100.
        steps: Maximum number of steps of the canary run, at least 1. canaries: Canaries in it, at least 40.
    """

    draws: int = 1000
    steps: int = 1000
    canaries: int = 500

    def __post_init__(self) -> None:
        for name, least in (("draws", _LEAST_DRAWS), ("steps", 1), ("canaries", 40)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)} is too few for an audit; give at least {least}")


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Args:
        passed: Nothing contradicts the claim. A sound run fails less than once in 3,000 audits.
        epsilon_claimed: ε of the run's card, or of the recipe on the digits.
        epsilon_lower_bound: The larger of the next two; wrong with probability at most 5 %.
        epsilon_from_step: ε of the run's steps (or embedding) at the largest noise multiplier that the measurement
            allows.
        epsilon_from_canaries: Lower bound from the canary run of `audited_steps` steps (0: from the embedding alone,
            because the steps see no record). epsilon_claimed_audited: ε that the canary run claims.
        noise_multiplier, noise_multiplier_measured: Claimed, and a confidence interval.
    """

    passed: bool
    epsilon_claimed: float
    epsilon_lower_bound: float
    epsilon_from_step: float
    epsilon_from_canaries: float
    epsilon_claimed_audited: float
    delta: float
    noise_multiplier: float
    noise_multiplier_measured: tuple[float, float] | None
    audited_steps: int
    num_canaries: int
    checks: tuple[Check, ...]

    def to_json_dict(self) -> dict[str, object]:
        """Plain data with the same keys."""
        return asdict(self)


def audit_run(folder: AnyPath, effort: Effort, seed: int, progress: Callable[[str], None], stages: Stages) -> Audit:
    """Audit the code and the settings of a run. It reads the run's configuration and card, but no record.

    Raises:
        InputError: The folder holds no run.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} holds no run ({CONFIG}); give a run folder, or --recipe FILE")
    config = stored_config(folder, stages)
    config = config.model_copy(update={"device": find_device("auto")})  # not that of the machine that trained
    stand_in = smooth_images(config.data, _STAND_INS, seed=9)
    if not (folder / "release" / CARD).is_file():
        return _audit(config, stand_in, effort, seed, progress, stages, None)
    card = PrivacyCard.from_file(folder / "release" / CARD)
    return _audit(config, stand_in, effort, seed, progress, stages, (folder, card))


def audit_settings(
    settings: Settings, effort: Effort, seed: int, progress: Callable[[str], None], stages: Stages
) -> Audit:
    """Audit a run with these settings on scikit-learn's digits."""
    digits = load_images("digits", "train", settings.reading)
    config = resolve(settings, facts_of("digits", digits), stages)
    return _audit(config, digits, effort, seed, progress, stages, None)


def _audit(
    config: RunConfig,
    stand_in: LabelledImages,
    effort: Effort,
    seed: int,
    progress: Callable[[str], None],
    stages: Stages,
    release: tuple[Path, PrivacyCard] | None,
) -> Audit:
    plan = config.plan
    claimed = release[1].epsilon if release else epsilon_pld(plan.charges, plan.target_delta)
    checks = [judged("card", partial(_card, config, stages, *release))] if release else []
    progress("randomness of starts and resumptions")
    checks.append(judged("fresh randomness", partial(check_fresh_randomness, config, stages)))
    progress("collecting the queries of a run on public records")
    learned, found = _queries(config, effort, seed, progress, stages)
    checks += found
    in_steps = plan.queries_per_step > 0
    canaries, steps = None, min(effort.steps, plan.num_steps) if in_steps else 0

    def canary_run() -> str:
        nonlocal canaries
        canaries = audit_canaries(
            config,
            stand_in,
            effort.canaries,
            steps,
            CryptoRandom(),
            stages,
            lambda done: progress(f"query {done} of a run with {effort.canaries} canaries"),
        )
        return judge_canaries(canaries)

    checks.append(judged("canaries", canary_run))
    from_step = 0.0
    # Beyond this noise the accountant gives no bound: the record hardly shows.
    charge = plan.charge(plan.learns)
    if charge is not None and learned and (noise := learned.noise_multiplier[1]) <= MAX_NOISE:
        from_step = epsilon_pld([charge.model_copy(update={"noise_multiplier": noise})], plan.target_delta)
    from_canaries = canaries.epsilon if canaries else 0.0
    return Audit(
        passed=all(check.ok for check in checks),
        epsilon_claimed=claimed,
        epsilon_lower_bound=max(from_step, from_canaries),
        epsilon_from_step=from_step,
        epsilon_from_canaries=from_canaries,
        epsilon_claimed_audited=canaries.epsilon_claimed if canaries else 0.0,
        delta=plan.target_delta,
        noise_multiplier=plan.noise_multiplier,
        noise_multiplier_measured=learned.noise_multiplier if learned else None,
        audited_steps=steps,
        num_canaries=effort.canaries,
        checks=tuple(checks),
    )


def _queries(
    config: RunConfig, effort: Effort, seed: int, progress: Callable[[str], None], stages: Stages
) -> tuple[TradeOff | None, list[Check]]:
    """The trade-off of the query that the generator learns from, and the checks of all queries.

    The first query of that charge gets all checks and all draws. The others get fewer of both.
    """
    plan, checks = config.plan, []
    try:
        targets = targets_of(config, stages)
    except Violation as violation:
        return None, [Check("run", ok=False, finding=str(violation))]
    learned: TradeOff | None = None
    for name, found in targets.items():
        words = name.replace("_", " ").replace(".", ", ")
        for number, target in enumerate(found):
            label = words if len(found) == 1 else f"{words}, {('first', 'middle', 'last')[number]}"
            progress(f"{label}: answers on neighbouring data sets")
            full = name == plan.learns and number == 0
            draws = effort.draws if full else max(_LEAST_DRAWS, effort.draws // 10)
            result = audit_query(target, draws, seed, plan.target_delta, None if full else ("sensitivity", "noise"))
            learned = result.trade_off if full else learned
            checks += [replace(check, name=f"{label}: {check.name}") for check in result.checks]
    progress("whether a run depends on more than the answers")
    target = targets[plan.learns][0]
    data_sets = target.ordinary(3, 8), target.with_far(target.ordinary(60, 9), 30)
    checks.append(judged("only the answers", partial(check_only_the_answers, config, stages, data_sets)))
    return learned, checks


def _card(config: RunConfig, stages: Stages, folder: Path, card: PrivacyCard) -> str:
    """Check that the card's claim follows from its charges, and these from the run's configuration."""
    problems = verify(folder, stages).problems
    if problems:
        raise Violation("; ".join(problems))
    plan = config.plan
    for name in ("noise_multiplier", "sample_rate", "queries_per_step", "num_records"):
        if getattr(card, name) != getattr(plan, name):
            raise Violation(f"the card says {name}={getattr(card, name):g}, the run's plan {getattr(plan, name):g}")
    needed = epsilons(plan.charges, card.delta, card.epsilon).pld
    if card.epsilon < needed * (1.0 - _SLACK):
        raise Violation(f"the card claims epsilon {card.epsilon:.6g}; the run's configuration gives {needed:.6g}")
    return f"epsilon {card.epsilon:.4g} follows from what the run's configuration releases"


def judge_canaries(found: CanaryAudit) -> str:
    """Compare what the canaries show with the claim of their run.

    Raises:
        Violation: They do.
    """
    if found.epsilon_for_sure > found.claimed_for_sure:
        raise Violation(
            f"guesses about {found.num_canaries} canaries show epsilon at least {found.epsilon_for_sure:.4g}; the "
            f"audited run claims {found.claimed_for_sure:.4g} (chance of error {FAILING_LEVEL:g})"
        )
    return (
        f"epsilon at least {found.epsilon:.3g} (confidence {1.0 - STATED_LEVEL:.0%}) by {found.num_canaries} canaries "
        f"in {f'{found.num_steps} steps' if found.num_steps else 'the embedding'}, for which "
        f"{found.epsilon_claimed:.4g} is claimed"
    )
