"""Street View House Numbers, cropped digits: `train_32x32.mat` and `test_32x32.mat` (MATLAB version 5)."""

import io
import math
import warnings
import zlib
from contextlib import closing
from pathlib import Path
from typing import IO, Literal

import numpy as np
from scipy.io import loadmat, whosmat

from dp_sinkhorn.data.files import CHUNK_BYTES, FREE_BYTES, MAX_BYTES, MAX_EXPANSION, reading
from dp_sinkhorn.data.found import UNUSED_SPLITS, Arrays, Found, Part, Split, rest, split_of_prefix, without_effect
from dp_sinkhorn.data.layouts.image_folders import image_files
from dp_sinkhorn.data.reading import Reading
from dp_sinkhorn.data.tree import Entry, Tree
from dp_sinkhorn.io.errors import InputError

_REMEDY = "get it again, or convert it to an .npz"
# Of all arrays but structures, cells and objects, which are never read.
_NUMBERS = frozenset({"uint8", "int8", "uint16", "int16", "uint32", "int32", "double", "single", "logical"})
_HEADER, _TAG, _MATRIX, _COMPRESSED = 128, 8, 14, 15


def svhn(tree: Tree, how: Reading) -> Found | None:
    """MATLAB files with images X (height, width, channels, N) and labels y; a file alone is the training split."""
    files = tree.ending(".mat")
    if not files or image_files(tree.entries)[0]:
        return None
    parts: dict[Split, Part] = {}
    unused = []
    for entry in files:
        prefix = entry.name.partition("_")[0].lower()
        if prefix in UNUSED_SPLITS and len(files) > 1:
            unused.append((f"the split '{prefix}', which no verb uses", str(entry)))
            continue
        split = split_of_prefix(entry.name) or ("train" if len(files) == 1 else None)
        if split is None or split in parts:
            raise InputError(f"{entry.where} does not name its split; begin its name with train or test")
        parts[split] = _part(entry)
    unused += rest(tree.entries, {entry.parts for entry in files}, "not a MATLAB file")
    return Found("MATLAB files, as of SVHN", parts, "the array y", unused=unused, notes=without_effect(how))


def _part(entry: Entry) -> Part:
    with reading(Path(entry.where), _REMEDY), warnings.catch_warnings(), closing(entry.open()) as packed:
        warnings.simplefilter("error")  # SciPy warns of an array that it cannot read
        file = _unpacked(packed, entry)
        listed = whosmat(file)
        held = {name: (shape, kind) for name, shape, kind in listed}
        if len(held) < len(listed):
            raise InputError(f"{entry.where} holds an array twice; {_REMEDY}")
        for name in ("X", "y"):
            shape, kind = held.get(name, ((), ""))
            if kind not in _NUMBERS:
                known = ", ".join(held) or "nothing"
                raise InputError(f"{entry.where} has no array {name} of numbers, only {known}; {_REMEDY}")
            if (size := math.prod(shape) * (1 if kind == "uint8" else 8)) > MAX_BYTES:
                raise InputError(f"{entry.where} promises {size} bytes for {name}, more than {MAX_BYTES}; {_REMEDY}")
        file.seek(0)
        arrays = loadmat(file, variable_names=["X", "y"])
        images, labels = arrays["X"], np.asarray(arrays["y"]).reshape(-1)
    if images.ndim != 4:
        raise InputError(f"{entry.where} has X of shape {images.shape}; (height, width, channels, N) was expected")
    if labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if "32x32" in entry.name and (labels == 10).any() and not (labels == 0).any():
        labels = np.where(labels == 10, 0, labels)  # SVHN's authors write the digit 0 as 10
    return Part(Arrays(images.transpose(3, 0, 1, 2), entry.where), labels)


def _unpacked(file: IO[bytes], entry: Entry) -> io.BytesIO:
    """The file with its compressed elements unpacked, so that SciPy allocates no more than is there."""
    header = file.read(_HEADER)
    if len(header) < _HEADER or header[124:128] not in (b"\x00\x01IM", b"\x01\x00MI"):
        raise InputError(f"{entry.where} is no MATLAB file of version 5 to 7; {_REMEDY}")
    order: Literal["little", "big"] = "little" if header.endswith(b"IM") else "big"
    most = min(MAX_BYTES, max(FREE_BYTES, MAX_EXPANSION * entry.size))
    made = io.BytesIO()
    made.write(header)
    left = entry.size - _HEADER
    while left > 0:
        tag = file.read(_TAG)
        kind, size = (int.from_bytes(tag[place : place + 4], order) for place in (0, 4))
        left -= _TAG + size
        if len(tag) < _TAG or left < 0 or kind not in (_MATRIX, _COMPRESSED):
            raise InputError(f"{entry.where} is damaged; {_REMEDY}")
        unpack = zlib.decompressobj() if kind == _COMPRESSED else None
        if unpack is None:
            made.write(tag)
        while size > 0:
            chunk = file.read(min(CHUNK_BYTES, size))
            if not chunk:
                raise InputError(f"{entry.where} ends too early; {_REMEDY}")
            size -= len(chunk)
            while chunk:
                made.write(chunk if unpack is None else unpack.decompress(chunk, CHUNK_BYTES))
                chunk = b"" if unpack is None else unpack.unconsumed_tail
                if made.tell() > most:
                    raise InputError(
                        f"{entry.where} unpacks to more than {most} bytes (a decompression bomb?); {_REMEDY}"
                    )
        if unpack is not None and not unpack.eof:
            raise InputError(f"{entry.where} is damaged; {_REMEDY}")
    made.seek(0)
    return made
