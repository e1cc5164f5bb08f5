"""SVHN's MATLAB files are read as SciPy writes them; what is no array of numbers, or a bomb, is refused."""

import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from dp_sinkhorn.data import Reading, files, load_images, open_data
from dp_sinkhorn.data.layouts import svhn
from dp_sinkhorn.io.errors import InputError
from support.array_files import noise, refused, write_svhn

TRAIN, TEST = noise(6, 32, 32, 3, seed=1), noise(3, 32, 32, 3, seed=2)
DIGITS, TEST_DIGITS = [0, 9, 3, 3, 0, 1], [1, 0, 9]


@pytest.mark.parametrize("packed", [True, False])
def test_the_cropped_digits_are_read(tmp_path, packed):
    write_svhn(tmp_path / "train_32x32.mat", TRAIN, DIGITS, packed)
    write_svhn(tmp_path / "test_32x32.mat", TEST, TEST_DIGITS, packed)
    data = open_data(tmp_path)
    for split, images, digits in (("train", TRAIN, DIGITS), ("test", TEST, TEST_DIGITS)):
        read, labels = data.load(split).arrays()
        assert np.array_equal(read, images)
        assert labels.tolist() == digits
    assert data.class_names == ("0", "1", "3", "9")  # the digit 0 is stored as 10
    assert data.found.unused == []


def test_the_extra_images_are_listed_and_not_read(tmp_path, monkeypatch):
    write_svhn(tmp_path / "train_32x32.mat", TRAIN, DIGITS)
    (tmp_path / "extra_32x32.mat").write_bytes(b"not even a MATLAB file")
    assert open_data(tmp_path).found.unused == [("the split 'extra', which no verb uses", "extra_32x32.mat")]


@pytest.mark.parametrize("name", ["train_32x32.mat", "extra_32x32.mat", "numbers.mat"])
def test_a_file_alone_is_the_training_split(tmp_path, name):
    data = open_data(write_svhn(tmp_path / name, TRAIN, DIGITS))
    assert list(data.found.parts) == ["train"]
    assert np.array_equal(data.load().arrays()[0], TRAIN)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float64])
def test_labels_of_other_files_are_kept_as_they_are(tmp_path, dtype):
    labels = np.array([10, 2, 2, 7, 10, 1], dtype)[:, None]
    savemat(tmp_path / "a.mat", {"X": TRAIN.transpose(1, 2, 3, 0), "y": labels, "info": {"a": 1}})
    assert load_images(tmp_path / "a.mat").arrays()[1].tolist() == [10, 2, 2, 7, 10, 1]


def test_a_double_array_of_whole_numbers_has_the_range_of_doubles(tmp_path):
    """MATLAB stores it as bytes where all its values are such: how it is read must not depend on that."""
    (tmp_path / "a.mat").write_bytes(HEADER + matrix("X", (8, 8, 1, 2), bytes([0, 1] * 64), kind=6) + Y)
    assert load_images(tmp_path / "a.mat").pixels.unique().tolist() == [0, 255]
    (tmp_path / "a.mat").write_bytes(HEADER + matrix("X", (8, 8, 1, 2), bytes(range(128)), kind=6) + Y)
    refused(lambda: load_images(tmp_path / "a.mat"), "outside 0..1")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64, bool, ">f4", ">f8"])
@pytest.mark.parametrize("packed", [True, False])
def test_arrays_of_every_type_are_read_as_scipy_reads_them(tmp_path, dtype, packed):
    values = np.random.default_rng(0).integers(0, 2, (9, 8, 3, 4)).astype(dtype)
    savemat(tmp_path / "a.mat", {"X": values, "y": [5, 6, 5, 6]}, do_compression=packed)
    read = load_images(tmp_path / "a.mat", how=Reading(range=(0, 1)))
    assert np.array_equal(read.arrays()[0], 255 * loadmat(tmp_path / "a.mat")["X"].transpose(3, 0, 1, 2).astype(int))


def test_floats_and_other_sizes_are_read_by_the_common_rules(tmp_path):
    images = np.random.default_rng(0).random((9, 8, 1, 4))
    savemat(tmp_path / "a.mat", {"X": images, "y": [1, 2, 1, 2]})
    read = load_images(tmp_path / "a.mat")
    assert np.array_equal(read.pixels[:, 0].numpy(), np.rint(images[:, :, 0].transpose(2, 0, 1) * 255))
    savemat(tmp_path / "a.mat", {"X": (images * 16).astype(np.uint8), "y": [1, 2, 1, 2]})
    refused(lambda: load_images(tmp_path / "a.mat"), "--range 0,16")
    assert load_images(tmp_path / "a.mat", how=Reading(range=(0, 16))).shape == (1, 9, 8)


