"""A public linear subspace in which costs, contributions and noise live."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dp_sinkhorn.features.cosine import colour_axes, cosines, from_frequencies, to_frequencies

MAX_FREQUENCIES = 1024
_MIN_FREQUENCIES = 144


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

    def to(self, *target: torch.device | str | torch.dtype) -> "Subspace":
        """The same subspace on another device, in another precision, or both."""
        centre, basis = self.centre, self.basis
        for each in target:
            centre, basis = centre.to(each), basis.to(each)
        return Subspace(centre, basis)

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


def low_frequencies(channels: int, height: int, width: int, most: int = MAX_FREQUENCIES) -> Float64[Tensor, "d s"]:
    """Orthonormal columns that hold the lowest cosine frequencies of an image, at most `most` in all.

    An image of no more numbers keeps all of its own (the identity): what goes carries little, and the noise of a
    released s×s matrix grows with √s. Colours are kept at half the resolution of brightness, as in JPEG.
    """
    size = channels * height * width
    if size <= most:
        return torch.eye(size, dtype=torch.float64)
    fine = max(1, math.isqrt(most if channels == 1 else most * 2 // 3))
    columns = []
    for number, axis in enumerate(colour_axes(channels)):
        keep = fine if number == 0 else max(1, fine // 2)
        plane = torch.kron(cosines(height, min(keep, height)), cosines(width, min(keep, width)))
        columns.append(torch.kron(axis.unsqueeze(1), plane))
    return torch.cat(columns, dim=1)


def frequencies_above(noise_stddev: float, count: int) -> int:
    """How many frequencies to look at, so that what noise adds stays below 1 % of `count` records' second moment.

    The largest eigenvalue of the noise of an s×s matrix is about noise_stddev·√(2s). At least 144, at most 1,024.
    """
    return max(_MIN_FREQUENCIES, min(MAX_FREQUENCIES, int((0.01 * count / noise_stddev) ** 2 / 2.0)))


def without_noise(
    image: Float64[Tensor, " d"], noise_stddev: float, shape: tuple[int, int, int]
) -> Float64[Tensor, " d"]:
    """An image without the cosine frequencies that noise of this standard deviation could have made.

    Those below noise_stddev·√(2 log d) are set to zero (Donoho and Johnstone 1994, "Ideal spatial adaptation by wavelet
    shrinkage").
    """
    found = to_frequencies(image.unsqueeze(0), shape)
    threshold = noise_stddev * math.sqrt(2.0 * math.log(found.shape[1]))
    return from_frequencies(torch.where(found.abs() > threshold, found, 0.0), shape).squeeze(0)


def principal_subspace(
    second_moment: Float64[Tensor, "s s"],
    noise_stddev: float,
    centre: Float[Tensor, " d"],
    frame: Float64[Tensor, "d s"],
    min_dimensions: int,
    max_dimensions: int | None = None,
) -> Subspace:
    """Directions of a noisy second-moment matrix that stand above its noise, at least `min_dimensions`.

    The noise matrix (variance noise_stddev² on, half of it off the diagonal) has its largest eigenvalue
    at about noise_stddev · √(2s).
    """
    values, vectors = torch.linalg.eigh(second_moment)
    edge = noise_stddev * math.sqrt(2.0 * second_moment.shape[0])
    count = max(int((values > edge).sum()), min(min_dimensions, second_moment.shape[0]))
    count = count if max_dimensions is None else min(count, max_dimensions)
    leading = vectors[:, -count:].flip(1)
    return Subspace(centre=centre, basis=(frame @ leading).to(centre.dtype).contiguous())
