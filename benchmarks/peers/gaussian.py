"""A Gaussian for each class, from noisy counts, mean images and covariances; images are drawn from it.

    PYTHONPATH=benchmarks python -m peers.gaussian DATA --out FILE.npz [--epsilon 10] [--delta 1e-5] [--seed 0]
                                                   [--num 20000] [--set mean_share=0.5]

The covariance of a class is the second moment of the directions of its centred images (`second_moment`), scaled to
the class's released variance: Dwork, Talwar, Thakurta and Zhang, "Analyze Gauss", STOC 2014. Eigenvalues below the edge
of the noise are cut. A class in which no eigenvalue is left takes the pooled covariance, and the means of small classes
are shrunk.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dp_sinkhorn.data.images import LabelledImages, to_pixels, to_unit_range
from dp_sinkhorn.estimators.subspace import low_frequencies
from dp_sinkhorn.estimators.symmetric import unpacked
from dp_sinkhorn.privacy.clipping import added, disjoint
from dp_sinkhorn.stages.principal_subspace import first_moments, read_first_moments, second_moment
from peers.peer import Budget, class_counts, draw_labels, run

_CHUNK = 2048


@dataclass(frozen=True)
class Settings:
    """Public constants: shares of the budget. The covariances take the rest."""

    count_share: float = 0.01
    mean_share: float = 0.4


def signal(matrix: Float64[Tensor, "s s"], noise_stddev: float) -> Float64[Tensor, "s s"] | None:
    """Return the part of a noisy second moment above the noise, without the bias that noise adds to eigenvalues.

    The noise has variance noise_stddev² on the diagonal and half of it elsewhere: a Wigner matrix, whose eigenvalues
    lie in ±2t, t = noise_stddev·√(s/2). A true eigenvalue λ > t appears at λ + t²/λ (Capitaine, Donati-Martin and
    Féral 2009). None: no eigenvalue lies above the edge.
    """
    values, vectors = torch.linalg.eigh(matrix)
    half = noise_stddev * math.sqrt(matrix.shape[0] / 2.0)
    # The largest eigenvalue of noise exceeds 2t(1 + 2s^(−2/3)) about once in some thousand cases (Tracy, Widom 1996).
    kept = values > 2.0 * half * (1.0 + 2.0 * matrix.shape[0] ** (-2.0 / 3.0))
    if not bool(kept.any()):
        return None
    clean = (values[kept] + (values[kept].square() - 4.0 * half**2).sqrt()) / 2.0
    above: Tensor = (vectors[:, kept] * clean) @ vectors[:, kept].T
    return above


def shrunk(
    means: Float64[Tensor, "K d"], counts: Float64[Tensor, " K"], noise_energy: Float64[Tensor, " K"]
) -> Float64[Tensor, "K d"]:
    """Shrink each class's mean to the mean of all by its share of noise (James and Stein 1961, positive part)."""
    centre = (counts @ means) / counts.sum()
    apart = means - centre
    kept = (1.0 - noise_energy / apart.square().sum(1).clamp(min=1e-12)).clamp(min=0.0)
    return centre + kept.unsqueeze(1) * apart


def covariance(
    matrix: Float64[Tensor, "s s"], noise_stddev: float, count: float, variance: float
) -> Float64[Tensor, "s s"] | None:
    """Covariance of `count` images with total variance `variance`, from the noisy second moment of their directions."""
    found = signal(matrix, noise_stddev)
    if found is None:
        return None
    scaled = variance / count * found  # the trace of n directions of length 1 is n, but noise may raise it
    return scaled * min(1.0, variance / float(scaled.trace()))


def draw(
    mean: Float64[Tensor, " d"],
    spread: Float64[Tensor, "s s"] | None,
    frame: Float64[Tensor, "d s"],
    num: int,
    random: torch.Generator,
) -> Float[Tensor, "num d"]:
    """Draw images from N(mean, frame · spread · frameᵀ), clipped to [-1, 1]."""
    images = mean.expand(num, -1)
    if spread is not None:
        values, vectors = torch.linalg.eigh(spread)
        root = vectors * values.clamp(min=0.0).sqrt()
        images = images + torch.randn(num, len(values), generator=random, dtype=torch.float64) @ root.T @ frame.T
    return images.clamp(-1.0, 1.0).float()


def synthesise(data: LabelledImages, budget: Budget, seed: int, num: int, settings: Settings) -> LabelledImages:
    """Make three releases with one row a class. A record changes one row, so the sensitivity is that of one class."""
    classes, frame = range(data.num_classes), low_frequencies(*data.shape)
    counts = torch.full((1,), float(len(data)), dtype=torch.float64)  # the number of records is public
    count_share = settings.count_share if data.num_classes > 1 else 0.0
    if data.num_classes > 1:
        noisy, stddev = budget.release("class_counts", class_counts(data), count_share)
        counts = noisy.clamp(min=max(1.0, stddev))
    sums = disjoint([added(first_moments(rows) for rows in _rows(data, label)) for label in classes])
    moments, stddev = budget.release("first_moments", sums, settings.mean_share)
    read = [
        read_first_moments(row, max(1, round(count)), stddev)
        for row, count in zip(moments, counts.tolist(), strict=True)
    ]
    size, rank = frame.shape
    variances = torch.tensor([variance for _, variance in read], dtype=torch.float64).clamp(1e-3 * size, float(size))
    noise_energy = 2.0 * rank * size * (stddev / counts).square()
    means = shrunk(torch.stack([mean for mean, _ in read]) @ frame @ frame.T, counts, noise_energy).clamp(-1.0, 1.0)
    sums = disjoint(
        [
            added(second_moment((rows.double() - means[label]) @ frame) for rows in _rows(data, label))
            for label in classes
        ]
    )
    packed, stddev = budget.release("second_moments", sums, 1.0 - count_share - settings.mean_share)
    matrices = [unpacked(row, frame.shape[1]) for row in packed]
    pooled = sum(matrices[1:], start=matrices[0])
    random = torch.Generator().manual_seed(seed)
    labels = draw_labels(counts, num, random)
    images = torch.empty(num, frame.shape[0])
    for label in classes:
        of_class = labels == label
        spread = covariance(matrices[label], stddev, float(counts[label]), float(variances[label]))
        if spread is None:
            noise = stddev * math.sqrt(data.num_classes)
            spread = covariance(pooled, noise, float(counts.sum()), float(counts @ variances / counts.sum()))
        images[of_class] = draw(means[label], spread, frame, int(of_class.sum()), random)
    return LabelledImages(to_pixels(images).view(-1, *data.shape), labels, data.class_names)


def _rows(data: LabelledImages, label: int) -> Iterator[Float[Tensor, "m d"]]:
    """Images of a class in chunks of 2,048; one empty chunk for a class without records."""
    return map(to_unit_range, data.pixels[data.labels == label].split(_CHUNK))


if __name__ == "__main__":
    run(synthesise, Settings(), __doc__)
