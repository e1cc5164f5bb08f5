"""The public linear subspace in which costs, contributions and noise live."""

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
        """The number r of coordinates."""
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
        """Vectors of coordinates as vectors of pixels: the transpose of the linear part of `project`."""
        return field @ self.basis.T

    def rest(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The part of (image − centre) outside the subspace."""
        centred = images - self.centre
        return centred - self.lift(centred @ self.basis)


def low_frequencies(channels: int, height: int, width: int, most: int = MAX_FREQUENCIES) -> Float64[Tensor, "d s"]:
    """Orthonormal columns with the lowest cosine frequencies of an image, at most `most` columns.

    High frequencies carry little, and the noise of a released s×s matrix grows with √s. An image of at most `most`
    numbers keeps all of them (the identity). Colours have half the resolution of brightness, as in JPEG.
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
    """Number s of frequencies, in [144, 1024], at which noise adds below 1 % to the second moment of `count` records.

    The largest eigenvalue of the noise of an s×s matrix is about noise_stddev·√(2s).
    """
    return max(_MIN_FREQUENCIES, min(MAX_FREQUENCIES, int((0.01 * count / noise_stddev) ** 2 / 2.0)))


def hard_threshold(
    image: Float64[Tensor, " d"], noise_stddev: float, shape: tuple[int, int, int]
) -> Float64[Tensor, " d"]:
    """An image with all cosine frequencies below noise_stddev·√(2 log d) set to zero.

    Noise alone could explain them: hard thresholding at the universal threshold (Donoho and Johnstone 1994, "Ideal
    spatial adaptation by wavelet shrinkage").
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
    """The eigenvectors of a noisy second-moment matrix whose eigenvalues exceed the noise, at least `min_dimensions`.

    The largest eigenvalue of the noise matrix is about noise_stddev · √(2s). Its variance is noise_stddev² on the
    diagonal and half of that elsewhere.

    Args:
        frame: Orthonormal columns, the frequencies in which the matrix is given.
    """
    values, vectors = torch.linalg.eigh(second_moment)
    edge = noise_stddev * math.sqrt(2.0 * second_moment.shape[0])
    count = max(int((values > edge).sum()), min(min_dimensions, second_moment.shape[0]))
    count = count if max_dimensions is None else min(count, max_dimensions)
    leading = vectors[:, -count:].flip(1)
    return Subspace(centre=centre, basis=(frame @ leading).to(centre.dtype).contiguous())
