"""Toy records, and the settings of a run on them that takes a moment."""

import torch

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.settings import make_settings

SMALL = {
    "sanitize": "record", "num_steps": 20, "num_generated": 16, "num_reference": 16, "width": 16, "channels": 8,
    "min_dimensions": 4,
}  # fmt: skip


# How often a run makes each release that comes before its steps, whatever these learn from.
BEFORE_THE_STEPS = {
    "class_counts": 1, "first_moments": 1, "second_moment": 1, "class_moments": 1, "class_features": 1,
    "classifier": 200,
}  # fmt: skip


def toy(count: int = 300, classes: int = 2, seed: int = 0) -> LabelledImages:
    """Class k has a bright block in its own quarter, on noise."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    pixels = torch.randint(0, 60, (count, 1, 8, 8), generator=random, dtype=torch.uint8)
    for k in range(classes):
        pixels[labels == k, :, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 150
    return LabelledImages(pixels, labels, tuple(map(str, range(classes))))


def settings(**changes):
    return make_settings(None, {**SMALL, **changes})
