"""Class means of the records' features, released once, and the refinement of images that they allow."""

from functools import partial

import torch
from jaxtyping import Float16, Float32, Float64, Int64
from torch import Tensor

from dp_sinkhorn.estimators.shrinkage import believed, groups_without_noise
from dp_sinkhorn.features.cosine import maps_from_frequencies, maps_to_frequencies
from dp_sinkhorn.features.scattering import Scattering, map_shape
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.refined import REFINEMENT_STEPS, moved, room
from dp_sinkhorn.privacy.clipping import added, disjoint
from dp_sinkhorn.privacy.ledger import Ledger
from dp_sinkhorn.privacy.plan import CLASS_FEATURES
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.statistics import feature_sum
from dp_sinkhorn.settings import RunConfig
from dp_sinkhorn.stages.principal_subspace import release_once

# Root mean square of a step's pixel moves, at most.
_LARGEST_MOVE = 0.05
# The model's own images of a class, and in all where there are many classes: they cost time only.
_PER_CLASS, _MIN_PER_CLASS, _IMAGES = 200, 50, 4000
_CHUNK = 2048


def release_class_features(
    features: Float16[Tensor, "N D"],
    labels: Int64[Tensor, " N"],
    config: RunConfig,
    ledger: Ledger,
    random: CryptoRandom,
) -> Float64[Tensor, "K D"]:
    """Charge, then release the sum of each class. A record is in one class, so the sensitivity is that of one."""
    sums = disjoint(
        [
            # One empty chunk for a class without records.
            added(feature_sum(rows) for rows in features[labels == label].split(_CHUNK))
            for label in range(len(config.data.class_names))
        ]
    )
    return release_once(CLASS_FEATURES, sums, config, ledger, random)


@torch.no_grad()
def refinement_fields(
    generator: Generator,
    released: Float64[Tensor, "K D"],
    counts: Float64[Tensor, " K"],
    config: RunConfig,
) -> Float32[Tensor, "T K D"]:
    """The fields of `RefinedGenerator`: post-processing of released sums and the generator's own images.

    A step is as long as would end a class's squared gap, were that linear in the step (Polyak's rule).

    Args:
        counts: Estimated records a class.
    """
    features = Scattering(config.data.shape)
    per_class = min(_PER_CLASS, max(_MIN_PER_CLASS, _IMAGES // len(counts)))
    images = list(generator.samples_by_class(per_class, config.settings.seed))
    found = [torch.var_mean(features(own).double(), dim=0) for own in images]
    variances, means = (torch.stack(rows) for rows in zip(*found, strict=True))
    # Of the release, and of the means of the model's own images.
    noise = ((config.privacy.once[CLASS_FEATURES] / counts.unsqueeze(1)).square() + variances / per_class).sqrt()
    wanted = means + believed_gap(released / counts.unsqueeze(1) - means, counts, noise, map_shape(config.data.shape))
    fields = []
    for step in range(REFINEMENT_STEPS):
        if step > 0:
            means = torch.stack([features(own).double().mean(0) for own in images])
        field = means - wanted
        for label, own in enumerate(images):
            gap = field[label]
            gradients = features.gradients(own, gap.float().expand(per_class, -1))
            moves = room(own) * gradients
            slope = float((moves * gradients).sum(1).mean())
            length = 0.5 * float(gap.square().sum()) / max(slope, 1e-30)
            length = min(length, _LARGEST_MOVE / max(float(moves.square().mean().sqrt()), 1e-30))
            field[label] = length * gap
            images[label] = moved(own, length * gradients)
        fields.append(field.float())
    return torch.stack(fields)


def believed_gap(
    gap: Float64[Tensor, "K D"],
    counts: Float64[Tensor, " K"],
    noise: Float64[Tensor, "K D"],
    shape: tuple[int, int, int],
) -> Float64[Tensor, "K D"]:
    """What of noisy gaps between mean features is not noise, octave by octave of each map's cosine frequencies.

    Args:
        noise: Standard deviation of each number. shape: Of the maps; a last feature, the bias, has no gap.
    """
    groups = frequency_groups(shape)
    # A rotation keeps the variance of a map's noise: where that differs from place to place, its mean is taken.
    maps, area = shape[0], shape[1] * shape[2]
    level = noise[:, :-1].square().unflatten(1, (maps, area)).mean(2).sqrt().repeat_interleave(area, dim=1)
    strengths = maps_to_frequencies(gap[:, :-1], shape)
    kept = believed(strengths, counts, level, partial(groups_without_noise, groups=groups))
    return torch.cat([maps_from_frequencies(kept, shape), torch.zeros_like(gap[:, -1:])], dim=1)


def frequency_groups(shape: tuple[int, int, int]) -> Int64[Tensor, " d"]:
    """The group of each cosine frequency of maps of this shape: by map, and by octave of the faster of its two."""
    maps, height, width = shape
    fastest = torch.maximum(torch.arange(height).unsqueeze(1), torch.arange(width)).flatten()
    octaves = torch.tensor([number.bit_length() for number in fastest.tolist()])
    return (torch.arange(maps).unsqueeze(1) * (int(octaves.max()) + 1) + octaves).flatten()
