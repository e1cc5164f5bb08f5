"""Class moments of the records, released once, and the correction of the trained generator that they allow."""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dp_sinkhorn.data.images import LabelledImages, to_unit_range
from dp_sinkhorn.estimators.affine_maps import AffineMaps, ClassMeans
from dp_sinkhorn.estimators.moment_maps import MAX_STRETCH, Moments, RestMoments, moment_correction, rest_correction
from dp_sinkhorn.features.cosine import frequency_bands, num_bands, to_frequencies
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.corrected import CorrectedGenerator
from dp_sinkhorn.privacy.clipping import BoundedSum, added, disjoint
from dp_sinkhorn.privacy.ledger import Ledger
from dp_sinkhorn.privacy.plan import CLASS_MOMENTS
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.statistics import image_moments, read_image_moments
from dp_sinkhorn.settings import RunConfig
from dp_sinkhorn.stages.principal_subspace import ReleasedStatistics, release_once

# Radius that images are cut to, in units of √V.
_RADIUS = 1.0
# The model's own images: they cost time only. A class has at least so many. All are kept between rounds if they are no
# more numbers than this (1 GiB), else drawn again.
_IMAGES, _MIN_PER_CLASS, _MOST_KEPT = 20_000, 2_000, 2**29
_CHUNK = 2048
_ROUNDS = 3


def release_class_moments(
    data: LabelledImages, statistics: ReleasedStatistics, config: RunConfig, ledger: Ledger, random: CryptoRandom
) -> Float64[Tensor, "K numbers"]:
    """Charge, then release the sums of each class. A record is in one class, so the sensitivity is that of one."""
    sums = disjoint(
        [
            added(
                bounded_moments(to_unit_range(rows), statistics, data.shape)
                # One empty chunk for a class without records.
                for rows in data.pixels[data.labels == label].split(_CHUNK)
            )
            for label in range(data.num_classes)
        ]
    )
    return release_once(CLASS_MOMENTS, sums, config, ledger, random)


@torch.no_grad()
def correction_tensors(
    generator: Generator,
    released: Float64[Tensor, "K numbers"],
    statistics: ReleasedStatistics,
    config: RunConfig,
) -> dict[str, Tensor]:
    """The tensors of `CorrectedGenerator`: post-processing of released moments and the generator's own images.

    The records' images were cut to a ball before their moments were taken, and a correction leaves black and white
    pixels as they are. So one map between moments falls short: the next is found for images that the last has moved,
    cut to the same ball. What variation then is missing where a direction is stretched no further is added as such.
    """
    shape, counts = config.data.shape, statistics.class_counts
    subspace, radius = statistics.subspace.to(torch.float64), _radius(statistics)
    size, bands = subspace.num_dimensions, frequency_bands(shape)
    noise = config.privacy.once[CLASS_MOMENTS] * 2**0.5 / counts
    # Made by a small budget, small details are more noise than shape: more of them would be more noise.
    largest_scale = 1.0 if config.privacy.small_budget else MAX_STRETCH
    own_error = config.privacy.tiny_budget
    per_class = max(_MIN_PER_CLASS, _IMAGES // len(counts))
    kept: list[Tensor] = []
    if len(counts) * per_class * math.prod(shape) <= _MOST_KEPT:
        kept = [own.half() for own in generator.samples_by_class(per_class, config.settings.seed)]

    records, records_rest = read_moments(released, counts, statistics)
    maps = AffineMaps.identity(len(counts), size, bands, num_bands(shape[0]))
    no_spreads = torch.zeros_like(maps.maps)
    first: ClassMeans | None = None
    for turn in range(_ROUNDS + 1):
        corrected = CorrectedGenerator(generator, **maps.tensors(subspace, shape, no_spreads))
        images = kept or generator.samples_by_class(per_class, config.settings.seed)
        sums, now = _measured(images, corrected, statistics, shape)
        first = first or now
        model, model_rest = read_moments(sums, torch.full_like(counts, per_class), statistics)
        inner = moment_correction(model, records, counts, noise)
        if turn == _ROUNDS:
            break
        outer = rest_correction(
            model_rest, records_rest, bands, counts, noise, largest_scale=largest_scale, own_error=own_error
        )
        step = AffineMaps.about(now, inner.maps, radius * inner.moves, outer.scales, radius * outer.moves, bands)
        maps = maps.then(step).bounded(first)
    return maps.tensors(subspace, shape, radius * maps.spreads(inner.apart))


def _measured(
    images: Iterable[Tensor], corrected: CorrectedGenerator, statistics: ReleasedStatistics, shape: tuple[int, int, int]
) -> tuple[Float64[Tensor, "K numbers"], ClassMeans]:
    """Sums of the moments of corrected images, class by class, and their means, which nothing has cut."""
    subspace = statistics.subspace.to(torch.float64)
    sums, means = [], []
    for label, own in enumerate(images):
        still = torch.zeros(_CHUNK, subspace.num_dimensions)
        moved = [
            corrected.move(chunk.float(), torch.full((len(chunk),), label), still[: len(chunk)])
            for chunk in own.split(_CHUNK)
        ]
        sums.append(added(bounded_moments(chunk, statistics, shape) for chunk in moved).value)
        means.append(torch.stack([chunk.double().sum(0) for chunk in moved]).sum(0) / len(own))
    rows = torch.stack(means)
    return torch.stack(sums), ClassMeans(subspace.project(rows), to_frequencies(subspace.rest(rows), shape))


def read_moments(
    sums: Float64[Tensor, "K numbers"], counts: Float64[Tensor, " K"], statistics: ReleasedStatistics
) -> tuple[Moments, RestMoments]:
    """The moments of (noisy) sums of `bounded_moments`, class by class, in units of the radius."""
    size, rest_size = statistics.subspace.num_dimensions, len(statistics.subspace.centre)
    rows = [read_image_moments(row, float(number), size, rest_size) for row, number in zip(sums, counts, strict=True)]
    means, squares, rest_means, energies = map(torch.stack, zip(*rows, strict=True))
    return Moments(means, squares), RestMoments(rest_means, energies)


def bounded_moments(
    images: Float[Tensor, "n d"], statistics: ReleasedStatistics, shape: tuple[int, int, int]
) -> BoundedSum:
    """The sum of the moments of images cut to the ball: released of the records, read of the model."""
    # In float64: the row of a float32 matrix product may depend on the other rows of its chunk.
    exact, subspace = images.double(), statistics.subspace.to(torch.float64)
    rest = to_frequencies(subspace.rest(exact), shape)
    bands = frequency_bands(shape)
    return image_moments(subspace.project(exact), rest, bands, num_bands(shape[0]), _radius(statistics))


def _radius(statistics: ReleasedStatistics) -> float:
    radius: float = _RADIUS * statistics.variance**0.5
    return radius