def test_matlab_files_beside_images_are_not_taken_for_them(tmp_path):
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    savemat(tmp_path / "labels.mat", {"labels": [1]})
    data = open_data(tmp_path)
    assert data.found.layout == "image files in folders"
    assert [name for _, name in data.found.unused] == ["labels.mat"]


# --- damaged and hostile --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"X": TRAIN.transpose(1, 2, 3, 0)}, ["no array y of numbers", "X"]),
        ({"y": [1]}, ["no array X of numbers", "y"]),
        ({}, ["no array X of numbers", "nothing"]),
        ({"X": {"a": 1}, "y": [1]}, ["no array X of numbers"]),
        ({"X": np.array([{"a": 1}, "b"], object), "y": [1]}, ["no array X of numbers"]),
        ({"X": "text", "y": [1]}, ["no array X of numbers"]),
        ({"X": TRAIN[0], "y": [1]}, ["X of shape (32, 32, 3)"]),
        ({"X": TRAIN.transpose(1, 2, 3, 0), "y": DIGITS[1:]}, ["5 labels do not match 6 images"]),
        ({"X": TRAIN.transpose(1, 2, 3, 0), "y": np.array(DIGITS) / 2}, ["float64"]),
        ({"X": TRAIN.transpose(1, 2, 3, 0), "y": [1, 2, np.nan, 1, 1, 1]}, ["labels[2] is missing"]),
        ({"X": TRAIN.transpose(1, 2, 3, 0) * 1j, "y": DIGITS}, ["no array X of numbers"]),
    ],
)
def test_files_without_images_and_labels_are_refused(tmp_path, arrays: dict[str, Any], words):
    savemat(tmp_path / "train_32x32.mat", arrays)
    refused(lambda: load_images(tmp_path), str(tmp_path), *words)


@pytest.mark.parametrize("names", [("a.mat", "b.mat"), ("train_1.mat", "train_2.mat"), ("train_1.mat", "b.mat")])
def test_files_that_do_not_name_their_split_are_refused(tmp_path, names):
    for name in names:
        write_svhn(tmp_path / name, TRAIN, DIGITS)
    refused(lambda: load_images(tmp_path), "does not name its split", "train or test")


def test_other_versions_are_refused(tmp_path):
    path = tmp_path / "train_32x32.mat"
    savemat(path, {"X": np.zeros((3, 3)), "y": [1]}, format="4")
    refused(lambda: load_images(path), "no MATLAB file of version 5 to 7")
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n")
    refused(lambda: load_images(path), "no MATLAB file of version 5 to 7", "convert it to an .npz")


def element(kind: int, data: bytes, size: int | None = None) -> bytes:
    return struct.pack("<II", kind, len(data) if size is None else size) + data + bytes(-len(data) % 8)


def matrix(name: str, shape: tuple[int, ...], content: bytes, kind: int = 9, size: int | None = None) -> bytes:
    """An array of bytes that claims a shape, a class of MATLAB and a number of bytes."""
    flags = element(6, struct.pack("<II", kind, 0))
    dimensions = element(5, struct.pack(f"<{len(shape)}i", *shape))
    return element(14, flags + dimensions + element(1, name.encode()) + element(2, content, size))


def packed(data: bytes) -> bytes:
    content = zlib.compress(data)
    return struct.pack("<II", 15, len(content)) + content


HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
X, Y = matrix("X", (8, 8, 1, 2), bytes(range(128))), matrix("y", (2, 1), b"\x01\x02")


def test_the_elements_of_these_tests_are_right(tmp_path):
    for content in (X + Y, packed(X) + packed(Y), packed(X) + Y):
        (tmp_path / "a.mat").write_bytes(HEADER + content)
        read = load_images(tmp_path / "a.mat")
        assert np.array_equal(read.pixels[1, 0].numpy(), np.arange(64, 128).reshape(8, 8).T)
        assert read.shape == (1, 8, 8)
        assert read.labels.tolist() == [0, 1]


