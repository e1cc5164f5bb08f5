"""Class moments of the records, released once, and the correction of the trained generator that they allow."""

import torch
from jaxtyping import Float64
from torch import Tensor

from dp_sinkhorn.config import RunConfig
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.privacy.clipping import disjoint
from dp_sinkhorn.privacy.ledger import Ledger
from dp_sinkhorn.privacy.plan import CLASS_MOMENTS
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.statistics import coordinate_moments, read_coordinate_moments
from dp_sinkhorn.training.statistics import ReleasedStatistics, exact_coordinates, release_once
from dp_sinkhorn.transport.moments import Moments, moment_correction

# Radius that coordinates are cut to, in units of √V.
_RADIUS = 1.0
# The model's own images: they cost time only. A class has at least so many.
_IMAGES, _MIN_PER_CLASS = 20_000, 2_000


def release_class_moments(
    data: LabelledImages, statistics: ReleasedStatistics, config: RunConfig, ledger: Ledger, random: CryptoRandom
) -> Float64[Tensor, "K packed"]:
    """Charge, then release the sums of each class. A record is in one class, so the sensitivity is that of one."""
    radius = _RADIUS * statistics.variance**0.5
    coordinates = torch.cat(list(exact_coordinates(data, statistics.subspace, "cpu")))
    sums = [coordinate_moments(coordinates[data.labels == label], radius) for label in range(data.num_classes)]
    return release_once(CLASS_MOMENTS, disjoint(sums), config, ledger, random)


@torch.no_grad()
def correction_tensors(
    generator: Generator, released: Float64[Tensor, "K packed"], statistics: ReleasedStatistics, config: RunConfig
) -> dict[str, Tensor]:
    """The tensors of `CorrectedGenerator`: post-processing of released moments and the generator's own images."""
    classes, size = len(config.data.class_names), statistics.subspace.num_dimensions
    radius, counts = _RADIUS * statistics.variance**0.5, statistics.class_counts
    per_class = max(_MIN_PER_CLASS, _IMAGES // classes)
    random = torch.Generator().manual_seed(config.settings.seed)
    noise = config.privacy.once[CLASS_MOMENTS] * 2**0.5 / counts
    own, read = [], []
    for label in range(classes):
        images = generator.sample(torch.full((per_class,), label), random).double().cpu()
        coordinates = (images - statistics.subspace.centre.double()) @ statistics.subspace.basis.double()
        own.append(read_coordinate_moments(coordinate_moments(coordinates, radius).value, float(per_class), size))
        read.append(read_coordinate_moments(released[label], float(counts[label]), size))
    model, records = (Moments(*(torch.stack(part) for part in zip(*pairs, strict=True))) for pairs in (own, read))
    found = moment_correction(model, records, counts, noise, noise)
    # z becomes (z − origin)·map + mean with z = (x − centre)·basis: what is added to z, as a function of x·basis.
    maps = found.maps - torch.eye(size, dtype=torch.float64)
    centre = statistics.subspace.centre.double() @ statistics.subspace.basis.double()
    shifts = radius * (found.means - torch.einsum("kr,krs->ks", found.origins, found.maps)) - centre @ maps
    return {"basis": statistics.subspace.basis.float(), "maps": maps.float(), "shifts": shifts.float()}
