"""Encoded images: what a file declares of itself, and its values.

Each file is decoded by itself: nothing here depends on other records.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, features

from dp_sinkhorn.data.dicom import is_dicom, read_dicom
from dp_sinkhorn.data.files import reading
from dp_sinkhorn.io.errors import InputError

MAX_IMAGE_PIXELS = 2**26  # per image, 192 MiB as RGB; Pillow's own limit may be switched off
_REMEDY = "replace or remove the file"

_FORMAT_ENDINGS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),  # two JPEGs in one file, as some cameras write; the first counts
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "AVIF": (".avif",),
}
_NEEDS = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}
# Without this list Pillow gives a file with a false ending to any decoder, including Ghostscript.
FORMATS = tuple(name for name in _FORMAT_ENDINGS if name not in _NEEDS or features.check(_NEEDS[name]))
DICOM_ENDINGS = (".dcm", ".dicom")
ENDINGS = frozenset(ending for name in FORMATS for ending in _FORMAT_ENDINGS[name]) | set(DICOM_ENDINGS)
# Images that this installation cannot decode.
OTHER_ENDINGS = {ending for endings in _FORMAT_ENDINGS.values() for ending in endings} - ENDINGS | {
    ".heic", ".heif", ".jxl", ".raw", ".cr2", ".nef", ".dng", ".arw", ".svg", ".psd", ".nii", ".mha", ".nrrd", ".exr",
}  # fmt: skip

_SIXTEEN_BIT = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_GREY = _SIXTEEN_BIT | {"1", "L", "LA", "La", "I", "F"}
_UNDECLARED = frozenset({"I", "F"})  # whose range the file does not declare
_SIDEWAYS = frozenset({5, 6, 7, 8})  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Facts:
    """What a file's header declares.

    Args:
        size: (width, height), upright. grey: It has no colours.
    """

    size: tuple[int, int]
    grey: bool


@dataclass(frozen=True)
class Values:
    """The values of an image, before any range is applied.

    Args:
        array: (height, width) grey, or (height, width, 3) RGB.
        range: The values that mean black and white, as the file declares them; None: it declares none.
        inverted: Low values are white.
        declared_by: Where the range comes from, for people.
    """

    array: NDArray[Any]
    range: tuple[float, float] | None
    declared_by: str
    inverted: bool = False


def facts_of(open_file: Callable[[], IO[bytes]], where: str) -> Facts:
    """Read the header of a file.

    Raises:
        InputError: It is damaged, of another kind than an image, or larger than `MAX_IMAGE_PIXELS`.
    """
    with _opened(open_file, where) as image:
        if isinstance(image, Values):
            height, width = image.array.shape[:2]
            return Facts((width, height), image.array.ndim == 2)
        width, height = image.size
        if image.getexif().get(_ORIENTATION) in _SIDEWAYS:
            width, height = height, width
        return Facts((width, height), _is_grey(image))


def values_of(open_file: Callable[[], IO[bytes]], where: str) -> Values:
    """Decode a file: upright, transparency on white, colours as RGB.

    Raises:
        InputError: See `facts_of`.
    """
    with _opened(open_file, where) as image:
        return image if isinstance(image, Values) else _decoded(image)


def values_of_image(image: Image.Image) -> Values:
    """The same of a Pillow image in memory."""
    return _decoded(image)


def _decoded(image: Image.Image) -> Values:
    upright = ImageOps.exif_transpose(image)
    if upright.mode in _SIXTEEN_BIT:
        bits = _significant_bits(image)
        array = np.asarray(upright).astype(np.uint16)
        return Values(array, (0.0, 2.0**bits - 1.0), f"{bits} bits" if bits < 16 else "16 bits")
    if upright.mode in _UNDECLARED:
        return Values(np.asarray(upright), None, "")
    if "transparency" in upright.info or upright.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        upright = _on_white(upright)
    return Values(np.asarray(upright.convert("L" if _is_grey(upright) else "RGB")), (0.0, 255.0), "8 bits")


def _on_white(image: Image.Image) -> Image.Image:
    grey = _is_grey(image)
    layers = image.convert("RGBA")
    white = Image.new("RGBA", layers.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layers).convert("L" if grey else "RGB")


def _is_grey(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        # A palette without colours: each entry has three equal values.
        palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in _GREY


def _significant_bits(image: Image.Image) -> int:
    """As the file itself declares them: PNG's sBIT, TIFF's largest sample value."""
    if isinstance(bits := image.info.get("sbit"), int | bytes | tuple):
        first = bits if isinstance(bits, int) else bits[0]
        if 1 <= first <= 16:
            return int(first)
    tags = getattr(image, "tag_v2", None)
    largest = tags.get(281) if tags is not None else None  # MaxSampleValue
    largest = largest[0] if isinstance(largest, tuple) and largest else largest
    if isinstance(largest, int) and 1 <= largest < 2**16:
        return largest.bit_length()
    return 16


@contextmanager
def _opened(open_file: Callable[[], IO[bytes]], where: str) -> Iterator[Image.Image | Values]:
    with reading(Path(where), _REMEDY), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with open_file() as file:
            head = file.read(132)
            file.seek(0)
            if is_dicom(head) or where.lower().endswith(DICOM_ENDINGS):
                array, limits, declared_by, inverted = read_dicom(file, where, MAX_IMAGE_PIXELS)
                yield Values(array, limits, declared_by, inverted)
                return
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_IMAGE_PIXELS:
                    raise InputError(
                        f"{where} has {image.width}x{image.height} pixels, more than {MAX_IMAGE_PIXELS} (a "
                        "decompression bomb?); make it smaller or remove it"
                    )
                yield image


def from_bytes(content: bytes | memoryview) -> Callable[[], IO[bytes]]:
    """An opener of bytes in memory."""
    return lambda: io.BytesIO(content)
