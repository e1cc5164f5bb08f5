"""From labels to classes: which there are, what they are called, and whether their names may be published."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp_sinkhorn.data.arrays import as_array
from dp_sinkhorn.data.reading import COLUMN_REMEDY
from dp_sinkhorn.io.errors import InputError, did_you_mean
from dp_sinkhorn.io.safe_read import shown

MAX_LABELS = 2**25  # images of 8x8 pixels fill 2 GiB
MAX_CLASSES = 10_000  # a stray column of identifiers must not become as many class names
MAX_NAME_BYTES = 128  # per class name in UTF-8: it becomes a folder's name, and the card holds all names
_MANY, _FEW = 50, 5  # classes, and images of the median class, from where labels look like identifiers
_NUMBERED = 20  # classes called p1, p2 and so on, from where they look like persons
_YEAR, _MONTH, _DAY = r"(?:19|20)\d\d", r"(?:0?[1-9]|1[0-2])", r"(?:0?[1-9]|[12]\d|3[01])"
_NAMED = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_DATE = re.compile(
    rf"(?<!\d)(?:{_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:\d{{4}}|\d{{6}})?"  # 20240131, 20240131235959
    rf"|{_YEAR}[-_./ ]{_MONTH}[-_./ ]{_DAY}|{_DAY}[-_./ ]{_MONTH}[-_./ ]{_YEAR}|{_MONTH}[-_./ ]{_DAY}[-_./ ]{_YEAR}"
    rf"|{_DAY}[-_./ ]*{_NAMED}[-_./, ]*{_YEAR}|{_YEAR}[-_./ ]*{_NAMED}[-_./ ]*{_DAY})(?!\d)"
    rf"|{_NAMED}[-_./ ]*{_DAY}[-_./, ]+{_YEAR}(?!\d)",
    re.IGNORECASE,
)
# A word of its own: not "briefcase 3", but "case_3", "TrainCase3" and "patient-id 3".
_PERSON = re.compile(
    r"(?:(?<![^\W\d_])|(?<=[a-z])(?=[A-Z]))"
    r"(?i:(?:patient|subject|subj|case|person|participant|proband|pid|mrn)s?(?:[-_ #.:]*(?:id|no|nr|num|number))?)"
    r"[-_ #.:]*\d"
)
_NUMBERED_PERSON = re.compile(r"(?:p|pt|pat)[-_ ]?\d+", re.IGNORECASE)
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_INT64 = range(-(2**63), 2**63)
_REMEDY = "give one integer or string for each image"


def label_column(labels: Any, flat: bool = True) -> NDArray[Any]:
    """Labels as a column of int64 or of text.

    Args:
        flat: Refuse several labels for each image; else they are returned as they are.

    Raises:
        InputError: They are of another shape or type.
    """
    column = _array_of(labels)
    if column.ndim and len(column) > MAX_LABELS:
        raise InputError(f"there are {len(column)} labels, more than {MAX_LABELS}; {_REMEDY}")
    if column.dtype.kind == "T":  # NumPy's texts of any length
        column = column.astype(object)
    if column.ndim == 2 and column.shape[1] == 1:
        column = column[:, 0]
    if column.ndim == 2 and not flat:
        return column
    if column.ndim == 2:
        raise InputError(
            f"labels have shape {column.shape}, several for each image; choose one, {COLUMN_REMEDY}, "
            "or give the argmax of one-hot labels"
        )
    if column.ndim != 1:
        raise InputError(f"labels have shape {column.shape}; {_REMEDY}, shape (N,)")
    if column.size == 0:
        raise InputError(f"there are no labels; {_REMEDY}")
    if column.dtype.kind in "SU" and column.itemsize > MAX_NAME_BYTES * (4 if column.dtype.kind == "U" else 1):
        # NumPy holds four bytes a character of text.
        raise InputError(f"labels are {column.dtype}; give names of at most {MAX_NAME_BYTES} bytes")
    if column.dtype.kind == "S":
        column = np.char.decode(column, "utf-8", "backslashreplace")
    if column.dtype.kind in "fO":
        _check_all_there(column)
    if column.dtype.kind == "O":
        column = _of_objects(column)
    if column.dtype.kind == "U":
        return column
    if column.dtype.kind == "b":
        return np.where(column, "True", "False")
    if column.dtype.kind not in "iu":
        raise InputError(f"labels are {column.dtype}; give integers, or strings")
    if column.dtype == np.uint64 and int(column.max()) not in _INT64:
        raise InputError(f"label {column.max()} is not an int64; give smaller integers, or strings")
    return column.astype(np.int64)


def names_of(column: NDArray[Any] | None) -> tuple[str, ...]:
    """The classes that a column of labels declares: its distinct values, integers by size and text by alphabet.

    Returns:
        Their names; ("0",) for None: one class.
    """
    if column is None:
        return ("0",)
    values = np.unique(column)
    if len(values) > MAX_CLASSES:
        raise InputError(f"there are {len(values)} different labels; at most {MAX_CLASSES} classes are possible")
    return checked_names(sorted_names([str(value) for value in values]))


def sorted_names(names: Sequence[str]) -> list[str]:
    """By size where all are integers, else by alphabet."""
    return sorted(names, key=int) if are_integers(names) else sorted(names)


def are_integers(names: Sequence[str]) -> bool:
    """Whether all names are int64 in their usual notation."""
    return all(_INTEGER.fullmatch(name) and int(name) in _INT64 for name in names)


def one_column(labels: NDArray[Any], names: NDArray[Any] | None, chosen: str | None, where: str) -> NDArray[Any]:
    """One column of labels: of several, that of `--label-column`, by number or by name.

    Of a column of 0 and 1, or of -1 and 1, the classes are "not NAME" and "NAME".

    Raises:
        InputError: Of several none is chosen, or an unknown one.
    """
    if labels.ndim != 2 or labels.shape[1] == 1:
        return labels
    known = [str(number) for number in range(labels.shape[1])]
    if names is not None:
        if names.shape != (labels.shape[1],) or names.dtype.kind not in "US":
            raise InputError(
                f"{where} has {labels.shape[1]} labels for each image, and their names are {names.dtype} of shape "
                f"{names.shape}; give one string for each"
            )
        known = [str(name) for name in label_column(names)]
    if chosen is None or known.count(chosen) != 1:
        meant = "" if chosen is None or chosen in known else did_you_mean(chosen, known)
        raise InputError(
            f"{where} has {labels.shape[1]} labels for each image; choose one of {', '.join(known[:20])}, "
            f"{COLUMN_REMEDY}, or give the argmax of one-hot labels{meant}"
        )
    column = labels[:, known.index(chosen)]
    if column.dtype.kind not in "biuf":
        return column
    values = set(np.unique(column).tolist())
    return named_flags(column, chosen) if values <= {0, 1} or values <= {-1, 1} else column


def named_flags(column: NDArray[Any], name: str) -> NDArray[Any]:
    """The classes of a column of flags."""
    return np.where(column.astype(np.int64) > 0, name, f"not {name}")


def class_index(
    column: NDArray[Any] | None, names: tuple[str, ...], count: int, counted: bool = False
) -> NDArray[np.int64]:
    """The index of each label among the classes.

    Integers are matched to names that are integers; otherwise they count through the names from 0.

    Args:
        counted: Integers count through the names even if these are integers, too.

    Raises:
        InputError: Labels are missing or unknown.
    """
    if column is None:
        if len(names) != 1:
            raise InputError(f"labels are missing for {len(names)} classes; give one label for each image")
        return np.zeros(count, np.int64)
    if len(column) != count:
        raise InputError(f"{len(column)} labels do not match {count} images; give one label for each image")
    if column.dtype.kind != "U" and (counted or not are_integers(names)):
        if (bad := column[(column < 0) | (column >= len(names))]).size:
            raise InputError(f"label {bad[0]} is not in 0..{len(names) - 1}; correct it, or declare all classes")
        return column.astype(np.int64)
    place = {name: index for index, name in enumerate(names)}
    values, inverse = np.unique(column, return_inverse=True)
    if unknown := [str(value) for value in values if str(value) not in place]:
        raise InputError(f"label '{unknown[0]}' is not one of the {len(names)} classes; correct it, or declare it")
    return np.array([place[str(value)] for value in values], np.int64)[inverse]


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Class names that can be folders and stand on a card.

    Raises:
        InputError: One is empty, not printable, too long or given twice.
    """
    if not 1 <= len(names) <= MAX_CLASSES:
        raise InputError(f"there are {len(names)} class names; give 1 to {MAX_CLASSES}")
    for name in names:
        if not name or not name.isprintable():
            raise InputError(f"class name '{name}' is not printable text; rename the class")
        if len(name.encode()) > MAX_NAME_BYTES:
            raise InputError(f"class name '{name}' has more than {MAX_NAME_BYTES} bytes; rename the class")
    if len(set(names)) < len(names):
        repeated = Counter(names).most_common(1)[0][0]
        raise InputError(f"class name '{repeated}' is given twice; give each class its own name")
    return tuple(names)


