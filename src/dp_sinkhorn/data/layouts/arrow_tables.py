"""Tables of encoded images: Parquet files, and data sets in the local cache of Hugging Face's `datasets`.

Nothing is downloaded, and no code of a data set is run.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from dp_sinkhorn.data.class_names import MAX_CLASSES
from dp_sinkhorn.data.files import FREE_BYTES, MAX_EXPANSION, in_memory, reading
from dp_sinkhorn.data.found import (
    Found,
    Labels,
    Part,
    Split,
    rest,
    split_of,
    split_of_prefix,
    stored_reading,
    without_effect,
)
from dp_sinkhorn.data.layouts.image_folders import image_files
from dp_sinkhorn.data.reading import Reading
from dp_sinkhorn.data.tree import Entry, Tree
from dp_sinkhorn.io.errors import InputError, did_you_mean, one_line
from dp_sinkhorn.io.extras import require
from dp_sinkhorn.io.safe_read import listed

MAX_PICTURE_BYTES = 2**26  # per encoded image
MAX_LABEL_BYTES = 1000  # per text label
_MAX_ROWS, _BATCH_BYTES, _BUFFER_BYTES, _HUB_ROWS = 64, 2**28, 2**20, 64
_REMEDY, _BOMB = "write it again with datasets or pyarrow", " (a decompression bomb?)"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_LABEL_NAMES = ("label", "labels", "class", "target", "fine_label")


class Table(Protocol):
    """Rows of Arrow data, read in batches, any number of times."""

    name: str
    schema: Any

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """Yield record batches that hold at least these columns, or fields of columns ("image.bytes")."""
        ...


def parquet(tree: Tree, how: Reading) -> Found | None:
    """Parquet files; the folder or the beginning of a file's name says its split, else all are training images.

    Raises:
        InputError: They are several tables, or their columns are ambiguous.
    """
    files = tree.ending(".parquet")
    if not files or image_files(tree.entries)[0]:
        return None
    require("pyarrow.parquet", "datasets", "Parquet")
    by_split: dict[Split, list[Entry]] = {}
    strays: list[Entry] = []
    for entry in files:
        split = next((s for part in reversed(entry.folder) if (s := split_of(part))), split_of_prefix(entry.name[:-8]))
        by_split.setdefault(split, []).append(entry) if split else strays.append(entry)
    if strays and by_split:
        raise InputError(
            f"{tree.root} holds {strays[0]} beside files of splits; begin its name with train, validation or test"
        )
    if strays:
        by_split["train"] = strays
    tables: dict[Split, Table] = {
        split: ParquetTable(entries, f"{tree.root} ({split})" if len(by_split) > 1 else tree.root)
        for split, entries in by_split.items()
    }
    folders = {tuple(part for part in entry.folder if not split_of(part)) for entry in files}
    if len(folders) > 1:
        names = listed(sorted("/".join(folder) or "." for folder in folders), 3)
        raise InputError(
            f"{tree.root} holds Parquet files in several folders, {names}; give one of them, or put all files into one"
        )
    unused = rest(tree.entries, {entry.parts for entry in files}, "not a Parquet file")
    return _found("Parquet files", tables, how, unused)


def is_hub_name(source: object) -> bool:
    """Whether a source has the form `name` or `owner/name`."""
    return isinstance(source, str) and _HUB_NAME.fullmatch(source) is not None


def hub(name: str, how: Reading) -> Found:
    """A data set in the cache of `datasets`.

    Raises:
        InputError: `datasets` is not installed, or the data set is not in its cache.
    """
    splits = _hub_splits(name)
    tables: dict[Split, Table] = {}
    unused = []
    for key, dataset in splits.items():
        split = split_of(str(key))
        if split is None:
            unused.append((f"the split '{key}', which no verb uses", str(key)))
        else:
            tables[split] = HubTable(dataset, f"{name} ({key})")
    if "train" not in tables:
        raise InputError(f"{name} has no train split, only {one_line(', '.join(splits))}; give another data set")
    return _found("a data set of Hugging Face's datasets", tables, how, unused)


def _found(layout: str, tables: dict[Split, Table], how: Reading, unused: list[tuple[str, str]]) -> Found:
    declaring = tables.get("train") or next(iter(tables.values()))
    image, packed = _image_column(declaring)
    label, names = _label_column(declaring, image, how)
    parts: dict[Split, Part] = {}
    for split, table in tables.items():
        if label is not None and label not in table.schema.names:
            raise InputError(f"{one_line(table.name)} has no column {one_line(label)}; {_REMEDY}")
        if names is not None and (own := _declared_names(table, label)) is not None and own != names:
            raise InputError(f"{one_line(table.name)} declares other classes than the training split; write one list")
        pictures = ColumnPictures(table, f"{image}.bytes" if packed else image)
        labels = None if label is None else _labels(table, label)
        if names is not None and split != "train" and labels and set(labels) == {-1}:
            labels = None  # as the hub's data sets have it where labels are withheld
        parts[split] = Part(pictures, labels)
    labels_from = "nothing: one class" if label is None else f"the column {one_line(label)}"
    found = Found(layout, parts, labels_from, names, places=names is not None, unused=unused)
    found.notes += without_effect(how, one_label=label is None)
    if (facts := (declaring.schema.metadata or {}).get(b"dp_sinkhorn")) is not None:
        found.stored_reading = stored_reading(facts.decode("utf-8", "replace"))
    return found


class ColumnPictures:
    """The encoded images of a column."""

    def __init__(self, table: Table, column: str) -> None:
        self.table, self.column = table, column
        self.count: int = sum(batch.num_rows for batch in table.batches([column]))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
        name, packed, field = self.column.partition(".")
        number = 0
        for batch in self.table.batches([self.column]):
            rows = batch.column(name)
            for value in rows.field(field) if packed else rows:
                where = f"image {number} of {one_line(self.table.name)}"
                content = _encoded(value, where)
                yield where, in_memory(content)
                number += 1


class ParquetTable:
    """The rows of Parquet files with one schema.

    Raises:
        InputError: A file is not Parquet, has another schema than the first, or promises to expand too much.
    """

    def __init__(self, files: Sequence[Entry], name: str) -> None:
        self.files, self.name = files, name
        self.schema: Any = None
        for entry in files:
            with reading(Path(entry.where), _REMEDY), _parquet(entry) as file:
                _check_expansion(file.metadata, entry.where)
                if self.schema is not None and not self.schema.equals(file.schema_arrow):
                    raise InputError(f"{one_line(entry.where)} has different columns from {files[0]}; {_REMEDY}")
                self.schema = self.schema or file.schema_arrow

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """See `Table`."""
        for entry in self.files:
            unpacked, most = 0, max(FREE_BYTES, MAX_EXPANSION * entry.size)
            with reading(Path(entry.where), _REMEDY), _parquet(entry) as file:
                for index in range(file.metadata.num_row_groups):
                    rows = _rows_at_a_time(file.metadata.row_group(index), columns)
                    # With one thread and no read-ahead, a whole row group is never in memory.
                    for batch in file.iter_batches(rows, [index], list(columns), use_threads=False):
                        unpacked += batch.nbytes
                        if unpacked > most:
                            raise InputError(
                                f"{one_line(entry.where)} unpacks to more than {most} bytes{_BOMB}; {_REMEDY}"
                            )
                        yield batch


class HubTable:
    """One split of a cached data set."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset = dataset.with_format("arrow")
        self.name = name
        self.schema = dataset.features.arrow_schema

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """See `Table`."""
        for table in self.dataset.iter(_HUB_ROWS):
            yield from table.to_batches()


