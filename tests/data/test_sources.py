"""All input formats: images are written here byte by byte and read back; invalid ones are refused."""

import gzip
import io
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dp_sinkhorn.data import (
    LabelledImages,
    files,
    from_arrays,
    has_test_split,
    load_images,
    load_synthetic,
)
from dp_sinkhorn.io.errors import InputError

pytestmark = pytest.mark.quick


def refused(call: Callable[[], Any], *words: str) -> None:
    """Assert that the call raises InputError with one line that holds a remedy and every word."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable()
    assert "; " in message or ": " in message
    for word in words:
        assert word in message, message


# --- arrays ---------------------------------------------------------------------------------------------


def ramp(count: int = 4, side: int = 8) -> np.ndarray:
    return (np.arange(count * side * side) % 256).astype(np.uint8).reshape(count, side, side)


def test_arrays_round_trip_in_grey_and_rgb() -> None:
    for images in (ramp(), np.stack([ramp(), 255 - ramp(), ramp() // 2], axis=-1)):
        back, labels = from_arrays(images, [2, 0, 1, 0]).arrays()
        assert np.array_equal(back, images)
        assert labels.tolist() == [2, 0, 1, 0]


def test_a_last_axis_of_one_channel_is_grey() -> None:
    assert from_arrays(ramp()[..., None], None).shape == (1, 8, 8)


def test_arrays_are_copied() -> None:
    images, labels = ramp(), np.zeros(4, np.int64)
    loaded = from_arrays(images, labels)
    images[:], labels[:] = 9, 9
    assert np.array_equal(loaded.arrays()[0], ramp())
    assert loaded.labels.tolist() == [0] * 4


def test_read_only_arrays_tensors_and_lists_are_accepted() -> None:
    images = ramp()
    images.setflags(write=False)
    for same in (images, torch.from_numpy(ramp()), ramp().tolist()):
        assert np.array_equal(from_arrays(same, [0, 0, 0, 0]).arrays()[0], ramp())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_in_0_1_are_rounded_to_bytes(dtype: type) -> None:
    images = np.zeros((1, 8, 8), dtype)
    images[0, 0, :5] = [1.0, 0.5, 0.2, 0.001, 0.003]
    # 127.5 rounds to even. In half precision, too, 0.2 and the small values round to the same byte.
    assert from_arrays(images, None).pixels[0, 0, 0, :6].tolist() == [255, 128, 51, 0, 1, 0]


def test_a_float_image_is_never_rescaled_to_its_own_range() -> None:
    dim = np.full((1, 8, 8), 0.1, np.float32)
    assert from_arrays(dim, None).pixels.unique().tolist() == [26]  # 25.5 in float32 lies above 25.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -0.01, 1.01, 255.0])
def test_a_float_outside_0_1_is_refused_with_its_position(bad: float) -> None:
    images = np.zeros((3, 8, 9, 3), np.float32)
    images[2, 7, 8, 1] = bad
    refused(lambda: from_arrays(images, None), f"images[2] is {np.float32(bad)} at row 7, column 8, channel 1")
    refused(lambda: from_arrays(images, None), "divide")


def test_the_first_bad_value_is_named_even_after_many_images() -> None:
    images = np.zeros((70_000, 8, 8), np.int16)  # more than one block
    images[69_998, 1, 2] = 300
    images[69_999, 0, 0] = -5
    refused(lambda: from_arrays(images, None), "images[69998] is 300 at row 1, column 2", "0..255")


def test_a_list_of_images_of_different_types_is_refused() -> None:
    """NumPy would convert all to floats, so one record would turn the 1 of all others from 1/255 to white."""
    one, others = np.ones((8, 8), np.float32), [np.ones((8, 8), np.uint8)] * 3
    assert from_arrays(others, None).pixels.unique().tolist() == [1]
    refused(lambda: from_arrays([*others, one], None), "images are of types float32 and uint8", "give all of one type")
    lists = [image.tolist() for image in (*others, one)]
    refused(lambda: from_arrays(lists, None), "images are of types float64 and int64")


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.int32, np.int64, np.uint64, ">i4"])
def test_all_integer_types_in_0_255_are_accepted(dtype: Any) -> None:
    top = min(255, np.iinfo(dtype).max)
    assert from_arrays(np.full((1, 8, 8), top, dtype), None).pixels.unique().tolist() == [top]


@pytest.mark.parametrize("bad", [-1, 256])
def test_integers_outside_0_255_are_refused(bad: int) -> None:
    refused(lambda: from_arrays(np.full((1, 8, 8), bad), None), f"is {bad} at row 0", "rescale")


@pytest.mark.parametrize(
    ("images", "word"),
    [
        (np.zeros((4, 64), np.uint8), "(4, 64)"),
        (np.zeros((4, 1, 28, 28), np.uint8), "transpose"),
        (np.zeros((4, 8, 8, 4), np.uint8), "4 channels"),
        (np.zeros((0, 8, 8), np.uint8), "(0, 8, 8, 1)"),
        (np.zeros((4, 0, 8), np.uint8), "(4, 0, 8, 1)"),
        (np.zeros((4, 7, 8), np.uint8), "7x8"),
        (np.zeros((4, 65, 64), np.uint8), "65x64"),
        (np.zeros((4, 8, 8), bool), "bool"),
        (np.zeros((4, 8, 8), complex), "complex128"),
        (np.full((4, 8, 8), "x"), "<U1"),
        (np.full((4, 8, 8), None), "object"),
        ([[[1, 2], [3]]], "images are not an array"),
        (torch.zeros(4, 8, 8, requires_grad=True), "images are not an array"),
    ],
)
def test_unusable_image_arrays_are_refused(images: Any, word: str) -> None:
    refused(lambda: from_arrays(images, None), word)


def test_integer_labels_declare_max_plus_one_classes() -> None:
    images = from_arrays(ramp(), np.array([0, 3, 3, 1], np.uint8))
    assert images.class_names == ("0", "1", "2", "3")
    assert images.labels.dtype == torch.int64


def test_labels_of_one_column_are_squeezed() -> None:
    assert from_arrays(ramp(), np.array([[0], [3], [3], [1]])).labels.tolist() == [0, 3, 3, 1]


def test_string_labels_become_sorted_classes() -> None:
    images = from_arrays(ramp(), ["nv", "mel", "nv", "bcc"])
    assert images.class_names == ("bcc", "mel", "nv")
    assert images.labels.tolist() == [2, 1, 2, 0]


def test_python_strings_are_accepted_as_labels() -> None:
    """pandas stores labels as Python strings."""
    found = from_arrays(ramp(), np.array(["emu", "cat", "dog", "cat"], object))
    assert found.class_names == ("cat", "dog", "emu")
    assert found.labels.tolist() == [2, 0, 1, 0]


def test_given_class_names_fix_the_number_and_order_of_classes() -> None:
    named = from_arrays(ramp(), ["b", "a", "b", "a"], class_names=["b", "c", "a"])
    assert named.labels.tolist() == [0, 2, 0, 2]
    assert from_arrays(ramp(), [0, 0, 1, 1], class_names=["x", "y", "z"]).num_classes == 3


def test_no_labels_and_one_label_are_one_class() -> None:
    assert from_arrays(ramp(), None).class_names == ("0",)
    assert from_arrays(ramp(), [0, 0, 0, 0]).num_classes == 1


@pytest.mark.parametrize(
    ("labels", "names", "word"),
    [
        ([0, 1, -1, 0], None, "label -1"),
        ([0, 1, 10**9, 0], None, "label 1000000000"),
        ([0.0, 1.0, 0.0, 1.0], None, "float64"),
        ([True, False, True, False], None, "bool"),
        ([b"a", b"b", b"a", b"b"], None, "|S1"),
        (np.array([0, None, 1, 1], object), None, "Python objects (NoneType and int)"),
        (np.array(["a", "b" * 10**6, "a", "a"], object), None, "1000000 characters"),
        (np.eye(4, dtype=int), None, "(4, 4)"),
        (3, None, "()"),
        ([], None, "no labels"),
        ([0, 1, 0], None, "3 labels do not match 4 images"),
        ([[0], [1, 2]], None, "labels are not an array"),
        ([0, 1, 2, 0], ["a", "b"], "labels range from 0 to 2"),
        (["a", "b", "c", "a"], ["a", "b"], "label 'c'"),
        (["a", "b\n", "a", "a"], None, r"'b\n'"),
        ([0, 0, 1, 1], ["a", "a"], "'a' is given twice"),
        ([0, 0, 0, 0], [], "0 class names"),
        ([0, 0, 0, 0], [""], "class name ''"),
        (None, ["a", "b"], "labels are missing for 2 classes"),
    ],
)
def test_unusable_labels_are_refused(labels: Any, names: list[str] | None, word: str) -> None:
    refused(lambda: from_arrays(ramp(), labels, names), word)


def test_resizing_keeps_flat_areas_flat_and_in_place() -> None:
    halves = np.zeros((2, 100, 80, 3), np.uint8)
    halves[0, :, 40:] = [255, 128, 3]
    halves[1] = [9, 8, 7]
    pixels = from_arrays(halves, None, image_side=16).pixels
    assert pixels.shape == (2, 3, 16, 16)
    assert (pixels[0, :, :, :5] == 0).all()
    assert (pixels[0, :, :, 11:] == torch.tensor([255, 128, 3])[:, None, None]).all()
    assert (pixels[1] == torch.tensor([9, 8, 7])[:, None, None]).all()


def test_resizing_one_image_does_not_depend_on_the_others() -> None:
    images = ramp(5, 20)
    together = from_arrays(images, None, image_side=9).pixels
    alone = from_arrays(images[3:4], None, image_side=9).pixels
    assert torch.equal(together[3], alone[0])


@pytest.mark.parametrize("side", [0, 7, 65, 10**9])
def test_an_image_side_out_of_range_is_refused(side: int, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", "L", 5)
    refused(lambda: from_arrays(ramp(), None, image_side=side), f"image_side={side}", "8..64")
    refused(lambda: load_images(tmp_path, image_side=side), f"image_side={side}", "8..64")


# --- digits ---------------------------------------------------------------------------------------------


def test_digits_have_a_fixed_split_and_a_fixed_range() -> None:
    train, test = load_images("digits"), load_images("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.class_names == test.class_names == tuple("0123456789")
    # In the UCI file the first digit is a 0, and its first row is 0 0 5 13 9 1 0 0 of 16.
    assert train.pixels[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert train.labels[:10].tolist() == list(range(10))
    assert test.labels[-3:].tolist() == [8, 9, 8]
    assert int(train.pixels.max()) == 255
    assert has_test_split("digits")


def test_digits_can_be_resized() -> None:
    assert load_images("digits", image_side=16).shape == (1, 16, 16)


# --- IDX ------------------------------------------------------------------------------------------------


def idx_bytes(values: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_idx(folder: Path, pattern: str = "{}-idx{}-ubyte", packed: bool = False) -> Path:
    """Three training images (labels 0, 2, 1) and one test image (label 2), filled with 10·(label + 1)."""
    for prefix, labels in (("train", [0, 2, 1]), ("t10k", [2])):
        column = np.array(labels)
        images = np.broadcast_to(10 * (column + 1)[:, None, None], (len(labels), 8, 9))
        for part, values, axes in (("images", images, 3), ("labels", column, 1)):
            name, data = pattern.format(f"{prefix}-{part}", axes), idx_bytes(values)
            (folder / name).write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.mark.parametrize(
    ("pattern", "packed"),
    [
        ("{}-idx{}-ubyte", False),
        ("{}-idx{}-ubyte.gz", True),
        ("{}.idx{}-ubyte", False),
        ("{}.idx{}-ubyte.gz", True),
    ],
)
def test_idx_files_are_read_under_all_their_names(tmp_path: Path, pattern: str, packed: bool) -> None:
    write_idx(tmp_path, pattern, packed)
    train, test = load_images(str(tmp_path)), load_images(tmp_path, "test")
    assert train.shape == (1, 8, 9)
    assert train.pixels[:, 0, 7, 8].tolist() == [10, 30, 20]
    assert train.labels.tolist() == [0, 2, 1]
    assert test.labels.tolist() == [2]
    assert train.class_names == test.class_names == ("0", "1", "2")
    assert has_test_split(tmp_path)


def test_idx_images_keep_their_rows(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.arange(3 * 72).reshape(3, 8, 9)))
    assert load_images(tmp_path).pixels[1, 0, 2].tolist() == list(range(72 + 18, 72 + 27))


def test_an_idx_folder_may_lack_a_test_split(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    assert not has_test_split(tmp_path)
    assert len(load_images(tmp_path)) == 3
    refused(lambda: load_images(tmp_path, "test"), str(tmp_path), "no test split")


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_a_missing_idx_file_is_named(tmp_path: Path, name: str) -> None:
    write_idx(tmp_path)
    (tmp_path / name).unlink()
    refused(lambda: load_images(tmp_path), name)


def test_a_test_label_above_the_training_labels_is_refused(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.array([3])))
    refused(lambda: load_images(tmp_path, "test"), "3", "0..2")


GOOD = idx_bytes(np.zeros((3, 8, 9)))
BAD_IDX = [
    (b"", "0x"),  # empty
    (b"\x89PNG" + GOOD[4:], "0x89504e47"),  # another magic number
    (b"\0\0\x0d\x03" + GOOD[4:], "0x00000d03"),  # floats
    (idx_bytes(np.zeros(3)), "0x00000801"),  # labels in place of images
    (GOOD[:9], "9 bytes"),  # a cut header
    (GOOD[:-1], "215 of the 216 bytes"),  # a cut payload
    (GOOD + b"\0", "more than the 216 bytes"),  # more than promised
    (struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "promises"),  # a huge promise
    (struct.pack(">4B3I", 0, 0, 8, 3, 2**21, 32, 32), "0 of the 2147483648 bytes"),  # a promise of 2 GiB
    (idx_bytes(np.zeros((0, 8, 9))), "(0, 8, 9"),  # no images
    (idx_bytes(np.zeros((3, 0, 9))), "(3, 0, 9"),  # no pixels
    (idx_bytes(np.zeros((3, 2, 2))), "2x2"),  # small images
    (idx_bytes(np.zeros((2, 8, 9))), "3 labels do not match 2 images"),  # too few images
]


@pytest.mark.parametrize("packed", [False, True])
def test_a_bad_idx_file_is_refused_without_a_huge_allocation(tmp_path: Path, packed: bool) -> None:
    write_idx(tmp_path, "{}-idx{}-ubyte.gz" if packed else "{}-idx{}-ubyte", packed)
    path = tmp_path / ("train-images-idx3-ubyte.gz" if packed else "train-images-idx3-ubyte")
    tracemalloc.start()
    try:
        for data, word in BAD_IDX:
            path.write_bytes(gzip.compress(data) if packed else data)
            refused(lambda: load_images(tmp_path), word)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_an_unpacked_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 215)
    refused(lambda: load_images(write_idx(tmp_path)), "216 bytes, more than 215")


def test_a_gzip_bomb_is_read_up_to_the_promised_size_only(tmp_path: Path) -> None:
    write_idx(tmp_path, "{}-idx{}-ubyte.gz", packed=True)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(GOOD + bytes(2**25)))
    tracemalloc.start()
    try:
        refused(lambda: load_images(tmp_path), "more than the 216 bytes")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("damage", ["not gzip", "cut", "flipped"])
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, damage: str) -> None:
    write_idx(tmp_path, "{}-idx{}-ubyte.gz", packed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    data = bytearray(path.read_bytes())
    if damage == "not gzip":
        data = bytearray(GOOD)
    elif damage == "cut":
        data = data[:-6]
    else:
        data[-6] ^= 1  # in the checksum
    path.write_bytes(data)
    refused(lambda: load_images(tmp_path), str(path), "cannot be read", "get the file again")


# --- npz ------------------------------------------------------------------------------------------------


def save(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def test_npz_round_trip_with_two_splits(tmp_path: Path) -> None:
    rgb = np.stack([ramp(2), ramp(2) // 2, 255 - ramp(2)], axis=-1)
    path = save(
        tmp_path,
        train_images=np.asfortranarray(rgb),
        train_labels=np.array([[2], [0]]),
        test_images=rgb[:1],
        test_labels=[1],
        val_images=np.zeros(3),
    )
    images, labels = load_images(path).arrays()
    assert np.array_equal(images, rgb)
    assert labels.tolist() == [2, 0]
    test = load_images(str(path), "test")
    assert np.array_equal(test.arrays()[0], rgb[:1])
    assert test.class_names == ("0", "1", "2")
    assert has_test_split(path)


def test_a_compressed_npz_and_an_upper_case_ending_are_accepted(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", train_images=ramp())
    (tmp_path / "a.npz").rename(tmp_path / "B.NPZ")
    assert np.array_equal(load_images(tmp_path / "B.NPZ").arrays()[0], ramp())


def test_npz_without_labels_is_unconditional_and_may_lack_a_test_split(tmp_path: Path) -> None:
    path = save(tmp_path, train_images=ramp())
    assert load_images(path).class_names == ("0",)
    assert not has_test_split(path)
    refused(lambda: load_images(path, "test"), str(path), "no test split")


def test_errors_in_an_npz_name_the_file_and_the_split(tmp_path: Path) -> None:
    path = save(tmp_path, train_images=ramp(), train_labels=[0, 0, 0, 1], test_images=ramp() / 2.0)
    refused(lambda: load_images(path, "test"), f"{path}, test split: labels are missing")
    path = save(tmp_path, train_images=np.zeros((4, 100, 100), np.uint8))
    refused(lambda: load_images(path), f"{path}, train split: images are 100x100 pixels", "--set image_side=32")


def test_npz_accepts_floats_string_labels_and_an_image_side(tmp_path: Path) -> None:
    path = save(
        tmp_path,
        train_images=np.ones((2, 100, 100), np.float32),
        train_labels=["dog", "cat"],
        test_images=np.zeros((1, 50, 70)),
        test_labels=["dog"],
    )
    train, test = load_images(path, image_side=12), load_images(path, "test", 12)
    assert train.shape == test.shape == (1, 12, 12)
    assert train.pixels.unique().tolist() == [255]
    assert train.class_names == test.class_names == ("cat", "dog")
    assert test.labels.tolist() == [1]


def test_npz_class_names_declare_the_classes(tmp_path: Path) -> None:
    path = save(tmp_path, train_images=ramp(), train_labels=[0, 1, 1, 0], class_names=["no", "yes", "never"])
    assert load_images(path).class_names == ("no", "yes", "never")


@pytest.mark.parametrize("names", [[1, 2], [["a"], ["b"]]])
def test_npz_class_names_must_be_strings(tmp_path: Path, names: Any) -> None:
    path = save(tmp_path, train_images=ramp(), train_labels=[0, 1, 1, 0], class_names=names)
    refused(lambda: load_images(path), "class_names", str(path))


@pytest.mark.parametrize(("labels", "word"), [([3], "0..2"), (None, "labels are missing for 3 classes")])
def test_npz_test_labels_must_fit_the_training_labels(tmp_path: Path, labels: Any, word: str) -> None:
    arrays: dict[str, Any] = {"train_images": ramp(1), "train_labels": [2], "test_images": ramp(1)}
    if labels is not None:
        arrays["test_labels"] = labels
    refused(lambda: load_images(save(tmp_path, **arrays), "test"), word)


def test_an_npz_without_train_images_is_refused_with_its_contents(tmp_path: Path) -> None:
    refused(lambda: load_images(save(tmp_path, images=ramp(), labels=[0] * 4)), "images, labels", "train_images")
    refused(lambda: load_images(save(tmp_path)), "only nothing")


@pytest.mark.parametrize("key", ["train_images", "train_labels"])
def test_a_pickled_array_is_never_loaded(tmp_path: Path, key: str) -> None:
    arrays: dict[str, Any] = {"train_images": ramp(), "train_labels": [0] * 4}
    arrays[key] = np.array([Bomb()] * 4, object)
    refused(
        lambda: load_images(save(tmp_path, **arrays)),
        f"{key} in",
        "is a pickled array, which is never loaded",
    )


class Bomb:
    """Ends the test run if it is ever unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (3,)


