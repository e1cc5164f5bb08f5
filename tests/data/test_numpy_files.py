"""NumPy files are read under the names that people give their arrays; what is ambiguous or pickled is refused."""

import itertools
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp_sinkhorn.data import Reading, load_images, load_synthetic, open_data
from dp_sinkhorn.data.found import Found
from support.array_files import noise, ramp, refused, save

pytestmark = pytest.mark.quick

TRAIN, VALIDATION, TEST = noise(5, 8, 9, seed=1), noise(3, 8, 9, seed=2), noise(2, 8, 9, seed=3)
LABELS = {"train": [3, 1, 2, 1, 3], "validation": [1, 2, 3], "test": [2, 2]}
IMAGES = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


def check(source: Path, splits: tuple[str, ...] = ("train", "validation", "test")) -> Found:
    """What was written is read, split by split."""
    data = open_data(source)
    assert set(data.found.parts) == set(splits)
    for split in splits:
        images, labels = data.load(split).arrays()
        assert np.array_equal(images, IMAGES[split])
        assert labels.tolist() == LABELS[split]
    assert data.class_names == ("1", "2", "3")
    assert data.summary().splits == {split: len(IMAGES[split]) for split in splits}
    return data.found


def named(pattern: str, words: dict[str, str], images: str, labels: str) -> dict[str, Any]:
    """Arrays of all splits, by names such as "{split}_{part}"."""
    arrays = {}
    for split, word in words.items():
        arrays[pattern.format(split=word, part=images)] = IMAGES[split]
        arrays[pattern.format(split=word, part=labels)] = np.array(LABELS[split])
    return arrays


WORDS = [
    {"train": "train", "validation": "val", "test": "test"},
    {"train": "training", "validation": "valid", "test": "testing"},
    {"train": "Train", "validation": "validation", "test": "Test"},
]
PARTS = [("images", "labels"), ("x", "y"), ("X", "Y"), ("data", "target"), ("imgs", "targets"), ("image", "class")]
PATTERNS = ["{split}_{part}", "{part}_{split}", "{split}-{part}", "{part}.{split}", "{part}{split}"]


@pytest.mark.parametrize(("words", "parts", "pattern"), list(itertools.product(WORDS, PARTS, PATTERNS)))
def test_arrays_are_found_under_all_usual_names(tmp_path, words, parts, pattern):
    found = check(save(tmp_path, **named(pattern, words, *parts)))
    assert found.unused == []


@pytest.mark.parametrize(("words", "parts"), list(itertools.product(WORDS, PARTS[:3])))
def test_npy_files_are_found_under_all_usual_names(tmp_path, words, parts):
    for name, array in named("{part}_{split}", words, *parts).items():
        np.save(tmp_path / f"{name}.npy", array)
    check(tmp_path)


def test_npy_files_in_folders_of_splits_are_read(tmp_path):
    for split, word in WORDS[2].items():
        (tmp_path / word).mkdir()
        np.save(tmp_path / word / "images.npy", IMAGES[split])
        np.save(tmp_path / word / "labels.npy", LABELS[split])
    check(tmp_path)


@pytest.mark.parametrize("place", ["{}.npz", "{}/data.npz", "{}_32.npz"])
def test_an_archive_for_each_split_is_read(tmp_path, place):
    for split, word in WORDS[0].items():
        path = tmp_path / place.format(word)
        path.parent.mkdir(exist_ok=True)
        np.savez(path, images=IMAGES[split], labels=LABELS[split])
    check(tmp_path)


def test_the_archives_of_keras_and_medmnist_are_read(tmp_path):
    check(save(tmp_path, x_train=TRAIN, y_train=LABELS["train"], x_test=TEST, y_test=LABELS["test"]), ("train", "test"))
    columns = {split: np.array(labels, np.uint8)[:, None] for split, labels in LABELS.items()}
    check(
        save(
            tmp_path,
            train_images=TRAIN,
            val_images=VALIDATION,
            test_images=TEST,
            train_labels=columns["train"],
            val_labels=columns["validation"],
            test_labels=columns["test"],
        )
    )


