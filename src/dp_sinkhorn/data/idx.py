"""IDX files, the format of MNIST: a magic number, the sizes (big-endian) and the raw bytes."""

import gzip
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, cast

import numpy as np
from numpy.typing import NDArray

from dp_sinkhorn.data.files import read_payload, reading
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.safe_read import open_regular

_UBYTE = 0x08  # the type code of unsigned bytes, the only one these files use
_PREFIX = {"train": "train", "test": "t10k"}
_NUM_AXES = {"images": 3, "labels": 1}


def idx_path(folder: Path, split: Literal["train", "test"], part: Literal["images", "labels"]) -> Path | None:
    """Path of the IDX file of one part of one split, under any of its usual names; None if there is none."""
    stem, axes = f"{_PREFIX[split]}-{part}", _NUM_AXES[part]
    names = [f"{stem}{dot}idx{axes}-ubyte{ending}" for dot in "-." for ending in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def is_idx_folder(folder: Path) -> bool:
    """Whether the folder holds any of the four IDX files."""
    return any(idx_path(folder, split, part) for split in ("train", "test") for part in ("images", "labels"))


def read_idx_part(
    folder: Path, split: Literal["train", "test"], part: Literal["images", "labels"]
) -> NDArray[np.uint8]:
    """Read the images (N, height, width) or the labels (N,) of one split.

    Raises:
        InputError: The file is missing, damaged, or not what its name says.
    """
    path = idx_path(folder, split, part)
    if path is None:
        name = f"{_PREFIX[split]}-{part}-idx{_NUM_AXES[part]}-ubyte.gz"
        raise InputError(f"{folder} has no {name}; put it there")
    with reading(path, "get the file again"), _opened(path) as (stream, stored):
        return _read_idx(stream, str(path), _NUM_AXES[part], stored)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Yield the decompressed stream and the file's size on disk in bytes."""
    with open_regular(path) as file:
        stored = os.fstat(file.fileno()).st_size
        if path.suffix == ".gz":
            with gzip.open(file) as unpacked:
                yield cast(IO[bytes], unpacked), stored
        else:
            yield file, stored


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
