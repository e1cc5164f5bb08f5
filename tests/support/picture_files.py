"""Image files of every kind, archives and tables of them, and DICOM files, as their usual programs write them."""

import io
import json
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dp_sinkhorn.data import LabelledImages, Reading, open_data
from dp_sinkhorn.data.dataset import Summary
from dp_sinkhorn.io.errors import InputError

LOSSLESS = ("png", "bmp", "gif", "tif", "tiff", "webp", "pgm", "jp2")
_KINDS = {"jpg": "JPEG", "jpeg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "tif": "TIFF", "pgm": "PPM", "jp2": "JPEG2000"}


def picture(path: Path, mode: str, colour: Any, size: tuple[int, int] = (8, 8), **options: Any) -> Path:
    """Save an image of one colour; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def image_bytes(pixels: np.ndarray, ending: str = "png", **options: Any) -> bytes:
    """An image file; the kinds of `LOSSLESS` keep every grey pixel."""
    buffer = io.BytesIO()
    kind = _KINDS.get(ending, ending.upper())
    if kind in ("WEBP", "AVIF"):
        options = {"lossless": True, "quality": 100, **options} if kind == "WEBP" else {"quality": 100, **options}
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def write_files(root: Path, files: Mapping[str, bytes | str]) -> Path:
    """Files by their path below the root."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def write_zip(path: Path, files: Mapping[str, bytes | str], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """The same files in a `.zip`."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: Mapping[str, bytes | str], mode: str = "w") -> Path:
    """The same files in a `.tar`; mode "w:gz", "w:bz2" or "w:xz" packs it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]], separator: str = ",", end: str = "\n") -> str:
    """A table with a header (none if it is empty)."""
    lines = [header, *rows] if header else list(rows)
    return "".join(separator.join(map(str, line)) + end for line in lines)


def json_lines(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The same as JSON lines."""
    return "".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows)


def labels_of(images: LabelledImages) -> list[str]:
    """The class name of each image."""
    return [images.class_names[label] for label in images.labels.tolist()]


def first_pixels(images: LabelledImages) -> list[list[int]]:
    """The pixel at the top left of each image."""
    return images.pixels[:, :, 0, 0].tolist()


def reasons(summary: Summary) -> dict[str, int]:
    """How many files were not read, by reason."""
    return {one.reason: one.count for one in summary.skipped}


def inspected(source: Path, **how: Any) -> Summary:
    """What would be read."""
    return open_data(source, Reading(**how)).summary()


def read_or_refused(source: Path, **how: Any) -> str:
    """Read it, or refuse it with one line, which is returned; anything else is raised."""
    try:
        inspected(source, **how)
    except InputError as error:
        message = str(error)
    else:
        return ""
    assert message.isprintable()
    return message


def dicom_bytes(
    stored: np.ndarray,
    bits: int = 12,
    kind: str = "MONOCHROME2",
    frames: int = 1,
    syntax: str = "1.2.840.10008.1.2.1",
    **tags: Any,
) -> bytes:
    """A DICOM file of these stored values; "RGB" wants (height, width, 3)."""
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    meta.TransferSyntaxUID = syntax
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.Rows, data.Columns = stored.shape[:2] if frames == 1 else stored.shape[1:3]
    data.SamplesPerPixel = 3 if kind == "RGB" else 1
    if kind == "RGB":
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = kind
    data.BitsAllocated, data.BitsStored, data.HighBit = 8 * stored.dtype.itemsize, bits, bits - 1
    data.PixelRepresentation = int(stored.dtype.kind == "i")
    if frames > 1:
        data.NumberOfFrames = frames
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = stored.tobytes()
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
