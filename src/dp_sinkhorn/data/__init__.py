"""Labelled images, private or synthetic, and the readers of all input formats."""

from typing import TYPE_CHECKING, Any

from dp_sinkhorn.data.images import LabelledImages, to_pixels, to_unit_range
from dp_sinkhorn.data.reading import MAX_SIDE, MIN_SIDE, Reading

if TYPE_CHECKING:
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


def __getattr__(name: str) -> Any:
    """The readers, on first use: whoever plans or samples needs none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dp_sinkhorn.data import sources

    return getattr(sources, name)
