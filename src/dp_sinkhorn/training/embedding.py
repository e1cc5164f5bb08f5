"""The class embedding, released once, and the steps that learn from it: none of them sees a record.

The mean of random Fourier features of each class is its mean embedding in a Gaussian kernel's space, and the distance
between two of them a maximum mean discrepancy (Gretton et al. 2012; released with noise: DP-MERF, Harder et al. 2021).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from dp_sinkhorn.config import EmbeddingRules, RunConfig
from dp_sinkhorn.data.images import LabelledImages, to_unit_range
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.privacy.clipping import BoundedSum, added
from dp_sinkhorn.privacy.ledger import Ledger
from dp_sinkhorn.privacy.plan import CLASS_EMBEDDING
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.statistics import embedding_sum, fourier_features
from dp_sinkhorn.training.classes import class_weights, hidden_classes
from dp_sinkhorn.training.optimiser import Updater
from dp_sinkhorn.training.statistics import ReleasedStatistics, release_once

_CHUNK = 2048
# Of the frequencies, apart from the seeds of weights and latents, which are public as well.
_FREQUENCIES_SEED = 0x5EED_F00D
# A small class is hidden if what sets it apart is less than so many standard deviations of its noise's square.
_SEEN = 3.0


@dataclass(frozen=True, eq=False)
class EmbeddingStepRules:
    """Public constants of every step.

    Args:
        frequencies: M of them. target: Mean features that each class is to have. labels: (n,) of the generated images,
            sorted, n/K a class, 2 or more.
        weights: (K,) of the classes.
        hidden: The classes that the noise hides: they are led to what all others are.
    """

    frequencies: Float[Tensor, "d m"]
    target: Float[Tensor, "K two_m"]
    labels: Int64[Tensor, " n"]
    weights: Float[Tensor, " K"]
    hidden: Bool[Tensor, " K"]

    @classmethod
    def of(
        cls,
        released: Float64[Tensor, "K two_m"],
        counts: Float64[Tensor, " K"],
        frequencies: Float64[Tensor, "d m"],
        noise: float,
        images: int,
    ) -> "EmbeddingStepRules":
        """From noisy sums: post-processing.

        Args:
            counts: Estimated records a class. noise: Standard deviation of each number released. images: n.
        """
        means = released / counts.unsqueeze(1)
        hidden = _hidden(means, counts, noise / counts)
        others = (released[~hidden].sum(0) / counts[~hidden].sum()).expand_as(means)
        return cls(
            frequencies=frequencies.float(),
            target=torch.where(hidden.unsqueeze(1), others, means).float(),
            labels=torch.arange(len(counts), device=counts.device).repeat_interleave(images // len(counts)),
            weights=class_weights(counts).float(),
            hidden=hidden,
        )


def frequencies_of(statistics: ReleasedStatistics, config: RunConfig) -> Float64[Tensor, "d m"]:
    """Frequencies of the kernel exp(−‖x − y‖²/(4·relative_width·V)), from the public seed."""
    rules = config.rules
    assert isinstance(rules, EmbeddingRules)  # noqa: S101 - no other run has any
    random = torch.Generator().manual_seed(config.settings.seed + _FREQUENCIES_SEED)
    size = math.prod(config.data.shape)
    standard = torch.randn(size, rules.num_frequencies, generator=random, dtype=torch.float64)
    return (standard / math.sqrt(2.0 * rules.relative_width * statistics.variance)).to(config.device)


def class_embedding(data: LabelledImages, frequencies: Float64[Tensor, "d m"]) -> BoundedSum:
    """Sum of the records' features, class by class. A record is in one class: the sensitivity is that of one row."""
    device = frequencies.device
    chunks = zip(data.pixels.split(_CHUNK), data.labels.split(_CHUNK), strict=True)
    return added(
        embedding_sum(to_unit_range(pixels).to(device), labels.to(device), frequencies, data.num_classes)
        for pixels, labels in chunks
    )


def release_class_embedding(
    data: LabelledImages,
    statistics: ReleasedStatistics,
    config: RunConfig,
    ledger: Ledger,
    random: CryptoRandom,
) -> Float64[Tensor, "K two_m"]:
    """Charge, then release the sum of each class."""
    total = class_embedding(data, frequencies_of(statistics, config))
    return release_once(CLASS_EMBEDDING, total, config, ledger, random)


def embedding_step(
    generator: Generator, optimiser: Updater, rules: EmbeddingStepRules, latents: torch.Generator
) -> float:
    """Move the generator once towards the released embedding: post-processing.

    Descends Σ_k w_k (n_k/(n_k − 1)·‖m_k‖² − 2⟨m_k, t_k⟩), m_k the mean features of its n_k images of class k. But for a
    constant that is the squared distance between t_k and the mean features of all its images, without the bias that
    few images have.

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
    features = fourier_features(detached, rules.frequencies)
    means = features.view(classes, -1, features.shape[1]).mean(1)
    each = len(rules.labels) // classes
    distances = each / (each - 1) * means.square().sum(1) - 2.0 * (means * rules.target).sum(1)
    (gradient,) = torch.autograd.grad((rules.weights * distances).sum(), detached)
    optimiser.zero_grad()
    images.backward(gradient)
    optimiser.step()
    return float(gradient.norm()) / math.sqrt(len(images))


def _hidden(
    means: Float64[Tensor, "K two_m"], counts: Float64[Tensor, " K"], noise: Float64[Tensor, " K"]
) -> Bool[Tensor, " K"]:
    """The classes that their noise hides.

    Args:
        noise: On each number of `means`.
    """
    all_of_them = (means * (counts / counts.sum()).unsqueeze(1)).sum(0)
    numbers = means.shape[1]
    apart = (means - all_of_them).square().sum(1) - numbers * noise.square()
    unseen = apart < _SEEN * noise.square() * math.sqrt(2.0 * numbers)
    return hidden_classes(unseen, counts)
