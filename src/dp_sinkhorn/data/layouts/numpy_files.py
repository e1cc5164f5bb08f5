"""NumPy files: one `.npz` archive, or `.npy` files of images and of labels."""

import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dp_sinkhorn.data.class_names import one_column
from dp_sinkhorn.data.files import reading
from dp_sinkhorn.data.found import Arrays, Found, Part, Split, rest, split_of, stored_reading
from dp_sinkhorn.data.npz import npz_keys, read_npy, read_npz
from dp_sinkhorn.data.reading import Reading
from dp_sinkhorn.data.tree import Tree
from dp_sinkhorn.io.errors import InputError

_IMAGES = ("images", "image", "imgs", "img", "x", "data", "pictures", "arr_0")
_LABELS = ("labels", "label", "y", "targets", "target", "classes", "class", "arr_1")
_REMEDY = "name the arrays train_images, train_labels, test_images and test_labels, or images and labels"


def npz(tree: Tree, how: Reading) -> Found | None:
    """One `.npz` with arrays of images and labels under their usual names: this project's, Keras's, MedMNIST's."""
    archives = tree.ending(".npz")
    if not archives or (len(tree.entries) > 1 and len(archives) != 1):
        return None
    (archive,) = archives[:1]
    with reading(Path(archive.where), "save it again with numpy.savez"), closing(archive.open()) as file:
        keys = npz_keys(file, archive.where)
        roles = _roles(keys)
        if not any(part == "images" for _, part in roles.values()):
            raise InputError(f"{archive.where} has no array of images, only {', '.join(keys) or 'nothing'}; {_REMEDY}")
        wanted = [*roles, *(key for key in ("class_names", "label_names", "privacy") if key in keys)]
        arrays = read_npz(file, archive.where, wanted)
    parts = _parts(roles, arrays, arrays.get("label_names"), how, archive.where)
    names = arrays.get("class_names")
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
        raise InputError(f"class_names in {archive.where} are {names.dtype} {names.shape}; give one string per class")
    unread = [("an array that is neither images nor labels", key) for key in keys if key not in wanted]
    unread += rest(tree.entries, {archive.parts}, "beside the .npz file that was read")
    declared = None if names is None else tuple(str(name) for name in names)
    found = Found("an .npz archive", parts, _labels_from(roles, parts), declared, unread)
    if "privacy" in arrays and arrays["privacy"].dtype.kind == "U" and arrays["privacy"].size == 1:
        found.stored_reading = stored_reading(str(arrays["privacy"].reshape(-1)[0]))
    return found


def npy(tree: Tree, how: Reading) -> Found | None:
    """`.npy` files of images, each beside one of its labels: `x_train.npy` and `y_train.npy`, `images` and `labels`."""
    files = {entry.name[:-4]: entry for entry in tree.ending(".npy")}
    roles = _roles(list(files))
    if not any(part == "images" for _, part in roles.values()):
        return None
    arrays: dict[str, NDArray[Any]] = {}
    for key in roles:
        entry = files[key]
        with reading(Path(entry.where), "save it again with numpy.save"), closing(entry.open()) as file:
            arrays[key] = read_npy(file, entry.where, entry.size)
    parts = _parts(roles, arrays, None, how, tree.root)
    used = {files[key].parts for key in roles}
    return Found(
        ".npy files", parts, _labels_from(roles, parts), unused=rest(tree.entries, used, "not an array of a split")
    )


def _roles(keys: list[str]) -> dict[str, tuple[Split, str]]:
    """Which split and part each array is: "x_train", "train_images", "images"."""
    found: dict[str, tuple[Split, str]] = {}
    taken: set[tuple[Split, str]] = set()
    for key in sorted(keys, key=lambda key: _rank(key)):
        role = _role(key)
        if role is not None and role not in taken:
            found[key] = role
            taken.add(role)
    return found


def _role(key: str) -> tuple[Split, str] | None:
    lower = key.lower()
    words = [word for word in re.split(r"[_\-. ]+", lower) if word]
    splits = [split for word in words if (split := split_of(word))]
    others = [word for word in words if not split_of(word)]
    name = lower if lower in (*_IMAGES, *_LABELS) else others[-1] if others else ""
    part = "images" if name in _IMAGES else "labels" if name in _LABELS else None
    if part is None and len(words) == 1 and re.fullmatch(r"[xy](train|test|val)", lower):
        return split_of(lower[1:]) or "train", "images" if lower[0] == "x" else "labels"
    if part is None or len(splits) > 1 or len(others) > 2:
        return None
    return (splits[0] if splits else "train"), part


def _rank(key: str) -> tuple[int, str]:
    names = (*_IMAGES, *_LABELS)
    return min((number for number, name in enumerate(names) if name in key.lower()), default=len(names)), key


def _parts(
    roles: Mapping[str, tuple[Split, str]],
    arrays: Mapping[str, NDArray[Any]],
    label_names: NDArray[Any] | None,
    how: Reading,
    where: str,
) -> dict[Split, Part]:
    by_role = {role: key for key, role in roles.items()}
    parts: dict[Split, Part] = {}
    for (split, part), key in by_role.items():
        if part != "images":
            continue
        labels = arrays.get(by_role.get((split, "labels"), ""))
        if labels is not None:
            labels = one_column(labels, label_names, how.label_column, f"{by_role[split, 'labels']} in {where}")
        parts[split] = Part(Arrays(arrays[key], f"{key} in {where}"), labels)
    return parts


def _labels_from(roles: Mapping[str, tuple[Split, str]], parts: Mapping[Split, Part]) -> str:
    names = [key for key, (split, part) in roles.items() if part == "labels" and split in parts]
    return f"the arrays {', '.join(names)}" if names else "nothing: one class"