def test_a_validation_split_takes_the_place_of_a_test_split(tmp_path):
    path = save(tmp_path, x_train=TRAIN, y_train=LABELS["train"], x_val=VALIDATION, y_val=LABELS["validation"])
    data = open_data(path)
    assert data.evaluation_split == "validation"
    assert any("validation split" in text for text in data.summary().warnings)


def test_an_archive_without_splits_is_the_training_split(tmp_path):
    for names in (("images", "labels"), ("x", "y"), ("data", "targets"), ("arr_0", "arr_1")):
        check(save(tmp_path, **dict(zip(names, (TRAIN, LABELS["train"]), strict=True))), ("train",))
    np.savez(tmp_path / "data.npz", TRAIN, LABELS["train"])
    data = open_data(tmp_path / "data.npz")
    refused(lambda: data.load("test"), "no test split")
    assert data.evaluation_split is None


def test_rgb_in_any_memory_order_and_compressed_is_read(tmp_path):
    rgb = noise(4, 8, 9, 3)
    for images in (rgb, np.asfortranarray(rgb), rgb.transpose(0, 3, 1, 2)):
        np.savez_compressed(tmp_path / "a.npz", x_train=images, y_train=[2, 0, 0, 2])
        (tmp_path / "a.npz").rename(tmp_path / "B.NPZ")
        read, labels = load_images(tmp_path / "B.NPZ").arrays()
        assert np.array_equal(read, rgb)
        assert labels.tolist() == [2, 0, 0, 2]


def test_what_is_not_read_is_listed(tmp_path):
    path = save(tmp_path, train_images=TRAIN, train_labels=LABELS["train"], mask=TRAIN, ids=np.arange(5))
    assert {name for _, name in open_data(path).found.unused} == {"mask", "ids"}
    (tmp_path / "README.md").write_text("hello")
    found = open_data(tmp_path).found
    assert ("beside the .npz file that was read", "README.md") in found.unused
    assert open_data(path).summary().attention[0].startswith("2 file(s) were not read")


# --- labels ---------------------------------------------------------------------------------------------


def test_no_labels_are_one_class(tmp_path):
    data = open_data(save(tmp_path, train_images=TRAIN))
    assert data.load().class_names == ("0",)
    assert data.found.labels_from == "nothing: one class"


def test_a_split_without_labels_is_left_out_and_said_so(tmp_path):
    path = save(tmp_path, x_train=TRAIN, y_train=LABELS["train"], x_test=TEST)
    data = open_data(path)
    assert list(data.found.parts) == ["train"]
    assert ("images without labels", "the test split") in data.found.unused


def test_test_labels_must_be_training_labels(tmp_path):
    path = save(tmp_path, x_train=TRAIN, y_train=LABELS["train"], x_test=TEST, y_test=[2, 4])
    refused(lambda: load_images(path), f"{path}, test split: label '4' is not one of the 3 classes")
    assert load_images(path, "test", Reading(classes=("1", "2", "3", "4"))).labels.tolist() == [1, 3]


def test_class_names_of_the_archive_declare_the_classes(tmp_path):
    path = save(tmp_path, train_images=ramp(), train_labels=[0, 1, 1, 0], class_names=["no", "yes", "never"])
    assert load_images(path).class_names == ("no", "yes", "never")
    own = save(tmp_path, images=ramp(), labels=[3, 7, 7, 3], class_names=["7", "3"])
    assert load_images(own).labels.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("names", [[1, 2], [["a"], ["b"]], [b"a", b"b"]])
def test_class_names_must_be_strings(tmp_path, names):
    path = save(tmp_path, train_images=ramp(), train_labels=[0, 1, 1, 0], class_names=names)
    refused(lambda: load_images(path), "class_names", str(path))


FLAGS = np.array([[0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 0, 1]])