def private_looking(names: Sequence[str], counts: Sequence[int]) -> str | None:
    """Why class names look as if they named persons or dates; None if they do not.

    Args:
        counts: Training images of each class.
    """
    if dated := next((name for name in names if _DATE.search(name)), None):
        return f"class name '{dated}' holds a complete date"
    if person := next((name for name in names if _PERSON.search(name)), None):
        return f"class name '{person}' looks like a person's"
    if len(names) > _NUMBERED and all(map(_NUMBERED_PERSON.fullmatch, names)):
        return f"class names such as '{names[0]}' look like persons"
    if len(names) > _MANY and float(np.median(counts)) < _FEW:
        return (
            f"there are {len(names)} classes, half of them with fewer than {_FEW} images, which looks like identifiers"
        )
    return None


def _array_of(labels: Any) -> NDArray[Any]:
    if isinstance(labels, list | tuple):
        kinds = {type(label) for label in labels}
        if len(kinds) > 1 or any(issubclass(kind, str) for kind in kinds):
            # NumPy would convert all to one type, and allocate the longest text for each.
            return np.fromiter(labels, object, len(labels))
    return as_array(labels, "labels are", _REMEDY)


def _check_all_there(column: NDArray[Any]) -> None:
    """Refuse None, NaN, and what pandas writes in their place."""
    for number, label in enumerate(column):
        is_nan = isinstance(label, float | np.floating) and np.isnan(label)
        if label is None or is_nan or type(label).__name__ in ("NAType", "NaTType"):
            raise InputError(f"labels[{number}] is missing ({label}); give each image a label, or leave out the image")


def _of_objects(column: NDArray[Any]) -> NDArray[Any]:
    """Python strings, integers or booleans (as in pandas) as NumPy text or int64."""
    if all(isinstance(label, bool | np.bool_) for label in column):
        return np.where(column.astype(bool), "True", "False")
    if all(isinstance(label, int | np.integer) and not isinstance(label, bool) for label in column):
        if too_large := [label for label in column if int(label) not in _INT64]:
            raise InputError(f"label {shown(too_large[0])} is not an int64; give smaller integers, or strings")
        return column.astype(np.int64)
    if not all(isinstance(label, str) for label in column):
        kinds = " and ".join(sorted({type(label).__name__ for label in column}))
        raise InputError(f"labels are Python objects ({kinds}); give integers, or strings, all of one type")
    if too_long := next((label for label in column if len(label) > MAX_NAME_BYTES), ""):
        # NumPy would allocate four bytes per character of the longest label for every label.
        raise InputError(f"a label has {len(too_long)} characters; give names of at most {MAX_NAME_BYTES} bytes")
    return column.astype(str)
