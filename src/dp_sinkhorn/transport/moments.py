"""From the first two moments of a model's images to noisy ones of the records, class by class, as one affine map each.

The map between Gaussians of least transport cost (Dowson and Landau 1982; Peyré and Cuturi 2019, remark 2.31) takes
covariance S to T by A = S^(−½) (S^½ T S^½)^½ S^(−½). T is the model's own covariance plus what of the difference to the
noisy covariance stands above the noise: where the noise hides the records, the model's image stays as it is.

That is for the coordinates of a subspace. Of the rest of an image, its cosine frequencies, the means are known one by
one and the energies by band, so there the map is a shift and a scale a band.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from dp_sinkhorn.transport.subspace import above_threshold

# Most that a direction of the model's images is stretched: beyond it, it would be mostly the model's own noise.
_MAX_STRETCH = 3.0
# Smallest variance of a direction, in units of the mean one of its class.
_MIN_VARIANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of samples scaled into the unit ball, class by class.

    Args:
        means: (K, r). squares: (K, r, r), mean of q qᵀ, not centred.
    """

    means: Float64[Tensor, "K r"]
    squares: Float64[Tensor, "K r r"]


@dataclass(frozen=True, eq=False)
class Correction:
    """Coordinates z of class k become (z − origins[k]) · maps[k] + means[k]."""

    origins: Float64[Tensor, "K r"]
    maps: Float64[Tensor, "K r r"]
    means: Float64[Tensor, "K r"]


def moment_correction(
    model: Moments,
    records: Moments,
    counts: Float64[Tensor, " K"],
    noise: Float64[Tensor, " K"],
) -> Correction:
    """The correction, in the scaled coordinates of the moments.

    Args:
        records: Noisy. counts: Estimated records a class.
        noise: (K,) standard deviation of the noise on each coordinate of a mean and on the diagonal of a square;
            elsewhere in a square its variance is half of that.
    """
    size = model.means.shape[1]
    apart = records.means - model.means
    # James and Stein (1961), positive part: as much of the difference as is not noise.
    trust = (1.0 - size * noise.square() / apart.square().sum(1).clamp(min=1e-300)).clamp(min=0.0)
    means = model.means + trust.unsqueeze(1) * apart
    now = model.squares - _outer(model.means)
    differences = records.squares - _outer(means) - now
    edges = noise * math.sqrt(2.0 * size)
    shares = counts / counts.sum()
    pooled = above_noise(torch.einsum("k,kij->ij", shares, differences), float((shares * edges).norm()))
    maps = [
        _gaussian_map(own, own + pooled + above_noise(difference - pooled, float(edge)))
        for own, difference, edge in zip(now, differences, edges, strict=True)
    ]
    return Correction(model.means, torch.stack(maps), means)


@dataclass(frozen=True, eq=False)
class RestMoments:
    """Moments of what the subspace does not see, class by class, in the same units.

    Args:
        means: (K, d) of each frequency. energies: (K, b) mean sum of squares of each band.
    """

    means: Float64[Tensor, "K d"]
    energies: Float64[Tensor, "K b"]


@dataclass(frozen=True, eq=False)
class RestCorrection:
    """Frequencies p of class k become (p − origins[k]) · scales[k, band] + means[k]."""

    origins: Float64[Tensor, "K d"]
    scales: Float64[Tensor, "K b"]
    means: Float64[Tensor, "K d"]


def rest_correction(
    model: RestMoments,
    records: RestMoments,
    bands: Int64[Tensor, " d"],
    counts: Float64[Tensor, " K"],
    noise: Float64[Tensor, " K"],
) -> RestCorrection:
    """The correction of the rest: means where they stand above the noise, variances by as much as is not noise.

    Args:
        records: Noisy; `noise` is (K,) the standard deviation on each of their numbers.
        bands: The band of each frequency. counts: Estimated records a class.
    """
    shares = counts / counts.sum()
    of_all, of_class = (shares * noise).norm(), noise.unsqueeze(1)
    apart = records.means - model.means
    common = above_threshold(shares @ apart, of_all)
    means = model.means + common + above_threshold(apart - common, of_class)

    def variances(energies: Tensor, centres: Tensor) -> Tensor:
        return energies.index_add(1, bands, -centres.square())

    own = variances(model.energies, model.means)
    apart = variances(records.energies, means) - own
    common = _without_noise(shares @ apart, of_all)
    wanted = own + common + _without_noise(apart - common, of_class)
    scales = (wanted / own.clamp(min=1e-12)).clamp(min=0.0, max=_MAX_STRETCH**2).sqrt()
    return RestCorrection(model.means, torch.where(own > 1e-12, scales, 1.0), means)


def _without_noise(values: Tensor, noise_stddev: Tensor) -> Tensor:
    """Each number by as much of it as is likely not to be noise (James and Stein's rule for one number)."""
    trust = (1.0 - noise_stddev.square() / values.square().clamp(min=1e-300)).clamp(min=0.0)
    return trust * values


def above_noise(matrix: Float64[Tensor, "r r"], edge: float) -> Float64[Tensor, "r r"]:
    """The part of a symmetric matrix whose eigenvalues stand beyond ±`edge`, freed of what noise adds to them.

    Noise of the largest eigenvalue `edge` = 2t shows a true eigenvalue λ, |λ| > t, at λ + t²/λ (Capitaine,
    Donati-Martin and Féral 2009, theorem 2.1).
    """
    values, vectors = torch.linalg.eigh(matrix)
    size = values.abs()
    clean = values.sign() * (size + (size.square() - edge**2).clamp(min=0.0).sqrt()) / 2.0
    kept: Tensor = (vectors * torch.where(size > 1.02 * edge, clean, 0.0)) @ vectors.T
    return kept


def _gaussian_map(source: Float64[Tensor, "r r"], target: Float64[Tensor, "r r"]) -> Float64[Tensor, "r r"]:
    floor = max(_MIN_VARIANCE * float(source.diagonal().mean()), 1e-12)
    root, inverse = _power(source, floor, 0.5), _power(source, floor, -0.5)
    stretch = inverse @ _power(root @ _power(target, floor, 1.0) @ root, 0.0, 0.5) @ inverse
    values, vectors = torch.linalg.eigh(stretch)
    bounded: Tensor = (vectors * values.clamp(max=_MAX_STRETCH)) @ vectors.T
    return bounded


def _power(matrix: Tensor, floor: float, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    power: Tensor = (vectors * values.clamp(min=floor).pow(exponent)) @ vectors.T
    return power


def _outer(rows: Float64[Tensor, "K r"]) -> Float64[Tensor, "K r r"]:
    return rows.unsqueeze(2) * rows.unsqueeze(1)
