"""Street View House Numbers, cropped digits: `train_32x32.mat` and `test_32x32.mat` (MATLAB version 5).

Arrays of numbers are read here, and nothing else of the format: SciPy's reader takes sizes from the file on trust, and
crashes on damaged ones.
"""

import math
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dp_sinkhorn.data.files import CHUNK_BYTES, FREE_BYTES, MAX_BYTES, MAX_EXPANSION, reading
from dp_sinkhorn.data.found import UNUSED_SPLITS, Arrays, Found, Part, Split, rest, split_of_prefix, without_effect
from dp_sinkhorn.data.layouts.image_folders import image_files
from dp_sinkhorn.data.reading import Reading
from dp_sinkhorn.data.tree import Entry, Tree
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.safe_read import listed

_REMEDY = "get it again, or convert it to an .npz"
_HEADER, _TAG, _MATRIX, _COMPRESSED = 128, 8, 14, 15
# Of the numbers in a file, and of the arrays that they make: a double array of small integers is stored as bytes.
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_LOGICAL, _COMPLEX, _MAX_AXES = 0x0200, 0x0800, 8

_Order = Literal["little", "big"]


def svhn(tree: Tree, how: Reading) -> Found | None:
    """MATLAB files with images X (height, width, channels, N) and labels y; a file alone is the training split.

    Raises:
        InputError: A file does not name its split, is damaged, or holds something else.
    """
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
    with reading(Path(entry.where), _REMEDY), closing(entry.open()) as file:
        held: dict[str, NDArray[Any] | None] = {}
        for name, array in _arrays(file, entry):
            if name in held:
                raise InputError(f"{entry.where} holds an array twice; {_REMEDY}")
            held[name] = array
    images, labels = held.get("X"), held.get("y")
    if images is None or labels is None:
        name = "X" if images is None else "y"
        known = listed(list(held), 20) or "nothing"
        raise InputError(f"{entry.where} has no array {name} of numbers, only {known}; {_REMEDY}")
    if images.ndim != 4:
        raise InputError(f"{entry.where} has X of shape {images.shape}; (height, width, channels, N) was expected")
    labels = labels.reshape(-1)
    if labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if "32x32" in entry.name and (labels == 10).any() and not (labels == 0).any():
        labels = np.where(labels == 10, 0, labels)  # SVHN's authors write the digit 0 as 10
    return Part(Arrays(images.transpose(3, 0, 1, 2), entry.where), labels)


def _arrays(file: IO[bytes], entry: Entry) -> Iterator[tuple[str, NDArray[Any] | None]]:
    """Name and values of each array; None for what is not X or y, or no array of real numbers."""
    header = file.read(_HEADER)
    if len(header) < _HEADER or header[124:] not in (b"\x00\x01IM", b"\x01\x00MI"):
        raise InputError(f"{entry.where} is no MATLAB file of version 5 to 7; {_REMEDY}")
    order: _Order = "little" if header.endswith(b"IM") else "big"
    room = min(MAX_BYTES, max(FREE_BYTES, MAX_EXPANSION * entry.size))  # of all arrays together
    while tag := file.read(_TAG):
        kind, size = (int.from_bytes(tag[place : place + 4], order) for place in (0, 4))
        if len(tag) < _TAG or kind not in (_MATRIX, _COMPRESSED):
            raise InputError(f"{entry.where} is damaged; {_REMEDY}")
        content = _unpacked(file, size, kind == _COMPRESSED, room, entry)
        room -= len(content)
        if kind == _COMPRESSED:
            ((inner, part),) = _elements(memoryview(content), order)
            if inner != _MATRIX:
                raise ValueError("an element is no array")
        else:
            part = memoryview(content)
        yield _array(part, order, room)


def _unpacked(file: IO[bytes], size: int, packed: bool, most: int, entry: Entry) -> bytearray:
    """The next `size` bytes of the file, unpacked; the buffer grows with what is really there."""
    content = bytearray()
    unpack = zlib.decompressobj() if packed else None
    while size > 0:
        chunk = file.read(min(CHUNK_BYTES, size))
        if not chunk:
            raise InputError(f"{entry.where} ends too early; {_REMEDY}")
        size -= len(chunk)
        while chunk:
            content += chunk if unpack is None else unpack.decompress(chunk, CHUNK_BYTES)
            chunk = b"" if unpack is None else unpack.unconsumed_tail
            if len(content) > most:
                raise InputError(f"{entry.where} unpacks to too much (a decompression bomb?); {_REMEDY}")
    if unpack is not None and not unpack.eof:
        raise InputError(f"{entry.where} is damaged; {_REMEDY}")
    return content


def _elements(content: memoryview, order: _Order) -> Iterator[tuple[int, memoryview]]:
    """Type and data of each element."""
    at = 0
    while at < len(content):
        if len(content) - at < _TAG:
            raise ValueError("an element has no tag")
        word = int.from_bytes(content[at : at + 4], order)
        if 0 < word >> 16 <= 4:  # at most four bytes, in the tag itself
            yield word & 0xFFFF, content[at + 4 : at + 4 + (word >> 16)]
            at += _TAG
            continue
        size = int.from_bytes(content[at + 4 : at + _TAG], order)
        if size > len(content) - at - _TAG:
            raise ValueError(f"an element promises {size} bytes")
        yield word, content[at + _TAG : at + _TAG + size]
        at += _TAG + size + -size % 8


def _array(content: memoryview, order: _Order, room: int) -> tuple[str, NDArray[Any] | None]:
    elements = _elements(content, order)
    (_, flags), (_, axes), (_, name) = (next(elements) for _ in range(3))
    text = bytes(name).decode("latin-1")
    word = int.from_bytes(flags[:4], order)
    own = _CLASSES.get(word & 0xFF)
    if text not in ("X", "y") or own is None or word & _COMPLEX:
        return text, None
    kind, values = next(elements)
    if kind not in _STORED:
        raise ValueError(f"{text} holds no numbers")
    shape = np.frombuffer(axes, np.dtype("i4").newbyteorder(order)).tolist()
    stored = np.dtype(_STORED[kind]).newbyteorder(order)
    count = math.prod(shape) if len(shape) <= _MAX_AXES and min(shape, default=-1) >= 0 else -1
    if count * stored.itemsize != len(values):
        raise ValueError(f"{text} promises another number of values than it has")
    made = np.dtype(bool if word & _LOGICAL else own)
    if count * made.itemsize > room + len(content):
        raise ValueError(f"{text} unpacks to {count * made.itemsize} bytes (a decompression bomb?)")
    return text, np.frombuffer(values, stored).reshape(shape, order="F").astype(made, copy=False)
