"""From a path, a name or arrays to a data set: which layout it has, and how it is read.

Nothing that decides how data are read is inferred from pixels: the type of the data declares it, or the user does. The
privacy guarantee does not cover class names, number of records and shape of the images: they are public.
"""

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np

from dp_sinkhorn.data.class_names import one_column
from dp_sinkhorn.data.dataset import DataSet
from dp_sinkhorn.data.files import reading
from dp_sinkhorn.data.found import SPLITS, Found, Part, Split, without_effect
from dp_sinkhorn.data.given import Given, images_of, labels_of
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.data.layouts.arrow_tables import hub, is_hub_name, parquet
from dp_sinkhorn.data.layouts.cifar import cifar
from dp_sinkhorn.data.layouts.digits import digits
from dp_sinkhorn.data.layouts.idx import idx
from dp_sinkhorn.data.layouts.image_folders import image_folders
from dp_sinkhorn.data.layouts.label_tables import label_tables
from dp_sinkhorn.data.layouts.numpy_files import npy, npy_tree, npz
from dp_sinkhorn.data.layouts.svhn import svhn
from dp_sinkhorn.data.layouts.webdataset import webdataset
from dp_sinkhorn.data.reading import AS_STORED, Reading
from dp_sinkhorn.data.tree import TAR_ENDINGS, ZIP_ENDINGS, Tree, is_archive, tree_of, unpacked
from dp_sinkhorn.io.errors import InputError, did_you_mean
from dp_sinkhorn.io.paths import AnyPath

# In the order of looking: the first that knows the files reads them.
LAYOUTS: Final[tuple[Callable[[Tree, Reading], Found | None], ...]] = (
    idx,
    cifar,
    svhn,
    npz,
    npy,
    parquet,
    webdataset,
    label_tables,
    image_folders,
)
_FILES = (".npz", ".npy", ".parquet", ".mat", *ZIP_ENDINGS, *TAR_ENDINGS)
_KNOWN = "give a folder or an archive of images, an .npz, .npy or .parquet file, or digits"


def open_data(source: AnyPath, how: Reading = AS_STORED) -> DataSet:
    """Find out how a data set is laid out. Images are not decoded yet.

    Args:
        source: A folder, a file or an archive in one of the `LAYOUTS`, "digits", or the name of a data set in the cache
            of Hugging Face's `datasets`.

    Raises:
        InputError: It does not exist, is of an unknown kind, is damaged or ambiguous.
    """
    if source == "digits":
        return DataSet("digits", digits(), how)
    if source == "":  # Path("") would be the current folder
        raise InputError(f"the source is empty; {_KNOWN}")
    path = Path(source)
    source = source if isinstance(source, str) else path
    with reading(path, _KNOWN):
        exists, is_folder = path.exists(), path.is_dir()
    if not exists:
        if is_hub_name(source) and not path.suffix:
            return DataSet(str(source), hub(str(source), how), how)
        raise InputError(f"{source} does not exist; {_KNOWN}")
    if not is_folder and not path.name.lower().endswith(_FILES):
        raise InputError(f"{source} is neither a folder nor a file of a known kind; {_KNOWN}")
    tree = npy_tree(path) if path.suffix.lower() == ".npy" else tree_of(path)
    found = _found(tree, how)
    if found is None and any(is_archive(entry.name) for entry in tree.entries):
        tree = unpacked(tree)
        found = _found(tree, how)
    if found is not None:
        return DataSet(str(source), found, how)
    kinds = sorted({entry.ending or "no ending" for entry in tree.entries})
    held = f"no images that can be read, only files with {', '.join(kinds[:8])}" if kinds else "no files"
    raise InputError(f"{source} holds {held}; {_KNOWN}")


def _found(tree: Tree, how: Reading) -> Found | None:
    return next((found for layout in LAYOUTS if (found := layout(tree, how)) is not None), None)


