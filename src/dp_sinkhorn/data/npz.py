"""NumPy `.npz` archives, read without pickle and without trusting a header."""

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dp_sinkhorn.data.files import one_line, read_payload, reading
from dp_sinkhorn.errors import InputError

_REMEDY = "save it again with numpy.savez"


def npz_keys(path: Path) -> list[str]:
    """The sorted names of the arrays in the archive; none is read."""
    with reading(path, _REMEDY), zipfile.ZipFile(path) as archive:
        return sorted(name.removesuffix(".npy") for name in archive.namelist())


def read_npz(path: Path, keys: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Read the arrays among `keys` that the archive holds.

    Raises:
        InputError: The archive is damaged, or one of these arrays is pickled or larger than 2 GiB.
    """
    with reading(path, _REMEDY), zipfile.ZipFile(path) as archive:
        arrays = {}
        for key in keys:
            if f"{key}.npy" in archive.namelist():
                with archive.open(f"{key}.npy") as stream:
                    arrays[key] = _read_npy(stream, f"{key} in {one_line(path)}")
        return arrays


def _read_npy(stream: IO[bytes], name: str) -> NDArray[Any]:
    # numpy.load would allocate what the header promises before it looks at the data.
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise InputError(f"{name} has the .npy version {version}; {_REMEDY}, without a structured dtype")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read_header(stream)
    if dtype.hasobject:
        raise InputError(f"{name} is a pickled array, which is never loaded; save it with a plain dtype")
    payload = read_payload(stream, math.prod(shape) * dtype.itemsize, name)
    return np.ndarray(shape, dtype, payload, order="F" if fortran_order else "C")
