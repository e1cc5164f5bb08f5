"""Stage: fine-tuning of the generator on everything that was released. It sees no record and costs time only.

It has two parts. First come steps towards the mean embeddings, if they were released and have not trained the generator
already. Then the network gets its last layers (`TunedGenerator`), among them the affine map of the class moments, and
Adam and Muon minimise

    L = Σ_s a_s · mean over classes of ‖m_k − w_k‖² + b · mean of t_k·max(0, γ − margin(x, k)) + c · mean of ‖x − x⁰‖²/d

s: class features and class embedding. m_k: their means over the model's images of class k. w_k: m_k before these steps,
moved towards the released means by the gap, shrunk by its noise. margin: by how much the released classifier prefers
class k. t_k: its recall of class k among the model's images, beyond chance. x⁰: the image of the same latents before
these steps. The last term keeps what transport has learnt where the released statistics know nothing. L on fresh images
is evaluated at the start and regularly after it; the network with the least L is released.
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
from dp_sinkhorn.estimators.mean_features import shrunk_embedding_gap, shrunk_feature_gap, squared_gaps, wanted_means
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

# Steps towards the embedding; learning rate; noise on each mean that hides a small class. It is less than in embedding
# steps, because the earlier steps know more of a small class than a noisy embedding.
_EMBEDDING_STEPS, _EMBEDDING_RATE, _HIDING_NOISE = 200, 2e-3, 0.025
# Batches of the model's own images from which the means of a hidden class are taken.
_OWN_BATCHES = 10
# Steps on L; images per step, at most in total, per class and in numbers of features; least per class; learning rate.
_STEPS, _IMAGES, _IMAGES_PER_CLASS, _NUMBERS, _MIN_PER_CLASS, _RATE = 300, 200, 40, 800_000, 2, 1e-3
# L is evaluated on this many fresh images, after each time this many steps.
_JUDGED_IMAGES, _JUDGED_STEPS = 2000, 100
# a of class features and class embedding, b and c of L (γ is `SURE`); maps of the texture layer. Chosen on
# Fashion-MNIST and PneumoniaMNIST.
_FEATURES, _EMBEDDING, _CLASSIFIER, _NEAR = 100.0, 50.0, 1.0, 10.0
TEXTURE_CHANNELS = 16
# Images of the model before these steps, from which w and t are computed: in total, and least per class.
_OWN_IMAGES, _LEAST_OWN = 4000, 8
_GOALS = ("class_features", "label_classifier", "class_embedding")
# Seed of the latents, different from that of the earlier steps.
_SEED = 0x3A7C_4ED5


class FineTuningSettings(StageSettings):
    """What a user may choose.

    Args:
        num_steps: Steps on the loss L.
        embedding_steps: Steps towards the embedding, where it has not trained the generator already.
    """

    former: ClassVar[dict[str, str]] = {"matching_steps": "embedding_steps"}

    num_steps: Steps | None = None
    embedding_steps: Steps | None = None


class FineTuningRules(StageRules):
    """Constants: the settings, filled in; 0 steps if no goal is released.

    Args:
        num_generated: Images per step on the loss L.
    """

    num_steps: Annotated[int, Field(ge=0, le=MAX_COUNT)]
    embedding_steps: Annotated[int, Field(ge=0, le=MAX_COUNT)]
    num_generated: Images


class FineTuningFacts(StageFacts):
    """Facts for the card.

    Args:
        steps: Steps made, both parts together; 0: the release is the network before them.
    """

    steps: Annotated[int, Field(ge=0, le=MAX_COUNT)]


class FineTuning(Stage):
    """Fine-tunes the generator so that its images agree with all that was released."""

    name = "fine_tuning"
    settings_type = FineTuningSettings
    rules_type = FineTuningRules
    facts_type = FineTuningFacts
    needs = ("counts", "subspace")

    def unread(self, budget: Budget, before: Collection[str]) -> frozenset[str]:
        """See `Stage`: `num_steps` without any goal; `embedding_steps` unless an embedding is released as a goal."""
        goals = {name for name in _GOALS if name in before}
        towards = "class_embedding" in goals and budget.mode != "embedding"
        return frozenset(({"num_steps"} if not goals else set()) | ({"embedding_steps"} if not towards else set()))

    def rules(self, settings: Settings, plan: PrivacyPlan, data: DataFacts) -> FineTuningRules:
        """See `Stage`."""
        chosen = settings.of(self.name, FineTuningSettings)
        released = [name for name in _GOALS if plan.charge(name) is not None]
        towards = "class_embedding" in released and plan.learns != "class_embedding"
        images = min(_IMAGES, _IMAGES_PER_CLASS * data.num_classes, _NUMBERS // num_features(data.shape))
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
        warning = "not fine-tuned, because the run was interrupted: images are worse than they could be"
        return (warning,) if state.steps_after < self.finishing_steps(state.config) else ()

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
    """The generator after steps towards the released embedding. A class that noise hides keeps its mean features."""
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
    """The network with its last layers: affine map and choice of latents, if released, and a texture layer of zeros."""
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
    """Constants of the loss L.

    Args:
        features, embedding: w of both. fourier: The feature map of the embedding.
        weight: Weight of the classifier, its biases balanced on the images before these steps. trust: t.
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
        """From what was released and the images before these steps: post-processing."""
        device, shape, classes = state.config.device, before.shape, before.num_classes
        learnt, counts, scattering = state.learnt, state.class_counts, Scattering(before.shape)
        number = max(_LEAST_OWN, _OWN_IMAGES // classes)
        images = list(before.samples_by_class(number, state.config.settings.seed))
        own = [scattering(rows) for rows in images]
        features = embedding = fourier = weight = trust = None
        if (released := learnt.get("class_features")) is not None:
            shrink = partial(shrunk_feature_gap, shape=map_shape(shape))
            features = wanted_means(own, released, counts, state.noise_of("class_features"), shrink)
            features = features.float().to(device)
        if state.embedding is not None:
            fourier, released = state.embedding.features.single(), state.embedding.sums.cpu()
            pairs = zip(images, own, strict=True)
            rows = [fourier.of(some.to(device), of_some.to(device), shape).cpu() for some, of_some in pairs]
            shrink = partial(shrunk_embedding_gap, parts=1 if fourier.wavelets is None else 2)
            embedding = wanted_means(rows, released, counts, state.embedding.noise, shrink).float().to(device)
        if (classifier := learnt.get("label_classifier")) is not None:
            every, labels = torch.cat(own), torch.arange(classes).repeat_interleave(number)
            weight = without_preference(classifier.cpu(), every, labels).float()
            found = (margins_of(every @ weight.T, labels) > 0.0).float().unflatten(0, (classes, number)).mean(1)
            weight, trust = weight.to(device), ((classes * found - 1.0) / (classes - 1.0)).clamp(min=0.0).to(device)
        return cls(scattering.to(device), features, embedding, fourier, weight, trust)

    def loss(self, images: Float[Tensor, "n d"], labels: Tensor, before: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """L of images sorted by class, equally many of each.

        Args:
            before: The images of the same latents before these steps.
        """
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
    """The network with the least L among those evaluated."""
    device, seed = state.config.device, state.config.settings.seed + 2 * _SEED
    each = rules.num_generated // before.num_classes
    labels = torch.arange(before.num_classes, device=device).repeat_interleave(each)

    def push(moved: Generator, step: int) -> None:
        # Both generators get the same latents.
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
    """The averaged network after `steps` updates.

    Args:
        push: Computes the gradient of a step in the weights. loss: If given, the network with the least loss is
            returned: the start, or an average after a multiple of `_JUDGED_STEPS` steps.
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
        state.finish_step()
    return average.eval() if loss is None else best.eval()


def _mean_gap(features: Float[Tensor, "n D"], wanted: Float[Tensor, "K D"]) -> Float[Tensor, ""]:
    return squared_gaps(features.unflatten(0, (len(wanted), -1)), wanted).mean()


@torch.no_grad()
def _own_means(generator: Generator, goal: EmbeddingGoal, latents: torch.Generator) -> Float[Tensor, "K numbers"]:
    """Mean features of the generator's own images of each class."""
    classes = len(goal.weights)
    means = []
    with as_released(generator):
        for _ in range(_OWN_BATCHES):
            images = generator.sample(goal.labels, latents).unflatten(0, (classes, -1))
            means.append(torch.cat([part.mean(1) for part in goal.features.of_images(images, goal.seen)], dim=1))
    return torch.stack(means).mean(0)
