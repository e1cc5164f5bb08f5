"""Noisy mean embeddings of the classes, and the gradient of steps towards them.

The mean of random Fourier features of a class approximates its mean embedding in the space of a Gaussian kernel. The
distance of two mean embeddings is a maximum mean discrepancy (Gretton et al. 2012). DP-MERF (Harder et al. 2021)
releases it with noise.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from dp_sinkhorn.estimators.class_weights import class_weights, hidden_classes
from dp_sinkhorn.features.random_fourier import FourierMap

# Largest number of pixels, in a step, of the images with wavelet features: that of 400 images of 28×28. Two images of
# each class have them in any case.
_WAVELET_NUMBERS = 400 * 28 * 28
HIDING_NOISE = 0.05
"""A small class is hidden above this noise on each number of its mean features, whose norm is at most 1. Chosen on a
long-tailed MNIST: decision 12."""


@dataclass(frozen=True, eq=False)
class ReleasedEmbedding:
    """The released noisy sums of the records' features, class by class, and their feature map.

    Args:
        features: In float64. sums: (K, numbers). noise: Standard deviation of the noise on each number.
    """

    features: FourierMap
    sums: Float64[Tensor, "K numbers"]
    noise: float


@dataclass(frozen=True, eq=False)
class EmbeddingGoal:
    """Public constants of the steps towards an embedding.

    Args:
        features: The feature map. target: (K, numbers) target mean features of each class.
        labels: (n,) sorted labels of the generated images, n/K ≥ 2 per class.
        seen: Number of images of each class with wavelet features, which are slow to compute.
        weights: (K,) weights of the classes.
        hidden: (K,) True for classes that noise hides. Their target is the mean of all other classes.
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
        """The goal from noisy sums: post-processing.

        Args:
            counts: Estimated number of records of each class. images: n.
            hiding_noise: Noise on a number of a mean above which a small class is hidden.
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
        """Gradient of Σ_k w_k (n_k/(n_k − 1)·‖m_k‖² − 2⟨m_k, t_k⟩) with respect to the images.

        m_k are the mean features of the n_k images of class k; n_k may differ between the kernels. Up to a constant, a
        term is an unbiased estimate of ‖E m_k − t_k‖². Without the factor n_k/(n_k − 1) the images of a step would
        become too much alike.
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
