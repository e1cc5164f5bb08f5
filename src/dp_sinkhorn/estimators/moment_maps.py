"""Maps from the first two moments of a model's images to the noisy moments of the records, class by class.

The optimal transport map between Gaussians (Dowson and Landau 1982; Peyré and Cuturi 2019, remark 2.31) takes a
covariance S to T by A = S^(−½) (S^½ T S^½)^½ S^(−½). T is the model's covariance plus the difference to the records'
covariance, shrunk by empirical Bayes. The prior standard deviation of a difference is proportional to the standard
deviations of its two directions. Where noise hides the records, the model's images do not move.

This map acts on the coordinates in a subspace. Outside of it the mean of each cosine frequency and the energy of each
band are known, so the map there is a shift of each frequency and a scale of each band.
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from dp_sinkhorn.estimators.shrinkage import (
    common_of,
    empirical_bayes,
    garrote,
    noise_of_common,
    shares_of,
    shrunk,
    shrunk_along_means,
    universal_garrote,
)

MAX_STRETCH = 3.0
"""Largest stretch of a direction of the model's images. A larger one would mostly amplify the model's own noise."""

# Smallest variance of a direction, in units of the mean variance of its class.
_MIN_VARIANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of samples scaled into the unit ball, class by class.

    Args:
        means: (K, r). squares: (K, r, r), means of q qᵀ, not centred.
    """

    means: Float64[Tensor, "K r"]
    squares: Float64[Tensor, "K r r"]


@dataclass(frozen=True, eq=False)
class Correction:
    """Class k: coordinates z of mean m become (z − m) · maps[k] + m + moves[k].

    Args:
        maps: (K, r, r) symmetric. moves: (K, r).
        apart: (K, r, r), the records' covariances minus the model's, shrunk by their noise.
    """

    maps: Float64[Tensor, "K r r"]
    moves: Float64[Tensor, "K r"]
    apart: Float64[Tensor, "K r r"]


def moment_correction(
    model: Moments,
    records: Moments,
    counts: Float64[Tensor, " K"],
    noise: Float64[Tensor, " K"],
) -> Correction:
    """The correction, in the scaled coordinates of the moments.

    Args:
        records: Noisy moments. counts: Estimated number of records of each class.
        noise: (K,) standard deviation of the noise on each coordinate of a mean and on the diagonal of a square. Off
            the diagonal the variance is half as large.
    """
    moves = _shrunk_moves(model.means, records.means, counts, noise)
    now = model.squares - _outer(model.means)
    wanted = records.squares - _outer(model.means + moves)
    apart = _shrunk_differences(now, wanted - now, counts, noise)
    maps = [_gaussian_map(own, target) for own, target in zip(now, now + apart, strict=True)]
    return Correction(torch.stack(maps), moves, apart)


def _shrunk_moves(
    model: Float64[Tensor, "K r"], records: Float64[Tensor, "K r"], counts: Float64[Tensor, " K"], noise: Tensor
) -> Float64[Tensor, "K r"]:
    """Differences of means, shrunk by their noise: first the part common to all classes, then each class individually.

    James and Stein (1961), positive part. The factor of a class is at most the ratio of the variance between classes to
    this variance plus noise (Efron and Morris 1973), because noise alone moves the mean of a class with few records
    far from all others.
    """

    def energy(rows: Tensor) -> Tensor:
        return rows.square().sum(-1, keepdim=True)

    def trust(rows: Tensor, of_noise: Tensor) -> Tensor:
        return (1.0 - of_noise / energy(rows).clamp(min=1e-300)).clamp(min=0.0)

    of_class, shares, size = noise.unsqueeze(1), shares_of(counts), records.shape[1]
    of_noise = size * of_class.square()
    apart = records - model
    common = common_of(apart, shares)
    common = common * trust(common, size * noise_of_common(of_class, shares).square())
    own = apart - common
    between = common_of(energy(records - common_of(records, shares)) - of_noise, shares).clamp(min=0.0)
    likely = between + energy(model - common_of(model, shares))
    return common + torch.minimum(trust(own, of_noise), likely / (likely + of_noise).clamp(min=1e-300)) * own


