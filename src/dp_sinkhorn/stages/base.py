"""The base class of all stages, the state of a run, and helpers that several stages share."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Float, Float64, UInt8
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from dp_sinkhorn.estimators.mean_embedding import ReleasedEmbedding
from dp_sinkhorn.estimators.subspace import Subspace
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.optimiser import Optimiser, learning_rate_share, make_optimiser, update_average
from dp_sinkhorn.generators.spec import GeneratorSpec
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.safe_read import listed
from dp_sinkhorn.privacy.accounting import Charge
from dp_sinkhorn.privacy.clipping import BoundedSum
from dp_sinkhorn.privacy.curator import Curator, Draw, Query
from dp_sinkhorn.privacy.plan import Budget, Mode, PrivacyPlan
from dp_sinkhorn.release.card import ClassPriorFacts, PrivacyCard
from dp_sinkhorn.settings import DataFacts, RunConfig, Settings, Share, StageRules, StageSettings, given

_SHOWN = 5  # class names in a warning

UNIT_SENSITIVITY = 1.0
"""Sensitivity of sums whose contributions have L2 norm at most 1."""


class StageFacts(BaseModel):
    """The public facts that a stage adds to the privacy card. Types are checked strictly."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


_Facts = TypeVar("_Facts", bound=StageFacts)


@dataclass
class State:
    """What a run has learnt so far: a function of released tensors and public facts only.

    Args:
        generator: The generator after the last update. average: The moving average of its weights.
        learnt: Tensors that stages keep until the end, by name; they go into the checkpoint.
        hidden: (K,) True for classes that noise hides from the stage that trains.
        clip_norm, sensitivity: Of the queries of the stage that trains, or of the release from which it learns.
        step: Number of updates so far. field_size: Root mean square of the last released field.
        steps_after: Number of finishing steps so far, all stages together. report: Called with it after each.
        embedding: The released embedding of the classes, if there is one.
        finished: The network to be released: the averaged generator, with the changes of the finishing stages so far.
        spec: The specification of `finished`.
        class_prior: Shares of the classes, for the card.
    """

    config: RunConfig
    generator: Generator
    average: Generator
    optimiser: Optimiser
    learnt: dict[str, Tensor] = field(default_factory=dict)
    hidden: Tensor | None = None
    clip_norm: float = 0.0
    sensitivity: float = 0.0
    step: int = 0
    field_size: float = 0.0
    steps_after: int = 0
    report: Callable[[int], None] = lambda done: None
    finished: Generator = field(init=False)
    spec: GeneratorSpec = field(init=False)
    class_prior: ClassPriorFacts | None = None
    embedding: ReleasedEmbedding | None = None

    def __post_init__(self) -> None:
        self.finished, self.spec = self.average, self.config.generator

    @property
    def plan(self) -> PrivacyPlan:
        """The plan of the run."""
        return self.config.plan

    @property
    def class_counts(self) -> Float64[Tensor, " K"]:
        """(K,) estimated or declared number of records of each class, all positive."""
        return self.learnt["counts"]

    @property
    def class_shares(self) -> tuple[float, ...]:
        """Share of each class among the records."""
        return tuple((self.class_counts / self.class_counts.sum()).tolist())

    @property
    def variance(self) -> float:
        """V, the released variance of the records about the centre: E‖y − centre‖², pixels in [-1, 1]."""
        return float(self.learnt["variance"])

    @property
    def subspace(self) -> Subspace:
        """The subspace of costs, contributions and noise, centred on the noisy mean image."""
        return Subspace(self.learnt["centre"], self.learnt["basis"])

    def noise_of(self, name: str) -> float:
        """Noise multiplier of the charge of this name."""
        charge = self.plan.charge(name)
        assert charge is not None  # noqa: S101 - callers hold its answer
        return charge.noise_multiplier

    def finish_step(self) -> None:
        """Count and report one finishing step."""
        self.steps_after += 1
        self.report(self.steps_after)

    def begin_step(self) -> torch.Generator:
        """Set the learning rate of the next update and return the source of its public latents.

        It is seeded by (seed, step).
        """
        settings = self.config.settings
        share = learning_rate_share(self.step, self.plan.num_steps, settings.warmup, settings.schedule)
        self.optimiser.set_rate(self.config.learning_rate * share)
        return torch.Generator().manual_seed(settings.seed * 1_000_003 + self.step)

    def update(self, images: Float[Tensor, "n d"], gradient: Float[Tensor, "n d"], size: float) -> None:
        """Move the generator along a gradient of its images.

        Args:
            size: Root mean square of the released field.
        """
        self.optimiser.zero_grad()
        images.backward(gradient)
        self.optimiser.step()
        update_average(self.average, self.generator, self.config.settings.average_decay, self.step)
        self.step, self.field_size = self.step + 1, size


