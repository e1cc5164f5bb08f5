"""Stage: the moments of each class, released once, and the affine map of the generator's images to these moments."""

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from dp_sinkhorn.data.images import to_unit_range
from dp_sinkhorn.estimators.affine_maps import AffineMaps, ClassMeans
from dp_sinkhorn.estimators.image_moments import MomentFrame
from dp_sinkhorn.estimators.moment_maps import MAX_STRETCH, moment_correction, rest_correction
from dp_sinkhorn.features.cosine import frequency_bands, num_bands, to_frequencies
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.tuned import AffineLayer
from dp_sinkhorn.privacy.clipping import BoundedSum, added, disjoint
from dp_sinkhorn.privacy.curator import Curator, Draw
from dp_sinkhorn.privacy.plan import more_steps
from dp_sinkhorn.stages.base import (
    UNIT_SENSITIVITY,
    ShareSettings,
    SharingStage,
    State,
)

# Number of the model's own images, which cost time only, and of those of a class at least. They are kept between rounds
# up to this many pixels (1 GiB), else drawn again.
_IMAGES, _MIN_PER_CLASS, _MOST_KEPT = 20_000, 2_000, 2**29
_CHUNK = 2048
_AT_A_TIME = 250  # images passed through the map at once; it holds one row per class for each
_ROUNDS = 3
# Noise per record above which the model's means may be mostly error. They are then first corrected along themselves.
_OWN_ERROR = 1e-3


class ClassMomentsSettings(ShareSettings):
    """See `ShareSettings`."""

    former: ClassVar[dict[str, str]] = {"moments_share": "budget_share"}


class ClassMoments(SharingStage):
    """Releases the sum of moments of each class. A record adds a vector of norm at most 1 to one: sensitivity 1."""

    name = "class_moments"
    settings_type = ClassMomentsSettings
    needs = ("counts", "subspace")
    gives = ("moments",)
    charged = (name,)

    def run(self, curator: Curator, state: State) -> Iterator[None]:
        """See `Stage`."""
        if self.name not in state.learnt:
            contribute = partial(sum_class_moments, moment_frame(state))
            state.learnt[self.name] = self.ask(curator, state, UNIT_SENSITIVITY, contribute)
            yield


def moment_frame(state: State) -> MomentFrame:
    """The frame in which a run takes moments."""
    return MomentFrame.of(state.subspace, state.variance, state.config.data.shape)


def sum_class_moments(frame: MomentFrame, draw: Draw) -> BoundedSum:
    """The sum of moments of each class."""
    images = draw.images
    return disjoint(
        [
            added(
                frame.bounded(to_unit_range(rows))
                # A class without records has one empty chunk.
                for rows in images.pixels[images.labels == label].split(_CHUNK)
            )
            for label in range(images.num_classes)
        ]
    )


@torch.no_grad()
def affine_tensors(generator: Generator, state: State) -> dict[str, Tensor]:
    """The tensors of `AffineLayer`: post-processing of released moments and the generator's own images.

    The moments are those of images clipped to a ball, and the layer does not move black and white pixels. So one map
    between moments falls short. Each further round fits a map for the images that the previous maps have moved, clipped
    to the same ball. Where a direction reaches its largest stretch, the missing variation is added as noise.
    """
    shape, counts, seed = state.config.data.shape, state.class_counts, state.config.settings.seed
    frame = moment_frame(state)
    subspace, radius = frame.subspace, frame.radius
    size, bands = subspace.num_dimensions, frequency_bands(shape)
    released = state.learnt[ClassMoments.name]
    noise = state.noise_of(ClassMoments.name) * 2**0.5 / counts
    # With much noise per record, small details are mostly noise, which a larger scale would amplify.
    largest_scale = MAX_STRETCH ** (2.0 - more_steps(state.plan.noise_per_record))
    own_error = state.plan.noise_per_record > _OWN_ERROR
    per_class = max(_MIN_PER_CLASS, _IMAGES // len(counts))
    kept: list[Tensor] = []
    if len(counts) * per_class * math.prod(shape) <= _MOST_KEPT:
        kept = [own.half() for own in generator.samples_by_class(per_class, seed)]

    records, records_rest = frame.read(released, counts)
    maps = AffineMaps.identity(len(counts), size, bands, num_bands(shape[0]))
    no_spreads = torch.zeros_like(maps.maps)
    first: ClassMeans | None = None
    for turn in range(_ROUNDS + 1):
        layer = AffineLayer(shape, **maps.tensors(subspace, shape, no_spreads))
        images = kept or generator.samples_by_class(per_class, seed)
        sums, now = _measured(images, layer, frame)
        first = first or now
        model, model_rest = frame.read(sums, torch.full_like(counts, per_class))
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
    images: Iterable[Tensor], layer: AffineLayer, frame: MomentFrame
) -> tuple[Float64[Tensor, "K numbers"], ClassMeans]:
    """Sums of the moments of corrected images, class by class, and their means without clipping to the ball."""
    subspace = frame.subspace
    sums, means = [], []
    for label, own in enumerate(images):
        still = torch.zeros(_AT_A_TIME, subspace.num_dimensions)
        moved = [
            layer(chunk.float(), torch.full((len(chunk),), label), still[: len(chunk)])
            for chunk in own.split(_AT_A_TIME)
        ]
        sums.append(added(frame.bounded(chunk) for chunk in moved).value)
        means.append(torch.stack([chunk.double().sum(0) for chunk in moved]).sum(0) / len(own))
    rows = torch.stack(means)
    return torch.stack(sums), ClassMeans(subspace.project(rows), to_frequencies(subspace.rest(rows), frame.shape))
