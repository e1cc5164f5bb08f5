"""Noisy mean embeddings of classes, and what a step towards them needs.

The mean of random Fourier features of each class is its mean embedding in a Gaussian kernel's space, and the distance
between two of them a maximum mean discrepancy (Gretton et al. 2012; released with noise: DP-MERF, Harder et al. 2021).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from dp_sinkhorn.estimators.class_weights import class_weights, hidden_classes
from dp_sinkhorn.features.random_fourier import FourierMap

# In the images of a step that have wavelet features, at most (but two of a class): as many as in 400 of 28×28.
_WAVELET_NUMBERS = 400 * 28 * 28
HIDING_NOISE = 0.05
"""A small class is hidden if more noise is on each number of its mean features, whose norm is at most 1. Chosen on a
long-tailed MNIST: decision 12."""


@dataclass(frozen=True, eq=False)
class ReleasedEmbedding:
    """Noisy sums of the records' features, class by class, and the map that made the features: all of it public.

    Args:
        features: In float64. sums: (K, numbers). noise: Standard deviation of each number.
    """

    features: FourierMap
    sums: Float64[Tensor, "K numbers"]
    noise: float


@dataclass(frozen=True, eq=False)
class EmbeddingGoal:
    """Public constants of every step towards an embedding.

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
        embedding: ReleasedEmbedding,
        counts: Float64[Tensor, " K"],
        images: int,
        hiding_noise: float = HIDING_NOISE,
    ) -> "EmbeddingGoal":
        """From noisy sums: post-processing.

        Args:
            counts: Estimated records a class. images: n. hiding_noise: More than that on a mean hides a small class.
        """
        released, features = embedding.sums, embedding.features
        means = released / counts.unsqueeze(1)
        hidden = hidden_classes(embedding.noise / counts > hiding_noise, counts)
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

    def gradient(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Of Σ_k w_k (n_k/(n_k − 1)·‖m_k‖² − 2⟨m_k, t_k⟩) with respect to the images.

        m_k are the mean features of the n_k images of class k (of each kernel's part, whose n_k may differ). But for a
        constant that is the squared distance between t_k and the mean features of all images that the generator can
        make, without the bias that few images have.
        """
        detached = images.detach().requires_grad_()
        classes = len(self.weights)
        parts = self.features.of_images(detached.unflatten(0, (classes, -1)), self.seen)
        means = [part.mean(1) for part in parts]
        squares = [
            mean.square().sum(1) * (part.shape[1] / (part.shape[1] - 1))
            for mean, part in zip(means, parts, strict=True)
        ]
        distances = torch.stack(squares).sum(0) - 2.0 * (torch.cat(means, dim=1) * self.target).sum(1)
        (gradient,) = torch.autograd.grad((self.weights * distances).sum(), detached)
        return gradient
