"""What a layout finds in a data set: its splits, where their labels come from, and what it does not use."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Literal, Protocol

from numpy.typing import NDArray

from dp_sinkhorn.data.reading import Reading
from dp_sinkhorn.data.tree import Entry
from dp_sinkhorn.io.safe_read import parse_json

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_SYNONYMS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trn", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "t10k", "eval", "evaluation"), "test"),
}
# Names that mean a part of the data that no verb uses.
UNUSED_SPLITS = frozenset({"extra", "holdout", "hold-out", "held_out", "unlabeled", "unlabelled", "unsup"})

Labels = NDArray[Any] | Sequence[int | str] | None


def split_of(name: str) -> Split | None:
    """The split that a folder's or file's name means, whatever its case."""
    return _SYNONYMS.get(name.strip().lower())


def split_of_prefix(name: str) -> Split | None:
    """The split that a name begins with, before a digit or a separator: "train-00000-of-00002"."""
    return split_of(re.split(r"[-_.\d\s]", name, maxsplit=1)[0])


class Pictures(Protocol):
    """Encoded images, each with its name for messages; they can be read several times."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]: ...


@dataclass(frozen=True, repr=False)
class Files:
    """Image files."""

    entries: Sequence[Entry]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
        return ((entry.where, entry.open) for entry in self.entries)


@dataclass(frozen=True, repr=False)
class Arrays:
    """Decoded images: (N, height, width) or (N, height, width, channels).

    Args:
        range: What the source declares as black and white; None: by the type of the values.
    """

    values: NDArray[Any]
    name: str
    range: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, repr=False)
class Part:
    """One split: images, and a label each (None: one class)."""

    images: Arrays | Pictures
    labels: Labels


@dataclass(repr=False)
class Found:
    """What a layout found.

    Args:
        layout: What it is, for people. parts: By split. labels_from: For people.
        class_names: As the source declares them. places: Integer labels count from 0 through these; else they are
            matched to names that are integers, if all are.
        unused: (reason, name) of everything that is not read.
        notes: What the user should know.
        stored_reading: How the training data of sampled images were read.
        persons: If sub-folders look like persons: (images in the largest, number of sub-folders).
    """

    layout: str
    parts: dict[Split, Part]
    labels_from: str
    class_names: tuple[str, ...] | None = None
    places: bool = False
    unused: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    persons: tuple[int, int] | None = None
    stored_reading: dict[str, Any] = field(default_factory=dict)


def stored_reading(facts: str) -> dict[str, Any]:
    """The options of reading in the privacy facts of a file of samples; empty if there are none."""
    try:
        reading = parse_json(facts.encode()).get("reading", {})
    except (ValueError, AttributeError):
        return {}
    return reading if isinstance(reading, dict) else {}


def without_effect(how: Reading, one_label: bool = True) -> list[str]:
    """Notes on options that are given and change nothing here.

    Args:
        one_label: There is one label for each image, and no column to choose.
    """
    notes = []
    if one_label and how.label_column is not None:
        notes.append(f"--label-column {how.label_column} has no effect: there is one label for each image")
    if how.class_level is not None:
        notes.append(f"--class-level {how.class_level} has no effect: no folders name the classes")
    return notes


def persons_warning(what: str, count: int, most: int) -> str:
    """What the guarantee does not say where images belong to persons.

    Args:
        what: Where the persons are seen. count: How many there are. most: Images of the one with most images.
    """
    return (
        f"the {count} {what} look like persons; if they are, the guarantee is for one image, not for all of a "
        f"person's: the person with most images has {most}, for whom ε is at least {most} times as large"
    )


def rest(entries: Iterable[Entry], used: set[tuple[str, ...]], reason: str) -> list[tuple[str, str]]:
    """The entries that were not used, with a reason."""
    return [(reason, str(entry)) for entry in entries if entry.parts not in used]