@pytest.mark.parametrize("names", [None, np.array(["Atelectasis", "Edema", "Mass"])])
def test_label_column_picks_one_of_several_labels(tmp_path, names):
    more = {} if names is None else {"label_names": names}
    path = save(tmp_path, x_train=ramp(), y_train=FLAGS, x_test=ramp(2), y_test=FLAGS[:2], **more)
    column = "1" if names is None else "Edema"
    read = load_images(path, how=Reading(label_column=column))
    assert read.class_names == (column, f"not {column}")
    assert [read.class_names[place] for place in read.labels] == [column, column, f"not {column}", f"not {column}"]
    assert load_images(path, "test", Reading(label_column=column)).labels.tolist() == [0, 0]
    for wrong in (None, "Hernia", "7"):
        refused(lambda wrong=wrong: open_data(path, Reading(label_column=wrong)), "3 labels for each image", column)


def test_the_columns_of_all_splits_have_the_same_classes(tmp_path):
    path = save(tmp_path, x_train=ramp(), y_train=FLAGS, x_test=ramp(2), y_test=np.zeros((2, 3), int))
    test = load_images(path, "test", Reading(label_column="0"))
    assert [test.class_names[place] for place in test.labels] == ["not 0", "not 0"]


def test_names_of_labels_that_do_not_fit_are_refused(tmp_path):
    for names in (["a", "b"], ["a", "b", "c", "d"], [1, 2, 3], [["a", "b", "c"]]):
        path = save(tmp_path, images=ramp(), labels=FLAGS, label_names=names)
        refused(lambda path=path: open_data(path, Reading(label_column="a")), "3 labels for each image")
    twice = save(tmp_path, images=ramp(), labels=FLAGS, label_names=["a", "a", "b"])
    refused(lambda: open_data(twice, Reading(label_column="a")), "choose one")


def test_several_arrays_of_labels_ask_which(tmp_path):
    fine, coarse = np.array([3, 1, 2, 1, 3]), np.array([0, 0, 1, 0, 0])
    path = save(tmp_path, x_train=TRAIN, fine_labels_train=fine, coarse_labels_train=coarse)
    refused(lambda: open_data(path), "fine_labels_train", "coarse_labels_train", "--label-column")
    assert load_images(path, how=Reading(label_column="fine_labels")).arrays()[1].tolist() == fine.tolist()
    assert load_images(path, how=Reading(label_column="coarse_labels")).arrays()[1].tolist() == coarse.tolist()


def test_label_column_can_name_any_array(tmp_path):
    path = save(tmp_path, images=TRAIN, labels=LABELS["train"], sex=[0, 1, 1, 0, 0])
    assert load_images(path, how=Reading(label_column="sex")).labels.tolist() == [0, 1, 1, 0, 0]
    refused(lambda: open_data(path, Reading(label_column="age")), "no array is called age", "--label-column")
    both = save(tmp_path, train_images=TRAIN, test_images=TEST, train_sex=[0, 1, 1, 0, 0], test_sex=[1, 1])
    assert load_images(both, "test", Reading(label_column="sex")).labels.tolist() == [1, 1]


def test_several_arrays_of_images_are_refused(tmp_path):
    path = save(tmp_path, images_32=TRAIN, images_64=TRAIN, labels=LABELS["train"])
    refused(lambda: open_data(path), "several arrays of train images", "images_32, images_64")
    plain = save(tmp_path, images=TRAIN, images_mean=TRAIN[0], labels=LABELS["train"])
    check(plain, ("train",))


# --- ranges and shapes ----------------------------------------------------------------------------------


def test_floats_text_labels_and_a_side_are_accepted(tmp_path):
    path = save(
        tmp_path,
        train_images=np.ones((2, 100, 100), np.float32),
        train_labels=["dog", "cat"],
        test_images=np.zeros((1, 50, 70)),
        test_labels=["dog"],
    )
    how = Reading(side=12, fit="crop")
    train, test = load_images(path, how=how), load_images(path, "test", how)
    assert train.shape == test.shape == (1, 12, 12)
    assert train.pixels.unique().tolist() == [255]
    assert train.class_names == test.class_names == ("cat", "dog")
    assert test.labels.tolist() == [1]


