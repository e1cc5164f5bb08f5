"""Mean and covariance of features, in one pass and in float64."""

from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

_CHUNK = 1000


@dataclass(frozen=True, eq=False)
class FeatureMoments:
    """Mean and covariance of n vectors.

    Args:
        count: n.
        mean: float64, (d,).
        scatter: float64, (d, d): Σ (x − mean)(x − mean)ᵀ.
    """

    count: int
    mean: Float[Tensor, " d"]
    scatter: Float[Tensor, "d d"]

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """The unbiased covariance, scatter / (n − 1); n >= 2."""
        return self.scatter / (self.count - 1)

    def merged(self, other: "FeatureMoments") -> "FeatureMoments":
        """The moments of both sets together (Chan, Golub and LeVeque 1983, eq. 2.1)."""
        count = self.count + other.count
        shift = other.mean - self.mean
        return FeatureMoments(
            count=count,
            mean=self.mean + shift * (other.count / count),
            scatter=self.scatter + other.scatter + torch.outer(shift, shift) * (self.count * other.count / count),
        )


def moments_of(features: Float[Tensor, "n d"]) -> FeatureMoments:
    """The moments of n >= 1 vectors, computed in chunks, without a float64 copy of all vectors."""
    return reduce(FeatureMoments.merged, map(_chunk_moments, features.split(_CHUNK)))


def _chunk_moments(features: Float[Tensor, "n d"]) -> FeatureMoments:
    exact = features.to(torch.float64)
    mean = exact.mean(dim=0)
    centred = exact - mean
    return FeatureMoments(count=len(features), mean=mean, scatter=centred.T @ centred)
