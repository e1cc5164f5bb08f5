"""To a declared side: each image by itself."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dp_sinkhorn.data.reading import FIT_REMEDY, MAX_SIDE, MIN_SIDE, SIDE_REMEDY, Fit, Reading
from dp_sinkhorn.io.errors import InputError

_SIZES = f"{MIN_SIDE} to {MAX_SIDE} pixels a side"


def fitted_size(size: tuple[int, int], how: Reading, where: str) -> tuple[int, int]:
    """The (height, width) that an image of this (width, height) gets.

    Raises:
        InputError: It needs a side, or a way to become square.
    """
    width, height = size
    if how.side is not None:
        if width != height and how.fit is None:
            raise InputError(f"{where} is not square ({width}x{height} pixels); give {FIT_REMEDY}")
        return how.side, how.side
    if how.fit == "stretch":
        raise InputError(f"--stretch needs a side to stretch to; give for example {SIDE_REMEDY}")
    if how.fit is not None:
        height = width = min(size) if how.fit == "crop" else max(size)
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise InputError(f"{where} has {size[0]}x{size[1]} pixels, not {_SIZES}; give for example {SIDE_REMEDY}")
    return height, width


def fitted(pixels: NDArray[np.uint8], height: int, width: int, fit: Fit | None) -> NDArray[np.uint8]:
    """An image of (h, w) or (h, w, 3) pixels at this size (Lanczos, antialiased)."""
    if pixels.shape[:2] == (height, width):
        return pixels
    h, w = pixels.shape[:2]
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if fit == "crop":
        side = min(h, w)
        left, top = (w - side) // 2, (h - side) // 2
        image = image.crop((left, top, left + side, top + side))
    elif fit == "pad":
        side = max(h, w)
        square = Image.new(image.mode, (side, side))
        square.paste(image, ((side - w) // 2, (side - h) // 2))
        image = square
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
