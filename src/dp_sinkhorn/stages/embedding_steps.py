"""Stage: steps towards the released embedding of the classes. They see no record and cost time only.

Where nothing else trains the generator, they do. Where other steps have, these fine-tune it at the end.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from dp_sinkhorn.estimators.mean_embedding import HIDING_NOISE, EmbeddingGoal
from dp_sinkhorn.generators.base import Generator, as_released
from dp_sinkhorn.generators.build import empty_generator
from dp_sinkhorn.generators.mixture import MixtureGenerator
from dp_sinkhorn.generators.optimiser import learning_rate_share, update_average
from dp_sinkhorn.privacy.accounting import MAX_COUNT
from dp_sinkhorn.privacy.curator import Curator
from dp_sinkhorn.privacy.plan import Budget, PrivacyPlan
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.settings import (
    DataFacts,
    Images,
    Positive,
    RunConfig,
    Settings,
    Share,
    StageRules,
    StageSettings,
    Steps,
)
from dp_sinkhorn.stages.base import (
    Released,
    Stage,
    StageFacts,
    State,
    finite_images,
    hidden_warning,
    multiple,
    root_mean_square,
)

# As training, images a step and learning rate: chosen on MNIST, docs/tried.md.
_IMAGES, _LEARNING_RATE = 400, 4e-3
_MIN_PER_CLASS = 8
# As fine-tuning, steps, images of each and learning rate; and the share of a release's images that come from before
# them, by a budget that is not ample. Chosen on MNIST and PneumoniaMNIST: docs/tried.md.
_STEPS, _TUNING_IMAGES, _TUNING_RATE, _MIXTURE_WEIGHT = 300, 200, 2e-3, 0.5
# Of the latents, apart from those of the steps before.
_SEED = 0x3A7C_4ED5
# Less than usual: what the steps before have made of a hidden class is better than what its embedding tells.
_HIDING_NOISE = 0.025
# Steps whose images say what a class that noise hides is.
_OWN = 10


class EmbeddingStepsSettings(StageSettings):
    """What a user may choose. num_steps: Of fine-tuning, where other steps train the generator."""

    former: ClassVar[dict[str, str]] = {"matching_steps": "num_steps"}

    num_steps: Steps | None = None


class FineTuning(StageRules):
    """Constants of fine-tuning.

    Args:
        num_generated: Images a step. mixture_weight: Of the images of a release, so many are made by the generator as
            it was before these steps.
    """

    num_steps: Steps
    num_generated: Images
    learning_rate: Positive
    mixture_weight: Share


class EmbeddingStepsRules(StageRules):
    """Constants. fine_tuning: None: these steps train the generator, and the run's own settings say how."""

    fine_tuning: FineTuning | None = None


class EmbeddingStepsFacts(StageFacts):
    """fine_tuning_steps: After those that see records; 0: there are no others.

    mixture_weight: Of the images, so many come from before them.
    """

    fine_tuning_steps: Annotated[int, Field(ge=0, le=MAX_COUNT)]
    mixture_weight: Annotated[float, Field(ge=0.0, lt=1.0)]