@dataclass(frozen=True, eq=False)
class Worst:
    """The worst-case record that an audit adds to a data set, for the queries of one stage.

    Args:
        pixels: (1, channels, height, width) of the record.
        factors: By the name of a view: the factor by which the record's row is scaled, beyond the row of any image.
        query: Replaces a query of the run by the worst one that its bound allows.
    """

    pixels: Tensor
    factors: Mapping[str, float] = field(default_factory=dict)
    query: Callable[[Query], Query] = lambda query: query


class Stage:
    """One idea of the method. By default a method does nothing.

    In `run` a stage asks the curator and puts what it learns into the state. When all stages have run, `finish` makes
    the released network from the state.

    Guarantees: everything that a stage does outside of a query's `contribute` is post-processing.
    """

    name: str
    settings_type: type[StageSettings] = StageSettings
    rules_type: type[StageRules] = StageRules
    facts_type: type[StageFacts] = StageFacts
    needs: ClassVar[tuple[str, ...]] = ()
    """What it needs: gifts of earlier stages, and views of the records."""
    gives: ClassVar[tuple[str, ...]] = ()
    """What it gives to later stages."""
    charged: ClassVar[tuple[str, ...]] = ()
    """Names of its charges that are released once, on all records."""
    mechanism: ClassVar[str] = ""
    """Its mechanism in words, for the card; empty: one Gaussian release of sensitivity 1 on all records."""
    trains: ClassVar[Mode | None] = None
    """The mode in which its steps train the generator."""
    bounds_whole_batches: ClassVar[bool] = False
    """Whether a query changes by at most its sensitivity when any number of records change."""

    def runs(self, settings: Settings, budget: Budget) -> bool:
        """Whether it runs with these settings, in a mode that includes it."""
        return True

    def unread(self, budget: Budget, before: Collection[str]) -> frozenset[str]:
        """Its settings that have no effect although it runs.

        Args:
            before: Names of the stages that run before it.
        """
        return frozenset()

    def charges(self, settings: Settings, budget: Budget) -> tuple[Charge, ...]:
        """Its charges, from its share of the budget. None for the stage that gets the rest."""
        return ()

    def queries_per_step(self, settings: Settings) -> int:
        """Queries per step of a stage that trains."""
        return 1

    def rules(self, settings: Settings, plan: PrivacyPlan, data: DataFacts) -> StageRules:
        """Its constants, once noise and number of steps are known."""
        return self.rules_type()

    def num_generated(self, settings: Settings, plan: PrivacyPlan, num_classes: int) -> int:
        """Generated images per step of a stage that trains."""
        raise NotImplementedError

    def images_a_step(self, rules: StageRules, num_generated: int) -> int:
        """All images that a step holds in memory."""
        return num_generated

    def default_learning_rate(self, plan: PrivacyPlan, num_generated: int) -> float:
        """Default learning rate of a stage that trains."""
        raise NotImplementedError

    def optimiser(self, generator: Generator, learning_rate: float) -> Optimiser:
        """Optimiser of a stage that trains: Muon for the weights between layers, Adam for all others."""
        return make_optimiser(learning_rate, generator)

    def run(self, curator: Curator, state: State) -> Iterator[None]:
        """Ask and learn. Yields wherever the run may be saved, shown or stopped. A resumed run calls it again.

        Raises:
            FloatingPointError: The generator's images are not finite (a public fact).
        """
        yield from ()

    def figures(self, curator: Curator, state: State) -> None:
        """Have the curator write private figures on the last step."""

    def finishing_parts(self, config: RunConfig) -> tuple[int, ...]:
        """Number of updates of each kind that `finish` makes, in order. They see no record."""
        return ()

    def finishing_steps(self, config: RunConfig) -> int:
        """Sum of `finishing_parts`."""
        return sum(self.finishing_parts(config))

    def shortened(self, config: RunConfig, steps: int) -> RunConfig:
        """The run with at most `steps` updates of each kind in `finish`."""
        return config

    def finish(self, state: State) -> None:
        """Make the released network when all stages have run: post-processing."""

    def unfinished(self, facts: StageFacts, config: RunConfig) -> bool:
        """Whether a release with these facts was written before `finish` was complete."""
        return False

    def network(self, spec: GeneratorSpec, config: RunConfig, dimensions: int) -> GeneratorSpec:
        """The network that `finish` makes from `spec`.

        Args:
            dimensions: Of the subspace.
        """
        return spec

    def facts(self, state: State) -> StageFacts:
        """Its facts for the card."""
        return self.facts_type()

    def warnings(self, state: State) -> tuple[str, ...]:
        """Warnings for users of the release: public facts, one line each."""
        return ()

    def problems(self, facts: StageFacts, card: PrivacyCard) -> Iterator[str]:
        """Contradictions between its facts, its charges and the card, one sentence each."""
        yield from ()

    def describe(self, facts: StageFacts) -> dict[str, str]:
        """Rows of the model card: fact → value."""
        return {}

    def objective(self, facts: StageFacts) -> str:
        """How it trained the generator, for the model card, in words that follow "it was trained"."""
        return ""

    def lighter(self, config: RunConfig) -> RunConfig:
        """The run with less work for this stage, for an audit. What the audit measures does not change."""
        return config

    def worst(self, state: State) -> Worst:
        """The worst-case record for an audit: by default a white image, unlike any smooth random image."""
        return Worst(torch.full((1, *state.config.data.shape), 255, dtype=torch.uint8))

    def scores(
        self, query: Query, answer: Tensor, known: Draw, chances: Float64[Tensor, " B"]
    ) -> Float64[Tensor, " B"] | None:
        """Score of each known record: how strongly an answer shows its contribution. None: there is no score.

        An audit guesses from the scores which records took part.

        Args:
            known: The records that the attacker knows. chances: Probability of each to be in the query's subsample.
        """
        return None

    # Helpers for the stages themselves.

    def ask(
        self,
        curator: Curator,
        state: State,
        sensitivity: float,
        contribute: Callable[[Draw], BoundedSum],
        part: str = "",
    ) -> Tensor:
        """Ask a query on all records and return the answer."""
        return curator.ask(Query(self.charge(state.plan, part), sensitivity, contribute))

    def charge(self, plan: PrivacyPlan, part: str = "", count: int | None = None) -> Charge:
        """Its charge in the plan.

        Args:
            part: Which charge, if it has several. count: Number of releases; None: all.
        """
        name = f"{self.name}.{part}" if part else self.name
        charge = plan.charge(name)
        assert charge is not None  # noqa: S101 - a stage runs only if its charges are in the plan
        return charge if count is None else charge.model_copy(update={"count": count})

    def is_charged(self, plan: PrivacyPlan) -> bool:
        """Whether the plan has a charge of this stage."""
        return any(charge.name.partition(".")[0] == self.name for charge in plan.charges)

    def facts_of(self, facts: StageFacts, kind: type[_Facts]) -> _Facts:
        """The facts as the type of this stage."""
        assert isinstance(facts, kind)  # noqa: S101 - `Stages.facts_of` has checked it
        return facts


