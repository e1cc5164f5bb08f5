"""Encoded images: what a file declares of itself, and its values.

Each file is decoded by itself: nothing here depends on other records.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from dp_sinkhorn.data.arrays import Values
from dp_sinkhorn.data.dicom import is_dicom, read_dicom
from dp_sinkhorn.data.files import reading
from dp_sinkhorn.io.errors import InputError

MAX_IMAGE_PIXELS = 2**26  # per image, 192 MiB as RGB; Pillow's own limit may be switched off
_REMEDY = "replace or remove the file"

_FORMAT_ENDINGS = {
    "PNG": (".png", ".apng"),
    # .mpo: several JPEGs in one file, as some cameras write; Pillow opens it as a JPEG, and the first counts.
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
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
# How files of these kinds begin: those that have no ending are recognised by it.
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"GIF8", ".gif"), (b"BM", ".bmp"), (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"), (b"\0\0\0\x0cjP  ", ".jp2"),
)  # fmt: skip
_BITS_PER_SAMPLE = 258  # a tag of TIFF
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


def image_ending(name_ending: str, head: Callable[[], bytes]) -> str:
    """The ending that says of which kind a file is: its own, or of a name without one what its first bytes say.

    Args:
        name_ending: As `Entry.ending`: in lower case, with its dot; DICOM files are often called 1.2.840.113619.
    """
    if name_ending and not name_ending[1:].isdigit():
        return name_ending
    first = head()
    if is_dicom(first):
        return DICOM_ENDINGS[0]
    if first[:4] == b"RIFF" and first[8:12] == b"WEBP":
        return ".webp"
    return next((ending for magic, ending in _MAGIC if first.startswith(magic)), name_ending)


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
        # Pillow declares the upright size of a TIFF.
        if image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _SIDEWAYS:
            width, height = height, width
        return Facts((width, height), _is_grey(image))


def values_of(open_file: Callable[[], IO[bytes]], where: str) -> Values:
    """Decode a file: upright, transparency on white, colours as RGB.

    Raises:
        InputError: See `facts_of`.
    """
    with _opened(open_file, where) as image:
        return image if isinstance(image, Values) else _decoded(image)


class OpenImage(io.BytesIO):
    """An image that is open already, in the place of its file."""

    def __init__(self, image: Image.Image) -> None:
        super().__init__()
        self.image = image


def _decoded(image: Image.Image) -> Values:
    upright = ImageOps.exif_transpose(image)
    if upright.mode in _SIXTEEN_BIT:
        bits = _declared_bits(image)
        array = np.asarray(upright).astype(np.uint16)
        return Values(array, (0.0, 2.0**bits - 1.0), f"{bits} bits", wide=bits == 16)
    if upright.mode == "I" and image.format == "PPM":  # Pillow has scaled the largest value of its header to this
        return Values(np.asarray(upright), (0.0, 65535.0), "the largest value that each file declares")
    if upright.mode in _UNDECLARED:
        return Values(np.asarray(upright), None, "")
    transparent = "transparency" in upright.info or upright.mode in ("LA", "La", "PA", "RGBA", "RGBa")
    if transparent:
        upright = _on_white(upright)
    array = np.asarray(upright.convert("L" if _is_grey(upright) else "RGB"))
    return Values(array, (0.0, 255.0), "8 bits", transparent=transparent)


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


def _declared_bits(image: Image.Image) -> int:
    """Of a TIFF, which may have 12. PNG has 16: fewer significant bits (sBIT) are scaled to all of them."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE)
    first = bits[0] if isinstance(bits, tuple) and bits else bits
    return first if isinstance(first, int) and 8 < first < 16 else 16


def _image(file: IO[bytes], where: str) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:  # its text names a Python object
        raise InputError(f"{where} cannot be read (it holds no image of a known format); {_REMEDY}") from error


@contextmanager
def _opened(open_file: Callable[[], IO[bytes]], where: str) -> Iterator[Image.Image | Values]:
    with reading(Path(where), _REMEDY), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with open_file() as file:
            head = file.read(132)
            file.seek(0)
            if is_dicom(head) or where.lower().endswith(DICOM_ENDINGS):
                yield read_dicom(file, where, MAX_IMAGE_PIXELS)
                return
            if isinstance(file, OpenImage):
                _check(file.image, where)
                yield file.image
                return
            with _image(file, where) as image:
                _check(image, where)
                yield image


def _check(image: Image.Image, where: str) -> None:
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise InputError(
            f"{where} has {image.width}x{image.height} pixels, more than {MAX_IMAGE_PIXELS} (a decompression bomb?); "
            "make it smaller or remove it"
        )
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise InputError(f"{where} holds several images; write each as a file of its own, or remove it")
