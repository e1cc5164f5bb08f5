"""Tables of encoded images with labels: the common part of Parquet files and data sets of `datasets`.

The privacy guarantee does not cover properties of the whole table, which are treated as public metadata: the names of
the classes, whether all images are grey, and the size of the images.
"""

import io
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dp_sinkhorn.data.arrays import MAX_CLASSES, class_names_of, from_arrays
from dp_sinkhorn.data.files import MAX_BYTES, reading
from dp_sinkhorn.data.folder import FORMATS, GREY_MODES, SIXTEEN_BIT, UNBOUNDED_MODES
from dp_sinkhorn.data.images import MAX_SIDE, MIN_SIDE, LabelledImages
from dp_sinkhorn.data.resize import check_side, resize_image
from dp_sinkhorn.io.errors import InputError, one_line
from dp_sinkhorn.io.extras import require

MAX_PICTURE_BYTES = 2**26  # per encoded image
MAX_PICTURE_PIXELS = 2**26  # per decoded image, before resizing
MAX_LABEL_BYTES = 1000  # per text label
_RESIZE = "resize all images with --set image_side=32"


class Table(Protocol):
    """Rows of Arrow data, read in batches, any number of times."""

    name: str
    schema: Any

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """Yield record batches that hold at least these columns, or fields of columns ("image.bytes")."""
        ...


@dataclass(frozen=True)
class Columns:
    """The image and label columns of a table.

    Args:
        image: Name of a column of encoded images, or of structs with a field `bytes`.
        packed: Whether the images are in structs.
        label: Name of a column of integers or strings; None: all images are of one class.
        class_names: As declared in the metadata of `datasets`, or None.
    """

    image: str
    packed: bool
    label: str | None
    class_names: tuple[str, ...] | None

    @property
    def read(self) -> list[str]:
        """The columns to read, for `Table.batches`."""
        image = f"{self.image}.bytes" if self.packed else self.image
        return [image] if self.label is None else [image, self.label]


def find_columns(table: Table) -> Columns:
    """Find the image column (`image`, or the only candidate) and the label column (`label`, or the only `ClassLabel`).

    Raises:
        InputError: A column is missing or ambiguous.
    """
    schema, name = table.schema, one_line(table.name)
    kinds = {field.name: _column_kind(field.type) for field in schema}
    features = _features(schema.metadata or {})
    images = [column for column, kind in kinds.items() if kind in ("packed", "bytes")]
    image = "image" if "image" in images else images[0] if len(images) == 1 else None
    if image is None:
        found = ", ".join(map(one_line, images or kinds)) or "none"
        raise InputError(
            f"{name} has no column image of bytes, or of structs with a field bytes (columns: {found}); "
            "rename the column of encoded images to image"
        )
    declared = [column for column in kinds if features.get(column, {}).get("_type") == "ClassLabel"]
    label = "label" if "label" in kinds else declared[0] if len(declared) == 1 else None
    others = [column for column in kinds if column not in images]
    if label is None and others:
        # Taking the first column could turn identifiers into classes, which are public. Taking none could drop the
        # classes silently.
        raise InputError(
            f"{name} has no column label, but {', '.join(map(one_line, others))}; "
            "name the column of classes label, or drop them for one class"
        )
    if label is not None and kinds[label] != "label":
        raise InputError(
            f"{name} has labels of type {one_line(schema.field(label).type)} in column {one_line(label)}; "
            "write integers from 0, or strings"
        )
    names = features[label].get("names") if label is not None and label in declared else None
    if names is not None and not (isinstance(names, list) and all(isinstance(entry, str) for entry in names)):
        raise InputError(f"{name} declares class names that are not a list of strings; write its metadata again")
    return Columns(image, kinds[image] == "packed", label, tuple(names) if names else None)


def load_table(table: Table, declaring: Table, image_side: int | None) -> LabelledImages:
    """Load all images of a table, in its order.

    The images become grey if Pillow reads every image of `declaring` as grey, else RGB. Transparency is dropped,
    16-bit grey is divided by 257, and of an animation only the first frame is used.

    Args:
        table: The table to read.
        declaring: The training split (or `table`): it determines the classes, grey or RGB, and the size.
        image_side: Stretch every image to this many pixels a side, 8 to 64 (Lanczos).

    Raises:
        InputError: There is no image, one cannot be read, or they differ in size and `image_side` is None.
    """
    if image_side is not None:
        check_side(image_side)
    columns = find_columns(table)
    declared = columns if declaring is table else find_columns(declaring)
    if columns.class_names != declared.class_names:
        raise InputError(
            f"{one_line(table.name)} and {one_line(declaring.name)} declare different classes; write both with one list"
        )
    survey = _Survey.of(declaring, declared)
    names = declared.class_names or class_names_of(survey.labels if declared.label else None)
    sizes, own = dict(survey.sizes), survey
    if declaring is not table:
        own = _Survey.of(table, columns)
        sizes |= own.sizes
    if image_side is None:
        _check_sizes(sizes)
    width, height = next(iter(sizes)) if image_side is None else (image_side, image_side)
    size = own.count * height * width * len(survey.mode)
    if size > MAX_BYTES:
        raise InputError(f"{one_line(table.name)} holds {size} bytes of pixels, more than {MAX_BYTES}; give fewer")
    pixels = np.empty((own.count, height, width, len(survey.mode)), np.uint8)
    rows = zip(pixels, _pictures(table, columns), strict=True)
    for row, (where, picture, _) in rows:
        row[...] = _decode(picture, where, survey.mode, image_side).reshape(row.shape)
    return from_arrays(pixels, own.labels if columns.label else None, names)


