"""IDX files, as MNIST and its kin come: read byte for byte, under all their names; damaged or hostile ones refused."""

import gzip
import shutil
import struct
import tracemalloc

import numpy as np
import pytest

from dp_sinkhorn.data import Reading, files, load_images, open_data
from support.array_files import idx_bytes, noise, refused, write_idx

pytestmark = pytest.mark.quick

TRAIN, TEST = noise(3, 8, 9, seed=1), noise(1, 8, 9, seed=2)
SPLITS = {"train": (TRAIN, [0, 2, 1]), "t10k": (TEST, [2])}


@pytest.mark.parametrize(
    ("pattern", "packed"),
    [
        ("{}-idx{}-ubyte", False),
        ("{}-idx{}-ubyte.gz", True),
        ("{}.idx{}-ubyte", False),
        ("{}.idx{}-ubyte.gz", True),
        ("{}_idx{}_ubyte", False),
        ("emnist-letters-{}-idx{}-ubyte.gz", True),
    ],
)
def test_idx_files_are_read_under_all_their_names(tmp_path, pattern, packed):
    data = open_data(write_idx(tmp_path, SPLITS, pattern, packed))
    train, test = data.load(), data.load("test")
    assert train.shape == (1, 8, 9)
    assert np.array_equal(train.pixels[:, 0].numpy(), TRAIN)
    assert np.array_equal(test.pixels[:, 0].numpy(), TEST)
    assert train.labels.tolist() == [0, 2, 1]
    assert test.labels.tolist() == [2]
    assert train.class_names == test.class_names == ("0", "1", "2")
    assert data.found.unused == []


def test_labels_from_1_are_classes_from_1(tmp_path):
    train = load_images(write_idx(tmp_path, {"train": (TRAIN, [26, 1, 5])}))
    assert train.class_names == ("1", "5", "26")
    assert train.arrays()[1].tolist() == [26, 1, 5]


def test_dark_images_are_bytes_because_the_format_says_so(tmp_path):
    dark = np.full((2, 8, 8), 3)
    assert load_images(write_idx(tmp_path, {"train": (dark, [0, 1])})).pixels.unique().tolist() == [3]


def test_a_packed_copy_beside_a_plain_file_is_listed(tmp_path):
    """As torchvision leaves them."""
    write_idx(tmp_path / "MNIST" / "raw", SPLITS)
    write_idx(tmp_path / "MNIST" / "raw", SPLITS, "{}-idx{}-ubyte.gz", packed=True)
    data = open_data(tmp_path)
    assert np.array_equal(data.load().pixels[:, 0].numpy(), TRAIN)
    assert {reason for reason, _ in data.found.unused} == {"a second copy of an IDX file"}
    assert len(data.found.unused) == 4


def test_files_of_two_data_sets_are_refused(tmp_path):
    write_idx(tmp_path / "mnist", SPLITS)
    write_idx(tmp_path / "fashion", SPLITS)
    refused(lambda: open_data(tmp_path), "several data sets", "fashion/", "mnist/")
    shutil.rmtree(tmp_path / "fashion")
    for name in ("letters", "digits"):
        write_idx(tmp_path / "mnist", SPLITS, f"emnist-{name}-{{}}-idx{{}}-ubyte")
    refused(lambda: open_data(tmp_path), "several data sets")


def test_other_files_in_the_folder_are_listed(tmp_path):
    write_idx(tmp_path, SPLITS)
    (tmp_path / "README.md").write_text("hello")
    assert open_data(tmp_path).found.unused == [("not an IDX file of a split", "README.md")]


@pytest.mark.parametrize("part", ["images-idx3", "labels-idx1"])
def test_a_missing_file_of_the_test_split_is_said(tmp_path, part):
    write_idx(tmp_path, SPLITS)
    (tmp_path / f"t10k-{part}-ubyte").unlink()
    data = open_data(tmp_path)
    assert list(data.found.parts) == ["train"]
    ((reason, _),) = data.found.unused
    assert reason == f"an IDX file without its {part[:6]}"
    refused(lambda: data.load("test"), str(tmp_path), "no test split")


@pytest.mark.parametrize("part", ["images-idx3", "labels-idx1"])
def test_a_missing_training_file_is_named(tmp_path, part):
    write_idx(tmp_path, SPLITS)
    (tmp_path / f"train-{part}-ubyte").unlink()
    refused(lambda: load_images(tmp_path), f"train {part[:6]}")


def test_a_test_label_that_training_lacks_is_refused(tmp_path):
    write_idx(tmp_path, {**SPLITS, "t10k": (TEST, [3])})
    refused(lambda: load_images(tmp_path, "test"), "test split", "label '3'")


def test_options_without_effect_are_named(tmp_path):
    data = open_data(write_idx(tmp_path, SPLITS), Reading(label_column="digit"))
    assert any("--label-column digit has no effect" in text for text in data.summary().warnings)


# --- damaged and hostile --------------------------------------------------------------------------------

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
    (idx_bytes(np.zeros((0, 8, 9))), "match 0 images"),  # no images
    (idx_bytes(np.zeros((3, 0, 9))), "(3, 0, 9"),  # no pixels
    (idx_bytes(np.zeros((3, 2, 2))), "2x2"),  # small images
    (idx_bytes(np.zeros((2, 8, 9))), "3 labels do not match 2 images"),  # too few images
]


@pytest.mark.parametrize("packed", [False, True])
def test_a_bad_idx_file_is_refused_without_a_huge_allocation(tmp_path, packed):
    write_idx(tmp_path, SPLITS, "{}-idx{}-ubyte.gz" if packed else "{}-idx{}-ubyte", packed)
    path = tmp_path / ("train-images-idx3-ubyte.gz" if packed else "train-images-idx3-ubyte")
    tracemalloc.start()
    try:
        for data, word in BAD_IDX:
            path.write_bytes(gzip.compress(data) if packed else data)
            refused(lambda: load_images(tmp_path), word)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_an_unpacked_size_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 215)
    refused(lambda: load_images(write_idx(tmp_path, SPLITS)), "216 bytes, more than 215")


def test_a_gzip_bomb_is_read_up_to_the_promised_size_only(tmp_path):
    write_idx(tmp_path, SPLITS, "{}-idx{}-ubyte.gz", packed=True)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(GOOD + bytes(2**25)))
    tracemalloc.start()
    try:
        refused(lambda: load_images(tmp_path), "more than the 216 bytes")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("damage", ["not gzip", "cut", "flipped"])
def test_a_damaged_gzip_file_is_refused(tmp_path, damage):
    write_idx(tmp_path, SPLITS, "{}-idx{}-ubyte.gz", packed=True)
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