@contextmanager
def _parquet(entry: Entry) -> Iterator[Any]:
    module = require("pyarrow.parquet", "datasets", "Parquet")
    with entry.open() as file, module.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False) as opened:
        yield opened


def _image_column(table: Table) -> tuple[str, bool]:
    """The column of encoded images, and whether they are in structs with a field `bytes`."""
    kinds = {field.name: _column_kind(field.type) for field in table.schema}
    images = [column for column, kind in kinds.items() if kind in ("packed", "bytes")]
    named = [column for column in ("image", "img", "picture", "jpg", "png") if column in images]
    image = named[0] if named else images[0] if len(images) == 1 else None
    if image is None:
        found = ", ".join(map(one_line, images or kinds)) or "none"
        raise InputError(
            f"{one_line(table.name)} has no column image of bytes, or of structs with bytes (columns: {found}); "
            "rename the column of encoded images to image"
        )
    return image, kinds[image] == "packed"


def _label_column(table: Table, image: str, how: Reading) -> tuple[str | None, tuple[str, ...] | None]:
    """The column of labels, and the class names that it declares."""
    name = one_line(table.name)
    kinds = {field.name: _column_kind(field.type) for field in table.schema}
    others = [
        column
        for column in kinds
        if column != image and (kinds[column] not in ("packed", "bytes") or column in _LABEL_NAMES)
    ]
    features = _features(table.schema.metadata or {})
    declared = [column for column in others if features.get(column, {}).get("_type") == "ClassLabel"]
    label = how.label_column
    if label is None:
        label = next((column for column in _LABEL_NAMES if column in others), None)
        label = label or (declared[0] if len(declared) == 1 else None)
        if label is None and others:
            # Taking the first column could turn identifiers into classes, which are public. Taking none could drop the
            # classes silently.
            raise InputError(
                f"{name} has no column label, but {', '.join(map(one_line, others))}; choose one with --label-column, "
                "or drop them for one class"
            )
    if label is None:
        return None, None
    if label not in others:
        raise InputError(
            f"{name} has no column {label}; "
            f"--label-column can be {', '.join(others) or 'none'}{did_you_mean(label, others)}"
        )
    if kinds[label] != "label":
        raise InputError(
            f"{name} has labels of type {one_line(table.schema.field(label).type)} in column {one_line(label)}; "
            "choose another with --label-column, or write integers or strings"
        )
    return label, _declared_names(table, label)


