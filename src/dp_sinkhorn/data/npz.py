"""NumPy `.npz` archives, read without pickle and without trusting a header."""

import io
import math
import os
import struct
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dp_sinkhorn.data.files import read_payload, reading
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.safe_read import open_regular

MAX_DIRECTORY_BYTES = 2**20  # some 10,000 members; zipfile makes an object for each on opening
MAX_NPY_HEADER_BYTES = 10_000  # the limit of numpy.load; a header of version 2 may claim 4 GiB

_REMEDY = "save it again with numpy.savez"
# The methods that numpy writes. zipfile decompresses the others without a bound on memory.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_END, _END_BYTES, _LOCATOR, _LOCATOR_BYTES, _MAX_COMMENT = b"PK\x05\x06", 22, b"PK\x06\x07", 20, 2**16


def npz_keys(path: Path) -> list[str]:
    """The sorted names of the arrays in the archive; no array is read."""
    with reading(path, _REMEDY), _opened(path) as (archive, _):
        return sorted(name.removesuffix(".npy") for name in archive.namelist())


def read_npz(path: Path, keys: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Read those arrays of `keys` that the archive holds.

    Raises:
        InputError: The archive is damaged, or one of these arrays is pickled, larger than 2 GiB, stored twice or
            compressed by a method that numpy never writes.
    """
    with reading(path, _REMEDY), _opened(path) as (archive, stored):
        names = archive.namelist()
        arrays = {}
        for key in keys:
            member, name = f"{key}.npy", f"{key} in {path}"
            if member not in names:
                continue
            if names.count(member) > 1:
                raise InputError(f"{name} is stored twice; {_REMEDY}")
            if archive.getinfo(member).compress_type not in _COMPRESSIONS:
                raise InputError(f"{name} is compressed by a method that numpy never uses; {_REMEDY}")
            with archive.open(member) as stream:
                arrays[key] = _read_npy(stream, name, stored)
        return arrays


@contextmanager
def _opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, int]]:
    """Yield the archive and its size on disk in bytes."""
    with open_regular(path) as file:
        stored = file.seek(0, os.SEEK_END)
        _check_directory(file, stored, path)
        with zipfile.ZipFile(file) as archive:
            yield archive, stored


def _check_directory(file: IO[bytes], stored: int, path: Path) -> None:
    """Refuse a long central directory before zipfile reads it; it is located as zipfile locates it."""
    start = file.seek(max(0, stored - _MAX_COMMENT - _END_BYTES - _LOCATOR_BYTES))
    tail = file.read()
    at = stored - start - _END_BYTES
    if not (at >= 0 and tail[at:].startswith(_END) and tail.endswith(b"\0\0")):
        at = tail.rfind(_END)
    if at < 0 or len(tail) < at + _END_BYTES:
        return  # not an archive: zipfile raises the error
    if tail[max(0, at - _LOCATOR_BYTES) : at].startswith(_LOCATOR):
        raise InputError(f"{path} is a ZIP64 archive, of more than 4 GiB; {_REMEDY} and fewer images")
    (directory,) = struct.unpack_from("<L", tail, at + 12)
    if directory > MAX_DIRECTORY_BYTES:
        raise InputError(f"{path} has a list of members of more than {MAX_DIRECTORY_BYTES} bytes; {_REMEDY}")


def _read_npy(stream: IO[bytes], name: str, stored: int) -> NDArray[Any]:
    # numpy.load would allocate the size that the header claims before it reads the data.
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise InputError(f"{name} has the .npy version {version}; {_REMEDY}, without a structured dtype")
    length_format = "<H" if version == (1, 0) else "<I"
    length_bytes = stream.read(struct.calcsize(length_format))
    (length,) = struct.unpack(length_format, length_bytes)
    if length > MAX_NPY_HEADER_BYTES:
        raise InputError(f"{name} has a header of {length} bytes, more than {MAX_NPY_HEADER_BYTES}; {_REMEDY}")
    header = io.BytesIO(length_bytes + stream.read(length))
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read_header(header)
    if dtype.hasobject:
        raise InputError(f"{name} is a pickled array, which is never loaded; save it with a plain dtype")
    if dtype.kind == "V" or dtype.itemsize == 0:  # structures, arrays in arrays, and elements of no bytes
        raise InputError(f"{name} has the dtype {dtype}; save it with a plain dtype")
    payload = read_payload(stream, math.prod(shape) * dtype.itemsize, name, stored)
    return np.ndarray(shape, dtype, payload, order="F" if fortran_order else "C")