def write_member(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_images.npy", data)
    return path


def npy_bytes(header: str, payload: bytes, version: int = 1) -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + bytes((version, 0)) + struct.pack("<H", len(text)) + text + payload


UINT8 = "{{'descr': '|u1', 'fortran_order': False, 'shape': {}}}"


def test_the_npy_writer_of_these_tests_is_correct(tmp_path: Path) -> None:
    path = write_member(tmp_path / "a.npz", npy_bytes(UINT8.format((4, 8, 8)), ramp().tobytes()))
    assert np.array_equal(load_images(path).arrays()[0], ramp())


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (npy_bytes(UINT8.format((4, 8, 8)), bytes(255)), "255 of the 256 bytes"),
        (npy_bytes(UINT8.format((4, 8, 8)), bytes(257)), "more than the 256 bytes"),
        (npy_bytes(UINT8.format((2**20, 32, 32)), bytes(9)), "9 of the 1073741824 bytes"),
        (npy_bytes(UINT8.format((2**40, 32, 32)), bytes(9)), "promises"),
        (npy_bytes(UINT8.format((-1, 8, 8)), b""), "negative"),
        (npy_bytes(UINT8.format((0, 8, 8)), b""), "(0, 8, 8"),
        (npy_bytes(UINT8.format((4, 8, 8)), ramp().tobytes(), version=3), "version (3, 0)"),
        (npy_bytes("{'descr': '|u1'}", b""), "cannot be read"),
        (npy_bytes("__import__('os')._exit(3)", b""), "cannot be read"),
        (b"hello", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_a_bad_array_in_an_npz_is_refused(tmp_path: Path, data: bytes, word: str) -> None:
    path = write_member(tmp_path / "bad.npz", data)
    tracemalloc.start()
    try:
        refused(lambda: load_images(path), word)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
def test_a_damaged_npz_is_refused(tmp_path: Path, damage: str) -> None:
    path = save(tmp_path, train_images=ramp())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    wrong = {"empty": b"", "text": b"not a zip\n", "cut": path.read_bytes()[:-30], "flipped": bytes(data)}
    path.write_bytes(wrong[damage])
    refused(lambda: load_images(path), str(path), "cannot be read", "numpy.savez")


# --- folders --------------------------------------------------------------------------------------------


def picture(path: Path, mode: str, colour: Any, size: tuple[int, int] = (8, 8), **options: Any) -> None:
    """Save an image of one colour; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


def first_pixels(images: LabelledImages) -> list[list[int]]:
    return images.pixels[:, :, 0, 0].tolist()


def test_classes_are_sorted_folders_and_files_are_sorted(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "dog" / "b.png", "L", 40)
    picture(tmp_path / "train" / "dog" / "a.PNG", "L", 30)
    picture(tmp_path / "train" / "cat" / "c.bmp", "L", 20)
    picture(tmp_path / "test" / "cat" / "d.png", "L", 10)
    picture(tmp_path / "val" / "bird" / "e.png", "L", 10)
    (tmp_path / "test" / "dog").mkdir()
    train, test = load_images(tmp_path), load_images(tmp_path, "test")
    assert train.class_names == test.class_names == ("cat", "dog")
    assert first_pixels(train) == [[20], [30], [40]]
    assert train.labels.tolist() == [0, 1, 1]
    assert (test.labels.tolist(), first_pixels(test)) == ([0], [[10]])
    assert has_test_split(tmp_path)


def test_the_training_images_determine_colour_mode_and_size(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "a.png", "L", 20)
    picture(tmp_path / "test" / "b.png", "RGB", (30, 30, 30))
    assert first_pixels(load_images(tmp_path, "test")) == [[30]]
    picture(tmp_path / "train" / "c.png", "RGB", (1, 2, 3))
    picture(tmp_path / "test" / "b.png", "L", 30)
    assert first_pixels(load_images(tmp_path, "test")) == [[30, 30, 30]]
    picture(tmp_path / "test" / "b.png", "L", 30, (9, 8))
    refused(lambda: load_images(tmp_path, "test"), "8x8", "9x8", "--set image_side=32")
    assert load_images(tmp_path, "test", 8).shape == (3, 8, 8)


def test_hidden_files_and_files_of_other_types_are_ignored(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "a.png", "L", 20)
    picture(tmp_path / ".cache" / "b.png", "L", 30)
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"junk")
    (tmp_path / "cat" / "notes.txt").write_text("hello")
    (tmp_path / "README").write_text("hello")
    images = load_images(tmp_path)
    assert images.class_names == ("cat",)
    assert first_pixels(images) == [[20]]


def test_a_folder_without_train_and_test_has_no_test_split(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "a.png", "L", 20)
    assert not has_test_split(tmp_path)
    refused(lambda: load_images(tmp_path, "test"), str(tmp_path), "no test split")


def test_images_directly_in_the_folder_are_one_class(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", "L", 20, (9, 8))
    picture(tmp_path / "b.png", "L", 30, (9, 8))
    images = load_images(tmp_path)
    assert images.class_names == ("0",)
    assert images.shape == (1, 8, 9)
    assert first_pixels(images) == [[20], [30]]
    assert not has_test_split(tmp_path)


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff"])
def test_images_of_every_supported_ending_are_read(tmp_path: Path, ending: str) -> None:
    options = {"lossless": True} if ending == "webp" else {}
    picture(tmp_path / f"a.{ending}", "RGB", (200, 200, 200), **options)
    assert load_images(tmp_path).pixels.to(int).sub(200).abs().max() <= 1  # jpeg


@pytest.mark.parametrize(
    ("mode", "colour", "value"),
    [("1", 1, 255), ("L", 77, 77), ("LA", (77, 0), 77), ("I;16", 257 * 77 + 100, 77)],
)
def test_grey_modes_stay_grey(tmp_path: Path, mode: str, colour: Any, value: int) -> None:
    picture(tmp_path / "a.png", mode, colour)
    picture(tmp_path / "b.png", "L", 5)
    assert first_pixels(load_images(tmp_path)) == [[value], [5]]


def test_sixteen_bit_images_use_the_range_0_to_65535(tmp_path: Path) -> None:
    for index, value in enumerate((0, 128, 129, 65535)):
        picture(tmp_path / f"{index}.tif", "I;16", value)
    assert first_pixels(load_images(tmp_path)) == [[0], [0], [1], [255]]


@pytest.mark.parametrize(
    ("mode", "colour", "ending"),
    [("RGB", (1, 2, 3), "png"), ("RGBA", (1, 2, 3, 0), "png"), ("CMYK", (254, 253, 252, 0), "tif")],
)
def test_one_colour_image_makes_all_rgb(tmp_path: Path, mode: str, colour: Any, ending: str) -> None:
    picture(tmp_path / f"a.{ending}", mode, colour)
    picture(tmp_path / "b.png", "L", 5)
    picture(tmp_path / "c.png", "I;16", 257 * 6)
    assert first_pixels(load_images(tmp_path)) == [[1, 2, 3], [5, 5, 5], [6, 6, 6]]


def test_a_palette_with_transparency_is_rgb(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "a.png", transparency=bytes([128, 64]))  # Pillow warns about it
    assert first_pixels(load_images(tmp_path)) == [[10, 20, 30]]


def test_rows_columns_and_colours_keep_their_order(tmp_path: Path) -> None:
    pixels = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(load_images(tmp_path).arrays()[0][0], pixels)


def test_images_of_different_sizes_need_an_image_side(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png", "L", 20, (8, 8))
    picture(tmp_path / "b" / "2.png", "L", 30, (300, 200))
    refused(lambda: load_images(tmp_path), "8x8", "300x200", "--set image_side=32")
    images = load_images(tmp_path, image_side=32)
    assert images.shape == (1, 32, 32)
    assert [images.pixels[i].unique().tolist() for i in (0, 1)] == [[20], [30]]


@pytest.mark.parametrize("size", [(65, 64), (7, 8)])
def test_images_of_an_unsupported_size_need_an_image_side(tmp_path: Path, size: tuple[int, int]) -> None:
    picture(tmp_path / "a.png", "L", 20, size)
    refused(lambda: load_images(tmp_path), f"{size[0]}x{size[1]}", "--set image_side=32")


def test_float_and_32_bit_images_are_refused(tmp_path: Path) -> None:
    for mode in ("F", "I"):
        picture(tmp_path / "a.tif", mode, 1)
        refused(lambda: load_images(tmp_path), "a.tif", f"mode {mode}")


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp", "webp", "tif"])
def test_a_corrupt_image_is_named(tmp_path: Path, ending: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    path = tmp_path / "cat" / f"bad.{ending}"
    path.parent.mkdir()
    noise.save(path)
    data = path.read_bytes()
    other = io.BytesIO()
    noise.save(other, format="PPM")
    for damaged in (b"", b"hello\nworld", data[: len(data) // 2], other.getvalue()):
        path.write_bytes(damaged)
        refused(lambda: load_images(tmp_path), f"bad.{ending}", "cannot be read", "replace or remove")


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png", "L", 20, (100, 100))
    for limit in (9_000, 4_000):  # Pillow warns above the limit, and raises above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        refused(lambda: load_images(tmp_path, image_side=32), "a.png", "decompression bomb")


def test_links_may_not_leave_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    picture(tmp_path / "outside" / "secret.png", "L", 1)
    picture(root / "cat" / "a.png", "L", 20)
    (root / "cat" / "b.png").symlink_to(root / "cat" / "a.png")
    assert first_pixels(load_images(root)) == [[20], [20]]
    (root / "cat" / "c.png").symlink_to(tmp_path / "outside" / "secret.png")
    refused(lambda: load_images(root), "c.png is a link out of")
    (root / "cat" / "c.png").unlink()
    (root / "dog").symlink_to(tmp_path / "outside")
    refused(lambda: load_images(root), "dog is a link out of")


def test_a_split_folder_may_not_be_a_link_to_elsewhere(tmp_path: Path) -> None:
    picture(tmp_path / "outside" / "cat" / "a.png", "L", 1)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "train").symlink_to(tmp_path / "outside")
    refused(lambda: load_images(tmp_path / "root"), "train is a link out of")


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    picture(tmp_path / "real" / "cat" / "a.png", "L", 20)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert first_pixels(load_images(tmp_path / "link")) == [[20]]


def test_broken_links_and_pipes_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", "L", 20)
    (tmp_path / "b.png").symlink_to(tmp_path / "nothing.png")
    refused(lambda: load_images(tmp_path), "b.png")
    (tmp_path / "b.png").unlink()
    os.mkfifo(tmp_path / "c.png")
    refused(lambda: load_images(tmp_path), "c.png")


def test_test_classes_must_be_the_training_classes(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "test/cat", "test/fox"):
        picture(tmp_path / name / "a.png", "L", 20)
    refused(lambda: load_images(tmp_path, "test"), "'fox'")
    (tmp_path / "test" / "fox" / "a.png").unlink()
    (tmp_path / "test" / "fox").rmdir()
    refused(lambda: load_images(tmp_path, "test"), "'dog'")
    (tmp_path / "test" / "dog").mkdir()
    assert load_images(tmp_path, "test").class_names == ("cat", "dog")


def test_ambiguous_folders_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "mixed" / "a.png", "L", 20)
    picture(tmp_path / "mixed" / "cat" / "b.png", "L", 20)
    refused(lambda: load_images(tmp_path / "mixed"), "a.png", "'cat'")
    picture(tmp_path / "deep" / "cat" / "small" / "a.png", "L", 20)
    refused(lambda: load_images(tmp_path / "deep"), "small", "one level up")
    for vehicle in ("train", "plane"):
        picture(tmp_path / "vehicles" / vehicle / "a.png", "L", 20)
    refused(lambda: load_images(tmp_path / "vehicles"), "'plane'", "'train'")


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    refused(lambda: load_images(tmp_path), str(tmp_path), "no images", ".png")
    (tmp_path / "train").mkdir()
    refused(lambda: load_images(tmp_path), "no images")
    (tmp_path / "train" / "cat").mkdir()
    (tmp_path / "train" / "cat" / "a.txt").write_text("x")
    refused(lambda: load_images(tmp_path), "no images")


def test_a_class_name_with_a_line_break_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a\nb" / "c.png", "L", 20)
    refused(lambda: load_images(tmp_path), r"a\nb")


# --- everything else ------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [load_images, load_synthetic, has_test_split])
def test_sources_of_an_unknown_kind_are_refused(call: Callable[[Any], Any], tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2")
    os.mkfifo(tmp_path / "pipe.npz")  # opening it would block
    refused(lambda: call(tmp_path / "data.csv"), "data.csv", "neither", "'digits'")
    refused(lambda: call(tmp_path / "pipe.npz"), "pipe.npz", "neither")
    refused(lambda: call(tmp_path / "missing"), "missing", "does not exist", "'digits'")
    refused(lambda: call("no\nsuch"), r"no\nsuch does not exist")
    refused(lambda: call("x" * 5000), "give 'digits'")
    refused(lambda: call("a\0b"), r"a\x00b", "give 'digits'")
    refused(lambda: call(""), "empty")


def test_an_unreadable_file_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    path = save(tmp_path, train_images=ramp())
    monkeypatch.setattr(zipfile, "ZipFile", deny)
    refused(lambda: load_images(path), str(path), "Permission denied")
    monkeypatch.setattr(Path, "iterdir", deny)
    refused(lambda: load_images(tmp_path), str(tmp_path), "Permission denied")


def test_only_train_and_test_are_splits() -> None:
    refused(lambda: load_images("digits", "validation"), "split=validation")  # type: ignore[arg-type]


def test_a_synthetic_npz_is_loaded(tmp_path: Path) -> None:
    images = load_synthetic(save(tmp_path, images=ramp(), labels=[1, 0, 1, 1]))
    assert np.array_equal(images.arrays()[0], ramp())
    assert images.labels.tolist() == [1, 0, 1, 1]
    assert load_synthetic(save(tmp_path, images=ramp())).num_classes == 1
    refused(lambda: load_synthetic(save(tmp_path, train_images=ramp())), "train_images", "no array images")


def test_a_synthetic_folder_has_no_splits(tmp_path: Path) -> None:
    for label, name in enumerate(("plane", "test", "train")):
        picture(tmp_path / name / "a.png", "L", label)
    images = load_synthetic(tmp_path)
    assert images.class_names == ("plane", "test", "train")
    assert first_pixels(images) == [[0], [1], [2]]


def test_digits_and_idx_are_not_synthetic_images(tmp_path: Path) -> None:
    refused(lambda: load_synthetic("digits"), "digits", ".npz")
    refused(lambda: load_synthetic(write_idx(tmp_path)), str(tmp_path), ".npz")


# --- real data ------------------------------------------------------------------------------------------


def real(name: str) -> Path:
    root = os.environ.get("DP_SINKHORN_DATA")
    if root is None or not (Path(root) / name).exists():
        pytest.skip(f"set DP_SINKHORN_DATA to a folder that holds {name}")
    return Path(root) / name


def test_mnist_has_its_known_counts_and_mean() -> None:
    train = load_images(real("mnist"))
    assert train.pixels.shape == (60_000, 1, 28, 28)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert train.labels.bincount().tolist() == counts
    assert train.pixels.float().mean() == pytest.approx(0.1307 * 255, abs=0.013)  # the usual normaliser
    assert len(load_images(real("mnist"), "test")) == 10_000


def test_fashion_mnist_has_its_known_counts_and_mean() -> None:
    train = load_images(real("fashion_mnist"))
    assert train.labels.bincount().tolist() == [6000] * 10
    assert train.pixels.float().mean() == pytest.approx(0.2860 * 255, abs=0.02)


def test_ham10000_has_its_known_classes_and_size() -> None:
    train = load_images(real("ham10000_32.npz"))
    test = load_images(real("ham10000_32.npz"), "test")
    assert train.shape == (3, 32, 32)
    assert train.class_names == test.class_names == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert len(train) + len(test) == 10_015


def test_pneumonia_mnist_has_its_known_counts() -> None:
    train = load_images(real("pneumoniamnist.npz"))
    assert train.class_names == ("normal", "pneumonia")
    assert train.labels.bincount().tolist() == [1214, 3494]
    assert len(load_images(real("pneumoniamnist.npz"), "test")) == 624