class ShareSettings(StageSettings):
    """Settings of a stage that takes a share of the budget.

    Args:
        budget_share: In [0, 1); 0: the stage does not run.
    """

    budget_share: Share | None = None


class SharingStage(Stage):
    """A stage that takes a share of the budget, by default for one release on all records.

    Args:
        share: Default share, in [0, 1).
    """

    settings_type: type[StageSettings] = ShareSettings

    def __init__(self, share: float) -> None:
        self.default_share = share

    def share(self, settings: Settings, budget: Budget) -> float:
        """Its share of the budget, in [0, 1)."""
        return given(settings.of(self.name, ShareSettings).budget_share, self.default_share)

    def runs(self, settings: Settings, budget: Budget) -> bool:
        """See `Stage`."""
        return self.share(settings, budget) > 0.0

    def charges(self, settings: Settings, budget: Budget) -> tuple[Charge, ...]:
        """See `Stage`."""
        return (budget.once(self.name, self.share(settings, budget)),)

    def problems(self, facts: StageFacts, card: PrivacyCard) -> Iterator[str]:
        """See `Stage`."""
        return once_problems(self, card)


class Stages(dict[str, Stage]):
    """All stages that this version knows, by name, in the order of asking."""

    @classmethod
    def of(cls, *stages: Stage) -> "Stages":
        """The collection of these stages, in this order."""
        return cls({stage.name: stage for stage in stages})

    def running(self, config: RunConfig) -> list[Stage]:
        """The stages of a run, in the order of asking."""
        return [stage for name, stage in self.items() if name in config.rules]

    def unfinished(self, card: PrivacyCard, config: RunConfig) -> bool:
        """Whether the run wrote this release before its stages finished."""
        return any(stage.unfinished(facts, config) for stage, facts in self.facts_of(card))

    def needed(self, config: RunConfig, name: str) -> set[str]:
        """Names of a stage and of all stages that it needs, directly or indirectly."""
        found = {name}
        for stage in reversed(self.running(config)):
            if any(gift in self[other].needs for other in found for gift in stage.gives):
                found.add(stage.name)
        return found

    def facts_of(self, card: PrivacyCard) -> list[tuple[Stage, StageFacts]]:
        """The stages of a card with their facts, in the order of asking.

        Raises:
            InputError: The card lists a stage that this version does not know, or facts that do not fit a stage.
        """
        found = {}
        for entry in card.stages:
            if entry.name not in self:
                raise InputError(
                    f"the card lists the stage {entry.name!r}, which this version does not know; use the version "
                    f"that wrote it ({card.software})"
                )
            try:
                found[entry.name] = self[entry.name].facts_type.model_validate(entry.facts)
            except ValidationError as error:
                problem = error.errors()[0]
                where = ".".join(map(str, (entry.name, *problem["loc"])))
                raise InputError(f"the card's stages are damaged: {where}: {problem['msg'].lower()}") from None
        return [(stage, found[name]) for name, stage in self.items() if name in found]


