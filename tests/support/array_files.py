"""Arrays, and files that hold them, as their usual programs write them."""

import gzip
import io
import itertools
import json
import pickle
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.io import savemat

from dp_sinkhorn.io.errors import MAX_MESSAGE, InputError


def refused(call: Callable[[], Any], *words: str) -> str:
    """Assert that the call raises InputError with one line that holds a remedy and every word."""
    try:
        call()
    except InputError as error:
        message = str(error)
    else:
        raise AssertionError(f"nothing was refused; expected {words}")
    assert message.isprintable()
    assert len(message) <= MAX_MESSAGE
    assert "; " in message or ": " in message
    for word in words:
        assert word in message, message
    return message


def ramp(count: int = 4, side: int = 8) -> np.ndarray:
    """Grey images of all bytes."""
    return (np.arange(count * side * side) % 256).astype(np.uint8).reshape(count, side, side)


def noise(count: int, height: int, width: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Random bytes with black and white among them: (N, height, width) or (N, height, width, 3)."""
    shape = (count, height, width) + ((channels,) if channels > 1 else ())
    images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    images[0].flat[:2] = 0, 255
    return images


def save(folder: Path, name: str = "data.npz", **arrays: Any) -> Path:
    """Write an `.npz`."""
    np.savez(folder / name, **arrays)
    return folder / name


def idx_bytes(values: np.ndarray) -> bytes:
    """An IDX file."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_idx(
    folder: Path, splits: Mapping[str, tuple[Any, Any]], pattern: str = "{}-idx{}-ubyte", packed: bool = False
) -> Path:
    """Images and labels of each split ("train", "t10k")."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, (images, labels) in splits.items():
        for part, values, axes in (("images", np.asarray(images), 3), ("labels", np.asarray(labels), 1)):
            name, data = pattern.format(f"{split}-{part}", axes), idx_bytes(values)
            (folder / name).write_bytes(gzip.compress(data, 1) if packed else data)
    return folder


def encoded(image: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def write_parquet(path: Path, images: np.ndarray, labels: Sequence[Any] | None, names: Sequence[str] = ()) -> Path:
    """As `datasets` writes it: structs of PNG bytes, and a `ClassLabel` if there are names."""
    struct_type = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {"image": pa.array([{"bytes": encoded(image), "path": None} for image in images], struct_type)}
    if labels is not None:
        columns["label"] = pa.array(labels)
    table = pa.table(columns)
    if names:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=50)
    return path


class _Python2(pickle._Pickler):
    """Pickles as Python 2's cPickle: all texts are strings of bytes."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)

    def _text(self, text: str | bytes) -> None:
        data = text.encode("latin-1") if isinstance(text, str) else text
        short = len(data) < 256
        self.write((b"U" + bytes((len(data),)) if short else b"T" + struct.pack("<i", len(data))) + data)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = _text


def python2_pickle(value: Any) -> bytes:
    """As Python 2 and the NumPy of its time wrote it, with protocol 2."""
    buffer = io.BytesIO()
    _Python2(buffer, 2).dump(value)
    return buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def cifar_rows(images: np.ndarray) -> np.ndarray:
    """(N, 32, 32, 3) images as rows of 1024 red, 1024 green and 1024 blue bytes."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def write_cifar10(
    folder: Path,
    train: tuple[np.ndarray, Sequence[int]],
    test: tuple[np.ndarray, Sequence[int]] | None,
    names: Sequence[str],
    batches: int = 2,
    dump: Callable[[Any], bytes] = python2_pickle,
) -> Path:
    """The python version of CIFAR-10 with so many training batches."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    bounds = np.linspace(0, len(train[0]), batches + 1).astype(int)
    for number, (first, last) in enumerate(itertools.pairwise(bounds), 1):
        files[f"data_batch_{number}"] = (train[0][first:last], list(train[1])[first:last])
    if test is not None:
        files["test_batch"] = test
    for name, (images, labels) in files.items():
        batch = {
            "batch_label": f"batch {name}",
            "labels": [int(label) for label in labels],
            "data": cifar_rows(images),
            "filenames": [f"{place}.png" for place in range(len(images))],
        }
        (folder / name).write_bytes(dump(batch))
    meta = {"num_cases_per_batch": 10000, "label_names": list(names), "num_vis": 3072}
    (folder / "batches.meta").write_bytes(dump(meta))
    return folder


def write_cifar100(
    folder: Path,
    splits: Mapping[str, tuple[np.ndarray, Sequence[int], Sequence[int]]],
    fine: Sequence[str],
    coarse: Sequence[str],
    dump: Callable[[Any], bytes] = python2_pickle,
) -> Path:
    """The python version of CIFAR-100: images, fine and coarse labels of each split ("train", "test")."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, (images, own, wider) in splits.items():
        batch = {
            "filenames": [f"{place}.png" for place in range(len(images))],
            "batch_label": "batch 1 of 1",
            "fine_labels": [int(label) for label in own],
            "coarse_labels": [int(label) for label in wider],
            "data": cifar_rows(images),
        }
        (folder / split).write_bytes(dump(batch))
    (folder / "meta").write_bytes(dump({"fine_label_names": list(fine), "coarse_label_names": list(coarse)}))
    return folder


def write_svhn(path: Path, images: np.ndarray, digits: Sequence[int], packed: bool = True) -> Path:
    """`train_32x32.mat`: images at the last axis, labels as a column, the digit 0 as 10."""
    column = np.array([digit or 10 for digit in digits], np.uint8)[:, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"X": np.ascontiguousarray(images.transpose(1, 2, 3, 0)), "y": column}, do_compression=packed)
    return path