class EmbeddingSteps(Stage):
    """Descends the squared distance between mean features of the model's images and the released ones."""

    name = "embedding_steps"
    settings_type = EmbeddingStepsSettings
    rules_type = EmbeddingStepsRules
    facts_type = EmbeddingStepsFacts
    needs = ("counts", "embedding")
    trains = "embedding"

    def unread(self, budget: Budget) -> frozenset[str]:
        """See `Stage`: the run has a number of steps of its own."""
        return frozenset({"num_steps"} if budget.mode == "embedding" else ())

    def rules(self, settings: Settings, plan: PrivacyPlan, data: DataFacts) -> EmbeddingStepsRules:
        """See `Stage`."""
        if plan.queries_per_step == 0:
            return EmbeddingStepsRules()
        tuning = FineTuning(
            num_steps=settings.of(self.name, EmbeddingStepsSettings).num_steps or _STEPS,
            num_generated=multiple(_TUNING_IMAGES, data.num_classes, _MIN_PER_CLASS),
            learning_rate=_TUNING_RATE,
            mixture_weight=0.0 if plan.regime == "ample" else _MIXTURE_WEIGHT,
        )
        return EmbeddingStepsRules(fine_tuning=tuning)

    def num_generated(self, settings: Settings, plan: PrivacyPlan, num_classes: int) -> int:
        """See `Stage`."""
        return multiple(settings.num_generated or _IMAGES, num_classes, _MIN_PER_CLASS)

    def default_learning_rate(self, plan: PrivacyPlan, num_generated: int) -> float:
        """See `Stage`."""
        return _LEARNING_RATE

    def run(self, curator: Curator, state: State) -> Iterator[None]:
        """See `Stage`: nothing is asked."""
        if self._tuning(state.config) is not None:
            return
        goal = self._goal(state, state.config.num_generated)
        state.hidden = goal.hidden
        while state.step < state.plan.num_steps:
            latents = state.begin_step()
            images, gradient = _step(state.generator, goal, latents)
            state.update(images, gradient, root_mean_square(gradient))
            yield

    def finishing_steps(self, config: RunConfig) -> int:
        """See `Stage`."""
        tuning = self._tuning(config)
        return 0 if tuning is None else tuning.num_steps

    def finish(self, state: State) -> None:
        """See `Stage`: the generator moved towards the embedding, and itself beside it unless the budget is ample.

        Noise has led the one astray otherwise than the other, so a release then draws from both. A class that the
        embedding's noise hides stays as it is.
        """
        if (tuning := self._tuning(state.config)) is None:
            return
        before, settings = state.average, state.config.settings
        latents = torch.Generator().manual_seed(settings.seed + _SEED)
        goal = self._goal(state, tuning.num_generated, _HIDING_NOISE)
        if bool(goal.hidden.any()):
            own = _own_means(before, goal, latents)
            goal = replace(goal, target=torch.where(goal.hidden.unsqueeze(1), own, goal.target))
        moved = copy.deepcopy(before).requires_grad_().train()
        moved.precision = getattr(torch, state.config.precision)
        average = copy.deepcopy(before)
        optimiser = self.optimiser(moved, state.config.learning_rate)
        for step in range(tuning.num_steps):
            share = learning_rate_share(step, tuning.num_steps, settings.warmup, settings.schedule)
            optimiser.set_rate(tuning.learning_rate * share)
            images, gradient = _step(moved, goal, latents)
            optimiser.zero_grad()
            images.backward(gradient)
            optimiser.step()
            update_average(average, moved, settings.average_decay, step)
            state.report(step + 1)
        state.weights = average.state_dict()
        state.finished = average
        if tuning.mixture_weight > 0.0:
            kept = before.state_dict()
            state.tensors |= {f"{self.name}.{name}": tensor for name, tensor in kept.items()}
            state.finished = MixtureGenerator(average, before, tuning.mixture_weight)
        state.finished.eval()

    def shapes(self, facts: StageFacts, of: Released) -> dict[str, tuple[int, ...]]:
        """See `Stage`."""
        if not self.facts_of(facts, EmbeddingStepsFacts).mixture_weight:
            return {}
        kept = empty_generator(of.generator, of.image_shape, len(of.class_names)).state_dict()
        return {f"{self.name}.{name}": tuple(tensor.shape) for name, tensor in kept.items()}

    def wrap(self, generator: Generator, facts: StageFacts, tensors: Mapping[str, Tensor]) -> Generator:
        """See `Stage`."""
        if not (weight := self.facts_of(facts, EmbeddingStepsFacts).mixture_weight):
            return generator
        kept = copy.deepcopy(generator)
        names = kept.state_dict()
        kept.load_state_dict({name: tensors[f"{self.name}.{name}"] for name in names})
        return MixtureGenerator(generator, kept, weight)

    def facts(self, state: State) -> EmbeddingStepsFacts:
        """See `Stage`."""
        return self.planned_facts(state.config, 0)

    def planned_facts(self, config: RunConfig, dimensions: int) -> EmbeddingStepsFacts:
        """See `Stage`."""
        tuning = self._tuning(config)
        return EmbeddingStepsFacts(
            fine_tuning_steps=tuning.num_steps if tuning else 0,
            mixture_weight=tuning.mixture_weight if tuning else 0.0,
        )

    def warnings(self, state: State) -> tuple[str, ...]:
        """See `Stage`."""
        return () if self._tuning(state.config) else hidden_warning(state)

    def problems(self, facts: StageFacts, card: PrivacyCard) -> Iterator[str]:
        """See `Stage`."""
        own = self.facts_of(facts, EmbeddingStepsFacts)
        if (own.fine_tuning_steps > 0) != (card.queries_per_step > 0):
            yield (
                f"the card claims {own.fine_tuning_steps} fine-tuning steps on an embedding after steps of "
                f"{card.queries_per_step} queries"
            )
        if own.mixture_weight and not own.fine_tuning_steps:
            yield (
                f"the card draws {100 * own.mixture_weight:.3g} % of the images from before the steps on an "
                "embedding, but claims no such steps"
            )

    def describe(self, facts: StageFacts) -> dict[str, str]:
        """See `Stage`."""
        own = self.facts_of(facts, EmbeddingStepsFacts)
        rows = {}
        if own.fine_tuning_steps:
            rows["steps after them"] = f"{own.fine_tuning_steps}, none of which sees a record"
        if own.mixture_weight:
            rows["images from before those"] = f"{100 * own.mixture_weight:.3g} %"
        return rows

    def objective(self, facts: StageFacts) -> str:
        """See `Stage`."""
        return (
            "to have the mean embedding of each class, released once with noise (DP-MERF, "
            "[Harder et al. 2021](https://arxiv.org/abs/2002.11603))"
        )

    def _tuning(self, config: RunConfig) -> FineTuning | None:
        return config.rules_of(self.name, EmbeddingStepsRules).fine_tuning

    def _goal(self, state: State, images: int, hiding_noise: float = HIDING_NOISE) -> EmbeddingGoal:
        assert state.embedding is not None  # noqa: S101 - this stage needs it
        counts = state.class_counts.to(state.config.device)
        return EmbeddingGoal.of(state.embedding, counts, images, hiding_noise)


def _step(generator: Generator, goal: EmbeddingGoal, latents: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images, and the gradient that moves the generator towards the embedding."""
    images = generator.sample(goal.labels, latents)
    finite_images(images)
    return images, goal.gradient(images)


@torch.no_grad()
def _own_means(generator: Generator, goal: EmbeddingGoal, latents: torch.Generator) -> Float[Tensor, "K numbers"]:
    """Mean features of the generator's own images of each class."""
    classes = len(goal.weights)
    means = []
    with as_released(generator):
        for _ in range(_OWN):
            images = generator.sample(goal.labels, latents).unflatten(0, (classes, -1))
            means.append(torch.cat([part.mean(1) for part in goal.features.of_images(images, goal.seen)], dim=1))
    return torch.stack(means).mean(0)
