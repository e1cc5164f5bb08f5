"""Sums over all records that are released once, at the start of a run.

Each function scales a record's contribution to L2 norm at most 1, so each is a Gaussian release of
sensitivity 1 under add/remove (`UNIT_SENSITIVITY`).
"""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from dp_sinkhorn.privacy.clipping import ROUNDING_ROOM, BoundedSum, clip_factors

UNIT_SENSITIVITY = 1.0

# A shorter row keeps its length: it may be nothing but what rounding left, which another record's place can change.
_SHORTEST = 1e-2


def class_counts(labels: Int64[Tensor, " N"], num_classes: int) -> BoundedSum:
    """Number of records a class. A record changes one count by 1."""
    counts = torch.bincount(labels, minlength=num_classes).to(torch.float64)
    return BoundedSum(counts, UNIT_SENSITIVITY)


def first_moments(images: Float[Tensor, "N d"]) -> BoundedSum:
    """Σ_y (y/√d, ‖y‖²/d)/√2: the mean image and the mean square, d+1 numbers, for images in [-1, 1].

    Both parts of a record have norm at most 1 because every pixel lies in [-1, 1].
    """
    size = images.shape[1]
    rows = images.to(torch.float64).clamp(-1.0, 1.0)
    total = torch.cat([rows.sum(0) / size**0.5, rows.square().sum().unsqueeze(0) / size])
    return BoundedSum((1.0 - ROUNDING_ROOM) * total / 2**0.5, UNIT_SENSITIVITY)


def read_first_moments(
    released: Float64[Tensor, " d_plus_1"], count: int, noise_stddev: float
) -> tuple[Float64[Tensor, " d"], float]:
    """(mean image, total variance) from a noisy `first_moments`; `count` is the public number of records."""
    mean, mean_square = _mean_and_square(released, count)
    size = mean.numel()
    # The noise on the mean adds its own variance to ‖mean‖²: take it off again.
    noise_variance = 2.0 * size * (noise_stddev / count) ** 2
    variance = mean_square - float(mean.square().sum()) + size * noise_variance
    return mean.clamp(-1.0, 1.0), variance


def variance_about(
    centre: Float[Tensor, " d"], released: Float64[Tensor, " d_plus_1"], count: int, noise_stddev: float
) -> float:
    """E‖y − centre‖² from a noisy `first_moments`, at least the noise on E‖y‖².

    Only where the centre is not zero does the noise on the mean image come in; beside ‖mean‖² all of it would.
    """
    mean, mean_square = _mean_and_square(released, count)
    exact = centre.to(torch.float64)
    found = mean_square - 2.0 * float(mean @ exact) + float(exact.square().sum())
    return max(found, mean.numel() * 2**0.5 * noise_stddev / count)


def _mean_and_square(released: Float64[Tensor, " d_plus_1"], count: int) -> tuple[Float64[Tensor, " d"], float]:
    """E y and E‖y‖² from a noisy `first_moments`, its noise still in both."""
    size = released.numel() - 1
    scaled = released * 2**0.5 / count
    return scaled[:size] * size**0.5, size * float(scaled[size])


def second_moment(centred: Float[Tensor, "N s"]) -> BoundedSum:
    """Σ_y u uᵀ for u = y/max(‖y‖, 0.01), as one vector: the diagonal, then √2 times the upper triangle.

    That vector has the norm of u uᵀ, at most 1. Noise of variance σ² on it is noise of variance σ² on the
    diagonal and σ²/2 elsewhere of the symmetric matrix.
    """
    rows = centred.to(torch.float64)
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=_SHORTEST)
    return BoundedSum((1.0 - ROUNDING_ROOM) * _packed(rows.T @ rows), UNIT_SENSITIVITY)


def read_second_moment(released: Float64[Tensor, " packed"], size: int) -> Float64[Tensor, "s s"]:
    """The symmetric matrix of a (noisy) `second_moment` vector."""
    upper = torch.triu_indices(size, size, offset=1)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix[upper[0], upper[1]] = released[size:] / 2**0.5
    return matrix + matrix.T + torch.diag(released[:size])


