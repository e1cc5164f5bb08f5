"""Labelled images in memory: stored as uint8, converted to floats in [-1, 1] for computation."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from dp_sinkhorn.data.class_names import are_integers
from dp_sinkhorn.data.reading import MAX_SIDE, MIN_SIDE
from dp_sinkhorn.io.errors import InputError

_CHUNK = 8192


def to_unit_range(pixels: UInt8[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
    """Flatten uint8 images to rows of float32 in [-1, 1] (0 ↦ -1, 255 ↦ 1)."""
    return pixels.flatten(1).to(torch.float32).div_(127.5).sub_(1.0)


def to_pixels(images: Float[Tensor, "n ..."]) -> UInt8[Tensor, "n ..."]:
    """Round float images in [-1, 1] to uint8; the inverse of `to_unit_range` up to the shape."""
    return ((images + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, eq=False, repr=False)
class LabelledImages:
    """Images of one shape with one class label each.

    Args:
        pixels: uint8, (N, channels, height, width); 1 or 3 channels, 8 to 128 pixels a side.
        labels: int64, (N,), each in [0, num_classes).
        class_names: One name per class; its length is the declared number of classes.

    Raises:
        InputError: A shape, a type, a label or the number of images is invalid.
    """

    pixels: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4:
            raise InputError(
                f"pixels are {self.pixels.dtype} of shape {tuple(self.pixels.shape)}; "
                "give uint8 of shape (N, channels, height, width)"
            )
        count, channels, height, width = self.pixels.shape
        if count == 0:
            raise InputError("there are no images; give at least one")
        if channels not in (1, 3):
            raise InputError(f"images have {channels} channels; give grey (1) or RGB (3) images")
        if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
            raise InputError(f"images are {height}x{width} pixels; give {MIN_SIDE} to {MAX_SIDE} pixels a side")
        if self.labels.shape != (count,):
            raise InputError(f"{self.labels.numel()} labels do not match {count} images; give one label per image")
        if self.labels.dtype != torch.int64:
            raise InputError(f"labels are {self.labels.dtype}; give int64")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= self.num_classes:
            raise InputError(
                f"labels range from {low} to {high}; give 0..{self.num_classes - 1} for {self.num_classes} classes"
            )

    def __repr__(self) -> str:
        """Public facts only: a notebook shows whatever a cell ends with."""
        return f"LabelledImages({len(self)} images of shape {self.shape}, {self.num_classes} classes)"

    def __len__(self) -> int:
        return self.pixels.shape[0]

    @property
    def num_classes(self) -> int:
        """Declared number of classes (1: unconditional)."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    def floats(self) -> Float[Tensor, "n d"]:
        """All images as float32 rows in [-1, 1], d = channels·height·width."""
        return to_unit_range(self.pixels)

    def float_chunks(self) -> Iterator[Float[Tensor, "m d"]]:
        """Yield the rows of `floats` in chunks, so that a large data set is never held as floats."""
        return map(to_unit_range, self.pixels.split(_CHUNK))

    def subset(self, index: Int64[Tensor, " m"]) -> "LabelledImages":
        """The images at `index`, in that order."""
        return LabelledImages(self.pixels[index], self.labels[index], self.class_names)

    def sha256(self) -> str:
        """SHA-256 of all pixels, labels and class names; as private as the images themselves."""
        digest = hashlib.sha256(repr((tuple(self.pixels.shape), self.class_names)).encode())
        for tensor in (self.pixels, self.labels):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(images, labels) as stored in an `.npz`: uint8 NHW (grey) or NHWC (RGB), and int64.

        Labels are the class names where these are integers, else the places of the classes.
        """
        images = self.pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        labels = self.labels.cpu().numpy()
        if are_integers(self.class_names):
            labels = np.array([int(name) for name in self.class_names], np.int64)[labels]
        return (images[..., 0] if images.shape[-1] == 1 else images), labels