def _declared_names(table: Table, label: str | None) -> tuple[str, ...] | None:
    feature = _features(table.schema.metadata or {}).get(label or "", {})
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    if names is not None and not (isinstance(names, list) and all(isinstance(entry, str) for entry in names)):
        raise InputError(f"{one_line(table.name)} declares class names that are not strings; write its metadata again")
    return tuple(names) if names else None


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
    return "label" if is_label or types.is_boolean(arrow_type) else "other"


def _features(metadata: dict[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """The features that `datasets` wrote into a schema; empty if there are none."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _labels(table: Table, column: str) -> Labels:
    labels: list[int | str] = []
    texts: dict[str, str] = {}  # one string object per label, shared by its rows
    for batch in table.batches([column]):
        for scalar in batch.column(column):
            labels.append(_label(scalar, f"row {len(labels)} of {one_line(table.name)}", texts))
    return labels


def _label(scalar: Any, where: str, texts: dict[str, str]) -> int | str:
    scalar = getattr(scalar, "value", scalar)  # dictionary-encoded rows share one value
    if hasattr(scalar, "as_buffer"):
        buffer = scalar.as_buffer()
        if buffer is not None and buffer.size > MAX_LABEL_BYTES:
            raise InputError(f"{where} has a label of {buffer.size} bytes, more than {MAX_LABEL_BYTES}; shorten it")
    label = scalar.as_py() if hasattr(scalar, "as_py") else scalar
    if label is None:
        raise InputError(f"{where} has no label; give each image one")
    if isinstance(label, bool):
        return str(label)
    if isinstance(label, int):
        return label
    if len(texts) > MAX_CLASSES:
        raise InputError(f"{where} brings the classes to more than {MAX_CLASSES}; give fewer")
    return texts.setdefault(label, label)


def _encoded(scalar: Any, where: str) -> memoryview:
    scalar = getattr(scalar, "value", scalar)
    buffer = scalar.as_buffer() if hasattr(scalar, "as_buffer") else None
    if buffer is None:
        raise InputError(f"{where} has no bytes; write the file again with the images embedded")
    if buffer.size > MAX_PICTURE_BYTES:
        raise InputError(f"{where} has {buffer.size} bytes, more than {MAX_PICTURE_BYTES}; make it smaller")
    return memoryview(buffer)


def _rows_at_a_time(group: Any, columns: Sequence[str]) -> int:
    """Rows per batch, few enough to bound memory even if every row holds the largest value of its row group."""
    chunks = map(group.column, range(group.num_columns))
    largest = max((chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in columns), default=0)
    return max(1, min(_MAX_ROWS, _BATCH_BYTES // max(1, largest)))


def _check_expansion(metadata: Any, where: str) -> None:
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        for column in map(group.column, range(group.num_columns)):
            if column.total_uncompressed_size > max(FREE_BYTES, MAX_EXPANSION * column.total_compressed_size):
                raise InputError(
                    f"{one_line(where)} promises {column.total_uncompressed_size} bytes in "
                    f"{column.total_compressed_size}{_BOMB}; {_REMEDY}"
                )


def _hub_splits(name: str) -> dict[str, Any]:
    meant = did_you_mean(name, ["digits"])
    datasets = require("datasets", "datasets", f"{name!r} does not exist here{meant or ';'} a data set of that name")
    with _offline(datasets):
        try:
            return dict(datasets.load_dataset(name))
        # The library raises errors of many kinds, its own and those of its dependencies.
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            fetch = (
                "give a file or folder, or fetch it first: "
                f'python -c "import datasets; datasets.load_dataset({name!r})"'
            )
            raise InputError(
                f"{name!r} does not exist here, and no data set of that name is in the cache of datasets "
                f"({reason.rstrip('.')}){meant or f'; {fetch}'}"
            ) from None


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """Keep the library from sending requests and printing; restore its settings afterwards."""
    constants: Any = require("huggingface_hub.constants", "datasets", "a data set name")
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    bars, logger = datasets.is_progress_bar_enabled(), logging.getLogger("datasets")
    level = logger.level
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    datasets.disable_progress_bars()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