@dataclass(frozen=True)
class _Survey:
    """Number of images, common mode, an example of each (width, height), and labels; reads the images' headers only."""

    count: int
    mode: Literal["L", "RGB"]
    sizes: dict[tuple[int, int], str]
    labels: list[Any]

    @staticmethod
    def of(table: Table, columns: Columns) -> "_Survey":
        mode: Literal["L", "RGB"] = "L"
        sizes: dict[tuple[int, int], str] = {}
        labels = []
        for where, picture, label in _pictures(table, columns):
            labels.append(label)
            with _opened(picture, where) as image:
                sizes.setdefault(image.size, where)
                if image.mode not in GREY_MODES:
                    mode = "RGB"
        if not labels:
            raise InputError(f"{one_line(table.name)} holds no images; give at least one")
        return _Survey(len(labels), mode, sizes, labels)


def _column_kind(arrow_type: Any) -> Literal["packed", "bytes", "label", "other"]:
    types = require("pyarrow", "datasets", "Parquet").types
    if types.is_struct(arrow_type):
        index = arrow_type.get_field_index("bytes")
        return "packed" if index >= 0 and _column_kind(arrow_type.field(index).type) == "bytes" else "other"
    if types.is_dictionary(arrow_type):
        return _column_kind(arrow_type.value_type)
    if types.is_binary(arrow_type) or types.is_large_binary(arrow_type):
        return "bytes"
    is_label = types.is_integer(arrow_type) or types.is_string(arrow_type) or types.is_large_string(arrow_type)
    return "label" if is_label else "other"


def _features(metadata: dict[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """The features that `datasets` wrote into a schema; empty if there are none."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _pictures(table: Table, columns: Columns) -> Iterator[tuple[str, memoryview, Any]]:
    """Yield (name for messages, encoded image, label) of every row."""
    number = 0
    texts: dict[str, str] = {}  # one string object per label, shared by its rows
    for batch in table.batches(columns.read):
        pictures = batch.column(columns.image)
        pictures = pictures.field("bytes") if columns.packed else pictures
        labels = [0] * len(pictures) if columns.label is None else batch.column(columns.label)
        for picture, label in zip(pictures, labels, strict=True):
            where = f"image {number} of {one_line(table.name)}"
            yield where, _encoded(picture, where), label if columns.label is None else _label(label, where, texts)
            number += 1


def _encoded(scalar: Any, where: str) -> memoryview:
    scalar = getattr(scalar, "value", scalar)  # dictionary-encoded rows share one value
    buffer = scalar.as_buffer() if hasattr(scalar, "as_buffer") else None
    if buffer is None:
        raise InputError(f"{where} has no bytes; write the file again with the images embedded")
    if buffer.size > MAX_PICTURE_BYTES:
        raise InputError(f"{where} has {buffer.size} bytes, more than {MAX_PICTURE_BYTES}; make it smaller")
    return memoryview(buffer)


def _label(scalar: Any, where: str, texts: dict[str, str]) -> int | str:
    scalar = getattr(scalar, "value", scalar)
    if hasattr(scalar, "as_buffer"):
        buffer = scalar.as_buffer()
        if buffer is not None and buffer.size > MAX_LABEL_BYTES:
            raise InputError(f"{where} has a label of {buffer.size} bytes, more than {MAX_LABEL_BYTES}; shorten it")
    label = scalar.as_py() if hasattr(scalar, "as_py") else scalar
    if label is None:
        raise InputError(f"{where} has no label; give each image one")
    if isinstance(label, int):
        if not 0 <= label < MAX_CLASSES:
            raise InputError(f"{where} has the label {label}, not 0..{MAX_CLASSES - 1}; number the classes 0, 1, 2")
        return label
    if len(texts) > MAX_CLASSES:
        raise InputError(f"{where} brings the classes to more than {MAX_CLASSES}; give fewer")
    return texts.setdefault(label, label)


@contextmanager
def _opened(picture: memoryview, where: str) -> Iterator[Image.Image]:
    with reading(Path(where), "replace or remove it"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata, transparency that RGB drops
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(picture), formats=FORMATS) as image:
            if image.width * image.height > MAX_PICTURE_PIXELS:
                raise InputError(f"{where} has {image.width}x{image.height} pixels; make it smaller or remove it")
            if image.mode in UNBOUNDED_MODES:
                raise InputError(
                    f"{where} has Pillow mode {image.mode}, whose range is not declared; convert it to 8 or 16 bits"
                )
            yield image


def _decode(picture: memoryview, where: str, mode: Literal["L", "RGB"], side: int | None) -> NDArray[np.uint8]:
    with _opened(picture, where) as opened:
        image: Image.Image = opened
        if image.mode in SIXTEEN_BIT:
            image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
        image = image.convert(mode)
        return np.asarray(image if side is None else resize_image(image, side))


def _check_sizes(sizes: dict[tuple[int, int], str]) -> None:
    (first, where), *others = sizes.items()
    if others:
        second, other = others[0]
        raise InputError(f"{where} has {first[0]}x{first[1]} pixels, {other} {second[0]}x{second[1]}; {_RESIZE}")
    if min(first) < MIN_SIDE or max(first) > MAX_SIDE:
        raise InputError(f"{where} has {first[0]}x{first[1]} pixels, not {MIN_SIDE} to {MAX_SIDE} a side; {_RESIZE}")
