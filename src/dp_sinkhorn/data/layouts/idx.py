"""IDX files, the format of MNIST: a magic number, the sizes (big-endian) and the raw bytes."""

import gzip
import math
import re
import struct
from contextlib import closing
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from dp_sinkhorn.data.files import read_payload, reading
from dp_sinkhorn.data.found import Arrays, Found, Part, Split, split_of, without_effect
from dp_sinkhorn.data.reading import Reading
from dp_sinkhorn.data.tree import Entry, Tree
from dp_sinkhorn.io.errors import InputError

_UBYTE = 0x08  # the type code of unsigned bytes, the only one these files use
# EMNIST puts its own name first: "emnist-letters-train-images-idx3-ubyte".
_NAME = re.compile(
    r"(?:(?P<set>.+)[-_])?(?P<split>[a-z0-9]+)[-_](?P<part>images|labels)[-_.]idx[13][-_.]ubyte(?:\.gz)?", re.IGNORECASE
)
_AXES = {"images": 3, "labels": 1}


def idx(tree: Tree, how: Reading) -> Found | None:
    """Files with MNIST's names (`train-images-idx3-ubyte`, with or without `.gz`).

    Raises:
        InputError: Files of several data sets lie there, or one of the training split is missing or damaged.
    """
    files: dict[tuple[Split, str], Entry] = {}
    unused, sets = [], {}
    for entry in tree.entries:
        match = _NAME.fullmatch(entry.name)
        if not (match and (split := split_of(match["split"]))):
            unused.append(("not an IDX file of a split", str(entry)))
            continue
        sets["/".join((*entry.folder, match["set"] or ""))] = str(entry)
        if (split, match["part"].lower()) in files:  # a plain file comes before its packed copy
            unused.append(("a second copy of an IDX file", str(entry)))
        files.setdefault((split, match["part"].lower()), entry)
    if not files:
        return None
    if len(sets) > 1:
        names = " and ".join(list(sets.values())[:2])
        raise InputError(f"{tree.root} holds several data sets, with {names}; put the files of one into a folder")
    parts: dict[Split, Part] = {}
    for split in dict.fromkeys(split for split, _ in files):
        missing = [part for part in _AXES if (split, part) not in files]
        if missing and split == "train":
            raise InputError(f"{tree.root} has no IDX file of the train {missing[0]}; put it there")
        if missing:
            unused += [
                (f"an IDX file without its {missing[0]}", str(entry))
                for (own, _), entry in files.items()
                if own == split
            ]
            continue
        images, labels = (_read(files[split, part], _AXES[part]) for part in ("images", "labels"))
        parts[split] = Part(Arrays(images, files[split, "images"].where, (0.0, 255.0)), labels)
    return Found("IDX files", parts, "the IDX files of labels", unused=unused, notes=without_effect(how))


def _read(entry: Entry, axes: int) -> NDArray[np.uint8]:
    with reading(Path(entry.where), "get the file again"), closing(entry.open()) as file:
        if entry.ending == ".gz":
            with gzip.open(file) as unpacked:
                return _read_idx(cast(IO[bytes], unpacked), entry.where, axes, entry.size)
        return _read_idx(file, entry.where, axes, entry.size)


def _read_idx(stream: IO[bytes], name: str, num_axes: int, stored: int) -> NDArray[np.uint8]:
    header = stream.read(4 + 4 * num_axes)
    expected = bytes((0, 0, _UBYTE, num_axes))
    if header[:4] != expected:
        raise InputError(
            f"{name} begins with 0x{header[:4].hex()}, not 0x{expected.hex()}; "
            f"give an IDX file of unsigned bytes with {num_axes} axes"
        )
    if len(header) < 4 + 4 * num_axes:
        raise InputError(f"{name} ends after {len(header)} bytes, inside its header; get the file again")
    shape = struct.unpack(f">{num_axes}I", header[4:])
    payload = read_payload(stream, math.prod(shape), name, stored)
    return np.frombuffer(payload, np.uint8).reshape(shape)
