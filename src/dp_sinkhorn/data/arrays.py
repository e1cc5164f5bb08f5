"""Labelled images from arrays in memory."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from dp_sinkhorn.data.files import MAX_BYTES
from dp_sinkhorn.data.images import MAX_SIDE, MIN_SIDE, LabelledImages
from dp_sinkhorn.data.resize import check_side, resize_pixels
from dp_sinkhorn.io.errors import InputError

MAX_CLASSES = 10_000  # a stray label of 10^9 must not become 10^9 class names
MAX_NAME_BYTES = 128  # per class name in UTF-8: it becomes a folder's name, and the card holds all names
MAX_STORED_SIDE = 8192  # pixels a side of an image that is to be resized
_BLOCK_VALUES = 2**22  # converted at a time, so that no float copy of the whole array exists
_FLOAT_REMEDY = "float images must lie in [0, 1]; divide them by their full range, or give uint8"
_INTEGER_REMEDY = "integer images must lie in 0..255; rescale them, or give floats in [0, 1]"


def from_arrays(
    images: ArrayLike,
    labels: ArrayLike | None,
    class_names: Sequence[str] | None = None,
    image_side: int | None = None,
) -> LabelledImages:
    """Make labelled images from an array of images and an array of labels; both are copied.

    The type alone declares the range of the values, which is never inferred from the data: integers are 0..255;
    floats v are in [0, 1] and become round(255·v).

    Args:
        images: (N, height, width) or (N, height, width, channels); 1 or 3 channels, 8 to 64 pixels a side
            unless `image_side` is given.
        labels: (N,) or (N, 1): integers in 0..num_classes-1, or strings. None: one class, unconditional.
        class_names: One distinct name per class. Default: see `class_names_of`; the set of labels is then
            treated as public metadata, which the privacy guarantee does not cover.
        image_side: Stretch every image to this many pixels a side, 8 to 64 (Lanczos).

    Raises:
        InputError: A shape, type, value, label or name is not usable.
    """
    if image_side is not None:
        check_side(image_side)
    values = _as_nhwc(images)
    _check_sizes(values, image_side)
    if labels is not None and (column := _as_array("labels", labels)).ndim and len(column) > len(values):
        raise InputError(f"{len(column)} labels do not match {len(values)} images; give one label per image")
    names = class_names_of(labels) if class_names is None else _checked_names(class_names)
    index = _class_index(labels, len(values), names)
    pixels = _to_uint8(values)
    if image_side is not None:
        pixels = resize_pixels(pixels, image_side)
    channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return LabelledImages(channels_first, torch.from_numpy(index), names)


def _check_sizes(values: NDArray[Any], image_side: int | None) -> None:
    """Refuse images of an invalid size before allocating memory for them."""
    count, height, width, channels = values.shape
    low, high = (MIN_SIDE, MAX_SIDE) if image_side is None else (1, MAX_STORED_SIDE)
    if not (low <= height <= high and low <= width <= high):
        other = ", or resize all images with --set image_side=32" if image_side is None else ""
        raise InputError(f"images are {height}x{width} pixels; give {low} to {high} pixels a side{other}")
    held = count * channels * (height * width if image_side is None else image_side**2)
    if held > MAX_BYTES:
        raise InputError(f"{count} images would take {held} bytes, more than {MAX_BYTES}; give a smaller data set")


def class_names_of(labels: ArrayLike | None) -> tuple[str, ...]:
    """The classes that `labels` declare; they are treated as public metadata.

    Returns:
        Integers: "0" .. str(max label). Strings: the sorted unique values. None: ("0",), one class.

    Raises:
        InputError: The labels are not one integer >= 0, or one string, per image.
    """
    if labels is None:
        return ("0",)
    column = _label_column(labels)
    if column.dtype.kind == "U":
        return _checked_names([str(name) for name in np.unique(column)])
    return tuple(str(label) for label in range(int(column.max()) + 1))


def _as_array(name: str, values: ArrayLike) -> NDArray[Any]:
    try:
        return np.asarray(values)
    # Ragged lists; tensors on a GPU or with a gradient.
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} are not an array ({error}); give a NumPy array") from error


def _as_nhwc(images: ArrayLike) -> NDArray[Any]:
    if isinstance(images, list | tuple):
        images = [_as_array("images", image) for image in images]
        if len(types := {image.dtype for image in images}) > 1:
            # NumPy would convert all to a common type, so one record could change the declared range of the others.
            found = " and ".join(sorted(map(str, types)))
            raise InputError(f"images are of types {found}; give all of one type, uint8, or floats in [0, 1]")
    array = _as_array("images", images)
    if array.ndim not in (3, 4):
        raise InputError(f"images have shape {array.shape}; give (N, height, width) or add a last axis of channels")
    if array.ndim == 3:
        array = array[..., np.newaxis]
    if array.shape[3] not in (1, 3):
        raise InputError(
            f"images of shape {array.shape} have {array.shape[3]} channels in the last axis; "
            "give 1 or 3 there (channels first: images.transpose(0, 2, 3, 1))"
        )
    if 0 in array.shape:
        raise InputError(f"images of shape {array.shape} hold no pixels; give at least one image")
    return array


def _to_uint8(values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.dtype.kind not in "iuf":
        raise InputError(f"images are {values.dtype}; give uint8, or floats in [0, 1]")
    pixels = np.empty(values.shape, np.uint8)
    step = max(1, _BLOCK_VALUES // values[0].size)
    for first in range(0, len(values), step):
        block = values[first : first + step]
        if values.dtype.kind == "f":
            _refuse_outside(block, first, 1, _FLOAT_REMEDY)
            pixels[first : first + step] = np.rint(block.astype(np.float64) * 255)
        else:
            _refuse_outside(block, first, 255, _INTEGER_REMEDY)
            pixels[first : first + step] = block.astype(np.uint8)
    return pixels


def _refuse_outside(block: NDArray[Any], first: int, high: int, remedy: str) -> None:
    if block.dtype == np.uint8:
        return
    good = (block >= 0) & (block <= high)  # False for NaN
    if not good.all():
        where = tuple(int(i) for i in np.argwhere(~good)[0])
        record, row, column, channel = first + where[0], *where[1:]
        raise InputError(
            f"images[{record}] is {block[where]} at row {row}, column {column}, channel {channel}; {remedy}"
        )


def _label_column(labels: ArrayLike) -> NDArray[Any]:
    column = _as_array("labels", labels)
    if column.ndim == 2 and column.shape[1] == 1:
        column = column[:, 0]
    if column.ndim != 1:
        raise InputError(f"labels have shape {column.shape}; give one label per image, shape (N,)")
    if column.size == 0:
        raise InputError("there are no labels; give one label per image")
    if column.dtype.kind == "O":
        column = _as_strings(column)
    if column.dtype.kind == "U":
        if column.itemsize > 4 * MAX_NAME_BYTES:  # NumPy holds four bytes a character
            raise InputError(f"labels are {column.dtype}; give names of at most {MAX_NAME_BYTES} bytes")
        return column
    if column.dtype.kind not in "iu":
        raise InputError(f"labels are {column.dtype}; give integers from 0, or strings")
    bad = (column < 0) | (column >= MAX_CLASSES)
    if bad.any():
        raise InputError(f"label {column[bad][0]} is not in 0..{MAX_CLASSES - 1}; number the classes 0, 1, 2 and so on")
    return column


def _as_strings(column: NDArray[Any]) -> NDArray[Any]:
    """Convert a column of Python strings (as in pandas) to NumPy text."""
    if not all(isinstance(label, str) for label in column):
        kinds = " and ".join(sorted({type(label).__name__ for label in column}))
        raise InputError(f"labels are Python objects ({kinds}); give integers from 0, or strings, all of one type")
    if too_long := next((label for label in column if len(label) > MAX_NAME_BYTES), ""):
        # NumPy would allocate four bytes per character of the longest label for every label.
        raise InputError(f"a label has {len(too_long)} characters; give names of at most {MAX_NAME_BYTES} bytes")
    return column.astype(str)


def _checked_names(names: Sequence[str]) -> tuple[str, ...]:
    if not 1 <= len(names) <= MAX_CLASSES:
        raise InputError(f"there are {len(names)} class names; give 1 to {MAX_CLASSES}")
    for name in names:
        if not name or not name.isprintable():  # names end up in the card and on the terminal
            raise InputError(f"class name '{name}' is not printable text; rename the class")
        if len(name.encode()) > MAX_NAME_BYTES:
            raise InputError(f"class name '{name}' has more than {MAX_NAME_BYTES} bytes; rename the class")
    if len(set(names)) < len(names):
        repeated = Counter(names).most_common(1)[0][0]
        raise InputError(f"class name '{repeated}' is given twice; give each class its own name")
    return tuple(names)


def _class_index(labels: ArrayLike | None, count: int, names: tuple[str, ...]) -> NDArray[np.int64]:
    if labels is None:
        if len(names) != 1:
            raise InputError(f"labels are missing for {len(names)} classes; give one label per image")
        return np.zeros(count, np.int64)
    column = _label_column(labels)
    if len(column) != count:
        raise InputError(f"{len(column)} labels do not match {count} images; give one label per image")
    if column.dtype.kind != "U":
        return column.astype(np.int64)
    index_of = {name: index for index, name in enumerate(names)}
    if unknown := sorted(set(column.tolist()) - set(names)):
        raise InputError(f"label '{unknown[0]}' is not one of the {len(names)} classes; correct it")
    return np.array([index_of[name] for name in column.tolist()], np.int64)
