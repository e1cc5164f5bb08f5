"""Gain: how much synthetic images improve classifiers trained on a small set of real images."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.evaluation.tstr import Scores, score_classifiers

NUM_REAL = 500
CLASSIFIERS = ("cnn",)


@dataclass(frozen=True)
class Gain:
    """Classifiers trained on a small real set, alone and together with all synthetic images.

    Args:
        num_real: Real training images, drawn at random.
        num_synthetic: Synthetic images added.
        real: Scores from the real images alone, by classifier.
        real_and_synthetic: Scores from both together.
        added: Accuracy from both less that from the real images, by classifier; in [-1, 1].
        standard_errors: Those of `added`, as if each accuracy had test images of its own. As it has the same ones, the
            error is smaller as a rule.
    """

    num_real: int
    num_synthetic: int
    real: dict[str, Scores]
    real_and_synthetic: dict[str, Scores]
    added: dict[str, float]
    standard_errors: dict[str, float]


def difference_error(first: Scores, second: Scores) -> float:
    """The standard error of the difference of two accuracies, as if each had test images of its own."""
    return math.hypot(first.standard_errors.accuracy, second.standard_errors.accuracy)


def gain(
    synthetic: LabelledImages,
    real_train: LabelledImages,
    real_test: LabelledImages,
    seed: int,
    report: Callable[[str], None],
) -> Gain:
    """Train on `NUM_REAL` real images (or all, if there are fewer), then on these and the synthetic ones.

    All images have equal weight. Many synthetic images outweigh the real ones, so poor ones can cost accuracy.
    """
    # A different stream than that of the ceiling's images, which are drawn with the seed itself.
    order = torch.randperm(len(real_train), generator=torch.Generator().manual_seed(seed + 2**32))
    real = real_train.subset(order[:NUM_REAL])
    both = LabelledImages(
        torch.cat([real.pixels, synthetic.pixels]), torch.cat([real.labels, synthetic.labels]), real.class_names
    )

    def scores(train: LabelledImages, what: str) -> dict[str, Scores]:
        return score_classifiers(
            train, real_test, seed, lambda name: report(f"training {name} on {what} images"), CLASSIFIERS
        )

    alone = scores(real, f"{len(real):,} real")
    together = scores(both, f"{len(real):,} real and {len(synthetic):,} synthetic")
    return Gain(
        num_real=len(real),
        num_synthetic=len(synthetic),
        real=alone,
        real_and_synthetic=together,
        added={name: together[name].accuracy - alone[name].accuracy for name in CLASSIFIERS},
        standard_errors={name: difference_error(alone[name], together[name]) for name in CLASSIFIERS},
    )