def _shrunk_differences(
    now: Float64[Tensor, "K r r"],
    apart: Float64[Tensor, "K r r"],
    counts: Float64[Tensor, " K"],
    noise: Float64[Tensor, " K"],
) -> Float64[Tensor, "K r r"]:
    """Differences of covariances, shrunk by empirical Bayes: first the part common to all classes, then each class.

    The prior standard deviation of a difference is proportional to the standard deviations of its two directions in the
    model, or in the records where the common part clearly exceeds its noise.
    """
    of_class, shares = noise.unsqueeze(1), shares_of(counts)
    own, common = (common_of(matrices.diagonal(dim1=1, dim2=2), shares) for matrices in (now, apart))
    variances = own + universal_garrote(common, noise_of_common(of_class, shares))
    variances = variances.clamp(min=max(_MIN_VARIANCE * float(own.mean()), 1e-12))
    row, column = torch.triu_indices(*now.shape[1:])
    # Numbers off the diagonal are scaled by √2, so that the noise is the same on all.
    times = torch.where(row == column, 1.0, 2.0).to(now)
    rule = partial(empirical_bayes, shape=times * variances[row] * variances[column])
    found = shrunk(apart[:, row, column] * times.sqrt(), counts, of_class, rule) / times.sqrt()
    matrices = torch.zeros_like(now)
    matrices[:, row, column] = matrices[:, column, row] = found
    return matrices


@dataclass(frozen=True, eq=False)
class RestMoments:
    """Moments of the part outside the subspace, class by class, in the same units.

    Args:
        means: (K, d), mean of each frequency. energies: (K, b), mean sum of squares of each band.
    """

    means: Float64[Tensor, "K d"]
    energies: Float64[Tensor, "K b"]


@dataclass(frozen=True, eq=False)
class RestCorrection:
    """Class k: frequencies p of mean m become (p − m) · scales[k, band] + m + moves[k].

    Args:
        scales: (K, b). moves: (K, d).
    """

    scales: Float64[Tensor, "K b"]
    moves: Float64[Tensor, "K d"]


def rest_correction(
    model: RestMoments,
    records: RestMoments,
    bands: Int64[Tensor, " d"],
    counts: Float64[Tensor, " K"],
    noise: Float64[Tensor, " K"],
    largest_scale: float = MAX_STRETCH,
    own_error: bool = False,
) -> RestCorrection:
    """The correction of the rest: differences of means shrunk by empirical Bayes, those of variances by their noise.

    The prior standard deviation of a difference of means is proportional to that of the model at its frequency.

    Args:
        records: Noisy moments. bands: (d,) the band of each frequency.
        counts: Estimated number of records of each class. noise: (K,) standard deviation of the noise on each number.
        largest_scale: Upper bound of the scales.
        own_error: Whether means are first corrected along themselves (`shrunk_along_means`).
    """
    of_class = noise.unsqueeze(1)

    def variances(energies: Tensor, centres: Tensor) -> Tensor:
        return energies.index_add(1, bands, -centres.square())

    own = variances(model.energies, model.means)
    apart = records.means - model.means
    along = shrunk_along_means(apart, model.means, counts, of_class) if own_error else torch.zeros_like(apart)
    of_one = (common_of(own, shares_of(counts)) / torch.bincount(bands, minlength=own.shape[1]).clamp(min=1))[bands]
    rule = partial(empirical_bayes, shape=of_one.clamp(min=max(_MIN_VARIANCE * float(of_one.mean()), 1e-12)))
    moves = along + shrunk(apart - along, counts, of_class, rule)
    missing = variances(records.energies, model.means + moves) - own
    scales = _scales(own, own + shrunk(missing, counts, of_class, garrote), largest_scale)
    return RestCorrection(scales, moves)


def _scales(
    own: Float64[Tensor, "K b"], wanted: Float64[Tensor, "K b"], largest: float = MAX_STRETCH
) -> Float64[Tensor, "K b"]:
    scales = (wanted / own.clamp(min=1e-12)).clamp(min=0.0).sqrt().clamp(max=largest)
    return torch.where(own > 1e-12, scales, 1.0)


def _gaussian_map(source: Float64[Tensor, "r r"], target: Float64[Tensor, "r r"]) -> Float64[Tensor, "r r"]:
    floor = max(_MIN_VARIANCE * float(source.diagonal().mean()), 1e-12)
    root, inverse = _power(source, floor, 0.5), _power(source, floor, -0.5)
    stretch = inverse @ _power(root @ _power(target, floor, 1.0) @ root, 0.0, 0.5) @ inverse
    values, vectors = torch.linalg.eigh(stretch)
    bounded: Tensor = (vectors * values.clamp(max=MAX_STRETCH)) @ vectors.T
    return bounded


def _power(matrix: Tensor, floor: float, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    power: Tensor = (vectors * values.clamp(min=floor).pow(exponent)) @ vectors.T
    return power


def _outer(rows: Float64[Tensor, "K r"]) -> Float64[Tensor, "K r r"]:
    return rows.unsqueeze(2) * rows.unsqueeze(1)
