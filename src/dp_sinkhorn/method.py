"""The method: which stages, in which order, with which shares of the budget, by which public rules. Read this first.

A run is a list of stages. Only the curator holds the records. Each stage asks it and learns from noisy answers:

    class_counts         number of records of each class
    principal_subspace   mean image, variance, and the directions in which images vary
    class_moments        first and second moments of each class
    class_features       mean scattering features of each class
    label_classifier     a linear classifier
    class_embedding      mean random features of each class; later steps learn from them
    transport_steps      the generator follows a noisy sum of clipped per-record transport gradients
    batch_steps          the generator follows noisy, clipped gradients of whole batches, as in the paper
    embedding_steps      the generator follows the embedding alone; no step sees a record
    fine_tuning          the generator is fine-tuned on all that was released; no step sees a record

Everything after an answer is post-processing. `docs/explanation/method.md` explains the method,
`docs/architecture.md` the packages of the code.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp_sinkhorn.estimators.subspace import MAX_FREQUENCIES
from dp_sinkhorn.generators.build import MAX_PARAMETERS, check_size, size_of
from dp_sinkhorn.generators.device import find_device, find_precision
from dp_sinkhorn.generators.spec import DEFAULT_SIZES, GeneratorSpec
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import MAX_NOISE, Charge, check_analysable, epsilons
from dp_sinkhorn.privacy.calibration import gaussian_noise_multiplier, longest_run, step_noise_multiplier
from dp_sinkhorn.privacy.plan import (
    Budget,
    Mode,
    PrivacyPlan,
    check_count,
    check_delta,
    more_steps,
    noise_per_record,
)
from dp_sinkhorn.release.weights import MAX_WEIGHTS_BYTES
from dp_sinkhorn.settings import MAX_STEP_NUMBERS, DataFacts, RunConfig, Settings, make_settings, read_config
from dp_sinkhorn.stages.base import Stage, Stages
from dp_sinkhorn.stages.batch_steps import BatchSteps
from dp_sinkhorn.stages.class_counts import ClassCounts
from dp_sinkhorn.stages.class_embedding import ClassEmbedding
from dp_sinkhorn.stages.class_features import ClassFeatures
from dp_sinkhorn.stages.class_moments import ClassMoments
from dp_sinkhorn.stages.embedding_steps import EmbeddingSteps
from dp_sinkhorn.stages.fine_tuning import FineTuning
from dp_sinkhorn.stages.label_classifier import LabelClassifier
from dp_sinkhorn.stages.principal_subspace import PrincipalSubspace
from dp_sinkhorn.stages.transport_steps import TransportSteps

STAGES = Stages.of(
    ClassCounts(share=0.01),
    PrincipalSubspace(share=0.03),  # the second moment; the first moments take 0.01 to 0.1, by the noise per record
    ClassMoments(share=0.25),
    ClassFeatures(share=0.05),
    LabelClassifier(share=0.15),
    ClassEmbedding(share=0.1),  # in mode `record`; falls to 0 with the noise per record
    TransportSteps(),
    BatchSteps(),
    EmbeddingSteps(),
    FineTuning(),
)
"""All stages in the order of asking, with their default shares of the budget (of μ², which adds up over Gaussian
releases). The stage that learns gets the rest. Chosen on MNIST and PneumoniaMNIST: decision 5."""

# Bounds of the noise per record between which mode `embedding` is the default. Chosen on MNIST and
# PneumoniaMNIST: decision 2. With δ = 1e-5 and 60,000 records: ε of 0.2 to 0.6.
_EMBEDDING_FROM, _EMBEDDING_TO = 1e-4, 3e-4


@dataclass(frozen=True)
class Regimen:
    """How a mode trains.

    Args:
        learns: The stage that gets the rest of the budget. Its noise, or the length of the run, is solved for.
        trains: The stage whose steps train the generator. asks_in_steps: Whether these steps ask the curator.
        leaves_out: Stages that do not run.
        steps: Default number of steps. more: Whether noise raises it (`plan.more_steps`).
        least_batch, one_in: The default expected batch is N/one_in records, but at least `least_batch` and at most N.
    """

    learns: str
    trains: str
    leaves_out: tuple[str, ...]
    steps: int
    more: bool
    least_batch: int
    one_in: int | None = None
    asks_in_steps: bool = True


MODES: Mapping[Mode, Regimen] = {
    # Every step asks for clipped contributions of each record.
    "record": Regimen(
        learns="transport_steps",
        trains="transport_steps",
        leaves_out=("batch_steps", "embedding_steps"),
        steps=1000,
        more=True,
        least_batch=2000,
        one_in=10,
    ),
    # The mean embeddings of the classes are released once; the steps see no record and cost time only.
    "embedding": Regimen(
        learns="class_embedding",
        trains="embedding_steps",
        leaves_out=("transport_steps", "batch_steps"),
        steps=500,
        more=False,
        least_batch=2000,
        one_in=10,
        asks_in_steps=False,
    ),
    # The paper's procedure.
    "batch": Regimen(
        learns="batch_steps",
        trains="batch_steps",
        leaves_out=tuple(name for name in STAGES if name not in ("class_counts", "batch_steps")),
        steps=20_000,
        more=False,
        least_batch=50,
    ),
}


def default_mode(noise: float) -> Mode:
    """The default mode at this noise per record.

    Where the answers of steps are mostly noise, a step undoes what earlier steps have learnt. An embedding that is
    released once gives all steps the same goal. At still more noise the steps would learn the noise of the embedding.
    """
    return "embedding" if _EMBEDDING_FROM < noise <= _EMBEDDING_TO else "record"


def settings_of(
    recipe: str | Path | None = None, overrides: Mapping[str, Any] | None = None, stages: Stages = STAGES
) -> Settings:
    """Settings from a recipe, overridden by single values; see `settings.make_settings`."""
    return make_settings(stages, recipe, overrides)


def config_of(path: Path, stages: Stages = STAGES) -> RunConfig:
    """Read a run's `config.toml`; see `settings.read_config`."""
    return read_config(path, stages)