def once_problems(stage: Stage, card: PrivacyCard) -> Iterator[str]:
    """What is wrong with the charges of a stage that makes each of its releases once, on all records."""
    for name in stage.charged:
        charge = next((charge for charge in card.charges if charge.name == name), None)
        if charge is None:
            yield f"the card lists the stage {stage.name!r}, but does not charge {name!r}"
            continue
        if charge.sample_rate != 1.0:
            yield f"the card charges {name!r} at sample rate {charge.sample_rate:g}; it is made on all records"
        if charge.count != 1:
            yield f"the card charges {name!r} {charge.count} times; it is made once"


def steps_problems(stage: Stage, card: PrivacyCard, sensitivity: float) -> Iterator[str]:
    """What is wrong with the charges of a stage that asks in every step, and with the card's claims about them."""
    steps = [charge for charge in card.charges if charge.name == stage.name]
    charged, queries = sum(charge.count for charge in steps), card.num_steps * card.queries_per_step
    if card.mode != stage.trains:
        yield f"mode {card.mode!r} makes no {stage.name}, but the card lists that stage"
    if charged == 0:
        yield "the card charges no step, so its weights cannot come from training"
    if any((c.noise_multiplier, c.sample_rate) != (card.noise_multiplier, card.sample_rate) for c in steps):
        yield "the card's noise multiplier or sample rate differ from those of its charged steps"
    if charged != queries:
        yield f"the card claims {queries} noisy queries, but charges {charged}"
    if not math.isclose(card.sensitivity, sensitivity, rel_tol=1e-9):
        yield (
            f"the card claims sensitivity {card.sensitivity:.6g}; mode {card.mode!r} with clip norm "
            f"{card.clip_norm:.6g} has {sensitivity:.6g}"
        )


def hidden_warning(state: State) -> tuple[str, ...]:
    """A warning that names the classes which noise hides from the steps."""
    flags = [] if state.hidden is None else state.hidden.tolist()
    names = [name for name, flag in zip(state.config.data.class_names, flags, strict=False) if flag]
    warning = "too few records for this budget in class {}: its images look much like those of all other classes"
    return (warning.format(listed(names, _SHOWN)),) if names else ()


def multiple(images: int, classes: int, least: int) -> int:
    """About `images` images in total, equally many of each class, and at least `least` of each."""
    return classes * max(least, round(images / classes))


def finite_images(images: Float[Tensor, "..."]) -> None:
    """Refuse images of a generator that diverged.

    Raises:
        FloatingPointError: They are not finite (a public fact).
    """
    if not bool(torch.isfinite(images).all()):
        raise FloatingPointError("the generator's images are not finite")


def root_mean_square(field_: Tensor) -> float:
    """Root mean square norm of the rows of a field."""
    return float(field_.norm()) / math.sqrt(field_.shape[0])


def noise_image(shape: tuple[int, int, int]) -> UInt8[Tensor, "1 c h w"]:
    """Random black and white pixels: unlike other images, in pixels and in features."""
    pixels = 255 * torch.randint(2, (1, *shape), generator=torch.Generator().manual_seed(12))
    return pixels.to(torch.uint8)
