"""The class embedding, released once, and the steps that learn from it: none of them sees a record.

The mean of random Fourier features of each class is its mean embedding in a Gaussian kernel's space, and the distance
between two of them a maximum mean discrepancy (Gretton et al. 2012; released with noise: DP-MERF, Harder et al. 2021).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float16, Float64, Int64
from torch import Tensor

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.estimators.class_weights import class_weights, hidden_classes
from dp_sinkhorn.features.random_fourier import FourierMap, fourier_map
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.privacy.clipping import BoundedSum, added
from dp_sinkhorn.privacy.ledger import Ledger
from dp_sinkhorn.privacy.plan import CLASS_EMBEDDING
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.statistics import UNIT_SENSITIVITY, embedding_sum
from dp_sinkhorn.settings import RunConfig
from dp_sinkhorn.stages.principal_subspace import ReleasedStatistics, release_once
from dp_sinkhorn.training.optimiser import Updater

_CHUNK = 2048
# In the images of a step that have wavelet features, at most (but two of a class): as many as in 400 of 28×28.
_WAVELET_NUMBERS = 400 * 28 * 28
# A small class is hidden if more noise is on each number of its mean features, whose norm is at most 1. Chosen on a
# long-tailed MNIST: docs/tried.md.
HIDING_NOISE = 0.05


@dataclass(frozen=True, eq=False)
class EmbeddingStepRules:
    """Public constants of every step.

    Args:
        features: Of images. target: Mean features that each class is to have. labels: (n,) of the generated images,
            sorted, n/K a class, 2 or more. seen: So many of a class have wavelet features: they take time.
        weights: (K,) of the classes.
        hidden: The classes that the noise hides: they are led to what all others are.
    """

    features: FourierMap
    target: Float[Tensor, "K numbers"]
    labels: Int64[Tensor, " n"]
    seen: int
    weights: Float[Tensor, " K"]
    hidden: Bool[Tensor, " K"]

    @classmethod
    def of(
        cls,
        released: Float64[Tensor, "K numbers"],
        counts: Float64[Tensor, " K"],
        features: FourierMap,
        noise: float,
        images: int,
        hiding_noise: float = HIDING_NOISE,
    ) -> "EmbeddingStepRules":
        """From noisy sums: post-processing.

        Args:
            counts: Estimated records a class. noise: Standard deviation of each number released. images: n.
            hiding_noise: More than that on a mean hides a small class.
        """
        means = released / counts.unsqueeze(1)
        hidden = hidden_classes(noise / counts > hiding_noise, counts)
        each = images // len(counts)
        others = (released[~hidden].sum(0) / counts[~hidden].sum()).expand_as(means)
        return cls(
            features=features.single(),
            target=torch.where(hidden.unsqueeze(1), others, means).float(),
            labels=torch.arange(len(counts), device=counts.device).repeat_interleave(each),
            seen=min(each, max(2, _WAVELET_NUMBERS // (len(features.frequencies) * len(counts)))),
            weights=class_weights(counts).float(),
            hidden=hidden,
        )


def class_embedding(
    data: LabelledImages, features: FourierMap, known: Float16[Tensor, "N D"] | None = None
) -> BoundedSum:
    """Sum of the records' features, class by class. A record is in one class: the sensitivity is that of one row.

    Args:
        known: Features of the records by `record_features`, for a map that has wavelets.
    """
    return added(
        embedding_sum(
            features.of_records(data.subset(rows), None if known is None else known[rows]),
            data.labels[rows].to(features.frequencies.device),
            data.num_classes,
        )
        for rows in torch.arange(len(data)).split(_CHUNK)
    )


def release_class_embedding(
    data: LabelledImages,
    known: Float16[Tensor, "N D"] | None,
    statistics: ReleasedStatistics,
    config: RunConfig,
    ledger: Ledger,
    random: CryptoRandom,
) -> Float64[Tensor, "K numbers"]:
    """Charge, then release the sum of each class; `known` as in `class_embedding`."""
    total = class_embedding(data, fourier_map(config, statistics.variance), known)
    return release_once(CLASS_EMBEDDING, total, config, ledger, random)


def embedding_rules(
    released: Float64[Tensor, "K numbers"],
    statistics: ReleasedStatistics,
    config: RunConfig,
    images: int,
    hiding_noise: float = HIDING_NOISE,
) -> EmbeddingStepRules:
    """The run's, of so many images a step."""
    return EmbeddingStepRules.of(
        released.to(config.device),
        statistics.class_counts.to(config.device),
        fourier_map(config, statistics.variance),
        config.privacy.once[CLASS_EMBEDDING] * UNIT_SENSITIVITY,
        images,
        hiding_noise,
    )


def embedding_step(
    generator: Generator, optimiser: Updater, rules: EmbeddingStepRules, latents: torch.Generator
) -> float:
    """Move the generator once towards the released embedding: post-processing.

    Descends Σ_k w_k (n_k/(n_k − 1)·‖m_k‖² − 2⟨m_k, t_k⟩), m_k the mean features of its n_k images of class k (of each
    kernel's part, whose n_k may differ). But for a constant that is the squared distance between t_k and the mean
    features of all its images, without the bias that few images have.

    Returns:
        Root mean square of the gradient an image.

    Raises:
        FloatingPointError: The generator's images are not finite.
    """
    images = generator.sample(rules.labels, latents)
    if not bool(torch.isfinite(images).all()):
        raise FloatingPointError("the generator's images are not finite")
    detached = images.detach().requires_grad_()
    classes = len(rules.weights)
    parts = rules.features.of_images(detached.unflatten(0, (classes, -1)), rules.seen)
    means = [part.mean(1) for part in parts]
    squares = [
        mean.square().sum(1) * (part.shape[1] / (part.shape[1] - 1)) for mean, part in zip(means, parts, strict=True)
    ]
    distances = torch.stack(squares).sum(0) - 2.0 * (torch.cat(means, dim=1) * rules.target).sum(1)
    (gradient,) = torch.autograd.grad((rules.weights * distances).sum(), detached)
    optimiser.zero_grad()
    images.backward(gradient)
    optimiser.step()
    return float(gradient.norm()) / math.sqrt(len(images))