def test_the_training_images_decide_the_range_of_integers(tmp_path):
    dark = np.full((2, 8, 9), 5, np.uint8)
    path = save(tmp_path, x_train=TRAIN, y_train=LABELS["train"], x_test=dark, y_test=[1, 2])
    assert load_images(path, "test").pixels.unique().tolist() == [5]
    path = save(tmp_path, x_train=dark, y_train=[1, 2], x_test=TEST, y_test=[2, 2])
    for split in ("train", "test"):
        refused(lambda split=split: load_images(path, split), "x_train in", "up to 5", "--range 0,16")
    path = save(tmp_path, x_train=TRAIN, y_train=LABELS["train"], x_test=dark.astype(int) + 300, y_test=[1, 2])
    refused(lambda: load_images(path, "test"), "x_test in", "value 305", "0..255")


def test_twelve_bits_are_read_at_their_declared_range(tmp_path):
    images = np.full((2, 8, 8), 4095, np.uint16)
    images[1] = 2048
    path = save(tmp_path, x_train=images)
    refused(lambda: load_images(path), "integers up to 4095", "--range 0,4095")
    data = open_data(path, Reading(range=(0, 4095)))
    assert [int(image.max()) for image in data.load().pixels] == [255, 128]
    summary = data.summary()
    assert summary.value_range == (2048.0, 4095.0)
    assert summary.converted == "0..4095 became 0..255"


def test_clipping_is_said(tmp_path):
    data = open_data(save(tmp_path, x_train=TRAIN), Reading(range=(10, 200)))
    assert any("became black or white" in text for text in data.summary().warnings)


@pytest.mark.parametrize("shape", [(2, 9, 8), (2, 10, 9), (2, 8, 9, 3)])
def test_the_images_of_all_splits_have_one_shape(tmp_path, shape):
    other = np.full(shape, 99, np.uint8)
    path = save(tmp_path, x_train=TRAIN, y_train=LABELS["train"], x_test=other, y_test=[1, 2])
    assert len(load_images(path)) == 5
    refused(lambda: load_images(path, "test"), "x_test in", "x_train in")


# --- refused --------------------------------------------------------------------------------------------


def test_an_archive_without_images_is_refused_with_its_contents(tmp_path):
    refused(lambda: load_images(save(tmp_path, features=ramp(), ids=[0])), "features, ids", "train_images")
    refused(lambda: load_images(save(tmp_path)), "only nothing")


def test_several_archives_are_refused(tmp_path):
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", images=TRAIN)
    refused(lambda: open_data(tmp_path), "a.npz, b.npz", "train.npz")
    for name in ("a", "b"):
        (tmp_path / f"{name}.npz").rename(tmp_path / f"train{name}.npz")
    refused(lambda: open_data(tmp_path), "traina.npz")


def test_arrays_beside_image_files_are_ambiguous(tmp_path):
    from PIL import Image

    Image.new("L", (8, 9)).save(tmp_path / "a.png")
    save(tmp_path, "features.npz", features=np.zeros((5, 3)))
    assert open_data(tmp_path).found.layout == "image files in folders"
    save(tmp_path, "features.npz", images=TRAIN)
    refused(lambda: open_data(tmp_path), "features.npz", "a.png")
    (tmp_path / "features.npz").unlink()
    np.save(tmp_path / "images.npy", TRAIN)
    refused(lambda: open_data(tmp_path), "images.npy", "a.png")


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("key", ["train_images", "train_labels", "class_names", "privacy", "label_names"])
def test_a_pickled_array_is_never_loaded(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    arrays: dict[str, Any] = {"train_images": ramp(), "train_labels": [0] * 4}
    arrays[key] = np.array([Bomb()] * 4, object)
    path = save(tmp_path, **arrays)
    refused(lambda: load_images(path), f"{key} in", "is a pickled array, which is never loaded")
    np.save(tmp_path / "images.npy", np.array([Bomb()] * 4, object))
    refused(lambda: load_images(tmp_path / "images.npy"), "is a pickled array, which is never loaded")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
def test_a_damaged_archive_is_refused(tmp_path, damage):
    path = save(tmp_path, train_images=ramp())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    wrong = {"empty": b"", "text": b"not a zip\n", "cut": path.read_bytes()[:-30], "flipped": bytes(data)}
    path.write_bytes(wrong[damage])
    refused(lambda: load_images(path), str(path), "cannot be read", "numpy.savez")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "longer"])
