"""NumPy files: `.npz` archives, or `.npy` files of images and of labels."""

import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp_sinkhorn.data.class_names import one_column
from dp_sinkhorn.data.files import reading
from dp_sinkhorn.data.found import (
    Arrays,
    Found,
    Part,
    Split,
    rest,
    split_of,
    split_of_prefix,
    stored_reading,
    without_effect,
)
from dp_sinkhorn.data.layouts.image_folders import image_files
from dp_sinkhorn.data.npz import npz_keys, read_npy, read_npz
from dp_sinkhorn.data.reading import Reading
from dp_sinkhorn.data.tree import Entry, Tree, is_junk, tree_of
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.safe_read import listed

_IMAGES = ("images", "image", "imgs", "img", "x", "data", "pictures", "arr_0")
_LABELS = ("labels", "label", "y", "targets", "target", "classes", "class", "arr_1")
_REMEDY = "name the arrays train_images, train_labels, test_images and test_labels, or images and labels"
_OTHERS = ("class_names", "label_names", "privacy")
_NEITHER = "an array that is neither images nor labels"


def npz(tree: Tree, how: Reading) -> Found | None:
    """One `.npz` with arrays of images and labels under their usual names: this project's, Keras's, MedMNIST's; or one
    for each split, as their names say.

    Raises:
        InputError: Images or labels are ambiguous.
    """
    archives = tree.ending(".npz")
    if not archives:
        return None
    splits = [split_of(entry.folder[-1]) if entry.folder else None for entry in archives]
    splits = [
        own or split_of_prefix(entry.name) or split_of(entry.stem) for own, entry in zip(splits, archives, strict=True)
    ]
    if len(archives) == 1:
        splits = ["train"]
    elif None in splits or len(set(splits)) < len(splits):
        raise InputError(
            f"{tree.root} holds several .npz files, {listed([str(entry) for entry in archives], 3)}; give one of them, "
            "or name them train.npz, validation.npz and test.npz"
        )
    single = len(archives) == 1
    found = Found("an .npz archive" if single else ".npz archives", {}, "nothing: one class")
    sources = []
    for split, archive in zip(splits, archives, strict=True):
        assert split is not None  # noqa: S101 - checked above
        one = _archive(archive, how, split)
        if one is None:
            if image_files(tree.entries)[0]:
                return None  # an archive of something else beside image files
            keys = _keys(archive)
            raise InputError(f"{archive.where} has no array of images, only {listed(keys, 20) or 'nothing'}; {_REMEDY}")
        if not single and (len(one.parts) > 1 or split not in one.parts):
            raise InputError(f"{archive.where} holds splits, and so does {tree.root}; give one .npz file")
        if (names := one.class_names) is not None and found.class_names not in (None, names):
            raise InputError(f"{archive.where} declares other classes than {archives[0].where}; write one list")
        found.class_names = names or found.class_names
        found.parts |= one.parts
        found.unused += one.unused
        found.stored_reading = found.stored_reading or one.stored_reading
        sources.append(one.labels_from)
    _refuse_images_beside(tree, archives[0])
    found.labels_from = " and ".join(dict.fromkeys(sources))
    found.unused += rest(tree.entries, {entry.parts for entry in archives}, "beside the .npz file that was read")
    found.notes += without_effect(how, one_label=False)
    return found


def npy(tree: Tree, how: Reading) -> Found | None:
    """`.npy` files of images, each beside one of its labels: `x_train.npy` and `y_train.npy`, `images` and `labels`; or
    folders of splits with `images.npy` and `labels.npy`.

    Raises:
        InputError: Images or labels are ambiguous.
    """
    files = {"/".join((*entry.folder, entry.stem)): entry for entry in tree.ending(".npy")}
    arrays = [_named(key) for key in files]
    if tree.root.lower().endswith(".npy") and not any(array.part == "images" for array in arrays):
        # One file was given: whatever its name, it holds the images.
        arrays = [_Named(array.key, "train", "labels" if array.part else "images", array.stem) for array in arrays]
    roles = _roles(arrays, how.label_column, tree.root)
    if not any(part == "images" for _, part in roles):
        return None
    held: dict[str, NDArray[Any]] = {}
    for key in roles.values():
        entry = files[key]
        with reading(Path(entry.where), "save it again with numpy.save"), closing(entry.open()) as file:
            held[key] = read_npy(file, entry.where, entry.size)
    used = {files[key].parts for key in roles.values()}
    _refuse_images_beside(tree, files[next(iter(roles.values()))])
    parts, labels_from = _parts(roles, held, None, how, {key: files[key].where for key in held})
    unused = rest(tree.entries, used, "not an array of a split")
    return Found(".npy files", parts, labels_from, unused=unused, notes=without_effect(how, one_label=False))


