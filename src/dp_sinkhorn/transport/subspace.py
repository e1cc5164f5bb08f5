"""A public linear subspace in which costs, contributions and noise live."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

MAX_FREQUENCIES = 1024


@dataclass(frozen=True, eq=False)
class Subspace:
    """Coordinates (image − centre) · basis, with orthonormal basis columns.

    Args:
        centre: (d,) a public image in [-1, 1]. basis: (d, r) orthonormal columns, r ≤ d.
    """

    centre: Float[Tensor, " d"]
    basis: Float[Tensor, "d r"]

    @property
    def num_dimensions(self) -> int:
        """R, the number of coordinates."""
        return self.basis.shape[1]

    def project(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n r"]:
        """Coordinates of images."""
        return (images - self.centre) @ self.basis

    def lift(self, field: Float[Tensor, "n r"]) -> Float[Tensor, "n d"]:
        """A vector of coordinates as a vector of pixels (the transpose of `project`'s linear part)."""
        return field @ self.basis.T

    def rest(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The part of (image − centre) that the coordinates do not see."""
        centred = images - self.centre
        return centred - self.lift(centred @ self.basis)


def low_frequencies(channels: int, height: int, width: int) -> Float64[Tensor, "d s"]:
    """Orthonormal columns that hold the lowest cosine frequencies of an image, at most 1,024 in all.

    Images up to 1,024 numbers keep all of theirs (the identity): larger ones carry little in the high
    frequencies, and the noise of a released s×s matrix grows with √s.
    """
    size = channels * height * width
    if size <= MAX_FREQUENCIES:
        return torch.eye(size, dtype=torch.float64)
    keep = math.isqrt(MAX_FREQUENCIES // channels)
    plane = torch.kron(_cosines(height, min(keep, height)), _cosines(width, min(keep, width)))
    return torch.kron(torch.eye(channels, dtype=torch.float64), plane)


def principal_subspace(
    second_moment: Float64[Tensor, "s s"],
    noise_stddev: float,
    centre: Float[Tensor, " d"],
    frame: Float64[Tensor, "d s"],
    min_dimensions: int,
) -> Subspace:
    """Directions of a noisy second-moment matrix that stand above its noise, at least `min_dimensions`.

    The noise matrix (variance noise_stddev² on, half of it off the diagonal) has its largest eigenvalue
    at about noise_stddev · √(2s).
    """
    values, vectors = torch.linalg.eigh(second_moment)
    edge = noise_stddev * math.sqrt(2.0 * second_moment.shape[0])
    count = max(int((values > edge).sum()), min(min_dimensions, second_moment.shape[0]))
    leading = vectors[:, -count:].flip(1)
    return Subspace(centre=centre, basis=(frame @ leading).to(centre.dtype).contiguous())


def _cosines(size: int, keep: int) -> Float64[Tensor, "size keep"]:
    """First `keep` columns of the orthonormal DCT-II of length `size`."""
    position = torch.arange(size, dtype=torch.float64) + 0.5
    columns = torch.cos(math.pi / size * position.unsqueeze(1) * torch.arange(keep, dtype=torch.float64))
    return columns / columns.square().sum(0).sqrt()
