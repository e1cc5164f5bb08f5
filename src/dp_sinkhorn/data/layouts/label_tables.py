"""Image files with a table of labels: CSV, TSV, JSON lines, and the tables of CelebA."""

import csv
import io
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dp_sinkhorn.data.class_names import named_flags
from dp_sinkhorn.data.files import reading
from dp_sinkhorn.data.found import Files, Found, Part, Split, split_of, split_of_prefix
from dp_sinkhorn.data.layouts.image_folders import image_files
from dp_sinkhorn.data.reading import Reading
from dp_sinkhorn.data.tree import Entry, Tree
from dp_sinkhorn.io.errors import InputError

MAX_TABLE_BYTES = 2**28
MAX_COLUMNS = 2000
_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".txt")
_DELIMITERS = ",;\t|"
_LABEL_NAMES = ("label", "labels", "class", "class_name", "classname", "category", "target", "diagnosis", "dx", "y")
_SPLIT_NAMES = ("split", "partition", "set", "subset", "fold", "dataset")
# CelebA's numbers of splits.
_NUMBERED: dict[str, Split] = {"0": "train", "1": "validation", "2": "test"}
_REMEDY = "write it again as UTF-8 CSV with a header line"


@dataclass(frozen=True)
class LabelTable:
    """A table with a header.

    Args:
        columns: Values by column name, all as text.
    """

    entry: Entry
    columns: dict[str, list[str]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))


def label_tables(tree: Tree, how: Reading) -> Found | None:
    """Image files whose labels stand in a table.

    Raises:
        InputError: Labels or their table are ambiguous.
    """
    images, unused = image_files(tree.entries)
    candidates = [entry for entry in tree.entries if entry.ending in _ENDINGS]
    if not images or not candidates:
        return None
    places = _Places(images)
    matched = []
    for entry in candidates:
        table = read_table(entry)
        if table is not None and (column := places.file_column(table)) is not None:
            matched.append((table, column))
    if not matched:
        return None
    labelled = [(table, column) for table, column in matched if _candidates(table, column)]
    splits = _split_tables(matched)
    labelled = [(table, column) for table, column in labelled if table.entry not in splits] or labelled
    if not labelled:
        return None
    _check_no_class_folders(tree, how, images, labelled[0][0])
    used = {table.entry.parts for table, _ in matched}
    unused = [(reason, name) for reason, name in unused if not any("/".join(parts) == name for parts in used)]
    return _joined(tree, how, places, labelled, splits, unused)


def read_table(entry: Entry) -> LabelTable | None:
    """Read a table with any usual separator and encoding; None if the file is no table.

    Raises:
        InputError: It is too large.
    """
    if entry.size > MAX_TABLE_BYTES:
        raise InputError(f"{entry.where} has {entry.size} bytes, more than {MAX_TABLE_BYTES}; give a smaller table")
    with reading(Path(entry.where), _REMEDY), closing(entry.open()) as file:
        text = _text(file.read(MAX_TABLE_BYTES + 1))
        if entry.ending in (".jsonl", ".ndjson"):
            facts = [json.loads(line) for line in text.splitlines() if line.strip()]
            if not facts or not all(isinstance(row, dict) for row in facts):
                return None
            names = list(dict.fromkeys(str(name) for row in facts for name in row))
            return LabelTable(entry, {name: [_plain(row.get(name)) for row in facts] for name in names[:MAX_COLUMNS]})
        lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2:
        return None
    if lines[0].strip().isdigit():  # CelebA: the number of rows, then the header
        lines = lines[1:]
    rows = _rows(lines)
    if rows is None:
        return None
    header, body = rows[0], rows[1:]
    if body and len(body[0]) == len(header) + 1:  # CelebA: the column of files has no name
        header = ["image_id", *header]
    elif entry.ending == ".txt" and len(header) == 2 and _is_file_name(header[0]):  # list_eval_partition.txt
        header, body = ["image_id", "partition"], rows
    if len(header) < 2 or len(set(header)) < len(header) or len(header) > MAX_COLUMNS:
        return None
    if bad := next((number for number, row in enumerate(body) if len(row) != len(header)), None):
        raise InputError(
            f"{entry.where} has {len(body[bad])} fields in row {bad + 1}, and {len(header)} columns; mend it"
        )
    return LabelTable(entry, {name: [row[place] for row in body] for place, name in enumerate(header)})


def _text(content: bytes) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _rows(lines: Sequence[str]) -> list[list[str]] | None:
    delimiter = max(_DELIMITERS, key=lines[0].count)
    if lines[0].count(delimiter):
        reader = csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter, skipinitialspace=True)
        return [[field.strip() for field in row] for row in reader]
    return [line.split() for line in lines] if len(lines[1].split()) > 1 else None


def _plain(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str | float | None):
        return json.dumps(value)
    return "" if value is None else str(value)


def _is_file_name(text: str) -> bool:
    return "." in text and not text.replace(".", "", 1).isdigit()


class _Places:
    """Image files by the names that a table may give them: with or without folders, with or without ending."""

    def __init__(self, images: Sequence[Entry]) -> None:
        self.images = images
        self.by_name: dict[str, list[int]] = {}
        for number, entry in enumerate(images):
            for length in range(1, len(entry.parts) + 1):
                path = "/".join(entry.parts[-length:])
                for key in (path, path.rpartition(".")[0]):
                    self.by_name.setdefault(key, []).append(number)

    def of(self, name: str) -> list[int]:
        """The images that a name means."""
        return self.by_name.get(name.replace("\\", "/").removeprefix("./").strip("/"), [])

    def file_column(self, table: LabelTable) -> str | None:
        """The column that names images in at least half of its rows; the best one."""
        shares = {
            name: sum(bool(self.of(value)) for value in values) / max(1, len(values))
            for name, values in table.columns.items()
        }
        best = max(shares, key=lambda name: shares[name], default="")
        return best if best and shares[best] >= 0.5 else None


