"""Stage: the generator is fine-tuned on everything that was released. It sees no record and costs time only.

Two parts. First steps towards the mean embedding of each class, where one was released and has not trained the
generator already. Then the network gets its last layers (`TunedGenerator`), the affine map by the class moments, and
descends, by Adam and Muon,

    L = Σ_s a_s · mean over classes of ‖m_k − w_k‖² + b · mean of t_k·max(0, γ − margin(x, k)) + c · mean of ‖x − x⁰‖²/d

s: class features and class embedding. m_k: their means over the model's images of class k. w_k: those that its images
have before, moved by as much of the gap to the released ones as is not noise. margin: of the released classifier; t_k:
how often it finds class k in the images of class k, beyond chance. x⁰: the image of the same latents before. The last
term says: do not leave what optimal transport has learnt for what these statistics do not know. Of the networks on the
way, and the one from before these steps, the one is released whose L on fresh images is least.
"""

import copy
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from dp_sinkhorn.estimators.linear_classifier import margins_of, without_preference
from dp_sinkhorn.estimators.mean_embedding import EmbeddingGoal
from dp_sinkhorn.estimators.mean_features import believed_embedding_gap, believed_gap, squared_gaps, wanted_means
from dp_sinkhorn.features.random_fourier import FourierMap
from dp_sinkhorn.features.scattering import Scattering, map_shape, num_features
from dp_sinkhorn.generators.base import Generator, as_released
from dp_sinkhorn.generators.build import build_generator
from dp_sinkhorn.generators.optimiser import learning_rate_share, make_optimiser, update_average
from dp_sinkhorn.generators.spec import GeneratorSpec
from dp_sinkhorn.generators.tuned import TunedGenerator
from dp_sinkhorn.privacy.accounting import MAX_COUNT
from dp_sinkhorn.privacy.plan import Budget, PrivacyPlan
from dp_sinkhorn.settings import DataFacts, Images, RunConfig, Settings, StageRules, StageSettings, Steps
from dp_sinkhorn.stages.base import Stage, StageFacts, State, finite_images, multiple
from dp_sinkhorn.stages.class_moments import affine_tensors
from dp_sinkhorn.stages.label_classifier import SURE, choice_tensors

# Steps towards the embedding, and learning rate; noise on a number of its means that hides a small class: less than
# usual, since what the steps before have made of it is better than what the embedding tells.
_EMBEDDING_STEPS, _EMBEDDING_RATE, _HIDING_NOISE = 200, 2e-3, 0.025
# Steps whose images say what a class that noise hides is.
_OWN = 10
# Steps on the whole loss; images of each, of a class, and so many as have this many features; learning rate. About as
# long as training takes.
_STEPS, _IMAGES, _IMAGES_OF_A_CLASS, _NUMBERS, _MIN_PER_CLASS, _RATE = 300, 200, 40, 800_000, 2, 1e-3
# L is worked out on so many fresh images, each time that so many steps are done.
_JUDGED_IMAGES, _JUDGED_STEPS = 2000, 100
# a of both, b and c of the loss (γ is `SURE`); maps of the texture layer. Chosen on Fashion-MNIST and PneumoniaMNIST.
_FEATURES, _EMBEDDING, _CLASSIFIER, _NEAR = 100.0, 50.0, 1.0, 10.0
TEXTURE_CHANNELS = 16
# The model's own images before these steps, which say what is known: a class has at least so many.
_OWN_IMAGES, _LEAST_OWN = 4000, 8
_GOALS = ("class_features", "label_classifier", "class_embedding")
# Of the latents, apart from those of the steps before.
_SEED = 0x3A7C_4ED5


class FineTuningSettings(StageSettings):
    """What a user may choose.

    Args:
        num_steps: Of the whole loss. embedding_steps: Towards the embedding, where other steps train the generator.
    """

    former: ClassVar[dict[str, str]] = {"matching_steps": "embedding_steps"}

    num_steps: Steps | None = None
    embedding_steps: Steps | None = None