def image_moments(
    coordinates: Float64[Tensor, "N r"],
    rest: Float64[Tensor, "N d"],
    bands: Int64[Tensor, " d"],
    num_bands: int,
    radius: float,
) -> BoundedSum:
    """Σ_y (q, p, q qᵀ, e)/√2 as one vector: the means, the packed squares, the energies of the rest by band.

    (q, p) = (coordinates, rest)/radius, cut together to norm 1; e_b is the sum of p² over band b. A record adds a
    vector of squared norm (‖q‖² + ‖p‖² + ‖q‖⁴ + ‖e‖²)/2 ≤ 1, because ‖q‖² + ‖p‖² ≤ 1 and ‖e‖ ≤ ‖p‖².
    """
    q, p = coordinates.to(torch.float64) / radius, rest.to(torch.float64) / radius
    lengths = torch.hypot(*(torch.linalg.vector_norm(part, dim=1, keepdim=True) for part in (q, p)))
    finite, lengths = torch.isfinite(lengths), lengths.clamp(min=1.0)
    q, p = (torch.where(finite, part / lengths, 0.0) for part in (q, p))
    energies = p.new_zeros(num_bands).index_add_(0, bands, p.square().sum(0))
    total = torch.cat([q.sum(0), p.sum(0), _packed(q.T @ q), energies])
    return BoundedSum((1.0 - ROUNDING_ROOM) * total / 2**0.5, UNIT_SENSITIVITY)


def read_image_moments(
    released: Float64[Tensor, " numbers"], count: float, size: int, rest_size: int
) -> tuple[Float64[Tensor, " r"], Float64[Tensor, "r r"], Float64[Tensor, " d"], Float64[Tensor, " b"]]:
    """(mean of q, mean of q qᵀ, mean of p, mean of e) from a noisy `image_moments`; `count` is an estimate."""
    packed = size * (size + 1) // 2
    means, rest_means, squares, energies = (released * 2**0.5 / count).tensor_split(
        [size, size + rest_size, size + rest_size + packed]
    )
    return means, read_second_moment(squares, size), rest_means, energies


def fourier_features(rows: Float[Tensor, "n d"], frequencies: Float[Tensor, "d m"]) -> Float[Tensor, "n two_m"]:
    """φ(x) = (cos ωᵀx, sin ωᵀx)/√m, of norm 1 for every x (Rahimi and Recht 2007).

    φ(x)·φ(y) estimates the kernel of which the ω are drawn: exp(−s²‖x − y‖²/2) for normal ones of standard deviation s.
    """
    angles = rows @ frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1).div(frequencies.shape[1] ** 0.5)


def embedding_sum(features: Float64[Tensor, "N D"], labels: Int64[Tensor, " N"], num_classes: int) -> BoundedSum:
    """Σ onehot(label) ⊗ φ(y), (K, D): a record adds a row of norm at most 1 to one class (Harder et al. 2021, DP-MERF).

    Args:
        features: Each a function of one record alone; what is longer is cut, what is not finite counts as zero.
    """
    rows = _cut(features)
    total = rows.new_zeros(num_classes, rows.shape[1]).index_add_(0, labels, rows)
    return BoundedSum(total, UNIT_SENSITIVITY)


def feature_sum(features: Float[Tensor, "N D"]) -> BoundedSum:
    """Σ_y φ(y), each cut to norm 1; one that is not finite counts as zero."""
    return BoundedSum(_cut(features.to(torch.float64)).sum(0), UNIT_SENSITIVITY)


def _cut(rows: Float64[Tensor, "N D"]) -> Float64[Tensor, "N D"]:
    factors = clip_factors(torch.linalg.vector_norm(rows, dim=1), UNIT_SENSITIVITY).unsqueeze(1)
    return torch.where(factors > 0.0, rows * factors, 0.0)


def _packed(matrix: Float64[Tensor, "s s"]) -> Float64[Tensor, " packed"]:
    """The diagonal of a symmetric matrix, then √2 times its upper triangle: a vector of the same norm."""
    upper = torch.triu_indices(matrix.shape[0], matrix.shape[0], offset=1)
    return torch.cat([matrix.diagonal(), 2**0.5 * matrix[upper[0], upper[1]]])
