"""From a path or a name to a data set: what is unknown, unreadable or no such split is refused; real data are right."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp_sinkhorn.data import Reading, load_images, load_synthetic, open_data
from dp_sinkhorn.data.sources import LAYOUTS, open_synthetic
from support.array_files import ramp, refused, save, write_idx

pytestmark = pytest.mark.quick


# --- digits ---------------------------------------------------------------------------------------------


def test_digits_have_a_fixed_split_and_a_fixed_range():
    train, test = load_images("digits"), load_images("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.class_names == test.class_names == tuple("0123456789")
    # In the UCI file the first digit is a 0, and its first row is 0 0 5 13 9 1 0 0 of 16.
    assert train.pixels[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert train.labels[:10].tolist() == list(range(10))
    assert test.labels[-3:].tolist() == [8, 9, 8]
    assert int(train.pixels.max()) == 255


def test_digits_can_be_resized():
    assert load_images("digits", how=Reading(side=16)).shape == (1, 16, 16)


def test_the_summary_of_digits_says_what_was_read():
    summary = open_data("digits").summary()
    assert summary.splits == {"train": 1437, "test": 360}
    assert summary.image_shape == (1, 8, 8)
    assert summary.value_range == (0.0, 16.0)
    assert summary.converted == "0..16 became 0..255"
    assert sum(summary.images_per_class.values()) == 1437
    assert summary.attention == ()


# --- what cannot be read --------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [open_data, load_images, load_synthetic])
def test_sources_of_an_unknown_kind_are_refused(call, tmp_path):
    (tmp_path / "data.csv").write_text("1,2")
    refused(lambda: call(tmp_path / "data.csv"), "data.csv", "neither", "digits")
    refused(lambda: call(tmp_path / "missing"), "missing", "does not exist", "digits")
    refused(lambda: call("no\nsuch"), r"no\nsuch does not exist")
    refused(lambda: call("x" * 5000), "digits")
    refused(lambda: call("a\0b"), r"a\x00b", "digits")
    refused(lambda: call(""), "empty")


ENDINGS = ["npz", "npy", "parquet", "mat", "zip", "tar", "tar.gz", "tgz"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_pipe_is_refused_without_waiting(tmp_path, ending):
    os.mkfifo(tmp_path / f"pipe.{ending}")
    refused(lambda: open_data(tmp_path / f"pipe.{ending}"), f"pipe.{ending}", "regular file" if "." in ending else "")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("content", [b"", b"hello\n", bytes(1000), b"PK\x03\x04" + b"\xff" * 99])
def test_a_file_of_another_kind_than_its_name_is_refused(tmp_path, ending, content):
    (tmp_path / f"a.{ending}").write_bytes(content)
    refused(lambda: open_data(tmp_path / f"a.{ending}"), f"a.{ending}")


def test_a_folder_without_data_is_refused_with_what_it_holds(tmp_path):
    refused(lambda: open_data(tmp_path), str(tmp_path), "no files")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "LICENSE").write_text("hello")
    refused(lambda: open_data(tmp_path), "holds no images", ".txt", "no ending")


def test_an_unreadable_file_is_an_input_error(tmp_path, monkeypatch):
    def deny(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    path = save(tmp_path, train_images=ramp())
    monkeypatch.setattr(zipfile, "ZipFile", deny)
    refused(lambda: load_images(path), str(path), "Permission denied")
    monkeypatch.setattr(Path, "iterdir", deny)
    refused(lambda: load_images(tmp_path), str(tmp_path), "Permission denied")


def test_only_three_names_are_splits(tmp_path):
    refused(lambda: load_images("digits", "val"), "split=val", "train, validation or test")  # type: ignore[arg-type]
    refused(lambda: load_images("digits", "validation"), "no validation split", "train, test")
    path = save(tmp_path, x_test=ramp(), y_test=[0, 1, 0, 1])
    refused(lambda: load_images(path, "test"), "holds no training images, only test")


def test_every_layout_passes_over_a_folder_that_is_none(tmp_path):
    from dp_sinkhorn.data.reading import AS_STORED
    from dp_sinkhorn.data.tree import tree_of

    (tmp_path / "notes.md").write_text("hello")
    assert [layout(tree_of(tmp_path), AS_STORED) for layout in LAYOUTS] == [None] * len(LAYOUTS)


# --- sampled images -------------------------------------------------------------------------------------


def test_a_synthetic_npz_is_loaded(tmp_path):
    images = load_synthetic(save(tmp_path, images=ramp(), labels=[1, 0, 1, 1]))
    assert np.array_equal(images.arrays()[0], ramp())
    assert images.labels.tolist() == [1, 0, 1, 1]
    assert load_synthetic(save(tmp_path, images=ramp())).num_classes == 1


def test_data_with_splits_are_not_sampled_images(tmp_path):
    refused(lambda: load_synthetic("digits"), "digits", "sample")
    write_idx(tmp_path / "idx", {"train": (ramp(), [0, 1, 0, 1]), "t10k": (ramp(), [0, 1, 0, 1])})
    refused(lambda: load_synthetic(tmp_path / "idx"), "idx", "holds splits")
    refused(lambda: load_synthetic(save(tmp_path, x_train=ramp(), x_test=ramp())), "holds splits")


def test_how_the_training_data_were_read_comes_with_sampled_images(tmp_path):
    facts = '{"reading": {"side": 16, "fit": "crop"}}'
    _, reading = open_synthetic(save(tmp_path, images=ramp(), labels=[0, 1, 0, 1], privacy=facts))
    assert reading == {"side": 16, "fit": "crop"}


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
