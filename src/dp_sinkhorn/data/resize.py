"""Resizing to a declared side; each image is resized independently of all others."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dp_sinkhorn.data.images import MAX_SIDE, MIN_SIDE
from dp_sinkhorn.io.errors import InputError


def check_side(side: int) -> None:
    """Refuse a side outside 8..64, which `LabelledImages` cannot hold, before any image is read."""
    if not MIN_SIDE <= side <= MAX_SIDE:
        raise InputError(f"image_side={side} is not in {MIN_SIDE}..{MAX_SIDE}; give a number of pixels in that range")


def resize_image(image: Image.Image, side: int) -> Image.Image:
    """Stretch an "L" or "RGB" image to side x side pixels (Lanczos, antialiased; values stay in 0..255)."""
    return image.resize((side, side), Image.Resampling.LANCZOS)


def resize_pixels(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Apply `resize_image` to each image of a uint8 array (N, height, width, 1 or 3)."""
    count, _, _, channels = pixels.shape
    resized = np.empty((count, side, side, channels), np.uint8)
    for row, image in zip(resized, pixels, strict=True):
        picture = Image.fromarray(image[..., 0] if channels == 1 else image)
        row[...] = np.asarray(resize_image(picture, side)).reshape(row.shape)
    return resized
