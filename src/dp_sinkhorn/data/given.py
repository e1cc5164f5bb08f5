"""What a program hands over: arrays, tensors, lists, and columns of pandas, Arrow and Hugging Face's `datasets`.

Objects of libraries that may not be installed are recognised by what they offer. Types decide, never values.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from dp_sinkhorn.data.arrays import as_array, as_nhwc
from dp_sinkhorn.data.class_names import checked_names, class_index, label_column
from dp_sinkhorn.data.files import in_memory, reading
from dp_sinkhorn.data.found import Arrays, Pictures
from dp_sinkhorn.data.pictures import OpenImage
from dp_sinkhorn.data.reading import SIDE_REMEDY
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.safe_read import open_regular

Given = ArrayLike | Sequence[Any]  # images or labels

_PICTURES = (Image.Image, str, os.PathLike, bytes, Mapping)
_REMEDY = "give an array or a tensor, or a list or column of arrays, Pillow images or paths"


class ListedPictures:
    """Pillow images, paths, encoded bytes and structs with `bytes` or `path`: each is read as a file is, in its turn.

    Args:
        items: Perhaps a lazy column, which decodes an image whenever it is asked for it.
    """

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
        return (_opener(item, where) for where, item in _each(self.items))


def images_of(images: Given) -> Arrays | Pictures:
    """Images that a program hands over; pictures are not decoded yet. The first image says which kind all are of.

    Raises:
        InputError: They are of no known type, or of several.
    """
    if not isinstance(images, Sequence) or isinstance(images, str | bytes):
        array = as_array(images, "images are", _REMEDY)
        if array.ndim != 1 or array.dtype.kind not in "OUT":
            return Arrays(as_nhwc(array), "images")
        images = list(array)  # a column of objects, or of texts
    _, first = next(_each(images), ("", None))
    if isinstance(first, _PICTURES):
        return ListedPictures(images)
    return Arrays(as_nhwc(_stacked(images)), "images")


def labels_of(labels: Given) -> tuple[NDArray[Any], tuple[str, ...] | None]:
    """Labels as integers or texts, and the classes that their type declares: a `ClassLabel`, or pandas' categories.

    Returns:
        (N,), or (N, M) where there are several labels for each image; and all names, in order, or None.

    Raises:
        InputError: See `label_column`.
    """
    values: Any = labels
    names = getattr(getattr(values, "features", None), "names", None)  # of a column of `datasets`
    categories = getattr(getattr(values, "dtype", None), "categories", None)  # of pandas
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        values = values[:]  # a lazy column at once
    column = label_column(values, flat=False)
    if names is not None:
        names = checked_names(names)
        return np.array(names)[class_index(column, names, len(column), counted=True)], names
    return column, None if categories is None else tuple(map(str, label_column(categories)))


def _each(images: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Each image with its name, one in memory at a time."""
    items = iter(images)
    for number in range(len(images)):
        where = f"images[{number}]"
        with reading(Path(where), "replace or remove it"):  # a lazy column decodes now
            item = next(items)
        yield where, item


def _opener(item: Any, where: str) -> tuple[str, Callable[[], IO[bytes]]]:
    """The name of a picture for messages, and how it is opened."""
    held = item
    if isinstance(item, Mapping):  # as in columns of `datasets`, Arrow and Parquet
        held = item.get("path") if item.get("bytes") is None else item["bytes"]
    if isinstance(held, Image.Image):
        return where, partial(OpenImage, held)
    if isinstance(held, bytes):
        return where, in_memory(held)
    if isinstance(held, str | os.PathLike):
        path = Path(os.fsdecode(held))
        return str(path), partial(open_regular, path)
    kind = f"a {type(item).__name__}" + (" without bytes or path" if held is not item else "")
    raise InputError(f"{where} is {kind}; give Pillow images or paths, for all images")


def _stacked(images: Sequence[Any]) -> NDArray[Any]:
    """A list of arrays as one array."""
    arrays = [as_array(image, f"{where} is", _REMEDY) for where, image in _each(images)]
    if len(types := {array.dtype for array in arrays}) > 1:
        # NumPy would convert all to a common type, so one record could change the declared range of the others.
        found = " and ".join(sorted(map(str, types)))
        raise InputError(f"images are of types {found}; give all of one type, uint8, or floats in [0, 1]")
    if len(shapes := {array.shape for array in arrays}) > 1:
        found = " and ".join(map(str, sorted(shapes)[:2]))
        raise InputError(f"images have different shapes, {found}; resize them, or give Pillow images and {SIDE_REMEDY}")
    return np.array(arrays)
