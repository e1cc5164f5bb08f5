"""Loading images: the digits, IDX or Parquet files, an `.npz` archive, a folder of images, a data set by name.

The range of pixel values is declared by their type, never inferred from the data: bytes are 0..255, floats [0, 1],
digits 0..16, 16-bit grey 0..65535. Resizing (`image_side`) treats each image independently. The privacy guarantee does
not cover the set of labels, the number of records and the shape of the images: they are treated as public metadata.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from numpy.typing import NDArray

from dp_sinkhorn.data.arrays import class_names_of, from_arrays
from dp_sinkhorn.data.digits import read_digits
from dp_sinkhorn.data.files import reading
from dp_sinkhorn.data.folder import folder_has_test_split, load_class_folders, load_folder
from dp_sinkhorn.data.hub import hub_has_test_split, is_hub_name, load_hub
from dp_sinkhorn.data.idx import idx_path, is_idx_folder, read_idx_part
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.data.npz import npz_keys, read_npz
from dp_sinkhorn.data.parquet import is_parquet_folder, load_parquet, parquet_files
from dp_sinkhorn.io.errors import InputError

_KNOWN = "give 'digits', a folder of IDX files, an .npz or .parquet file or a folder of images by class"
_ENDINGS: Final[dict[str, Literal["npz", "parquet"]]] = {".npz": "npz", ".parquet": "parquet"}

__all__ = ["from_arrays", "has_test_split", "load_images", "load_synthetic"]


def load_images(
    source: str | Path, split: Literal["train", "test"] = "train", image_side: int | None = None
) -> LabelledImages:
    """Load one split of a data set; the training split declares the classes of both splits.

    Args:
        source: One of

            - "digits": scikit-learn's 8x8 digits, 1437 for training and 360 for testing;
            - a folder of IDX files with MNIST's names, with or without `.gz`;
            - an `.npz` with train_images, train_labels (absent: one class) and, if there is a test split,
              test_images, test_labels; see `from_arrays`. Optional class_names: strings, one per class;
            - a folder of image files: root/train/<class>/* and root/test/<class>/*; without a test split
              root/<class>/* or root/* (one class); see `load_class_folders`;
            - a Parquet file (the train split), or a folder with `train*.parquet` and, if there is a test split,
              `test*.parquet`, directly or in its sub-folder `data`; see `load_table`;
            - the name of a data set in the cache of `datasets`; see `load_hub`.
        split: The split to load.
        image_side: Stretch every image to this many pixels a side, 8 to 64 (Lanczos). None: as stored.

    Raises:
        InputError: The source does not exist, is of an unknown kind, is damaged, or lacks the split.
    """
    if split not in ("train", "test"):
        raise InputError(f"split={split} is not known; give train or test")
    if split == "test" and not has_test_split(source):
        raise InputError(
            f"{source} has no test split; add t10k IDX files, test_images, a test folder, or test*.parquet beside "
            "train*.parquet"
        )
    kind, path = _kind(source)
    if kind == "digits":
        images, labels = read_digits(split)
        return from_arrays(images, labels, [str(digit) for digit in range(10)], image_side)
    if kind == "idx":
        declaring = read_idx_part(path, "train", "labels")
        parts = read_idx_part(path, split, "images"), read_idx_part(path, split, "labels")
        with _prefix_errors(path, split):
            return from_arrays(*parts, class_names_of(declaring), image_side)
    if kind == "npz":
        return _load_npz(path, split, image_side)
    if kind == "parquet":
        return load_parquet(path, split, image_side)
    if kind == "hub":
        return load_hub(str(source), split, image_side)
    return load_folder(path, split, image_side)


def load_synthetic(source: str | Path) -> LabelledImages:
    """Load sampled images: an `.npz` with images and labels, a Parquet file, or a folder root/<class>/* without splits.

    Labels may be absent (one class). `class_names`, or else the labels, declare the classes; labels alone may lack the
    last classes of the real data.

    Raises:
        InputError: The source does not exist, is of an unknown kind, or is damaged.
    """
    kind, path = _kind(source)
    if kind == "npz":
        return _load_npz(path, None, None)
    if kind == "parquet" and path.is_file():
        return load_parquet(path, "train", None)
    if kind == "folder":
        return load_class_folders(path, path, None, path)
    raise InputError(f"{source} holds no sampled images; give an .npz or .parquet file or a folder of images by class")


def has_test_split(source: str | Path) -> bool:
    """Whether the source has a test split; the images are not read.

    Raises:
        InputError: The source does not exist, is of an unknown kind, or is damaged.
    """
    kind, path = _kind(source)
    if kind == "idx":
        return idx_path(path, "test", "images") is not None
    if kind == "npz":
        return "test_images" in npz_keys(path)
    if kind == "parquet":
        return path.is_dir() and bool(parquet_files(path, "test"))
    if kind == "hub":
        return hub_has_test_split(str(source))
    return kind == "digits" or folder_has_test_split(path)


def _kind(source: str | Path) -> tuple[Literal["digits", "idx", "npz", "parquet", "folder", "hub"], Path]:
    path = Path(source)
    if source == "digits":
        return "digits", path
    if source == "":  # Path("") would be the current folder
        raise InputError(f"the source is empty; {_KNOWN}")
    with reading(path, _KNOWN):
        if path.is_dir():
            if is_idx_folder(path):
                return "idx", path
            return ("parquet" if is_parquet_folder(path) else "folder"), path
        kind = _ENDINGS.get(path.suffix.lower())
        if path.is_file() and kind:
            return kind, path
        exists = path.exists()
    if not exists and kind is None and is_hub_name(source):
        return "hub", path
    problem = "is neither a folder nor an .npz or .parquet file" if exists else "does not exist"
    raise InputError(f"{source} {problem}; {_KNOWN}")


@contextmanager
def _prefix_errors(path: Path, split: str | None) -> Iterator[None]:
    """Put file and split before the message of an `InputError` about arrays."""
    try:
        yield
    except InputError as error:
        where = path if split is None else f"{path}, {split} split"
        raise InputError(f"{where}: {error}") from None


def _load_npz(path: Path, split: Literal["train", "test"] | None, image_side: int | None) -> LabelledImages:
    """Load `<split>_images` and `<split>_labels`, or `images` and `labels` if there is no split.

    Without class_names the training labels declare the classes, or `labels` if there is no split.
    """
    part, declaring = ("", "") if split is None else (f"{split}_", "train_")
    arrays = read_npz(path, (f"{part}images", f"{part}labels", f"{declaring}labels", "class_names"))
    if f"{part}images" not in arrays:
        held = ", ".join(npz_keys(path)) or "nothing"
        raise InputError(f"{path} has no array {part}images, only {held}; add it")
    names = _stored_names(path, arrays["class_names"]) if "class_names" in arrays else None
    with _prefix_errors(path, split):
        names = class_names_of(arrays.get(f"{declaring}labels")) if names is None else names
        return from_arrays(arrays[f"{part}images"], arrays.get(f"{part}labels"), names, image_side)


def _stored_names(path: Path, names: NDArray[Any]) -> tuple[str, ...]:
    if names.ndim != 1 or names.dtype.kind != "U":
        raise InputError(f"class_names in {path} are {names.dtype} {names.shape}; give one string per class")
    return tuple(str(name) for name in names)