def chosen_mode(settings: Settings, num_records: int) -> Mode:
    """The mode: as set, or the default at the noise per record."""
    noise = noise_per_record(settings.target_epsilon, settings.target_delta, num_records)
    return settings.mode or default_mode(noise)


def make_plan(settings: Settings, num_records: int, num_classes: int, stages: Stages = STAGES) -> PrivacyPlan:
    """The plan of a run with these settings, with noise or length fitted to the target ε.

    Without `noise_multiplier` the noise is calibrated so that the whole run spends at most the target, and within 1 %
    of it. With `noise_multiplier` and without `num_steps`, the run is as long as the target allows. With both, the run
    may spend less than the target, and is refused if it spends more.

    Guarantees: the accountant can bound ε of the plan.

    Raises:
        InputError: A value is out of range or has no effect, or the target cannot be met.
    """
    return _planned(settings, num_records, num_classes, stages)[0]


def resolve(settings: Settings, data: DataFacts, stages: Stages = STAGES) -> RunConfig:
    """Derive everything that the user left open by public rules, and calibrate the noise.

    Raises:
        InputError: The settings do not fit the data.
    """
    plan, found = _planned(settings, data.num_records, data.num_classes, stages)
    mode = chosen_mode(settings, data.num_records)
    trains = stages[MODES[mode].trains]
    num_generated = trains.num_generated(settings, plan, data.num_classes)
    rules = {stage.name: stage.rules(settings, plan, data) for stage in found}
    images = trains.images_a_step(rules[trains.name], num_generated)
    if images * math.prod(data.shape) > MAX_STEP_NUMBERS:
        raise InputError(
            f"{images} images per step of shape {data.shape} hold more than {MAX_STEP_NUMBERS} numbers; "
            f"give a smaller num_generated"
        )
    device = find_device(settings.device)
    width, channels = DEFAULT_SIZES[settings.generator]
    config = RunConfig(
        data=data,
        settings=settings,
        plan=plan,
        generator=GeneratorSpec(
            name=settings.generator,
            latent_dim=settings.latent_dim,
            width=settings.width or width,
            channels=settings.channels or channels,
        ),
        mode=mode,
        trains=trains.name,
        num_generated=num_generated,
        learning_rate=settings.learning_rate or trains.default_learning_rate(plan, num_generated),
        device=device,
        precision=find_precision(device) if settings.precision == "auto" else settings.precision,
        rules=rules,
    )
    return _fitting_a_release(config, found)


