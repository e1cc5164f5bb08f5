"""Stage: mean features of each class, released once, and the refinement of images that they allow."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float32, Float64, Int64
from pydantic import Field
from torch import Tensor

from dp_sinkhorn.estimators.shrinkage import believed, groups_without_noise
from dp_sinkhorn.features.cosine import maps_from_frequencies, maps_to_frequencies
from dp_sinkhorn.features.scattering import SCATTERING, Scattering, map_shape, num_features
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.refined import REFINEMENT_STEPS, RefinedGenerator, moved, room
from dp_sinkhorn.privacy.clipping import BoundedSum, added, clipped_rows, disjoint
from dp_sinkhorn.privacy.curator import Curator, Draw
from dp_sinkhorn.settings import RunConfig
from dp_sinkhorn.stages.base import (
    UNIT_SENSITIVITY,
    Released,
    ShareSettings,
    SharingStage,
    StageFacts,
    State,
    Worst,
    noise_image,
)

# Root mean square of a step's pixel moves, at most.
_LARGEST_MOVE = 0.05
# The model's own images of a class, and in all where there are many classes: they cost time only.
_PER_CLASS, _MIN_PER_CLASS, _IMAGES = 200, 50, 4000
_CHUNK = 2048
_MAX_STEPS = 20  # each makes the images of a release dearer by some milliseconds


class ClassFeaturesSettings(ShareSettings):
    """See `ShareSettings`."""

    former: ClassVar[dict[str, str]] = {"features_share": "budget_share"}


class ClassFeaturesFacts(StageFacts):
    """refinement_steps: That move every image that is drawn."""

    refinement_steps: Annotated[int, Field(ge=1, le=_MAX_STEPS)]


class ClassFeatures(SharingStage):
    """Releases the sum of each class's features. A record is in one class, so the sensitivity is that of one: 1."""

    name = "class_features"
    settings_type = ClassFeaturesSettings
    facts_type = ClassFeaturesFacts
    needs = ("counts", SCATTERING.name)
    layer = 3
    charged = (name,)

    def run(self, curator: Curator, state: State) -> Iterator[None]:
        """See `Stage`."""
        if self.name not in state.learnt:
            contribute = partial(sum_class_features, len(state.class_counts))
            state.learnt[self.name] = self.ask(curator, state, UNIT_SENSITIVITY, contribute)
            yield

    def finish(self, state: State) -> None:
        """See `Stage`: find the fields by which images are refined."""
        assert state.finished is not None  # noqa: S101 - it is when stages finish
        noise = self.charge(state.plan).noise_multiplier
        fields = refinement_fields(
            state.finished, state.learnt[self.name], state.class_counts, noise, state.config.settings.seed
        )
        state.tensors[f"{self.name}.fields"] = fields

    def shapes(self, facts: StageFacts, of: Released) -> dict[str, tuple[int, ...]]:
        """See `Stage`."""
        steps = self.facts_of(facts, ClassFeaturesFacts).refinement_steps
        return {f"{self.name}.fields": (steps, len(of.class_names), num_features(of.image_shape))}

    def planned_facts(self, config: RunConfig, dimensions: int) -> ClassFeaturesFacts:
        """See `Stage`."""
        return ClassFeaturesFacts(refinement_steps=REFINEMENT_STEPS)

    def wrap(self, generator: Generator, facts: StageFacts, tensors: Mapping[str, Tensor]) -> Generator:
        """See `Stage`."""
        return RefinedGenerator(generator, tensors[f"{self.name}.fields"])

    def facts(self, state: State) -> ClassFeaturesFacts:
        """See `Stage`."""
        return ClassFeaturesFacts(refinement_steps=len(state.tensors[f"{self.name}.fields"]))

    def describe(self, facts: StageFacts) -> dict[str, str]:
        """See `Stage`."""
        steps = self.facts_of(facts, ClassFeaturesFacts).refinement_steps
        return {"refinement": f"{steps} steps towards the released mean features of each class"}

    def worst(self, state: State) -> Worst:
        """See `Stage`: a white image has no features but the bias."""
        return Worst(noise_image(state.config.data.shape))


def sum_class_features(classes: int, draw: Draw) -> BoundedSum:
    """Σ_y φ(y) of each class, each cut to norm 1; one that is not finite counts as zero."""
    features, labels = draw.view(SCATTERING), draw.labels
    return disjoint(
        [
            # One empty chunk for a class without records.
            added(feature_sum(rows) for rows in features[labels == label].split(_CHUNK))
            for label in range(classes)
        ]
    )


def feature_sum(features: Tensor) -> BoundedSum:
    """Σ_y φ(y), (D,), of rows (N, D), each cut to norm 1; one that is not finite counts as zero."""
    return BoundedSum(clipped_rows(features.to(torch.float64), UNIT_SENSITIVITY).sum(0), UNIT_SENSITIVITY)


@torch.no_grad()
def refinement_fields(
    generator: Generator,
    released: Float64[Tensor, "K D"],
    counts: Float64[Tensor, " K"],
    noise_multiplier: float,
    seed: int,
) -> Float32[Tensor, "T K D"]:
    """The fields of `RefinedGenerator`: post-processing of released sums and the generator's own images.

    A step is as long as would end a class's squared gap, were that linear in the step (Polyak's rule).

    Args:
        counts: Estimated records a class. seed: Public, of the generator's images.
    """
    features = Scattering(generator.shape)
    per_class = min(_PER_CLASS, max(_MIN_PER_CLASS, _IMAGES // len(counts)))
    images = list(generator.samples_by_class(per_class, seed))
    found = [torch.var_mean(features(own).double(), dim=0) for own in images]
    variances, means = (torch.stack(rows) for rows in zip(*found, strict=True))
    # Of the release, and of the means of the model's own images.
    noise = ((noise_multiplier / counts.unsqueeze(1)).square() + variances / per_class).sqrt()
    gap = released / counts.unsqueeze(1) - means
    wanted = means + believed_gap(gap, counts, noise, map_shape(generator.shape))
    fields = []
    for step in range(REFINEMENT_STEPS):
        if step > 0:
            means = torch.stack([features(own).double().mean(0) for own in images])
        field = means - wanted
        for label, own in enumerate(images):
            apart = field[label]
            gradients = features.gradients(own, apart.float().expand(per_class, -1))
            moves = room(own) * gradients
            slope = float((moves * gradients).sum(1).mean())
            length = 0.5 * float(apart.square().sum()) / max(slope, 1e-30)
            length = min(length, _LARGEST_MOVE / max(float(moves.square().mean().sqrt()), 1e-30))
            field[label] = length * apart
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
