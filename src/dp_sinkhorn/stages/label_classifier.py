"""Stage: a classifier trained privately before the first step, and the rejection of images that it allows."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from dp_sinkhorn.estimators.linear_classifier import LinearClassifier, LogisticContributions, without_preference
from dp_sinkhorn.features.scattering import SCATTERING, Scattering, num_features
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.rejecting import RejectingGenerator
from dp_sinkhorn.privacy.accounting import Charge
from dp_sinkhorn.privacy.clipping import BoundedSum, clipped_sum
from dp_sinkhorn.privacy.curator import Curator, Draw, Query
from dp_sinkhorn.privacy.plan import Budget
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.settings import Settings
from dp_sinkhorn.stages.base import Released, ShareSettings, SharingStage, StageFacts, State, Worst, noise_image

# Chosen on MNIST and PneumoniaMNIST (docs/tried.md). The gradient's norm is below √2.
_STEPS, _CLIP_NORM, _MOMENTUM = 200, 0.1, 0.9
# The largest rate that the loss bears, and the noise that an update may carry on each weight.
_LARGEST_RATE, _NOISE_AN_UPDATE = 600.0, 0.025
# The model's own images that take the classifier's preferences away: they cost time only.
_IMAGES, _MIN_PER_CLASS = 4000, 200


class LabelClassifierSettings(ShareSettings):
    """See `ShareSettings`."""

    former: ClassVar[dict[str, str]] = {"classifier_share": "budget_share"}


class LabelClassifierFacts(StageFacts):
    """classifier: What it is."""

    classifier: Literal["linear, on scattering features"] = "linear, on scattering features"


class LabelClassifier(SharingStage):
    """Trains by noisy sums of clipped gradients of Poisson subsamples: sensitivity is the clip norm of a record."""

    name = "label_classifier"
    settings_type = LabelClassifierSettings
    facts_type = LabelClassifierFacts
    needs = ("counts", SCATTERING.name)
    gives = ("classifier",)
    layer = 2
    mechanism = (
        "to train a classifier before the first step, Poisson-subsampled Gaussian releases of the sum of per-record "
        "gradients of its loss, each clipped, with noise of standard deviation noise_multiplier × sensitivity"
    )

    def runs(self, settings: Settings, budget: Budget) -> bool:
        """See `Stage`: there is nothing to tell apart in one class."""
        return budget.num_classes > 1 and super().runs(settings, budget)

    def charges(self, settings: Settings, budget: Budget) -> tuple[Charge, ...]:
        """See `Stage`."""
        return (budget.subsampled(self.name, self.share(settings, budget), _STEPS),)

    def run(self, curator: Curator, state: State) -> Iterator[None]:
        """See `Stage`: gradient descent with momentum and a falling rate, from zero."""
        if self.name in state.learnt:
            return
        charge, device = self.charge(state.plan), state.config.device
        expected = charge.sample_rate * state.plan.num_records
        rate = learning_rate(charge.noise_multiplier * _CLIP_NORM / expected)
        size = num_features(state.config.data.shape)
        weight = torch.zeros(len(state.class_counts), size, dtype=torch.float64, device=device)
        momentum = torch.zeros_like(weight)
        for step in range(charge.count):
            gradient = curator.ask(self.query(state, weight))
            momentum = _MOMENTUM * momentum + gradient / expected
            weight = weight - rate * 0.5 * (1.0 + math.cos(math.pi * step / charge.count)) * momentum
        state.learnt[self.name] = weight
        yield

    def query(self, state: State, weight: Float64[Tensor, "K D"]) -> Query:
        """The gradient of the loss at this weight."""
        contribute = ClippedGradient(weight)
        return Query(self.charge(state.plan, count=1), _CLIP_NORM, contribute, {"weight": weight})

    def finish(self, state: State) -> None:
        """See `Stage`."""
        assert state.finished is not None  # noqa: S101 - it is when stages finish
        weight = balanced_classifier(state.learnt[self.name], state.finished, state.config.settings.seed)
        state.tensors[f"{self.name}.weight"] = weight.float()

    def shapes(self, facts: StageFacts, of: Released) -> dict[str, tuple[int, ...]]:
        """See `Stage`."""
        return {f"{self.name}.weight": (len(of.class_names), num_features(of.image_shape))}

    def wrap(self, generator: Generator, facts: StageFacts, tensors: Mapping[str, Tensor]) -> Generator:
        """See `Stage`."""
        weight = tensors[f"{self.name}.weight"]
        return RejectingGenerator(generator, LinearClassifier(generator.shape, weight))

    def problems(self, facts: StageFacts, card: PrivacyCard) -> Iterator[str]:
        """See `Stage`."""
        charges = [charge for charge in card.charges if charge.name == self.name]
        if not charges:
            yield f"the card lists the stage {self.name!r}, but does not charge {self.name!r}"
        for charge in charges:
            if (charge.sample_rate, charge.count) != (card.sample_rate, _STEPS):
                yield (
                    f"the card charges {charge.count} releases {self.name!r} at sample rate {charge.sample_rate:.6g}; "
                    f"a run makes {_STEPS} at that of its steps, {card.sample_rate:.6g}"
                )

    def describe(self, facts: StageFacts) -> dict[str, str]:
        """See `Stage`."""
        words = self.facts_of(facts, LabelClassifierFacts).classifier
        return {"classifier": f"{words}: rejects images that it assigns to another class"}

    def worst(self, state: State) -> Worst:
        """See `Stage`: a white image has no features but the bias."""
        return Worst(noise_image(state.config.data.shape))


@dataclass(frozen=True, eq=False)
class ClippedGradient:
    """The sum of the clipped gradients of the records drawn.

    Args:
        weight: Of the classifier, where the gradient is taken.
    """

    weight: Float64[Tensor, "K D"]

    def __call__(self, draw: Draw) -> BoundedSum:
        """The sum."""
        device = self.weight.device
        features, labels = draw.view(SCATTERING).to(device), draw.labels.to(device)
        return clipped_sum(LogisticContributions.of(features, labels, self.weight), _CLIP_NORM)


@torch.no_grad()
def balanced_classifier(weight: Float64[Tensor, "K D"], generator: Generator, seed: int) -> Float64[Tensor, "K D"]:
    """The classifier without a preference among the generator's own images: post-processing.

    What sets all images of a generator apart from the records (less texture, say) can look to the classifier like one
    of the classes; a rare class looks unlikely to it. Neither is a reason to reject an image.
    """
    classes = generator.num_classes
    per_class = max(_MIN_PER_CLASS, _IMAGES // classes)
    images = torch.cat(list(generator.samples_by_class(per_class, seed)))
    labels = torch.arange(classes).repeat_interleave(per_class)
    return without_preference(weight.cpu(), Scattering(generator.shape)(images), labels)


def learning_rate(noise: float) -> float:
    """The largest rate at which an update's noise stays in bounds; `noise` is that of the mean gradient (public)."""
    return min(_LARGEST_RATE, _NOISE_AN_UPDATE / noise)
