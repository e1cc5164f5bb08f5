"""A folder of image files, one sub-folder per class.

The privacy guarantee does not cover properties of the whole folder, which are treated as public metadata: the names of
the classes, whether all images are grey, and the size of the images.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dp_sinkhorn.data.arrays import MAX_CLASSES, from_arrays
from dp_sinkhorn.data.files import MAX_BYTES, reading
from dp_sinkhorn.data.images import MAX_SIDE, MIN_SIDE, LabelledImages
from dp_sinkhorn.data.resize import check_side, resize_image
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.safe_read import open_regular

MAX_FILES = 10**6  # per folder, which is listed and sorted before any image is read
MAX_IMAGE_PIXELS = 2**26  # per image, 192 MiB as RGB; Pillow's own limit may be switched off

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
# Without this list Pillow gives a file with a false ending to any decoder, including Ghostscript.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
_SPLIT_FOLDERS = frozenset({"train", "test", "val", "valid", "validation"})
SIXTEEN_BIT = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
GREY_MODES = SIXTEEN_BIT | {"1", "L", "LA"}
UNBOUNDED_MODES = frozenset({"I", "F"})


def folder_has_test_split(root: Path) -> bool:
    """Whether the folder has the sub-folders train and test."""
    return (root / "train").is_dir() and (root / "test").is_dir()


def load_folder(root: Path, split: Literal["train", "test"], image_side: int | None) -> LabelledImages:
    """Load one split of root/train/<class>/* and root/test/<class>/*, or all of root/<class>/* or root/*.

    Raises:
        InputError: The classes of the splits differ; see also `load_class_folders`.
    """
    if not (root / "train").is_dir():
        return load_class_folders(root, root, image_side, root)
    with reading(root, "check its permissions"):
        other = [path.name for path in _visible(root) if path.is_dir() and path.name not in _SPLIT_FOLDERS]
    if other:
        raise InputError(
            f"{root} holds '{other[0]}' next to 'train'; "
            "keep only train and test there, with one folder per class inside each"
        )
    if split == "test":
        _check_same_classes(root)
    return load_class_folders(root / split, root, image_side, root / "train")


def load_class_folders(folder: Path, root: Path, image_side: int | None, declaring: Path) -> LabelledImages:
    """Load all images of folder/<class>/* (classes sorted by name) or folder/* (one class), sorted by name.

    The images become grey if Pillow reads every image of `declaring` as grey, else RGB. Transparency is dropped,
    16-bit grey is divided by 257, and of an animation only the first frame is used. Hidden files and files without an
    image's ending are ignored.

    Args:
        folder: The folder to read.
        root: Links may not lead out of this folder.
        image_side: Stretch every image to this many pixels a side, 8 to 64 (Lanczos).
        declaring: The folder of the training split (or `folder`): it determines grey or RGB, and the size.

    Raises:
        InputError: There is no image, one cannot be read, or they differ in size and `image_side` is None.
    """
    if image_side is not None:
        check_side(image_side)
    with reading(folder, "check its permissions"):
        files, labels, names = _list_images(folder, root)
        declaring_files = files if declaring == folder else _list_images(declaring, root)[0]
    if not files:
        raise InputError(
            f"{folder} has no images; put image files ({', '.join(sorted(ENDINGS))}) there, or in one folder per class"
        )
    mode, sizes = _mode_and_sizes(declaring_files)
    if image_side is None:
        _check_sizes(sizes if declaring == folder else sizes | _mode_and_sizes(files)[1])
    width, height = next(iter(sizes)) if image_side is None else (image_side, image_side)
    if (size := len(files) * height * width * len(mode)) > MAX_BYTES:
        raise InputError(f"the images of {folder} would take {size} bytes, more than {MAX_BYTES}; give fewer")
    pixels = np.empty((len(files), height, width, len(mode)), np.uint8)
    for row, path in zip(pixels, files, strict=True):
        row[...] = _decode(path, mode, image_side).reshape(row.shape)
    return from_arrays(pixels, labels, names)


def _visible(folder: Path) -> list[Path]:
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))
    found = sorted(islice(visible, MAX_FILES + 1))
    if len(found) > MAX_FILES:
        raise InputError(f"{folder} holds more than {MAX_FILES} files; give fewer, or an .npz")
    return found


def _check_same_classes(root: Path) -> None:
    with reading(root, "check its permissions"):
        train, test = ({path.name for path in _visible(root / split) if path.is_dir()} for split in ("train", "test"))
    if unknown := sorted(test - train):
        raise InputError(f"{root}/test has class '{unknown[0]}' and train does not; remove it")
    if missing := sorted(train - test):
        raise InputError(f"{root}/test lacks class '{missing[0]}' of train; add a folder for it")


def _list_images(folder: Path, root: Path) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """Return (files, labels, class names) of a folder that holds class folders, or images directly."""
    check_inside(folder, root)
    classes = [path for path in _visible(folder) if path.is_dir()]
    direct = _image_files(folder, root)
    if not classes:
        return direct, [0] * len(direct), ("0",)
    if direct:
        raise InputError(f"{direct[0]} lies next to the class folder '{classes[0].name}'; move it into a class folder")
    if len(classes) > MAX_CLASSES:
        raise InputError(f"{folder} holds {len(classes)} class folders; give at most {MAX_CLASSES}")
    files: list[Path] = []
    labels: list[int] = []
    for label, class_folder in enumerate(classes):
        check_inside(class_folder, root)
        nested = next((path for path in _visible(class_folder) if path.is_dir()), None)
        if nested is not None:
            raise InputError(f"{nested} lies inside a class folder; put its images one level up")
        found = _image_files(class_folder, root)
        files += found
        labels += [label] * len(found)
    return files, labels, tuple(path.name for path in classes)


def _image_files(folder: Path, root: Path) -> list[Path]:
    files = [path for path in _visible(folder) if path.suffix.lower() in ENDINGS and not path.is_dir()]
    for path in files:
        check_inside(path, root)
        if not path.is_file():  # a broken link, or a pipe, which would block
            raise InputError(f"{path} is not a file that can be read; remove it")
    return files


def check_inside(path: Path, root: Path) -> None:
    """Refuse a link that leads out of the folder."""
    if path.is_symlink() and path != root and not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{path} is a link out of {root}; copy its target there")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    with reading(path, "replace or remove the file"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata, transparency that RGB drops
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise InputError(
                    f"{path} has {image.width}x{image.height} pixels, more than {MAX_IMAGE_PIXELS} (a decompression "
                    "bomb?); make it smaller or remove it"
                )
            if image.mode in UNBOUNDED_MODES:
                raise InputError(
                    f"{path} has Pillow mode {image.mode}, whose range is not declared; convert it to 8 or 16 bits"
                )
            yield image


def _mode_and_sizes(files: list[Path]) -> tuple[Literal["L", "RGB"], dict[tuple[int, int], Path]]:
    """The common mode, and one file of each (width, height); reads the headers only."""
    mode: Literal["L", "RGB"] = "L"
    sizes: dict[tuple[int, int], Path] = {}
    for path in files:
        with _opened(path) as image:
            sizes.setdefault(image.size, path)
            if image.mode not in GREY_MODES:
                mode = "RGB"
    return mode, sizes


def _check_sizes(sizes: dict[tuple[int, int], Path]) -> None:
    (first, path), *others = sizes.items()
    if others:
        second, other = others[0]
        raise InputError(
            f"{path} has {first[0]}x{first[1]} pixels, {other} {second[0]}x{second[1]}; "
            "resize all images with --set image_side=32"
        )
    if min(first) < MIN_SIDE or max(first) > MAX_SIDE:
        raise InputError(
            f"{path} has {first[0]}x{first[1]} pixels, not {MIN_SIDE} to {MAX_SIDE} a side; "
            "resize all images with --set image_side=32"
        )


def _decode(path: Path, mode: Literal["L", "RGB"], image_side: int | None) -> NDArray[np.uint8]:
    with _opened(path) as opened:
        image: Image.Image = opened
        if image.mode in SIXTEEN_BIT:
            # Rounded in integers, which take less memory than floats.
            image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
        image = image.convert(mode)
        return np.asarray(image if image_side is None else resize_image(image, image_side))
