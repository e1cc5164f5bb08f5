"""Stage: a linear classifier, trained privately before the first step. It guides images towards their class."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from dp_sinkhorn.estimators.linear_classifier import LinearClassifier, LogisticContributions, balancing, margins_of
from dp_sinkhorn.features.scattering import SCATTERING, num_features
from dp_sinkhorn.generators.optimiser import learning_rate_share
from dp_sinkhorn.generators.tuned import LatentChoice, TunedGenerator
from dp_sinkhorn.privacy.accounting import Charge
from dp_sinkhorn.privacy.clipping import BoundedSum, clipped_sum
from dp_sinkhorn.privacy.curator import Curator, Draw, Query
from dp_sinkhorn.privacy.plan import Budget
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.settings import Settings
from dp_sinkhorn.stages.base import ShareSettings, SharingStage, StageFacts, State, Worst, noise_image

# Chosen on MNIST and PneumoniaMNIST (decision 8). The gradient's norm is below √2.
_STEPS, _CLIP_NORM, _MOMENTUM = 200, 0.1, 0.9
# The largest learning rate at which the loss converges, and the largest noise of an update on each weight.
_LARGEST_RATE, _NOISE_PER_UPDATE = 600.0, 0.025
# An image is good enough if the score of its class exceeds all others by this margin: e² times as likely.
SURE = 2.0
# Training of the choice of latents: the model's own images; clip bound of margin minus `SURE`; epochs, batch size,
# learning rate and weight decay. On 3,000 other images of a model of MNIST at ε = 1 the choice explains 74 % of the
# variance of the margins.
_IMAGES, _MOST, _EPOCHS, _BATCH, _RATE, _DECAY = 20_000, 5.0, 60, 500, 1e-2, 0.1
_CHUNK, _SEED = 500, 0x51AB_77E1


class LabelClassifierSettings(ShareSettings):
    """See `ShareSettings`."""

    former: ClassVar[dict[str, str]] = {"classifier_share": "budget_share"}


class LabelClassifier(SharingStage):
    """Trains a classifier by DP-SGD: noisy sums of clipped per-record gradients on Poisson subsamples.

    The sensitivity is the clip norm (Abadi et al. 2016, "Deep learning with differential privacy").
    """

    name = "label_classifier"
    settings_type = LabelClassifierSettings
    needs = ("counts", SCATTERING.name)
    gives = ("classifier",)
    mechanism = (
        "to train a classifier before the first step, Poisson-subsampled Gaussian releases of the sum of per-record "
        "gradients of its loss, each clipped, with noise of standard deviation noise_multiplier × sensitivity"
    )

    def runs(self, settings: Settings, budget: Budget) -> bool:
        """See `Stage`: not with one class, where there is nothing to classify."""
        return budget.num_classes > 1 and super().runs(settings, budget)

    def charges(self, settings: Settings, budget: Budget) -> tuple[Charge, ...]:
        """See `Stage`."""
        return (budget.subsampled(self.name, self.share(settings, budget), _STEPS),)

    def run(self, curator: Curator, state: State) -> Iterator[None]:
        """See `Stage`: gradient descent from zero, with momentum and a falling learning rate."""
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
            weight = weight - rate * learning_rate_share(step, charge.count, 0.0, "cosine") * momentum
        state.learnt[self.name] = weight
        yield

    def query(self, state: State, weight: Float64[Tensor, "K D"]) -> Query:
        """The query for the gradient of the loss at this weight."""
        contribute = ClippedGradient(weight)
        return Query(self.charge(state.plan, count=1), _CLIP_NORM, contribute, {"weight": weight})

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

    def worst(self, state: State) -> Worst:
        """See `Stage`: random pixels, because a white image has no features except the bias."""
        return Worst(noise_image(state.config.data.shape))


@dataclass(frozen=True, eq=False)
class ClippedGradient:
    """The sum of the clipped gradients of the records drawn.

    Args:
        weight: (K, D), the weight of the classifier at which the gradient is taken.
    """

    weight: Float64[Tensor, "K D"]

    def __call__(self, draw: Draw) -> BoundedSum:
        """The sum."""
        device = self.weight.device
        features, labels = draw.view(SCATTERING).to(device), draw.labels.to(device)
        return clipped_sum(LogisticContributions.of(features, labels, self.weight), _CLIP_NORM)


def learning_rate(noise: float) -> float:
    """The largest learning rate at which the noise of an update is bounded.

    Args:
        noise: Standard deviation of the noise on each number of the mean gradient: public.
    """
    return min(_LARGEST_RATE, _NOISE_PER_UPDATE / noise)


def choice_tensors(generator: TunedGenerator, state: State) -> dict[str, Tensor]:
    """The tensors of `LatentChoice`: post-processing of the released classifier and the generator's own images."""
    seed, classes = state.config.settings.seed, generator.num_classes
    weight = state.learnt[LabelClassifier.name].float()
    random = torch.Generator().manual_seed(seed + _SEED)
    labels = (torch.arange(_IMAGES) % classes).to(weight.device)
    classifier, latents, scores = LinearClassifier(generator.shape, weight), [], []
    for some in labels.split(_CHUNK):
        of_some = torch.rand(len(some), generator.latent_dim, generator=random).to(weight.device)
        with torch.no_grad():
            scores.append(classifier.scores(generator(of_some, some)))
        latents.append(of_some[:, : generator.generator.latent_dim])
    every, balanced = torch.cat(latents), torch.cat(scores)
    balanced = balanced + balancing(balanced, labels).to(balanced)
    goodness = (margins_of(balanced, labels) - SURE).clamp(-_MOST, _MOST)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        choice = LatentChoice(every.shape[1], classes).to(weight.device)
    optimiser = torch.optim.AdamW(choice.parameters(), lr=_RATE, weight_decay=_DECAY)
    for epoch in range(_EPOCHS):
        for group in optimiser.param_groups:
            group["lr"] = _RATE * learning_rate_share(epoch, _EPOCHS, 0.0, "cosine")
        for index in torch.randperm(_IMAGES, generator=random).to(weight.device).split(_BATCH):
            optimiser.zero_grad()
            (choice.goodness(every[index], labels[index]) - goodness[index]).square().mean().backward()
            optimiser.step()
    return choice.state_dict()