def _planned(settings: Settings, num_records: int, num_classes: int, stages: Stages) -> tuple[PrivacyPlan, list[Stage]]:
    """The plan, and the stages that run."""
    mode = chosen_mode(settings, num_records)
    if not settings.allow_large_delta:
        check_delta(settings.target_delta, num_records)
    whole = gaussian_noise_multiplier(settings.target_epsilon, settings.target_delta)
    regimen = MODES[mode]
    if settings.num_steps is not None and settings.num_steps < 1:
        raise InputError(f"num_steps={settings.num_steps} is below 1; give at least 1")
    batch = _batch(settings, regimen, num_records)
    budget = Budget(mode, whole, num_records, num_classes, batch / num_records)
    found = _running(settings, budget, stages)
    charges = tuple(
        charge for stage in found if stage.name != regimen.learns for charge in stage.charges(settings, budget)
    )
    if budget.taken >= 1.0:
        raise InputError(
            f"releases before the first step take {budget.taken:.3g} of the budget, which leaves none for "
            f"training; give a smaller budget_share ({', '.join(charge.name for charge in charges)})"
        )
    learned, steps = _learned(settings, budget, regimen, stages[regimen.trains].queries_per_step(settings), charges)
    plan = PrivacyPlan(
        target_epsilon=settings.target_epsilon,
        target_delta=settings.target_delta,
        num_records=num_records,
        noise_per_record=budget.noise_per_record,
        sample_rate=budget.sample_rate,
        num_steps=steps,
        queries_per_step=learned.count // steps if regimen.asks_in_steps else 0,
        learns=learned.name,
        noise_multiplier=learned.noise_multiplier,
        charges=(*charges, learned),
    )
    _check(plan, settings)
    return plan, found


