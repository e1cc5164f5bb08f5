"""Stage: the mean scattering features of each class, released once. They are a goal of fine-tuning."""

from collections.abc import Iterator
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from dp_sinkhorn.features.scattering import SCATTERING
from dp_sinkhorn.privacy.clipping import BoundedSum, added, clipped_rows, disjoint
from dp_sinkhorn.privacy.curator import Curator, Draw
from dp_sinkhorn.stages.base import UNIT_SENSITIVITY, ShareSettings, SharingStage, State, Worst, noise_image

_CHUNK = 2048


class ClassFeaturesSettings(ShareSettings):
    """See `ShareSettings`."""

    former: ClassVar[dict[str, str]] = {"features_share": "budget_share"}


class ClassFeatures(SharingStage):
    """Releases the sum of features of each class. A record adds a vector of norm at most 1 to one: sensitivity 1."""

    name = "class_features"
    settings_type = ClassFeaturesSettings
    needs = ("counts", SCATTERING.name)
    charged = (name,)

    def run(self, curator: Curator, state: State) -> Iterator[None]:
        """See `Stage`."""
        if self.name not in state.learnt:
            contribute = partial(sum_class_features, len(state.class_counts))
            state.learnt[self.name] = self.ask(curator, state, UNIT_SENSITIVITY, contribute)
            yield

    def worst(self, state: State) -> Worst:
        """See `Stage`: random pixels, because a white image has no features except the bias."""
        return Worst(noise_image(state.config.data.shape))


def sum_class_features(classes: int, draw: Draw) -> BoundedSum:
    """Σ_y φ(y) of each class, each φ(y) clipped to norm 1; one that is not finite counts as zero."""
    features, labels = draw.view(SCATTERING), draw.labels
    return disjoint(
        [
            # A class without records has one empty chunk.
            added(feature_sum(rows) for rows in features[labels == label].split(_CHUNK))
            for label in range(classes)
        ]
    )


def feature_sum(features: Tensor) -> BoundedSum:
    """Σ_y φ(y), (D,), of rows (N, D), each clipped to norm 1; one that is not finite counts as zero."""
    return BoundedSum(clipped_rows(features.to(torch.float64), UNIT_SENSITIVITY).sum(0), UNIT_SENSITIVITY)