def _candidates(table: LabelTable, file_column: str) -> list[str]:
    """The columns that may hold classes: not the files, the split, identifiers, or numbers with fractions."""
    found = []
    for name, values in table.columns.items():
        distinct = len(set(values))
        if name == file_column or name.lower() in _SPLIT_NAMES or (distinct == len(values) > 1):
            continue
        if any("." in value and value.replace(".", "", 1).lstrip("-").isdigit() for value in values[:1000]):
            continue
        found.append(name)
    return found


def _label_column(table: LabelTable, file_column: str, how: Reading) -> str:
    others = [name for name in table.columns if name != file_column]
    if how.label_column is not None:
        if how.label_column not in others:
            raise InputError(
                f"{table.entry.where} has no column {how.label_column}; --label-column can be {', '.join(others[:40])}"
            )
        return how.label_column
    candidates = _candidates(table, file_column)
    named = [name for name in candidates if name.lower() in _LABEL_NAMES]
    if len(named) == 1 or len(candidates) == 1:
        return (named or candidates)[0]
    raise InputError(
        f"{table.entry.where} has several columns that may hold the class; give --label-column with one of "
        f"{', '.join((named or candidates or others)[:40])}"
    )


def _split_tables(matched: Sequence[tuple[LabelTable, str]]) -> dict[Entry, dict[str, Split]]:
    """Tables that only say which split a file is in, as CelebA's: by entry, the split of each file name."""
    found: dict[Entry, dict[str, Split]] = {}
    for table, column in matched:
        others = [name for name in table.columns if name != column]
        if len(others) == 1 and others[0].lower() in _SPLIT_NAMES:
            values = zip(table.columns[column], table.columns[others[0]], strict=True)
            found[table.entry] = {file: split for file, value in values if (split := _split_value(value))}
    return found


def _split_value(value: str) -> Split | None:
    return split_of(value) or _NUMBERED.get(value.strip())


def _check_no_class_folders(tree: Tree, how: Reading, images: Sequence[Entry], table: LabelTable) -> None:
    """Refuse to choose between a table and folders that look like classes."""
    if how.label_column is not None:
        return
    folders = {entry.folder for entry in images}
    names = {folder[-1] for folder in folders if folder and not split_of(folder[-1])}
    if len(names) > 1:
        raise InputError(
            f"the labels of {tree.root} may be in {table.entry} or in the names of its folders "
            f"({', '.join(sorted(names)[:3])}); give --label-column or --class-level"
        )


def _joined(
    tree: Tree,
    how: Reading,
    places: _Places,
    labelled: Sequence[tuple[LabelTable, str]],
    splits: dict[Entry, dict[str, Split]],
    unused: list[tuple[str, str]],
) -> Found:
    label_of: dict[int, str] = {}
    split_by_image: dict[int, Split] = {}
    columns = []
    flags = None
    for table, file_column in labelled:
        column = _label_column(table, file_column, how)
        columns.append(f"the column {column} of {table.entry}")
        flags = column if set(table.columns[column]) <= {"-1", "1"} else flags
        own = _split_of_table(table, labelled)
        split_column = next((name for name in table.columns if name.lower() in _SPLIT_NAMES), None)
        for row, (file, label) in enumerate(zip(table.columns[file_column], table.columns[column], strict=True)):
            found = [
                number for number in places.of(file) if own is None or _own_split(places.images[number]) in (None, own)
            ]
            if len(found) != 1:
                reason = "a row without its file" if not found else "a row that names several files"
                unused.append((f"{reason} in {table.entry}", file))
                continue
            if label == "":
                unused.append((f"a row without a label in {table.entry}", file))
                continue
            if label_of.setdefault(found[0], label) != label:
                raise InputError(f"{table.entry.where} gives {file} two labels; keep one row for each file")
            split = _split_value(table.columns[split_column][row]) if split_column else own
            if split is not None:
                split_by_image[found[0]] = split
    for by_file in splits.values():
        for file, split in by_file.items():
            for number in places.of(file):
                split_by_image.setdefault(number, split)
    rows: dict[Split, tuple[list[Entry], list[str]]] = {}
    for number, entry in enumerate(places.images):
        if number not in label_of:
            unused.append(("an image without a row in the table", str(entry)))
            continue
        split = split_by_image.get(number) or _own_split(entry) or "train"
        files, labels = rows.setdefault(split, ([], []))
        files.append(entry)
        labels.append(label_of[number])
    parts: dict[Split, Part] = {}
    for split, (files, labels) in rows.items():
        column_of_flags = None if flags is None else named_flags(np.array(labels, np.int64), flags)
        parts[split] = Part(Files(files), labels if column_of_flags is None else column_of_flags)
    return Found("image files with a table of labels", parts, " and ".join(columns), unused=unused)


def _own_split(entry: Entry) -> Split | None:
    """The split that a file's folders say."""
    return next((split for part in entry.folder if (split := split_of(part))), None)


def _split_of_table(table: LabelTable, labelled: Sequence[tuple[LabelTable, str]]) -> Split | None:
    """The split that a table's own name or folder says, where there are several tables."""
    if len(labelled) < 2:
        return None
    return _own_split(table.entry) or split_of_prefix(table.entry.name)
