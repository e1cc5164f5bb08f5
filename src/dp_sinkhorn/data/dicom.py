"""DICOM images (extra `medical`): rescaled values, the declared window or bits, and whether low values are white."""

from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.extras import require

_MAGIC = b"DICM"


def is_dicom(head: bytes) -> bool:
    """Whether a file's first 132 bytes are those of a DICOM file."""
    return head[128:132] == _MAGIC


def read_dicom(file: IO[bytes], where: str, most_pixels: int) -> tuple[NDArray[Any], tuple[float, float], str, bool]:
    """Read one image.

    Returns:
        (height, width) or (height, width, 3) values after the rescale slope; (black, white) as the file declares them:
        its first window, or else all values of its bits; where that comes from; whether low values are white.

    Raises:
        InputError: pydicom is not installed, or the file holds no single image.
    """
    pydicom = require("pydicom", "medical", "DICOM")
    data = pydicom.dcmread(file, force=False)
    rows, columns = int(data.get("Rows", 0)), int(data.get("Columns", 0))
    if not rows * columns or "PixelData" not in data:
        raise InputError(f"{where} holds no image; remove it")
    if int(data.get("NumberOfFrames", 1) or 1) > 1:
        raise InputError(f"{where} holds {data.NumberOfFrames} frames; write each as a file of its own")
    if rows * columns > most_pixels:
        raise InputError(f"{where} has {columns}x{rows} pixels, more than {most_pixels}; make it smaller or remove it")
    stored = data.pixel_array
    kind = str(data.get("PhotometricInterpretation", "MONOCHROME2"))
    if stored.ndim == 3:
        if "YBR" in kind:
            stored = require("pydicom.pixels", "medical", "DICOM").convert_color_space(stored, kind, "RGB")
        return stored, (0.0, 255.0), "8 bits", False
    slope, intercept = float(data.get("RescaleSlope", 1) or 1), float(data.get("RescaleIntercept", 0) or 0)
    values = stored.astype(np.float32) * slope + intercept
    limits, declared_by = _declared_range(data, slope, intercept)
    return values, limits, declared_by, kind == "MONOCHROME1"


def _declared_range(data: Any, slope: float, intercept: float) -> tuple[tuple[float, float], str]:
    centre, width = _first(data.get("WindowCenter")), _first(data.get("WindowWidth"))
    if centre is not None and width is not None and width >= 1.0:
        return (centre - width / 2.0, centre + width / 2.0), "the window that each file declares"
    bits = int(data.get("BitsStored", 16))
    signed = int(data.get("PixelRepresentation", 0)) == 1
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
