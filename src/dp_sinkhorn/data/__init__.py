"""Labelled images, private or synthetic, and the readers of all input formats."""

from dp_sinkhorn.data.images import MAX_SIDE, MIN_SIDE, LabelledImages, to_pixels, to_unit_range
from dp_sinkhorn.data.sources import from_arrays, has_test_split, load_images, load_synthetic

__all__ = [
    "MAX_SIDE",
    "MIN_SIDE",
    "LabelledImages",
    "from_arrays",
    "has_test_split",
    "load_images",
    "load_synthetic",
    "to_pixels",
    "to_unit_range",
]
