"""First and second moments of images in a subspace and in the rest: bounded sums, and moments from noisy sums."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from dp_sinkhorn.estimators.moment_maps import Moments, RestMoments
from dp_sinkhorn.estimators.subspace import Subspace
from dp_sinkhorn.estimators.symmetric import packed, unpacked
from dp_sinkhorn.features.cosine import frequency_bands, num_bands, to_frequencies
from dp_sinkhorn.privacy.clipping import ROUNDING_ROOM, BoundedSum

# Radius of the ball to which images are clipped, in units of √V.
_RADIUS = 1.0


@dataclass(frozen=True, eq=False)
class MomentFrame:
    """The public frame in which moments are taken.

    Args:
        subspace: In float64. radius: Radius of the ball to which centred images are clipped. shape: Of an image.
    """

    subspace: Subspace
    radius: float
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, subspace: Subspace, variance: float, shape: tuple[int, int, int]) -> "MomentFrame":
        """The frame for records of the released variance."""
        return cls(subspace.to(torch.float64), _RADIUS * variance**0.5, shape)

    def bounded(self, images: Float[Tensor, "n d"]) -> BoundedSum:
        """The sum of the moments of images clipped to the ball, of records or of the model.

        Guarantees: each image adds a vector of norm at most 1.
        """
        # In float64, because a row of a float32 matrix product may depend on the other rows of its chunk.
        exact = images.double()
        rest = to_frequencies(self.subspace.rest(exact), self.shape)
        bands = frequency_bands(self.shape)
        return image_moments(self.subspace.project(exact), rest, bands, num_bands(self.shape[0]), self.radius)

    def read(self, sums: Float64[Tensor, "K numbers"], counts: Float64[Tensor, " K"]) -> tuple[Moments, RestMoments]:
        """The moments from (noisy) sums, class by class, in units of the radius.

        Args:
            counts: Number of images in each sum, or an estimate.
        """
        size, rest_size = self.subspace.num_dimensions, len(self.subspace.centre)
        rows = [
            read_image_moments(row, float(number), size, rest_size) for row, number in zip(sums, counts, strict=True)
        ]
        means, squares, rest_means, energies = map(torch.stack, zip(*rows, strict=True))
        return Moments(means, squares), RestMoments(rest_means, energies)


def image_moments(
    coordinates: Float64[Tensor, "N r"],
    rest: Float64[Tensor, "N d"],
    bands: Int64[Tensor, " d"],
    num_bands: int,
    radius: float,
) -> BoundedSum:
    """Σ_y (q, p, q qᵀ, e)/√2 as one vector: means, packed second moments, energies of the rest by band.

    (q, p) = (coordinates, rest)/radius, clipped together to norm 1; e_b is the sum of p² over band b.

    Guarantees: a record adds a vector of squared norm (‖q‖² + ‖p‖² + ‖q‖⁴ + ‖e‖²)/2 ≤ 1, because ‖q‖² + ‖p‖² ≤ 1 and
    ‖e‖ ≤ ‖p‖².
    """
    q, p = coordinates.to(torch.float64) / radius, rest.to(torch.float64) / radius
    lengths = torch.hypot(*(torch.linalg.vector_norm(part, dim=1, keepdim=True) for part in (q, p)))
    finite, lengths = torch.isfinite(lengths), lengths.clamp(min=1.0)
    q, p = (torch.where(finite, part / lengths, 0.0) for part in (q, p))
    energies = p.new_zeros(num_bands).index_add_(0, bands, p.square().sum(0))
    total = torch.cat([q.sum(0), p.sum(0), packed(q.T @ q), energies])
    return BoundedSum((1.0 - ROUNDING_ROOM) * total / 2**0.5, 1.0)


def read_image_moments(
    released: Float64[Tensor, " numbers"], count: float, size: int, rest_size: int
) -> tuple[Float64[Tensor, " r"], Float64[Tensor, "r r"], Float64[Tensor, " d"], Float64[Tensor, " b"]]:
    """(mean of q, mean of q qᵀ, mean of p, mean of e) from a noisy `image_moments`; `count` is an estimate."""
    numbers = size * (size + 1) // 2
    means, rest_means, squares, energies = (released * 2**0.5 / count).tensor_split(
        [size, size + rest_size, size + rest_size + numbers]
    )
    return means, unpacked(squares, size), rest_means, energies