BOMBS = {
    "unpacks to much": (packed(matrix("X", (8, 8, 1, 2**20), bytes(2**26))), "decompression bomb"),
    "unpacks to much in another array": (packed(matrix("Z", (2**26, 1), bytes(2**26))) + X + Y, "decompression bomb"),
    "promises a shape": (matrix("X", (2**15, 2**15, 3, 2**15), bytes(9)) + Y, "promises"),
    "promises a product of 2**64": (matrix("X", (2**30, 2**30, 4, 1), b"") + Y, "promises"),
    "doubles stored as bytes": (packed(matrix("X", (8, 8, 1, 2**15), bytes(2**21), kind=6)) + Y, "decompression bomb"),
    "promises an element": (matrix("X", (8, 8, 1, 2), bytes(128), size=2**32 - 8) + Y, ""),
    "promises a packed element": (packed(matrix("X", (8, 8, 1, 2), bytes(128), size=2**32 - 8)) + Y, ""),
    "cells first": (matrix("X", (2**30, 1), b"", kind=1) + X + Y, "holds an array twice"),
    "cells last": (X + matrix("X", (2**30, 1), b"", kind=1) + Y, "holds an array twice"),
    "a text": (matrix("X", (2**28, 4), b"", kind=4) + Y, "no array X of numbers"),
    "cells": (matrix("X", (2**30, 1), b"", kind=1) + Y, "no array X of numbers"),
    "a sparse array": (matrix("X", (2**30, 1), b"", kind=5) + Y, "no array X of numbers"),
    "negative": (matrix("X", (-8, 8, 1, -2), bytes(128)) + Y, ""),
    "no axes": (matrix("X", (), bytes(1)) + Y, ""),
    "many axes": (matrix("X", (1,) * 5000, bytes(1)) + Y, ""),
    "other elements": (element(2, bytes(80)) + X + Y, "damaged"),
    "an element beyond the end": (element(14, bytes(8), 2**31) + X + Y, "ends too early"),
    "not packed at all": (struct.pack("<II", 15, 8) + bytes(8) + X + Y, "cannot be read"),
    "packed and cut": (struct.pack("<II", 15, 16) + zlib.compress(X)[:16] + Y, "damaged"),
    "an empty element": (struct.pack("<II", 15, 0) + X + Y, "damaged"),
    "a name without an end": (element(14, element(6, bytes(8)) + element(1, b"X", 2**30)), ""),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_unpack(tmp_path, monkeypatch, name):
    content, word = BOMBS[name]
    for module in (files, svhn):
        monkeypatch.setattr(module, "FREE_BYTES", 2**22)
    (tmp_path / "a.mat").write_bytes(HEADER + content)
    assert len(content) < 2**18
    tracemalloc.start()
    try:
        refused(lambda: load_images(tmp_path / "a.mat"), "a.mat", word)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


def test_a_file_cut_at_any_byte_is_refused(tmp_path):
    for whole in (HEADER + X + Y, HEADER + packed(X) + packed(Y)):
        for length in range(len(whole)):
            (tmp_path / "a.mat").write_bytes(whole[:length])
            refused(lambda: load_images(tmp_path / "a.mat"), "a.mat")


def test_a_file_with_any_byte_changed_is_read_or_refused(tmp_path):
    for whole in (HEADER + X + Y, HEADER + packed(X) + packed(Y)):
        for place in [*range(120, 216), *range(len(whole) - 40, len(whole))]:
            for value in (1, 15, 255):
                (tmp_path / "a.mat").write_bytes(whole[:place] + bytes((value,)) + whole[place + 1 :])
                try:
                    load_images(tmp_path / "a.mat")
                except InputError as error:
                    assert str(error).isprintable()  # noqa: PT017 - some changes are harmless


def test_big_endian_files_are_read(tmp_path):
    """As MATLAB wrote them on other machines."""

    def part(kind: int, data: bytes) -> bytes:
        return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)

    made = io.BytesIO()
    made.write(HEADER[:124] + b"\x01\x00MI")
    for name, shape, content in (("X", (8, 8, 1, 2), bytes(range(128))), ("y", (2, 1), b"\x01\x02")):
        flags, axes = part(6, struct.pack(">II", 9, 0)), part(5, struct.pack(f">{len(shape)}i", *shape))
        made.write(part(14, flags + axes + part(1, name.encode()) + part(2, content)))
    (tmp_path / "a.mat").write_bytes(made.getvalue())
    assert load_images(tmp_path / "a.mat").labels.tolist() == [0, 1]
