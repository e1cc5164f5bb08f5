"""Street View House Numbers, cropped digits: `train_32x32.mat` and `test_32x32.mat` (MATLAB version 5)."""

import math
from contextlib import closing
from pathlib import Path

import numpy as np
from scipy.io import loadmat, whosmat

from dp_sinkhorn.data.files import FREE_BYTES, MAX_BYTES, MAX_EXPANSION, reading
from dp_sinkhorn.data.found import UNUSED_SPLITS, Arrays, Found, Part, Split, rest, split_of_prefix
from dp_sinkhorn.data.reading import Reading
from dp_sinkhorn.data.tree import Entry, Tree
from dp_sinkhorn.io.errors import InputError

_REMEDY = "get it again, or convert it to an .npz"
# Of all arrays but structures, cells and objects, which are never read.
_NUMBERS = frozenset({"uint8", "int8", "uint16", "int16", "uint32", "int32", "double", "single", "logical"})


def svhn(tree: Tree, how: Reading) -> Found | None:
    """MATLAB files with images X (height, width, channels, N) and labels y; a file alone is the training split."""
    files = tree.ending(".mat")
    if not files:
        return None
    parts: dict[Split, Part] = {}
    unused = []
    for entry in files:
        prefix = entry.name.partition("_")[0].lower()
        if prefix in UNUSED_SPLITS:
            unused.append((f"the split '{prefix}', which no verb uses", str(entry)))
            continue
        split = split_of_prefix(entry.name) or ("train" if len(files) == 1 else None)
        if split is None or split in parts:
            raise InputError(f"{entry.where} does not name its split; begin its name with train or test")
        parts[split] = _part(entry)
    unused += rest(tree.entries, {entry.parts for entry in files}, "not a MATLAB file")
    return Found("MATLAB files, as of SVHN", parts, "the array y", unused=unused)


def _part(entry: Entry) -> Part:
    with reading(Path(entry.where), _REMEDY), closing(entry.open()) as file:
        held = {name: (shape, kind) for name, shape, kind in whosmat(file)}
        for name in ("X", "y"):
            shape, kind = held.get(name, ((), ""))
            if kind not in _NUMBERS:
                raise InputError(f"{entry.where} has no array {name} of numbers, only {', '.join(held)}; {_REMEDY}")
            # What is to be allocated is known before it is.
            if (size := math.prod(shape) * (1 if kind == "uint8" else 8)) > min(
                MAX_BYTES, max(FREE_BYTES, MAX_EXPANSION * entry.size)
            ):
                raise InputError(f"{entry.where} promises {size} bytes for {name}; {_REMEDY}")
        file.seek(0)
        arrays = loadmat(file, variable_names=["X", "y"], struct_as_record=True)
        images, labels = arrays["X"], arrays["y"]
    if images.ndim != 4:
        raise InputError(f"{entry.where} has X of shape {images.shape}; (height, width, channels, N) was expected")
    labels = np.asarray(labels).reshape(-1)
    if labels.dtype.kind == "f" and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if (labels == 10).any() and not (labels == 0).any():  # its authors write the digit 0 as 10
        labels = np.where(labels == 10, 0, labels)
    return Part(Arrays(images.transpose(3, 0, 1, 2), entry.where), labels)
