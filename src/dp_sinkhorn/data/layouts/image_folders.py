"""Folders of image files: one folder a class, all images in one folder, or deeper trees whose level is declared."""

from collections import Counter
from collections.abc import Sequence

from dp_sinkhorn.data.found import UNUSED_SPLITS, Files, Found, Part, Split, split_of
from dp_sinkhorn.data.pictures import ENDINGS, OTHER_ENDINGS
from dp_sinkhorn.data.reading import Reading
from dp_sinkhorn.data.tree import Entry, Tree
from dp_sinkhorn.io.errors import InputError

_NOT_AN_IMAGE = "not an image"
_CANNOT = "an image format that cannot be read here"


def image_files(entries: Sequence[Entry]) -> tuple[list[Entry], list[tuple[str, str]]]:
    """Image files, and (reason, name) of the others."""
    images = [entry for entry in entries if entry.ending in ENDINGS]
    others = [
        (_CANNOT if entry.ending in OTHER_ENDINGS else _NOT_AN_IMAGE, str(entry))
        for entry in entries
        if entry.ending not in ENDINGS
    ]
    return images, others


def image_folders(tree: Tree, how: Reading) -> Found | None:
    """Image files, labelled by a folder of their path.

    Raises:
        InputError: Splits or the level of the classes are ambiguous.
    """
    images, unused = image_files(tree.entries)
    if not images:
        return None
    by_split, notes, left_out = splits_of(tree.root, images)
    unused += left_out
    depths = Counter(len(below) for entries in by_split.values() for below, _ in entries)
    level = _level(tree.root, by_split, depths, how)
    parts: dict[Split, Part] = {}
    for split, entries in by_split.items():
        kept = [(below, entry) for below, entry in entries if len(below) >= level]
        unused += [("an image beside the class folders", str(entry)) for below, entry in entries if len(below) < level]
        labels = None if level == 0 else [below[level - 1] for below, _ in kept]
        parts[split] = Part(Files([entry for _, entry in kept]), labels)
    _check_same_classes(tree.root, parts)
    labels_from = "nothing: one class" if level == 0 else f"the names of the folders at level {level}"
    found = Found("image files in folders", parts, labels_from, unused=unused, notes=notes)
    if 0 < level < max(depths):
        folders = Counter((split, below[: level + 1]) for split, entries in by_split.items() for below, _ in entries)
        found.persons = (max(folders.values()), len(folders))
    return found


_Placed = dict[Split, list[tuple[tuple[str, ...], Entry]]]


def splits_of(root: str, images: Sequence[Entry]) -> tuple[_Placed, list[str], list[tuple[str, str]]]:
    """The images of each split, each with the folders below it; notes; and images of splits that no verb uses.

    Splits are folders at the first level, or at the second below every folder of the first.
    """
    for level in (0, 1):
        names = {entry.folder[level] for entry in images if len(entry.folder) > level}
        named = {name for name in names if split_of(name)}
        if not any(split_of(name) == "train" for name in named):
            continue
        others = sorted(names - named - {name for name in names if name.lower() in UNUSED_SPLITS})
        beside = [entry for entry in images if len(entry.folder) <= level]
        if others or beside:
            stray = f"'{others[0]}'" if others else f"'{beside[0]}'"
            raise InputError(
                f"{root} holds {stray} beside {', '.join(repr(name) for name in sorted(named))}; "
                "keep only the splits there, each with one folder per class"
            )
        placed: _Placed = {}
        unused = []
        for entry in images:
            split = split_of(entry.folder[level])
            if split is None:
                unused.append((f"the split '{entry.folder[level]}', which no verb uses", str(entry)))
                continue
            placed.setdefault(split, []).append(((*entry.folder[:level], *entry.folder[level + 1 :]), entry))
        return placed, [], unused
    return {"train": [(entry.folder, entry) for entry in images]}, [], []


def _level(root: str, by_split: _Placed, depths: Counter[int], how: Reading) -> int:
    """Which folder below the split names the class."""
    deepest = max(depths)
    if how.class_level is not None:
        if how.class_level > deepest:
            raise InputError(
                f"--class-level {how.class_level} is deeper than the folders of {root}; give 0 to {deepest}"
            )
        return how.class_level
    if deepest <= 1:
        if len(depths) > 1:
            path, _ = min(
                ((len(below), str(entry)), entry) for entries in by_split.values() for below, entry in entries
            )
            raise InputError(
                f"{root} holds '{path[1]}' beside folders of images; move it into a class folder, "
                "or give --class-level 0 for one class"
            )
        return deepest
    readings = []
    for level in range(1, deepest + 1):
        names = sorted(
            {below[level - 1] for entries in by_split.values() for below, _ in entries if len(below) >= level}
        )
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        readings.append(f"--class-level {level} for {len(names)} classes ({shown})")
    raise InputError(f"{root} has folders in folders, and either may name the class; give {' or '.join(readings)}")


def _check_same_classes(root: str, parts: dict[Split, Part]) -> None:
    train = parts.get("train")
    if train is None or train.labels is None:
        return
    known = set(train.labels)
    for split, part in parts.items():
        if unknown := sorted({str(name) for name in part.labels or ()} - {str(name) for name in known}):
            raise InputError(f"the {split} split of {root} has class '{unknown[0]}' and train does not; remove it")