class FineTuningRules(StageRules):
    """Constants: the settings, filled in; no steps where nothing was released to be led by.

    Args:
        num_generated: Images of a step on the whole loss.
    """

    num_steps: Annotated[int, Field(ge=0, le=MAX_COUNT)]
    embedding_steps: Annotated[int, Field(ge=0, le=MAX_COUNT)]
    num_generated: Images


class FineTuningFacts(StageFacts):
    """steps: That were made, of both parts; 0: the release is of the network before them."""

    steps: Annotated[int, Field(ge=0, le=MAX_COUNT)]


class FineTuning(Stage):
    """Moves the generator until its images agree with all that was released."""

    name = "fine_tuning"
    settings_type = FineTuningSettings
    rules_type = FineTuningRules
    facts_type = FineTuningFacts
    needs = ("counts", "subspace")

    def unread(self, budget: Budget, before: Collection[str]) -> frozenset[str]:
        """See `Stage`: where there is no goal, or no embedding that has not trained the generator already."""
        goals = {name for name in _GOALS if name in before}
        towards = "class_embedding" in goals and budget.mode != "embedding"
        return frozenset(({"num_steps"} if not goals else set()) | ({"embedding_steps"} if not towards else set()))

    def rules(self, settings: Settings, plan: PrivacyPlan, data: DataFacts) -> FineTuningRules:
        """See `Stage`."""
        chosen = settings.of(self.name, FineTuningSettings)
        released = [name for name in _GOALS if plan.charge(name) is not None]
        towards = "class_embedding" in released and plan.learns != "class_embedding"
        images = min(_IMAGES, _IMAGES_OF_A_CLASS * data.num_classes, _NUMBERS // num_features(data.shape))
        return FineTuningRules(
            num_steps=(chosen.num_steps or _STEPS) if released else 0,
            embedding_steps=(chosen.embedding_steps or _EMBEDDING_STEPS) if towards else 0,
            num_generated=multiple(images, data.num_classes, _MIN_PER_CLASS),
        )

    def network(self, spec: GeneratorSpec, config: RunConfig, dimensions: int) -> GeneratorSpec:
        """See `Stage`."""
        update = {
            "latent_choice": "label_classifier" in config.rules,
            "affine_dimensions": dimensions if "class_moments" in config.rules else 0,
            "texture_channels": TEXTURE_CHANNELS if config.rules_of(self.name, FineTuningRules).num_steps else 0,
            "classifier": "label_classifier" in config.rules,
        }
        return spec.model_copy(update=update)

    def finishing_parts(self, config: RunConfig) -> tuple[int, ...]:
        """See `Stage`."""
        rules = config.rules_of(self.name, FineTuningRules)
        return rules.embedding_steps, rules.num_steps

    def shortened(self, config: RunConfig, steps: int) -> RunConfig:
        """See `Stage`."""
        towards, on_all = (min(steps, number) for number in self.finishing_parts(config))
        return config.with_rules(self.name, embedding_steps=towards, num_steps=on_all)

    def finish(self, state: State) -> None:
        """See `Stage`."""
        rules = state.config.rules_of(self.name, FineTuningRules)
        bare = state.finished
        if rules.embedding_steps:
            bare = towards_embedding(bare, state, rules)
        state.spec = self.network(state.spec, state.config, state.subspace.num_dimensions)
        state.finished = with_last_layers(bare, state)
        if rules.num_steps:
            goal = Goal.of(state.finished, state)
            state.finished = tuned_on_all(state.finished, goal, state, rules)
            if goal.weight is not None:
                state.finished.get_parameter("classifier").copy_(goal.weight)

    def unfinished(self, facts: StageFacts, config: RunConfig) -> bool:
        """See `Stage`."""
        return self.facts_of(facts, FineTuningFacts).steps < self.finishing_steps(config)

    def warnings(self, state: State) -> tuple[str, ...]:
        """See `Stage`."""
        cut = state.steps_after < self.finishing_steps(state.config)
        return ("interrupted before fine-tuning: images are worse than they could be",) if cut else ()

    def facts(self, state: State) -> FineTuningFacts:
        """See `Stage`."""
        return FineTuningFacts(steps=state.steps_after)

    def describe(self, facts: StageFacts) -> dict[str, str]:
        """See `Stage`."""
        return {"fine-tuning": f"{self.facts_of(facts, FineTuningFacts).steps} steps, none of which sees a record"}

    def objective(self, facts: StageFacts) -> str:
        """See `Stage`."""
        return "to agree with all that was released about each class" if facts != FineTuningFacts(steps=0) else ""


def towards_embedding(generator: Generator, state: State, rules: FineTuningRules) -> Generator:
    """The generator moved towards the released embedding; a class that noise hides stays as it is."""
    assert state.embedding is not None  # noqa: S101 - it was released
    random = torch.Generator().manual_seed(state.config.settings.seed + _SEED)
    counts = state.class_counts.to(state.config.device)
    images = multiple(_IMAGES, len(counts), _MIN_PER_CLASS)
    goal = EmbeddingGoal.of(state.embedding, counts, images, _HIDING_NOISE)
    if bool(goal.hidden.any()):
        own = _own_means(generator, goal, random)
        goal = replace(goal, target=torch.where(goal.hidden.unsqueeze(1), own, goal.target))

    def push(moved: Generator, step: int) -> None:
        images = moved.sample(goal.labels, random)
        finite_images(images)
        images.backward(goal.gradient(images))

    return _descended(generator, push, state, rules.embedding_steps, _EMBEDDING_RATE)


def with_last_layers(generator: Generator, state: State) -> Generator:
    """The same images moved by the affine map of the class moments, where these were released; no texture yet."""
    config = state.config
    tuned = build_generator(state.spec, generator.shape, generator.num_classes, config.device, config.settings.seed)
    if not isinstance(tuned, TunedGenerator):
        return generator
    tuned.generator.load_state_dict(generator.state_dict())
    if tuned.affine is not None:
        tuned.affine.load_state_dict(affine_tensors(generator, state))
    if tuned.choice is not None:
        tuned.choice.load_state_dict(choice_tensors(tuned, state))
    return tuned.requires_grad_(requires_grad=False).eval()


@dataclass(frozen=True, eq=False)
class Goal:
    """What is known of each class: constants of every step.

    Args:
        features, embedding: w. fourier: Of the embedding.
        weight: Of the classifier, without a preference among the images before. trust: t.
    """

    scattering: Scattering
    features: Float[Tensor, "K D"] | None
    embedding: Float[Tensor, "K numbers"] | None
    fourier: FourierMap | None
    weight: Float[Tensor, "K D"] | None
    trust: Float[Tensor, " K"] | None

    @classmethod
    @torch.no_grad()
    def of(cls, before: Generator, state: State) -> "Goal":
        """From what was released, and the images before: post-processing."""
        device, shape, classes = state.config.device, before.shape, before.num_classes
        learnt, counts, scattering = state.learnt, state.class_counts, Scattering(before.shape)
        number = max(_LEAST_OWN, _OWN_IMAGES // classes)
        images = list(before.samples_by_class(number, state.config.settings.seed))
        own = [scattering(rows) for rows in images]
        features = embedding = fourier = weight = trust = None
        if (released := learnt.get("class_features")) is not None:
            believed = partial(believed_gap, shape=map_shape(shape))
            features = wanted_means(own, released, counts, state.noise_of("class_features"), believed)
            features = features.float().to(device)
        if state.embedding is not None:
            fourier, released = state.embedding.features.single(), state.embedding.sums.cpu()
            pairs = zip(images, own, strict=True)
            rows = [fourier.of(some.to(device), of_some.to(device), shape).cpu() for some, of_some in pairs]
            believed = partial(believed_embedding_gap, parts=1 if fourier.wavelets is None else 2)
            embedding = wanted_means(rows, released, counts, state.embedding.noise, believed).float().to(device)
        if (classifier := learnt.get("label_classifier")) is not None:
            every, labels = torch.cat(own), torch.arange(classes).repeat_interleave(number)
            weight = without_preference(classifier.cpu(), every, labels).float()
            found = (margins_of(every @ weight.T, labels) > 0.0).float().unflatten(0, (classes, number)).mean(1)
            weight, trust = weight.to(device), ((classes * found - 1.0) / (classes - 1.0)).clamp(min=0.0).to(device)
        return cls(scattering.to(device), features, embedding, fourier, weight, trust)

    def loss(self, images: Float[Tensor, "n d"], labels: Tensor, before: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """L, of images sorted by class, equally many of each."""
        features: Tensor = self.scattering(images)
        total = _NEAR * (images - before).square().mean()
        if self.features is not None:
            total = total + _FEATURES * _mean_gap(features, self.features)
        if self.embedding is not None and self.fourier is not None:
            rows = self.fourier.of(images, features, self.scattering.shape)
            total = total + _EMBEDDING * _mean_gap(rows, self.embedding)
        if self.weight is not None and self.trust is not None:
            missing = (SURE - margins_of(features @ self.weight.T, labels)).clamp(min=0.0)
            total = total + _CLASSIFIER * (self.trust[labels] * missing).mean()
        return total


def tuned_on_all(before: Generator, goal: Goal, state: State, rules: FineTuningRules) -> Generator:
    """The best network that is met in the steps on the whole loss."""
    device, seed = state.config.device, state.config.settings.seed + 2 * _SEED
    each = rules.num_generated // before.num_classes
    labels = torch.arange(before.num_classes, device=device).repeat_interleave(each)

    def push(moved: Generator, step: int) -> None:
        # The same latents.
        first, second = (torch.Generator().manual_seed(seed + step) for _ in range(2))
        images = moved.sample(labels, first)
        finite_images(images)
        with torch.no_grad():
            own = before.sample(labels, second)
        goal.loss(images, labels, own).backward()

    fresh = torch.arange(before.num_classes, device=device).repeat_interleave(
        max(_MIN_PER_CLASS, _JUDGED_IMAGES // before.num_classes)
    )
    with torch.no_grad():
        own = before.sample(fresh, torch.Generator().manual_seed(seed - 1))

    @torch.no_grad()
    def loss(moved: Generator) -> float:
        return float(goal.loss(moved.sample(fresh, torch.Generator().manual_seed(seed - 1)), fresh, own))

    return _descended(before, push, state, rules.num_steps, _RATE, loss)


def _descended(
    start: Generator,
    push: Callable[[Generator, int], None],
    state: State,
    steps: int,
    rate: float,
    loss: Callable[[Generator], float] | None = None,
) -> Generator:
    """The averaged network after so many steps, each along the gradient that `push` leaves in its weights.

    With a loss: that of the start and of the averages every `_JUDGED_STEPS` whose loss is least.
    """
    settings = state.config.settings
    moved, average = copy.deepcopy(start), copy.deepcopy(start)
    moved.precision = getattr(torch, state.config.precision)
    networks = moved.trainable() if isinstance(moved, TunedGenerator) else [moved]
    for network in networks:
        network.requires_grad_().train()
    moved.train()
    optimiser = make_optimiser(rate, *networks)
    best, least = start, math.inf if loss is None else loss(start)
    for step in range(steps):
        optimiser.set_rate(rate * learning_rate_share(step, steps, settings.warmup, settings.schedule))
        optimiser.zero_grad()
        push(moved, step)
        optimiser.step()
        update_average(average, moved, settings.average_decay, step)
        if loss is not None and ((step + 1) % _JUDGED_STEPS == 0 or step + 1 == steps):
            found = loss(average.eval())
            if found < least:
                best, least = copy.deepcopy(average), found
        state.tell_step()
    return average.eval() if loss is None else best.eval()


def _mean_gap(features: Float[Tensor, "n D"], wanted: Float[Tensor, "K D"]) -> Float[Tensor, ""]:
    return squared_gaps(features.unflatten(0, (len(wanted), -1)), wanted).mean()


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
