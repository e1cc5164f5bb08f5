"""From the first two moments of a model's images to noisy ones of the records, class by class.

The map between Gaussians of least transport cost (Dowson and Landau 1982; Peyré and Cuturi 2019, remark 2.31) takes
covariance S to T by A = S^(−½) (S^½ T S^½)^½ S^(−½). T is the model's own covariance, first scaled to the records'
energy in each octave of directions, where a sum of many small differences stands above the noise though none of them
does, plus what of the remaining difference stands above the noise by itself: where the noise hides the records, the
model's image stays as it is.

That is for the coordinates of a subspace. Of the rest of an image, its cosine frequencies, the means are known one by
one and the energies by band, so there the map is a shift and a scale a band.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from dp_sinkhorn.transport.shrinkage import believed, believed_along, standing_out, without_noise

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
        apart: (K, r, r), by how much the records' covariances differ beyond their energies, as far as it is not noise.
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
    """The correction, in the scaled coordinates of the moments, which are sorted: the widest direction first.

    Args:
        records: Noisy. counts: Estimated records a class.
        noise: (K,) standard deviation of the noise on each coordinate of a mean and on the diagonal of a square;
            elsewhere in a square its variance is half of that.
    """
    size = model.means.shape[1]
    shares = counts / counts.sum()
    moves = _believed_moves(model.means, records.means, shares, noise)
    now = model.squares - _outer(model.means)
    wanted = records.squares - _outer(model.means + moves)
    scaled = _scaled_by_octaves(now, wanted, counts, noise)
    differences = wanted - scaled
    edges = noise * math.sqrt(2.0 * size)
    pooled = above_noise(torch.einsum("k,kij->ij", shares, differences), float((shares * edges).norm()))
    apart = torch.stack(
        [
            pooled + above_noise(difference - pooled, float(edge))
            for difference, edge in zip(differences, edges, strict=True)
        ]
    )
    maps = [_gaussian_map(own, target) for own, target in zip(now, scaled + apart, strict=True)]
    return Correction(torch.stack(maps), moves, apart)


def _believed_moves(
    model: Float64[Tensor, "K r"], records: Float64[Tensor, "K r"], shares: Float64[Tensor, " K"], noise: Tensor
) -> Float64[Tensor, "K r"]:
    """As much of how far means are apart as is not noise: of what all classes share, then of each class by itself.

    James and Stein (1961), positive part. A class by itself is believed no more than its noise allows beside how far
    the means of classes are likely to lie apart (Efron and Morris 1973): few records look far from all others by noise.
    """

    def energy(rows: Tensor) -> Tensor:
        return rows.square().sum(-1)

    def trust(rows: Tensor, of_noise: Tensor) -> Tensor:
        return (1.0 - of_noise / energy(rows).clamp(min=1e-300)).clamp(min=0.0)

    of_noise = records.shape[1] * noise.square()
    apart = records - model
    common = shares @ apart
    common = common * trust(common, (shares.square() * of_noise).sum())
    own = apart - common
    between = (shares * (energy(records - shares @ records) - of_noise)).sum().clamp(min=0.0)
    likely = between + energy(model - shares @ model)
    believed = torch.minimum(trust(own, of_noise), likely / (likely + of_noise).clamp(min=1e-300))
    return common + believed.unsqueeze(1) * own


def _scaled_by_octaves(
    now: Float64[Tensor, "K r r"],
    wanted: Float64[Tensor, "K r r"],
    counts: Float64[Tensor, " K"],
    noise: Float64[Tensor, " K"],
) -> Float64[Tensor, "K r r"]:
    """Covariances with the wanted energy in directions 1, 2, 3 to 4, 5 to 8 and so on, by as much as is not noise."""
    octaves = octaves_of(now.shape[1])
    directions = torch.bincount(octaves).to(now)

    def energies(squares: Tensor) -> Tensor:
        return squares.new_zeros(len(squares), len(directions)).index_add(1, octaves, squares.diagonal(dim1=1, dim2=2))

    own = energies(now)
    wanted_energies = own + believed(
        energies(wanted) - own, counts, noise.unsqueeze(1) * directions.sqrt(), without_noise
    )
    scales = _scales(own, wanted_energies)[:, octaves]
    return scales.unsqueeze(2) * now * scales.unsqueeze(1)


def octaves_of(size: int) -> Int64[Tensor, " r"]:
    """The octave of each of `size` sorted directions: 0; 1; 2, 2; 3 four times; and so on."""
    return torch.tensor([(number - 1).bit_length() for number in range(1, size + 1)])


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
    """The correction of the rest: means where they stand above the noise, variances by as much as is not noise.

    Args:
        records: Noisy; `noise` is (K,) the standard deviation on each of their numbers.
        bands: The band of each frequency. counts: Estimated records a class.
        largest_scale: No frequency is scaled by more.
        own_error: Whether means are first taken back along themselves (`believed_along`).
    """
    of_class = noise.unsqueeze(1)
    apart = records.means - model.means
    along = believed_along(apart, model.means, counts, of_class) if own_error else torch.zeros_like(apart)
    moves = along + believed(apart - along, counts, of_class, standing_out)

    def variances(energies: Tensor, centres: Tensor) -> Tensor:
        return energies.index_add(1, bands, -centres.square())

    own = variances(model.energies, model.means)
    missing = variances(records.energies, model.means + moves) - own
    scales = _scales(own, own + believed(missing, counts, of_class, without_noise), largest_scale)
    return RestCorrection(scales, moves)


def _scales(
    own: Float64[Tensor, "K b"], wanted: Float64[Tensor, "K b"], largest: float = MAX_STRETCH
) -> Float64[Tensor, "K b"]:
    scales = (wanted / own.clamp(min=1e-12)).clamp(min=0.0).sqrt().clamp(max=largest)
    return torch.where(own > 1e-12, scales, 1.0)


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
    bounded: Tensor = (vectors * values.clamp(max=MAX_STRETCH)) @ vectors.T
    return bounded


def _power(matrix: Tensor, floor: float, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    power: Tensor = (vectors * values.clamp(min=floor).pow(exponent)) @ vectors.T
    return power


def _outer(rows: Float64[Tensor, "K r"]) -> Float64[Tensor, "K r r"]:
    return rows.unsqueeze(2) * rows.unsqueeze(1)
