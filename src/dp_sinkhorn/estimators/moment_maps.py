"""From the first two moments of a model's images to noisy ones of the records, class by class.

The map between Gaussians of least transport cost (Dowson and Landau 1982; Peyré and Cuturi 2019, remark 2.31) takes
covariance S to T by A = S^(−½) (S^½ T S^½)^½ S^(−½). T is the model's own covariance plus as much of the difference as
is likely not to be noise, if differences are alike in all directions relative to the variances there: where the noise
hides the records, the model's image stays as it is.

That is for the coordinates of a subspace. Of the rest of an image, its cosine frequencies, the means are known one by
one and the energies by band, so there the map is a shift and a scale a band.
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from dp_sinkhorn.estimators.shrinkage import (
    as_far_as_likely,
    believed,
    believed_along,
    common_of,
    noise_of_common,
    shares_of,
    standing_out,
    without_noise,
)

MAX_STRETCH = 3.0
"""Most that a direction of the model's images is stretched: beyond it, it would be mostly the model's own noise."""

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
    """Coordinates z of class k, of mean m, become (z − m) · maps[k] + m + moves[k].

    Args:
        maps: (K, r, r) symmetric. moves: (K, r).
        apart: (K, r, r), by how much the records' covariances differ, as far as it is not noise.
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
        records: Noisy. counts: Estimated records a class.
        noise: (K,) standard deviation of the noise on each coordinate of a mean and on the diagonal of a square;
            elsewhere in a square its variance is half of that.
    """
    moves = _believed_moves(model.means, records.means, counts, noise)
    now = model.squares - _outer(model.means)
    wanted = records.squares - _outer(model.means + moves)
    apart = _believed_differences(now, wanted - now, counts, noise)
    maps = [_gaussian_map(own, target) for own, target in zip(now, now + apart, strict=True)]
    return Correction(torch.stack(maps), moves, apart)


def _believed_moves(
    model: Float64[Tensor, "K r"], records: Float64[Tensor, "K r"], counts: Float64[Tensor, " K"], noise: Tensor
) -> Float64[Tensor, "K r"]:
    """As much of how far means are apart as is not noise: of what all classes share, then of each class by itself.

    James and Stein (1961), positive part. A class by itself is believed no more than its noise allows beside how far
    the means of classes are likely to lie apart (Efron and Morris 1973): few records look far from all others by noise.
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


def _believed_differences(
    now: Float64[Tensor, "K r r"],
    apart: Float64[Tensor, "K r r"],
    counts: Float64[Tensor, " K"],
    noise: Float64[Tensor, " K"],
) -> Float64[Tensor, "K r r"]:
    """As much of the difference of covariances as is likely not to be noise: what classes share, then each by itself.

    Likely is a difference in proportion to the standard deviations of its two directions, those of the model, or of
    the records where all classes together show them.
    """
    of_class, shares = noise.unsqueeze(1), shares_of(counts)
    own, common = (common_of(matrices.diagonal(dim1=1, dim2=2), shares) for matrices in (now, apart))
    variances = own + standing_out(common, noise_of_common(of_class, shares))
    variances = variances.clamp(min=max(_MIN_VARIANCE * float(own.mean()), 1e-12))
    row, column = torch.triu_indices(*now.shape[1:])
    # Twice, off the diagonal: so the noise is alike on all numbers.
    times = torch.where(row == column, 1.0, 2.0).to(now)
    likely = partial(as_far_as_likely, shape=times * variances[row] * variances[column])
    found = believed(apart[:, row, column] * times.sqrt(), counts, of_class, likely) / times.sqrt()
    matrices = torch.zeros_like(now)
    matrices[:, row, column] = matrices[:, column, row] = found
    return matrices


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
    """Frequencies p of class k, of mean m, become (p − m) · scales[k, band] + m + moves[k].

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
    """The correction of the rest: means by as much as is likely not to be noise, variances by as much as is not noise.

    Likely is a difference of means in proportion to the standard deviation that the model has at its frequency.

    Args:
        records: Noisy; `noise` is (K,) the standard deviation on each of their numbers.
        bands: The band of each frequency. counts: Estimated records a class.
        largest_scale: No frequency is scaled by more.
        own_error: Whether means are first taken back along themselves (`believed_along`).
    """
    of_class = noise.unsqueeze(1)

    def variances(energies: Tensor, centres: Tensor) -> Tensor:
        return energies.index_add(1, bands, -centres.square())

    own = variances(model.energies, model.means)
    apart = records.means - model.means
    along = believed_along(apart, model.means, counts, of_class) if own_error else torch.zeros_like(apart)
    of_one = (common_of(own, shares_of(counts)) / torch.bincount(bands, minlength=own.shape[1]).clamp(min=1))[bands]
    likely = partial(as_far_as_likely, shape=of_one.clamp(min=max(_MIN_VARIANCE * float(of_one.mean()), 1e-12)))
    moves = along + believed(apart - along, counts, of_class, likely)
    missing = variances(records.energies, model.means + moves) - own
    scales = _scales(own, own + believed(missing, counts, of_class, without_noise), largest_scale)
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
