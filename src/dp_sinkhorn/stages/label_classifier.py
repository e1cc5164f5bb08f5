"""The classifier's private training, before the first step: noisy sums of clipped gradients of Poisson subsamples."""

import math

import torch
from jaxtyping import Float16, Float64, Int64
from torch import Tensor

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.estimators.linear_classifier import LogisticContributions, without_preference
from dp_sinkhorn.features.scattering import Scattering
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.privacy.clipping import clipped_sum
from dp_sinkhorn.privacy.ledger import Ledger
from dp_sinkhorn.privacy.mechanism import GaussianMechanism
from dp_sinkhorn.privacy.plan import SubsampledReleases
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.subsampling import PoissonSubsampler
from dp_sinkhorn.settings import RunConfig

# Chosen on MNIST and PneumoniaMNIST (docs/tried.md). The gradient's norm is below √2.
_CLIP_NORM, _MOMENTUM = 0.1, 0.9
# The largest rate that the loss bears, and the noise that an update may carry on each weight.
_LARGEST_RATE, _NOISE_AN_UPDATE = 600.0, 0.025
# The model's own images that take the classifier's preferences away: they cost time only.
_IMAGES, _MIN_PER_CLASS = 4000, 200


def release_classifier(
    features: Float16[Tensor, "N D"],
    labels: Int64[Tensor, " N"],
    config: RunConfig,
    releases: SubsampledReleases,
    ledger: Ledger,
    random: CryptoRandom,
) -> Float64[Tensor, "K D"]:
    """Charge all releases, then train: gradient descent with momentum and a falling rate, from zero.

    Args:
        features: Of the records, by `record_features`.
    """
    ledger.charge(releases.charge())
    features, labels = features.to(config.device), labels.to(config.device)
    mechanism = classifier_mechanism(releases)
    subsampler = PoissonSubsampler(config.privacy.num_records, releases.sample_rate)
    expected = releases.sample_rate * config.privacy.num_records
    rate = learning_rate(mechanism.noise_stddev / expected)
    classes = len(config.data.class_names)
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64, device=config.device)
    momentum = torch.zeros_like(weight)
    for step in range(releases.count):
        drawn = subsampler.draw(random).to(config.device)
        gradient = released_gradient(features[drawn], labels[drawn], weight, mechanism, random)
        momentum = _MOMENTUM * momentum + gradient / expected
        weight = weight - rate * 0.5 * (1.0 + math.cos(math.pi * step / releases.count)) * momentum
    return weight


def classifier_mechanism(releases: SubsampledReleases) -> GaussianMechanism:
    """What makes each of the releases."""
    return GaussianMechanism(_CLIP_NORM, releases.noise_multiplier)


def released_gradient(
    features: Float16[Tensor, "B D"],
    labels: Int64[Tensor, " B"],
    weight: Float64[Tensor, "K D"],
    mechanism: GaussianMechanism,
    random: CryptoRandom,
) -> Float64[Tensor, "K D"]:
    """One release, charged before: the noisy sum of the clipped gradients of the records drawn."""
    return mechanism(clipped_sum(LogisticContributions.of(features, labels, weight), mechanism.sensitivity), random)


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


def record_features(data: LabelledImages) -> Float16[Tensor, "N D"]:
    """The features of the records, computed image by image in float64 and rounded: each a function of one record.

    Norms and sums are to be taken of what is kept, in float64.
    """
    scattering = Scattering(data.shape)
    features = torch.empty(len(data), scattering.num_features, dtype=torch.float16)
    with torch.no_grad():
        first = 0
        for chunk in data.float_chunks():
            features[first : first + len(chunk)] = scattering(chunk.to(torch.float64))
            first += len(chunk)
    return features