def npy_tree(path: Path) -> Tree:
    """An `.npy` file of images, with the one of its labels beside it.

    Raises:
        InputError: Several files beside it may hold its labels.
    """
    array = _named(path.stem)
    beside = []
    for other in sorted(path.parent.iterdir()):
        if other.suffix.lower() == ".npy" and other != path and not is_junk((other.name,)) and other.is_file():
            named = _named(other.stem)
            if named.part == "labels" and named.split == array.split and _others(named) in (_others(array), set()):
                beside.append(other)
    own = [other for other in beside if _others(_named(other.stem)) == _others(array)]
    beside = own or beside
    if len(beside) > 1:
        raise InputError(
            f"{path} may have its labels in {listed([other.name for other in beside], 3)}; put it and one of them into "
            "a folder of their own, and give that"
        )
    return Tree(str(path), tuple(tree_of(one).entries[0] for one in (path, *beside)))


@dataclass(frozen=True)
class _Named:
    """What the name of an array says: its split, whether it holds images or labels, and the rest of the name."""

    key: str
    split: Split
    part: str | None
    stem: str

    @property
    def plain(self) -> bool:
        """Nothing but the usual name: "labels", not "fine_labels"."""
        return self.stem in (*_IMAGES, *_LABELS)


def _named(key: str) -> _Named:
    """Of "x_train", "trainImages", "train/images" or "val_fine_labels"."""
    *folders, name = key.split("/")
    separated = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    words = [word for word in re.split(r"[_\-. ]+", separated) if word]
    if len(words) == 1:
        words = _split_word(words[0])
    splits = [split for word in words if (split := split_of(word))] or [s for f in folders if (s := split_of(f))]
    others = [word for word in words if not split_of(word)]
    stem = "_".join(others)
    # The last word that says it: "label_images" are images.
    said = next((word for word in (stem, *reversed(others)) if word in (*_IMAGES, *_LABELS)), None)
    part = None if said is None else "images" if said in _IMAGES else "labels"
    if len(set(splits)) > 1 or len(others) > 3:
        part = None
    return _Named(key, splits[0] if splits else "train", part, stem)


def _split_word(word: str) -> list[str]:
    """ "xtrain" and "trainlabels" as two words."""
    for name in (*_IMAGES, *_LABELS):
        for pair in ((word[: len(name)], word[len(name) :]), (word[-len(name) :], word[: -len(name)])):
            if pair[0] == name and split_of(pair[1]):
                return list(pair)
    return [word]


def _roles(arrays: Sequence[_Named], chosen: str | None, where: str) -> dict[tuple[Split, str], str]:
    """Which array is the images and which the labels of each split.

    Args:
        chosen: The array of labels that `--label-column` names, if it names one.

    Raises:
        InputError: Several arrays may be it.
    """
    candidates: dict[tuple[Split, str], list[_Named]] = {}
    wanted = [array for array in arrays if chosen in (array.key, array.stem) and array.part != "images"]
    for array in arrays:
        part = "labels" if array in wanted else array.part
        if part == "labels" and wanted and array not in wanted:
            continue
        if part is not None:
            candidates.setdefault((array.split, part), []).append(array)
    roles = {}
    for role, named in candidates.items():
        if len(named) > 1 and len(plain := [array for array in named if array.plain]) == 1:
            named = plain
        if len(named) > 1:
            kinds = listed([array.key for array in named], 20)
            remedy = (
                f"choose one with --label-column, for example --label-column {named[0].stem}"
                if role[1] == "labels"
                else "rename or remove the others"
            )
            raise InputError(f"{where} has several arrays of {role[0]} {role[1]}, {kinds}; {remedy}")
        roles[role] = named[0].key
    return roles


