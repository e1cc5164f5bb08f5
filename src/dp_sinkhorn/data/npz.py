"""NumPy `.npz` archives, read without pickle and without trusting a header."""

import io
import math
import os
import struct
import zipfile
from collections.abc import Iterable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dp_sinkhorn.data.files import check_directory, read_payload
from dp_sinkhorn.io.errors import InputError

MAX_DIRECTORY_BYTES = 2**20  # some 10,000 members; zipfile makes an object for each on opening
MAX_NPY_HEADER_BYTES = 10_000  # the limit of numpy.load; a header of version 2 may claim 4 GiB

_REMEDY = "save it again with numpy.savez"
# The methods that numpy writes. zipfile decompresses the others without a bound on memory.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def npz_keys(file: IO[bytes], name: str) -> list[str]:
    """The sorted names of the arrays in the archive; no array is read."""
    archive, _ = _archive(file, name)
    return sorted(member.removesuffix(".npy") for member in archive.namelist())


def read_npz(file: IO[bytes], where: str, keys: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Read those arrays of `keys` that the archive holds.

    Args:
        where: Name of the archive, for messages.

    Raises:
        InputError: One of these arrays is pickled, larger than 2 GiB, stored twice or compressed by a method that numpy
            never writes. A damaged archive raises nearly anything.
    """
    archive, stored = _archive(file, where)
    names = archive.namelist()
    arrays = {}
    for key in keys:
        member, name = f"{key}.npy", f"{key} in {where}"
        if member not in names:
            continue
        if names.count(member) > 1:
            raise InputError(f"{name} is stored twice; {_REMEDY}")
        if archive.getinfo(member).compress_type not in _COMPRESSIONS:
            raise InputError(f"{name} is compressed by a method that numpy never uses; {_REMEDY}")
        with archive.open(member) as stream:
            arrays[key] = read_npy(stream, name, stored)
    return arrays


def _archive(file: IO[bytes], where: str) -> tuple[zipfile.ZipFile, int]:
    """The archive, and its size in bytes as stored."""
    stored = file.seek(0, os.SEEK_END)
    check_directory(file, stored, where, MAX_DIRECTORY_BYTES)
    return zipfile.ZipFile(file), stored


def read_npy(stream: IO[bytes], name: str, stored: int) -> NDArray[Any]:
    """Read one `.npy` file.

    Args:
        name: For messages. stored: Size of the file on disk, in bytes.

    Raises:
        InputError: It is pickled, larger than 2 GiB or of a structured dtype.
    """
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