def test_a_damaged_npy_file_is_refused(tmp_path, damage):
    path = tmp_path / "images.npy"
    np.save(path, ramp())
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"not npy\n", "cut": whole[:-1], "longer": whole + b"\0"}[damage])
    refused(lambda: load_images(path), "images.npy")


# --- one .npy file --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("x_train", "y_train"),
        ("X_train", "y_train"),
        ("images", "labels"),
        ("train_images", "train_labels"),
        ("cells", "cells_labels"),
        ("cells", "labels"),
        ("x", "targets"),
    ],
)
def test_one_npy_file_finds_its_labels(tmp_path, images, labels):
    np.save(tmp_path / f"{images}.npy", TRAIN)
    np.save(tmp_path / f"{labels}.npy", LABELS["train"])
    np.save(tmp_path / "y_test.npy", LABELS["test"])
    check(tmp_path / f"{images}.npy", ("train",))


def test_one_npy_file_alone_is_one_class(tmp_path):
    for name in ("cells.npy", "x_train.npy", "A.NPY"):
        with (tmp_path / name).open("wb") as file:
            np.save(file, TRAIN)
        (tmp_path / "deep").mkdir(exist_ok=True)
        np.save(tmp_path / "deep" / "y_train.npy", LABELS["train"])
        (tmp_path / "._y_train.npy").write_bytes(b"what macOS leaves")
        assert load_images(tmp_path / name).class_names == ("0",)
        (tmp_path / name).unlink()


def test_two_files_of_labels_are_ambiguous(tmp_path):
    for name, array in (("images", TRAIN), ("labels", LABELS["train"]), ("y", LABELS["train"])):
        np.save(tmp_path / f"{name}.npy", array)
    refused(lambda: open_data(tmp_path / "images.npy"), "labels.npy, y.npy", "folder of their own")
    refused(lambda: open_data(tmp_path), "several arrays of train labels", "labels, y")
    assert load_images(tmp_path, how=Reading(label_column="y")).arrays()[1].tolist() == LABELS["train"]


def test_other_files_beside_one_npy_file_are_not_looked_at(tmp_path):
    np.save(tmp_path / "images.npy", TRAIN)
    (tmp_path / "outside").symlink_to("/")
    os.mkfifo(tmp_path / "pipe.npy")
    assert len(load_images(tmp_path / "images.npy")) == 5


# --- sampled images -------------------------------------------------------------------------------------


def test_sampled_images_may_be_as_dark_as_they_like(tmp_path):
    dark = np.full((4, 8, 8), 3, np.uint8)
    path = save(tmp_path, images=dark, labels=[0, 1, 1, 0], class_names=["a", "b"], privacy='{"reading":{"side":8}}')
    assert load_synthetic(path).pixels.unique().tolist() == [3]
    assert open_data(path).found.stored_reading == {"side": 8}


@pytest.mark.parametrize("facts", ["", "{", "[]", "[" * 5000, '{"reading":3}', '{"reading":{"a":1,"a":2}}', "3"])
def test_strange_privacy_facts_are_ignored(tmp_path, facts):
    assert open_data(save(tmp_path, images=ramp(), privacy=facts)).found.stored_reading == {}


def test_archives_in_a_zip_are_read(tmp_path):
    inner = save(tmp_path, **named("{split}_{part}", WORDS[0], "images", "labels"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.write(inner, "folder/data.npz")
        made.writestr("__MACOSX/folder/._data.npz", b"junk")
    check(tmp_path / "a.zip")