def _batch(settings: Settings, regimen: Regimen, num_records: int) -> int:
    """Expected number of records in a subsample."""
    batch = settings.expected_batch_size
    if batch is None:
        return min(num_records, max(regimen.least_batch, num_records // regimen.one_in if regimen.one_in else 0))
    if batch < 1:
        raise InputError(f"expected_batch_size={batch} is below 1; give at least 1")
    if batch > num_records:
        raise InputError(f"expected_batch_size={batch} exceeds the {num_records} records; give at most {num_records}")
    return batch


def _running(settings: Settings, budget: Budget, stages: Stages) -> list[Stage]:
    """The stages that run. A setting that has no effect is refused.

    A stage runs unless the mode or a setting leaves it out, or a stage that gives what it needs does not run.
    """
    found: list[Stage] = []
    given = {gift for stage in stages.values() for gift in stage.gives}
    here: set[str] = set()
    for name, stage in stages.items():
        out = name in MODES[budget.mode].leaves_out
        runs = not out and stage.runs(settings, budget) and here >= set(stage.needs) & given
        if runs:
            found.append(stage)
            here |= set(stage.gives)
        before = {one.name for one in found if one is not stage}
        _refuse_unread(settings, budget, stage, before, set(stages), out=out, runs=runs)
    return found


def _refuse_unread(
    settings: Settings, budget: Budget, stage: Stage, before: set[str], every: set[str], *, out: bool, runs: bool
) -> None:
    """Refuse settings of a stage that would have no effect.

    Args:
        before: Names of the stages that run before it. every: Names of all stages.
        out: The mode leaves the stage out. runs: The stage runs.
    """
    name = stage.name
    share = getattr(settings.stages.get(name), "budget_share", None)
    unread = [
        key
        for key in settings.given(name)
        if (key in stage.unread(budget, before) or not runs)
        # A share of 0 has an effect: it leaves the stage out.
        and (runs or out or share or key != "budget_share")
    ]
    if not unread:
        return
    keys, them = ", ".join(f"{name}.{key}" for key in unread), "it" if len(unread) == 1 else "them"
    if runs and not stage.unread(budget, every).issuperset(unread):
        reason, other = f"no stage that runs releases a goal for {them}", ", or give a budget_share"
    elif out or runs:
        why = "" if settings.mode else f", the default for {budget.num_records} records at this budget,"
        reason, other = f"mode={budget.mode!r}{why} does not use {them}", ", or give mode"
    else:
        may_share = not share and "budget_share" in stage.settings_type.model_fields
        reason, other = f"this run has no {name}", f", or give {name}.budget_share" if may_share else ""
    raise InputError(
        f"{keys} would have no effect: {reason}; leave {them} out (KEY=none removes a recipe's value){other}"
    )


def _learned(
    settings: Settings, budget: Budget, regimen: Regimen, queries: int, charges: tuple[Charge, ...]
) -> tuple[Charge, int]:
    """The charge of the stage that gets the rest of the budget, and the number of steps."""
    epsilon, delta, rate = settings.target_epsilon, settings.target_delta, budget.sample_rate
    default = round(regimen.steps * (more_steps(budget.noise_per_record) if regimen.more else 1.0))
    steps = settings.num_steps or default
    noise = settings.noise_multiplier
    if not regimen.asks_in_steps:
        noise = noise or step_noise_multiplier(epsilon, delta, 1.0, 1, charges)
        return Charge(name=regimen.learns, noise_multiplier=noise), steps
    if noise is None:
        check_count(steps * queries)
        noise = step_noise_multiplier(epsilon, delta, rate, steps * queries, charges)
    else:
        longest = longest_run(epsilon, delta, rate, noise, charges) if settings.num_steps is None else 0
        steps = settings.num_steps or max(1, longest // queries)
        check_count(steps * queries)
    return Charge(name=regimen.learns, noise_multiplier=noise, sample_rate=rate, count=steps * queries), steps


def _check(plan: PrivacyPlan, settings: Settings) -> None:
    """Refuse a plan whose ε cannot be bounded or exceeds the target, before anything is charged."""
    queries = max(1, plan.queries_per_step)
    of_steps = plan.noise_multiplier * math.sqrt(queries)
    largest = max([of_steps, *(charge.noise_multiplier for charge in plan.charges)])
    if largest > MAX_NOISE:
        raise InputError(
            f"epsilon={plan.target_epsilon:g} needs noise of {largest:.3g} times the sensitivity, more than "
            f"{MAX_NOISE:g}; give a larger epsilon, fewer queries_per_step or larger shares"
        )
    try:
        check_analysable(plan.charges, plan.target_delta)
        if settings.noise_multiplier is None:
            return
        spent = epsilons(plan.charges, plan.target_delta, plan.target_epsilon).pld
    except InputError as error:
        raise InputError(f"{error}; give a smaller epsilon, fewer steps or smaller shares") from None
    if spent > plan.target_epsilon:
        fewer = "fewer num_steps or queries_per_step, or more noise" if plan.queries_per_step else "more noise"
        raise InputError(
            f"{plan.num_steps} steps with noise_multiplier={plan.noise_multiplier:g} spend epsilon={spent:.4g}, more "
            f"than {plan.target_epsilon:g}; give {fewer}"
        )


def _fitting_a_release(config: RunConfig, found: list[Stage]) -> RunConfig:
    """The run, its subspace limited to as many dimensions as fit into a release.

    Raises:
        InputError: Even the least number of dimensions does not fit.
    """
    check_size(config.generator, config.data.shape, config.data.num_classes)

    def fits(dimensions: int) -> bool:
        spec = config.generator
        for stage in found:
            spec = stage.network(spec, config, dimensions)
        numbers = size_of(spec, config.data.shape, config.data.num_classes)
        return numbers <= MAX_PARAMETERS and 4 * numbers + _HEADER_BYTES <= MAX_WEIGHTS_BYTES

    subspace = next((stage.name for stage in found if "subspace" in stage.gives), None)
    least = 1 if subspace is None else config.rules[subspace].model_dump()["min_dimensions"]
    size = math.prod(config.data.shape)
    least = min(least, size)
    if not fits(least):
        raise InputError(
            f"the release of {config.data.num_classes} classes of images of shape {config.data.shape} would be larger "
            f"than {MAX_WEIGHTS_BYTES} bytes or {MAX_PARAMETERS} numbers; give fewer classes, smaller images or a "
            "smaller generator, or leave stages out (their budget_share=0)"
        )
    most = min(MAX_FREQUENCIES, size)
    if subspace is None or fits(most):
        return config
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return config.with_rules(subspace, max_dimensions=least)


_HEADER_BYTES = 1 << 20
