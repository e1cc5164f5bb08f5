"""DICOM images (extra `medical`): rescaled values, the declared window or bits, and whether low values are white."""

import math
import os
from typing import IO, Any

import numpy as np

from dp_sinkhorn.data.arrays import Values
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.extras import require

_MAGIC = b"DICM"
_MOST_BYTES = 2**28  # of a file, which is held in memory
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # pydicom unpacks it without a bound on memory


def is_dicom(head: bytes) -> bool:
    """Whether a file's first 132 bytes are those of a DICOM file."""
    return head[128:132] == _MAGIC


def read_dicom(file: IO[bytes], where: str, most_pixels: int) -> Values:
    """Read one image: its values after the rescale slope, and their range.

    The range is the first window that the file declares, or else all values of its bits.

    Raises:
        InputError: pydicom is not installed, or the file holds no single image.
    """
    pydicom = require("pydicom", "medical", "DICOM")
    _check_file(file, where)
    data = pydicom.dcmread(file, force=False)
    rows, columns = int(data.get("Rows", 0) or 0), int(data.get("Columns", 0) or 0)
    if not rows * columns or "PixelData" not in data:
        raise InputError(f"{where} holds no image; remove it")
    if int(data.get("NumberOfFrames", 1) or 1) > 1:
        raise InputError(f"{where} holds {data.NumberOfFrames} frames; write each as a file of its own")
    if rows * columns > most_pixels:
        raise InputError(f"{where} has {columns}x{rows} pixels, more than {most_pixels}; make it smaller or remove it")
    if "ModalityLUTSequence" in data:
        raise InputError(f"{where} maps its values by a table (Modality LUT), which is not read; convert it to PNG")
    stored = data.pixel_array
    kind = str(data.get("PhotometricInterpretation", "MONOCHROME2")).strip().upper()
    bits = int(data.get("BitsStored", 16))
    if kind == "PALETTE COLOR":
        stored = require("pydicom.pixels", "medical", "DICOM").apply_color_lut(stored, data)
        bits = 8 * stored.dtype.itemsize
    elif stored.ndim == 3 and "YBR" in kind:
        stored = require("pydicom.pixels", "medical", "DICOM").convert_color_space(stored, kind, "RGB")
    if stored.ndim == 3:
        return Values(stored, (0.0, 2.0**bits - 1.0), f"{bits} bits")
    slope, intercept = float(data.get("RescaleSlope", 1) or 1), float(data.get("RescaleIntercept", 0) or 0)
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise InputError(f"{where} has the rescale slope {slope} and intercept {intercept}; correct them, or remove it")
    values = stored.astype(np.float32) * slope + intercept
    limits, declared_by = _window(data), "the window that each file declares"
    wide = limits is None and bits >= 16
    if limits is None:
        limits, declared_by = _of_bits(bits, int(data.get("PixelRepresentation", 0)) == 1, slope, intercept)
    return Values(values, limits, declared_by, inverted=kind == "MONOCHROME1", wide=wide)


def _check_file(file: IO[bytes], where: str) -> None:
    """Refuse what pydicom would read without a bound on memory, and what it would not read."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size > _MOST_BYTES:
        raise InputError(f"{where} has {size} bytes, more than {_MOST_BYTES}; make it smaller or remove it")
    content = file.read()
    file.seek(0)
    if not is_dicom(content):
        raise InputError(f"{where} is no DICOM file: the mark DICM is missing; write it again or remove it")
    if _DEFLATED in content:
        raise InputError(f"{where} is compressed by deflate, which is not read; write it uncompressed")


def _window(data: Any) -> tuple[float, float] | None:
    """(black, white) of the first window, as PS3.3 C.11.2.1.2 has them."""
    centre, width = _first(data.get("WindowCenter")), _first(data.get("WindowWidth"))
    if centre is None or width is None or not (math.isfinite(centre) and math.isfinite(width)):
        return None
    exact = str(data.get("VOILUTFunction", "LINEAR")).strip().upper() == "LINEAR_EXACT"
    if width <= (0.0 if exact else 1.0):
        return None
    return centre - width / 2.0, centre + width / 2.0 - (0.0 if exact else 1.0)


def _of_bits(bits: int, signed: bool, slope: float, intercept: float) -> tuple[tuple[float, float], str]:
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1.0) if signed else (0.0, 2.0**bits - 1.0)
    ends = sorted((low * slope + intercept, high * slope + intercept))
    return (ends[0], ends[1]), f"{bits} stored bits"


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        return float(value)
    except TypeError:
        return float(value[0]) if len(value) else None
