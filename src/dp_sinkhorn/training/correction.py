"""Class moments of the records, released once, and the correction of the trained generator that they allow."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dp_sinkhorn.config import RunConfig
from dp_sinkhorn.data.images import LabelledImages, to_unit_range
from dp_sinkhorn.frequencies import frequency_bands, from_frequencies, to_frequencies
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.privacy.clipping import BoundedSum, added, disjoint
from dp_sinkhorn.privacy.ledger import Ledger
from dp_sinkhorn.privacy.plan import CLASS_MOMENTS
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.statistics import image_moments, read_image_moments
from dp_sinkhorn.training.statistics import ReleasedStatistics, release_once
from dp_sinkhorn.transport.moments import Moments, RestMoments, moment_correction, rest_correction

# Radius that images are cut to, in units of √V.
_RADIUS = 1.0
# The model's own images: they cost time only. A class has at least so many.
_IMAGES, _MIN_PER_CLASS = 20_000, 2_000
_CHUNK = 2048


def release_class_moments(
    data: LabelledImages, statistics: ReleasedStatistics, config: RunConfig, ledger: Ledger, random: CryptoRandom
) -> Float64[Tensor, "K numbers"]:
    """Charge, then release the sums of each class. A record is in one class, so the sensitivity is that of one."""
    sums = disjoint(
        [
            added(
                _moments(to_unit_range(rows), statistics, data.shape)
                # One empty chunk for a class without records.
                for rows in data.pixels[data.labels == label].split(_CHUNK)
            )
            for label in range(data.num_classes)
        ]
    )
    return release_once(CLASS_MOMENTS, sums, config, ledger, random)


@torch.no_grad()
def correction_tensors(
    generator: Generator, released: Float64[Tensor, "K numbers"], statistics: ReleasedStatistics, config: RunConfig
) -> dict[str, Tensor]:
    """The tensors of `CorrectedGenerator`: post-processing of released moments and the generator's own images."""
    shape, counts = config.data.shape, statistics.class_counts
    subspace, radius = statistics.subspace.to(torch.float64), _radius(statistics)
    size, bands = subspace.num_dimensions, frequency_bands(shape)
    per_class = max(_MIN_PER_CLASS, _IMAGES // len(counts))
    random = torch.Generator().manual_seed(config.settings.seed)
    own = torch.stack(
        [
            _moments(generator.sample(torch.full((per_class,), label), random).cpu(), statistics, shape).value
            for label in range(len(counts))
        ]
    )

    def read(sums: Tensor, numbers: Tensor) -> tuple[Moments, RestMoments]:
        rows = [
            read_image_moments(row, float(number), size, len(bands)) for row, number in zip(sums, numbers, strict=True)
        ]
        means, squares, rest_means, energies = map(torch.stack, zip(*rows, strict=True))
        return Moments(means, squares), RestMoments(rest_means, energies)

    model, model_rest = read(own, torch.full_like(counts, per_class))
    records, records_rest = read(released, counts)
    noise = config.privacy.once[CLASS_MOMENTS] * 2**0.5 / counts
    inner = moment_correction(model, records, counts, noise)
    outer = rest_correction(model_rest, records_rest, bands, counts, noise)
    # (z − origin)·map + mean, z = (x − centre)·basis, as what is added to x; and the same for the rest's frequencies.
    maps, gains = inner.maps - torch.eye(size, dtype=torch.float64), (outer.scales - 1.0)[:, bands]
    grey = torch.zeros_like(subspace.centre).unsqueeze(0)
    origin, rest_origin = subspace.project(grey).squeeze(0), to_frequencies(subspace.rest(grey), shape)
    shifts = radius * (inner.means - torch.einsum("kr,krs->ks", inner.origins, inner.maps))
    shifts = shifts + torch.einsum("r,krs->ks", origin, maps)
    rest_shifts = radius * (outer.means - outer.origins * (1.0 + gains)) + rest_origin * gains
    rest_pixels = from_frequencies(rest_shifts, shape)
    pixels = subspace.lift(shifts - rest_pixels @ subspace.basis) + rest_pixels
    found = {"basis": subspace.basis, "maps": maps, "gains": outer.scales - 1.0, "shifts": pixels}
    return {name: tensor.float() for name, tensor in found.items()}


def _moments(images: Float[Tensor, "n d"], statistics: ReleasedStatistics, shape: tuple[int, int, int]) -> BoundedSum:
    # In float64: the row of a float32 matrix product may depend on the other rows of its chunk.
    exact, subspace = images.double(), statistics.subspace.to(torch.float64)
    rest = to_frequencies(subspace.rest(exact), shape)
    return image_moments(subspace.project(exact), rest, frequency_bands(shape), _radius(statistics))


def _radius(statistics: ReleasedStatistics) -> float:
    radius: float = _RADIUS * statistics.variance**0.5
    return radius