def _keys(archive: Entry) -> list[str]:
    with reading(Path(archive.where), "save it again with numpy.savez"), closing(archive.open()) as file:
        return npz_keys(file, archive.where)


def _archive(archive: Entry, how: Reading, split: Split) -> Found | None:
    """What one archive holds; arrays whose names say no split belong to this one."""
    with reading(Path(archive.where), "save it again with numpy.savez"), closing(archive.open()) as file:
        keys = npz_keys(file, archive.where)
        # Names that lead out of the archive are nobody's arrays.
        arrays = [_named(key) for key in dict.fromkeys(keys) if key not in _OTHERS and not key.startswith(("/", ".."))]
        roles = _roles(arrays, how.label_column, archive.where)
        if not any(part == "images" for _, part in roles):
            return None
        wanted = [*roles.values(), *(key for key in _OTHERS if key in keys)]
        held = read_npz(file, archive.where, wanted)
    if split != "train" and {own for own, _ in roles} == {"train"}:
        roles = {(split, part): key for (_, part), key in roles.items()}
    parts, labels_from = _parts(
        roles, held, held.get("label_names"), how, {key: f"{key} in {archive.where}" for key in held}
    )
    names = held.get("class_names")
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
        raise InputError(f"class_names in {archive.where} are {names.dtype} {names.shape}; give one string per class")
    declared = None if names is None else tuple(str(name) for name in names)
    unread = [(_NEITHER, key) for key in keys if key not in wanted]
    found = Found("an .npz archive", parts, labels_from, declared, unused=unread)
    if "privacy" in held and held["privacy"].dtype.kind == "U" and held["privacy"].size == 1:
        found.stored_reading = stored_reading(str(held["privacy"].reshape(-1)[0]))
        # Sampled images: bytes are bytes, however dark.
        found.parts = {
            own: Part(Arrays(part.images.values, part.images.name, (0.0, 255.0)), part.labels)
            if isinstance(part.images, Arrays) and part.images.values.dtype == np.uint8
            else part
            for own, part in parts.items()
        }
    return found


def _parts(
    roles: Mapping[tuple[Split, str], str],
    arrays: Mapping[str, NDArray[Any]],
    label_names: NDArray[Any] | None,
    how: Reading,
    where: Mapping[str, str],
) -> tuple[dict[Split, Part], str]:
    """The splits, and where their labels come from."""
    parts: dict[Split, Part] = {}
    sources = []
    for (split, part), key in roles.items():
        if part != "images":
            continue
        labels = None
        if (own := roles.get((split, "labels"))) is not None:
            _check_choice(arrays[own], own, how, where[own])
            labels = one_column(arrays[own], label_names, how.label_column, where[own])
            sources.append(own)
        parts[split] = Part(Arrays(arrays[key], where[key]), labels)
    return parts, f"the arrays {', '.join(sources)}" if sources else "nothing: one class"


def _check_choice(labels: NDArray[Any], key: str, how: Reading, where: str) -> None:
    """Refuse a `--label-column` that is neither this array nor a column of it."""
    single = labels.ndim != 2 or labels.shape[1] == 1
    if single and how.label_column is not None and how.label_column not in (key, key.split("/")[-1], _named(key).stem):
        raise InputError(
            f"{where} has one label for each image, and no array is called {how.label_column}; "
            "give another --label-column, or none"
        )


def _refuse_images_beside(tree: Tree, chosen: Entry) -> None:
    """Refuse to choose between arrays and image files."""
    if images := image_files(tree.entries)[0]:
        raise InputError(f"{tree.root} holds images in {chosen} and in files such as {images[0]}; give one of them")


def _others(named: _Named) -> set[str]:
    """The words of a name that say neither the split nor images or labels."""
    return {word for word in named.stem.split("_") if word not in (*_IMAGES, *_LABELS, "")}
