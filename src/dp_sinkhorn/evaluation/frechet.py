"""Fréchet distance: the distance of two Gaussians with the moments of two sets of features."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dp_sinkhorn.evaluation.feature_moments import FeatureMoments


@dataclass(frozen=True)
class Frechet:
    """The Fréchet distance between features of synthetic and real images, and between those of real images.

    Args:
        extractor: Name of the extractor.
        is_fid: Whether this is FID, which only Inception's published weights give.
        value: Synthetic against real test images.
        floor: Other real test images in place of the synthetic ones, at the same sample size: the distance of equal
            distributions at this sample size.
        num_synthetic: Synthetic images compared.
        num_real: Real images compared with them; as many again for the floor.
    """

    extractor: str
    is_fid: bool
    value: float
    floor: float
    num_synthetic: int
    num_real: int


def frechet_distance(first: FeatureMoments, second: FeatureMoments) -> float:
    """‖m₁ − m₂‖² + tr C₁ + tr C₂ − 2 tr (C₁C₂)^½ (Dowson and Landau 1982, eq. 4), in float64.

    With symmetric factors C = A Aᵀ (by eigenvalues) the last trace is the sum of the singular values of A₁ᵀA₂. This
    needs no square root of a non-symmetric matrix, so singular covariances (fewer samples than features) are no special
    case. The estimate is biased upwards: with few samples it is well above 0 even for equal distributions.
    """
    overlap = torch.linalg.svdvals(_factor(first.covariance).T @ _factor(second.covariance)).sum()
    shift = (first.mean - second.mean).square().sum()
    return float(shift + first.covariance.trace() + second.covariance.trace() - 2.0 * overlap)


def _factor(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d r"]:
    """A with A Aᵀ = covariance; directions whose variance is rounding error are left out."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values.max() * len(values) * torch.finfo(torch.float64).eps
    factor: Tensor = vectors[:, kept] * values[kept].sqrt()
    return factor