def load_images(source: AnyPath, split: Split = "train", how: Reading = AS_STORED) -> LabelledImages:
    """Load one split of a data set; see `open_data`.

    Raises:
        InputError: See `open_data` and `DataSet.load`.
    """
    if split not in SPLITS:
        raise InputError(
            f"split={split} is not known; give train, validation or test{did_you_mean(str(split), SPLITS)}"
        )
    return open_data(source, how).load(split)


def open_synthetic(source: AnyPath) -> tuple[LabelledImages, dict[str, Any]]:
    """Sampled images, and how the training data of their release were read (settings of `Reading`, unchecked).

    Args:
        source: What `sample` wrote: an `.npz`, a Parquet file, or a folder of images by class.

    Raises:
        InputError: The source does not exist, is of an unknown kind, or is damaged.
    """
    # Its folders are classes, also if one is called test.
    path = Path(source)
    with reading(path, _KNOWN):
        is_folder = source != "" and path.is_dir()
    by_class = is_folder and any(entry.folder for entry in tree_of(path).entries)
    data = open_data(source, Reading(class_level=1) if by_class else AS_STORED)
    if list(data.found.parts) != ["train"]:
        raise InputError(f"{data.name} holds splits, not sampled images; give what `sample` wrote")
    return data.load("train"), data.found.stored_reading


def load_synthetic(source: AnyPath) -> LabelledImages:
    """The images of `open_synthetic`."""
    return open_synthetic(source)[0]


def from_arrays(
    images: Given,
    labels: Given | None,
    class_names: Sequence[str] | None = None,
    how: Reading = AS_STORED,
) -> LabelledImages:
    """Make labelled images from images and labels that a program holds; both are copied.

    The type alone declares the range of an array's values, unless `how` does: integers are 0..255; floats are in
    [0, 1]. Pillow images, paths and encoded images are read as the files of a folder are, one at a time.

    Args:
        images: An array or a tensor: (N, height, width), (N, height, width, channels) or (N, channels, height, width);
            1 or 3 channels. Or a list of arrays of one shape, of Pillow images or of paths. Or a column of pandas,
            Arrow or `datasets` that holds any of these, or structs of encoded `bytes`, or of a `path`.
        labels: (N,) integers or strings; or (N, M), of which `how.label_column` chooses one. None: one class.
        class_names: All classes, in order. Integer labels are matched to names that are integers; otherwise they count
            through the names from 0. Default: the classes that the type of the labels declares (categories of pandas,
            `ClassLabel` of `datasets`), or else the labels that occur; they are public.
        how: Side, fit and range, for example.

    Raises:
        InputError: A shape, type, value, label or name is not usable.
    """
    return _in_memory(images, labels, class_names, how).load("train")


def dataset_of(images: Given | AnyPath, labels: Given | None, how: Reading = AS_STORED) -> DataSet:
    """What a program hands over, as `from_arrays`, or a path or name of a data set with its labels, as `open_data`.

    The images are not converted yet.

    Raises:
        InputError: See there; or there are labels beside a data set that has its own.
    """
    if not isinstance(images, str | PathLike):
        return _in_memory(images, labels, None, how)
    if labels is not None:
        raise InputError(f"{images} is a data set with labels of its own; leave labels out, or give a list of paths")
    return open_data(images, how)


def _in_memory(images: Given, labels: Given | None, class_names: Sequence[str] | None, how: Reading) -> DataSet:
    column, names, single = None, None, True
    if labels is not None:
        table = getattr(labels, "columns", None)  # of pandas
        column, names = labels_of(labels)
        single = column.ndim == 1
        column_names = None if table is None else np.array([str(name) for name in table])
        column = one_column(column, column_names, how.label_column, "labels")
    if class_names is not None:
        names = tuple(class_names)
    part = Part(images_of(images), column)
    labels_from = "nothing: one class" if labels is None else "the labels given"
    notes = without_effect(how, one_label=single)
    return DataSet("arrays", Found("arrays", {"train": part}, labels_from, names, notes=notes), how)
