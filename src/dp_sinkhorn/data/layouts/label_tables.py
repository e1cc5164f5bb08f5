"""Image files with a table of labels: CSV, TSV, JSON, JSON lines, and the tables of CelebA."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dp_sinkhorn.data.files import reading
from dp_sinkhorn.data.found import Files, Found, Part, Split, persons_warning, split_of_prefix
from dp_sinkhorn.data.layouts.image_folders import (
    class_like,
    image_files,
    labelled_by_folders,
    split_of_folder,
    unused_split,
)
from dp_sinkhorn.data.pictures import ENDINGS as IMAGE_ENDINGS
from dp_sinkhorn.data.pictures import OTHER_ENDINGS
from dp_sinkhorn.data.reading import Reading
from dp_sinkhorn.data.tree import Entry, Tree
from dp_sinkhorn.io.errors import InputError, did_you_mean

MAX_TABLE_BYTES = 2**28
MAX_JSON_BYTES = 2**26
MAX_COLUMNS = 2000
_SEPARATED, _LINES, _JSON, _TEXT = (".csv", ".tsv", ".tab"), (".jsonl", ".ndjson"), (".json",), (".txt",)
_ENDINGS = (*_SEPARATED, *_LINES, *_JSON, *_TEXT)
_DELIMITERS = ",;\t|"
_LABEL_NAMES = frozenset({
    "label", "labels", "class", "classes", "class_name", "classname", "class_label", "category", "category_name",
    "target", "diagnosis", "dx", "y",
})  # fmt: skip
_FILE_NAMES = frozenset({
    "file", "files", "file_name", "filename", "file_names", "filenames", "filepath", "file_path", "path", "paths",
    "image", "images", "image_id", "imageid", "image_name", "image_path", "img", "img_path", "img_name", "name", "id",
})  # fmt: skip
_SPLIT_NAMES = frozenset({"split", "splits", "partition", "set", "subset", "fold", "folds", "dataset"})
_PERSON_NAMES = re.compile(
    r"(?:patient|subject|person|participant|case|individual)s?(?:[-_ ]?(?:id|no|nr|num|number))?"
)
# CelebA's numbers of splits.
_NUMBERED: dict[str, Split] = {"0": "train", "1": "validation", "2": "test"}
_REMEDY = "write it again as UTF-8 CSV with a header line"
_LIKE_PERSON = re.compile(r"(?:patient|subject|subj|sub|person|participant|case|p)[-_ ]?\d+", re.IGNORECASE)
_NAME_ONLY = 1000  # leading folders of a path that are left out: all
_SHIFTS = (0, 1, 2, 3, 4, 5, _NAME_ONLY)
_SHOWN = 60


@dataclass(frozen=True, repr=False)
class LabelTable:
    """A table.

    Args:
        columns: Values by column name, all as text; their names are numbers from 1 where the table has no header.
        problem: What is wrong in it, which matters if it names images.
    """

    entry: Entry
    columns: dict[str, list[str]]
    problem: str = ""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def __str__(self) -> str:
        return str(self.entry)


@dataclass(frozen=True)
class _Matched:
    """A table that names images.

    Args:
        file_column: The column that does. rows: The images that each row names.
    """

    table: LabelTable
    file_column: str
    rows: list[list[int]]

    @property
    def others(self) -> list[str]:
        """The other columns."""
        return [name for name in self.table.columns if name != self.file_column]


def label_tables(tree: Tree, how: Reading) -> Found | None:
    """Image files whose labels stand in a table, or whose splits do.

    Raises:
        InputError: Labels or their table are ambiguous.
    """
    if how.class_level is not None:
        return None  # folders name the classes
    images, unused = image_files(tree.entries)
    candidates = [entry for entry in tree.entries if entry.ending in _ENDINGS]
    if not images or not candidates:
        return None
    stems = {(*entry.folder, _stem(entry.name)) for entry in images}
    places = _Places(images)
    tables, matched = [], []
    for entry in candidates:
        beside = (*entry.folder, _stem(entry.name)) in stems
        if "submission" in entry.name.lower() or (beside and entry.ending in (*_TEXT, *_JSON)):
            continue
        table = read_table(entry, places)
        if table is not None:
            tables.append(table)
            if (found := places.matched(table)) is not None:
                if table.problem:
                    raise InputError(f"{entry.where} {table.problem}")
                matched.append(found)
    if not matched:
        _refuse_unmatched(tree, how, images, tables)
        return None
    splits = _split_tables(matched)
    labelled = _labelled(tree, images, [one for one in matched if id(one) not in splits], how)
    if not labelled:
        assigned = {images[number].parts: split for own in splits.values() for number, split in own.items()}
        if "train" not in assigned.values():
            return None
        lists = [str(one.table) for one in matched if id(one) in splits]
        found_folders = labelled_by_folders(tree, how, assigned)
        if found_folders is not None:
            found_folders.unused = [(reason, name) for reason, name in found_folders.unused if name not in lists]
            found_folders.notes.append(f"the splits are those of {' and '.join(sorted(lists))}")
        return found_folders
    notes = _check_folders(tree, how, images, labelled)
    used = {str(one.table) for one, _ in labelled} | {str(one.table) for one in matched if id(one) in splits}
    unused = [(reason, name) for reason, name in unused if name not in used]
    return _joined(tree, how, places, labelled, list(splits.values()), unused, notes)


def read_table(entry: Entry, places: "_Places | None" = None) -> LabelTable | None:
    """Read a table with any usual separator and encoding; None if the file is no table.

    Args:
        places: Image files: a first line that names one is no header.

    Raises:
        InputError: It is too large, or cannot be read.
    """
    if entry.size > (MAX_JSON_BYTES if entry.ending in _JSON else MAX_TABLE_BYTES):
        if entry.ending not in _SEPARATED:
            return None
        raise InputError(f"{entry.where} has {entry.size} bytes, more than {MAX_TABLE_BYTES}; give a smaller table")
    with reading(Path(entry.where), _REMEDY), closing(entry.open()) as file:
        text = _text(file.read(MAX_TABLE_BYTES + 1))
    try:
        if entry.ending in (*_LINES, *_JSON):
            return _of_records(entry, _records(text, entry.ending))
        return _of_rows(entry, _rows(text), places)
    except (ValueError, RecursionError, csv.Error) as error:
        return LabelTable(entry, {}, f"cannot be read ({error}); {_REMEDY}")


def _records(text: str, ending: str) -> Sequence[Mapping[str, Any]]:
    """The rows of JSON lines, or of one of the usual shapes of JSON."""
    facts: Any
    if ending in _LINES:
        facts = [json.loads(line) for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    else:
        facts = json.loads(text)
    if isinstance(facts, dict) and list(facts) == ["labels"] and isinstance(facts["labels"], list):
        facts = {str(pair[0]): pair[1] for pair in facts["labels"] if isinstance(pair, list) and len(pair) == 2}
    if isinstance(facts, dict):
        if all(isinstance(value, list) for value in facts.values()):
            if len({len(value) for value in facts.values()}) != 1:
                return []
            facts = [dict(zip(facts, row, strict=True)) for row in zip(*facts.values(), strict=True)]
        elif all(isinstance(value, dict) for value in facts.values()):
            facts = [{"file_name": name, **value} for name, value in facts.items()]
        elif all(isinstance(value, str | int | float | bool) for value in facts.values()):
            facts = [{"file_name": name, "label": value} for name, value in facts.items()]
    if not isinstance(facts, list) or not all(isinstance(row, dict) for row in facts):
        return []
    return facts


def _of_records(entry: Entry, records: Sequence[Mapping[str, Any]]) -> LabelTable | None:
    names = list(dict.fromkeys(str(name) for row in records for name in row))
    if not names:
        return None
    return LabelTable(entry, {name: [_plain(row.get(name)) for row in records] for name in names[:MAX_COLUMNS]})


def _of_rows(entry: Entry, rows: list[list[str]], places: "_Places | None") -> LabelTable | None:
    if rows and len(rows[0]) == 1 and rows[0][0].isdigit() and len(rows) > 2 and len(rows[2]) > 1:
        rows = rows[1:]  # CelebA: the number of rows, then the header
    if not rows:
        return None
    header, body = rows[0], rows[1:]
    if places is not None and any(cell.lower() not in _FILE_NAMES and places.of(cell, 0) for cell in header):
        header, body = [str(number) for number in range(1, len(header) + 1)], rows
    elif 2 * sum(len(row) == len(header) + 1 for row in body) > len(
        body
    ):  # CelebA, and tables written with row names: no name for the files
        header = ["image_id", *header]
    if not body or len(header) > MAX_COLUMNS:
        return None
    header = [name or f"column {number}" for number, name in enumerate(header, 1)]
    problem = ""
    if len(set(header)) < len(header):
        twice = Counter(header).most_common(1)[0][0]
        header = [f"{name} {number}" for number, name in enumerate(header, 1)]
        problem = f"has two columns called {twice}; rename one"
    if bad := next((number for number, row in enumerate(body, 1) if len(row) != len(header)), None):
        problem = f"has {len(body[bad - 1])} fields in row {bad}, and {len(header)} columns; mend it"
        body = [[*row, *[""] * (len(header) - len(row))] for row in body]
    return LabelTable(entry, {name: [row[place] for row in body] for place, name in enumerate(header)}, problem)


def _text(content: bytes) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _rows(text: str) -> list[list[str]]:
    """Rows by the delimiter that splits the first lines into most fields; by spaces if none does."""
    lines = [line for line in re.split(r"\r\n|\r|\n", text[: 2**16]) if line.strip()][:20]
    if not lines:
        return []
    if match := re.fullmatch(r"sep=(.)", lines[0].strip(), re.IGNORECASE):  # as Excel reads and writes it
        return _separated(re.sub(r"\A\s*sep=.\s*?[\r\n]+", "", text, flags=re.IGNORECASE), match[1])
    best, most = "", 1
    for delimiter in _DELIMITERS:
        widths = Counter(map(len, _separated("\n".join(lines), delimiter)))
        width, count = widths.most_common(1)[0] if widths else (0, 0)
        if width > most and 2 * count > len(lines):
            best, most = delimiter, width
    if best:
        return _separated(text, best)
    return [line.split() for line in re.split(r"\r\n|\r|\n", text) if line.strip()]


def _separated(text: str, delimiter: str) -> list[list[str]]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    return [[field.strip() for field in row] for row in rows if any(field.strip() for field in row)]


def _plain(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str | float | None):
        return json.dumps(value)
    return "" if value is None else str(value)


def _stem(name: str) -> str:
    """A path without the ending of an image or of a table."""
    stem, dot, ending = name.rpartition(".")
    known = f".{ending.lower()}"
    return stem if dot and (known in IMAGE_ENDINGS or known in OTHER_ENDINGS or known in _ENDINGS) else name


class _Places:
    """Image files by the names that a table may give them: with or without folders and endings, in any case."""

    def __init__(self, images: Sequence[Entry]) -> None:
        self.images = images
        self._by_stem: dict[str, list[int]] = {}
        for number, entry in enumerate(images):
            for length in range(1, len(entry.parts) + 1):
                self._by_stem.setdefault(_stem("/".join(entry.parts[-length:])).casefold(), []).append(number)

    def of(self, name: str, shift: int, folder: tuple[str, ...] = ()) -> list[int]:
        """The images that a name means.

        Args:
            shift: Leading folders of the name that are left out.
            folder: That of the table; files below it are preferred.
        """
        parts = [part for part in re.split(r"[/\\]", name.strip()) if part not in ("", ".", "..")]
        parts = parts[min(shift, len(parts) - 1) :] if parts else []
        path = "/".join(parts)
        found = self._by_stem.get(_stem(path).casefold(), [])
        for better in (
            lambda entry: str(entry).endswith(path),
            lambda entry: str(entry).casefold().endswith(path.casefold()),
            lambda entry: entry.parts[: len(folder)] == folder,
        ):
            if len(found) > 1:
                found = [number for number in found if better(self.images[number])] or found
        return found

    def matched(self, table: LabelTable) -> _Matched | None:
        """The column that names most images; None unless it does in half of its rows, or names half of the images."""
        best: tuple[tuple[int, bool, bool], _Matched] | None = None
        for name, values in table.columns.items():
            for shift in _SHIFTS:
                if shift and not any("/" in value or "\\" in value for value in values):
                    break
                rows = [self.of(value, shift, table.entry.folder) for value in values]
                named = {number for row in rows for number in row}
                if 2 * sum(map(bool, rows)) < len(rows) and 2 * len(named) < len(self.images):
                    continue
                endings = any(_stem(value) != value for value in values[:100])
                score = (len(named), name.lower() in _FILE_NAMES, endings)
                if named and (best is None or score > best[0]):
                    best = (score, _Matched(table, name, rows))
                break
        return None if best is None else best[1]


def _refuse_unmatched(tree: Tree, how: Reading, images: Sequence[Entry], tables: Sequence[LabelTable]) -> None:
    """Refuse to leave out labels: a table that names no image, where folders name no classes either.

    Raises:
        InputError: There is one.
    """
    meant = [table for table in tables if table.entry.ending in (*_SEPARATED, *_LINES)]
    if how.label_column is None and (not meant or len(class_like([entry.folder for entry in images])) > 1):
        return
    if not meant:
        return  # image_folders refuses --label-column
    columns = ", ".join(list(meant[0].columns)[:_SHOWN]) or "none"
    raise InputError(
        f"{meant[0].entry.where} {meant[0].problem or f'names no image of {tree.root}; its columns are {columns}'}; "
        f"write file names such as {images[0]}, or give --class-level 0 for one class"
    )


def _candidates(one: _Matched) -> list[str]:
    """The columns that may hold classes: not the files, the split, identifiers, or numbers with fractions."""
    found = []
    for name in one.others:
        values = [value for value in one.table.columns[name] if value != ""]
        distinct = len(set(values))
        if name.lower() in _SPLIT_NAMES or not values or (distinct == len(values) > 1):
            continue
        if _PERSON_NAMES.fullmatch(name.lower()) or (name.startswith("column ") and _counts(values)):
            continue
        if any(re.fullmatch(r"-?\d+\.\d+", value) and float(value) % 1 for value in values[:1000]):
            continue
        found.append(name)
    return found


def _counts(values: Sequence[str]) -> bool:
    return all(value == str(number) for number, value in enumerate(values))


def _labelled(
    tree: Tree, images: Sequence[Entry], matched: Sequence[_Matched], how: Reading
) -> list[tuple[_Matched, str]]:
    """The tables that hold labels, each with the column that does: the same in all.

    Raises:
        InputError: There are several columns to choose from, or not the one that was chosen.
    """
    if not matched:
        return []
    where = " and ".join(sorted(str(one.table) for one in matched)[:3])
    if how.label_column is not None:
        if found := [(one, how.label_column) for one in matched if how.label_column in one.others]:
            return found
        columns = list(dict.fromkeys(name for one in matched for name in one.others))
        raise InputError(
            f"{tree.root} has no column {how.label_column} in {where}; --label-column can be "
            f"{', '.join(columns[:_SHOWN]) or 'nothing'}{did_you_mean(how.label_column, columns)}"
        )
    usual = [(one, name) for one in matched for name in one.others if name.lower() in _LABEL_NAMES]
    candidates = usual or [(one, name) for one in matched for name in _candidates(one)]
    names = list(dict.fromkeys(name for _, name in candidates))
    if len(names) > 1:
        folders = len(class_like([entry.folder for entry in images])) > 1
        raise InputError(
            f"{tree.root} has several columns that may hold the class, in {where}; give --label-column with one of "
            f"{', '.join(sorted(names, key=str.isdigit)[:_SHOWN])}"
            f"{', or --class-level if folders name the classes' if folders else ''}"
        )
    return candidates


def _split_tables(matched: Sequence[_Matched]) -> dict[int, dict[int, Split]]:
    """Tables that only say which split an image is in, as CelebA's: the split of each image, by the table's id.

    Their name or their only other column says it.
    """
    found: dict[int, dict[int, Split]] = {}
    for one in matched:
        if not one.others:
            if (split := split_of_prefix(one.table.entry.name)) is not None:
                found[id(one)] = {number: split for row in one.rows for number in row}
        elif len(one.others) == 1 and (values := _split_values(one, one.others[0])) is not None:
            rows = zip(one.rows, values, strict=True)
            found[id(one)] = {number: value for row, value in rows if value is not None for number in row}
    return found


def _split_values(one: _Matched, column: str) -> list[Split | None] | None:
    """The split of each row (None: unused), if a column holds splits; else None."""
    values = one.table.columns[column]
    named = column.lower() in _SPLIT_NAMES or (column == "2" and "partition" in one.table.entry.name.lower())
    if named and "fold" not in column.lower() and set(values) <= {"", *_NUMBERED}:
        return [_NUMBERED.get(value) for value in values]
    splits = [split_of_folder(value) for value in values]
    known = [
        split is not None or value == "" or unused_split(value) for split, value in zip(splits, values, strict=True)
    ]
    return splits if (named or column == "2") and all(known) and any(splits) else None


def _check_folders(
    tree: Tree, how: Reading, images: Sequence[Entry], labelled: Sequence[tuple[_Matched, str]]
) -> list[str]:
    """Refuse to choose between a table and folders that look like classes; a note where the table is chosen.

    Raises:
        InputError: The table has no column called label, and folders have other names than its labels.
    """
    names = class_like([entry.folder for entry in images])
    if len(names) < 2:
        return []
    one, column = labelled[0]
    agree = all(
        label in images[number].folder
        for one, column in labelled
        for row, label in zip(one.rows, one.table.columns[column], strict=True)
        for number in row
    )
    if agree:
        return []
    shown = f"{', '.join(sorted(names)[:3])}{', …' if len(names) > 3 else ''}"
    if how.label_column is None and column.lower() not in _LABEL_NAMES:
        raise InputError(
            f"the labels of {tree.root} may be in the column {column} of {one.table} or in the names of its folders "
            f"({shown}); give --label-column {column} or --class-level"
        )
    return [f"the classes are those of the table; the names of the folders ({shown}) are not used"]


@dataclass
class _Rows:
    """What the tables say of each image."""

    label_of: dict[int, str] = field(default_factory=dict)
    split_of: dict[int, Split | None] = field(default_factory=dict)
    persons: dict[int, str] = field(default_factory=dict)
    unused: list[tuple[str, str]] = field(default_factory=list)


def _joined(
    tree: Tree,
    how: Reading,
    places: _Places,
    labelled: Sequence[tuple[_Matched, str]],
    splits: Iterable[Mapping[int, Split]],
    unused: list[tuple[str, str]],
    notes: list[str],
) -> Found:
    rows = _Rows(unused=unused)
    for one, column in labelled:
        notes += _read_rows(one, column, places, _split_of_table(one, labelled), rows)
    for by_image in splits:
        for number, listed_split in by_image.items():
            rows.split_of.setdefault(number, listed_split)
    by_split: dict[Split, tuple[list[Entry], list[str], list[int]]] = {}
    for number, entry in enumerate(places.images):
        if number not in rows.label_of:
            rows.unused.append(("an image without a row in the table", str(entry)))
            continue
        chosen_split = rows.split_of.get(number, _own_split(entry) or "train")
        if chosen_split is None:
            rows.unused.append(("an image of a split that no verb uses", str(entry)))
            continue
        files, labels, numbers = by_split.setdefault(chosen_split, ([], [], []))
        files.append(entry)
        labels.append(rows.label_of[number])
        numbers.append(number)
    if not by_split:
        first = labelled[0][0]
        raise InputError(
            f"no row of {first.table.entry.where} names one image and its label ({rows.unused[0][0]}: "
            f"{rows.unused[0][1]}); write file names such as {places.images[0]}"
        )
    column = labelled[0][1]
    chosen = how.label_column is not None and column.lower() not in _LABEL_NAMES
    name_of = _names({label for _, labels, _ in by_split.values() for label in labels}, column, chosen)
    parts: dict[Split, Part] = {}
    for split, (files, labels, _) in by_split.items():
        parts[split] = Part(Files(files), [name_of[label] for label in labels])
    columns = " and ".join(f"the column {name} of {one.table}" for one, name in labelled)
    flags = (f"not {column}", column)
    names = flags if set(name_of.values()) <= set(flags) else None
    found = Found("image files with a table of labels", parts, columns, names, unused=rows.unused, notes=notes)
    _add_persons(found, by_split, rows)
    return found


def _read_rows(one: _Matched, column: str, places: _Places, by_name: Split | None, rows: _Rows) -> list[str]:
    """Add what one table says; returns notes."""
    table = one.table
    notes = []
    by_column = [name for name in one.others if name != column and name.lower() in _SPLIT_NAMES]
    values = next((own for name in by_column if (own := _split_values(one, name)) is not None), None)
    if by_column and values is None:
        notes.append(f"the column {by_column[0]} of {table} does not name train and test, and is not used")
    person = next((name for name in one.others if name != column and _PERSON_NAMES.fullmatch(name.lower())), None)
    files, labels = table.columns[one.file_column], table.columns[column]
    for place, (numbers, file, label) in enumerate(zip(one.rows, files, labels, strict=True)):
        split = by_name if values is None else values[place]
        found = numbers
        if len(found) > 1 and split is not None:
            found = [number for number in numbers if _own_split(places.images[number]) in (None, split)]
        if len(found) != 1:
            reason = "a row without its file" if not found else "a row that names several files"
            rows.unused.append((f"{reason} in {table}", file))
            continue
        if label == "":
            rows.unused.append((f"a row without a label in {table}", file))
            continue
        if rows.label_of.setdefault(found[0], label) != label:
            raise InputError(f"{table.entry.where} gives {file} two labels; keep one row for each file")
        if values is not None or split is not None:
            rows.split_of[found[0]] = split
        if person is not None:
            rows.persons[found[0]] = table.columns[person][place]
    return notes


def _names(labels: set[str], column: str, chosen: bool) -> dict[str, str]:
    """The class of each label: of flags "not NAME" and "NAME"; "1" of "1.0", as pandas writes it if a row has no label.

    Args:
        chosen: The user has chosen this column: 0 and 1 are flags, too.
    """
    whole = {label: label for label in labels}
    if all(re.fullmatch(r"-?\d+\.0+", label) for label in labels):
        whole = {label: label.partition(".")[0] for label in labels}
    values = set(whole.values())
    if ("-1" in values or chosen) and (values <= {"-1", "1"} or (chosen and values <= {"0", "1"})):
        return {label: column if value == "1" else f"not {column}" for label, value in whole.items()}
    return whole


def _add_persons(found: Found, by_split: Mapping[Split, tuple[list[Entry], list[str], list[int]]], rows: _Rows) -> None:
    """Where a column or sub-folders look like persons: the number of images of each in training."""
    files, _, numbers = by_split.get("train", ([], [], []))
    by_column = Counter(person for number in numbers if (person := rows.persons.get(number)))
    if len(by_column) > 1:
        found.notes.append(persons_warning("values of a column of the table", len(by_column), max(by_column.values())))
        return
    folders = [next((part for part in entry.folder if _LIKE_PERSON.fullmatch(part)), "") for entry in files]
    by_folder = Counter(folders)
    if len(by_folder) > 1 and "" not in by_folder:
        found.persons = (max(by_folder.values()), len(by_folder))


def _own_split(entry: Entry) -> Split | None:
    """The split that a file's folders say."""
    return next((split for part in entry.folder if (split := split_of_folder(part))), None)


def _split_of_table(one: _Matched, labelled: Sequence[tuple[_Matched, str]]) -> Split | None:
    """The split that a table's own name or folder says, where there are several tables."""
    if len(labelled) < 2:
        return None
    entry = one.table.entry
    return _own_split(entry) or split_of_prefix(entry.name) or split_of_folder(_stem(entry.name))
