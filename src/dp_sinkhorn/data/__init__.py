"""Labelled images, private or synthetic, and the readers of all input formats."""

from dp_sinkhorn.data.images import LabelledImages, to_pixels, to_unit_range
from dp_sinkhorn.data.reading import MAX_SIDE, MIN_SIDE, Reading
from dp_sinkhorn.data.sources import from_arrays, load_images, load_synthetic, open_data

__all__ = [
    "MAX_SIDE",
    "MIN_SIDE",
    "LabelledImages",
    "Reading",
    "from_arrays",
    "load_images",
    "load_synthetic",
    "open_data",
    "to_pixels",
    "to_unit_range",
]
