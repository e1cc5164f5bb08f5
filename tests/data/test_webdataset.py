"""WebDataset shards: images and the labels beside them, splits by the names of shards; the rest is counted."""

import json

import numpy as np
import pytest

from dp_sinkhorn.data import Reading, load_images, open_data
from dp_sinkhorn.data.layouts import webdataset
from support.array_files import refused
from support.picture_files import (
    first_pixels,
    image_bytes,
    inspected,
    labels_of,
    reasons,
    write_files,
    write_tar,
    write_zip,
)

pytestmark = pytest.mark.quick


def picture(value):
    return image_bytes(np.full((8, 8), value, np.uint8))


def shard(first, last, ending="cls", label=lambda n: str(n % 3)):
    """Samples of brightness `first` to `last`, each with its label."""
    files = {}
    for number in range(first, last):
        files[f"{number:05d}.png"] = picture(number)
        if ending:
            files[f"{number:05d}.{ending}"] = label(number)
    return files


@pytest.mark.parametrize(
    ("ending", "label"),
    [
        ("cls", lambda n: str(n % 3)),
        ("cls", lambda n: f"{n % 3}\n"),
        ("txt", lambda n: str(n % 3)),
        ("json", lambda n: json.dumps({"label": n % 3, "key": str(n)})),
        ("json", lambda n: str(n % 3)),
    ],
)
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tgz"])
def test_labels_stand_beside_the_images(tmp_path, ending, label, kind):
    packed = "w" if kind == "tar" else "w:gz"
    write_tar(tmp_path / f"000.{kind}", shard(0, 5, ending, label), packed)
    write_tar(tmp_path / f"001.{kind}", shard(5, 9, ending, label), packed)
    for source, count in ((tmp_path, 9), (tmp_path / f"000.{kind}", 5)):
        images = load_images(source)
        assert first_pixels(images) == [[n] for n in range(count)]
        assert labels_of(images) == [str(n % 3) for n in range(count)]
    found = inspected(tmp_path)
    assert found.skipped == ()
    assert f".{ending}" in found.labels_from


@pytest.mark.parametrize("form", ["{}-{:06d}.tar", "{}_{}.tar", "{}/{:03d}.tar"])
def test_names_of_shards_or_folders_say_the_splits(tmp_path, form):
    for split, number in (("train", 0), ("train", 1), ("val", 0), ("test", 0)):
        write_tar(tmp_path / form.format(split, number), shard(10 * number, 10 * number + 2))
    found = inspected(tmp_path)
    assert found.splits == {"train": 4, "validation": 2, "test": 2}


def test_one_shard_without_a_split_among_others_is_ambiguous(tmp_path):
    for name in ("train-0.tar", "more.tar"):
        write_tar(tmp_path / name, shard(0, 3))
    refused(lambda: inspected(tmp_path), "more.tar", "train or test")


def test_equal_keys_in_two_shards_are_two_samples(tmp_path):
    write_tar(tmp_path / "0.tar", shard(0, 3, label=lambda n: "a"))
    write_tar(tmp_path / "1.tar", shard(0, 3, label=lambda n: "b"))
    assert labels_of(load_images(tmp_path)) == ["a"] * 3 + ["b"] * 3


def test_fields_of_json_are_chosen_by_name(tmp_path):
    label = lambda n: json.dumps({"sex": "fm"[n % 2], "view": "ap"})  # noqa: E731
    write_tar(tmp_path / "0.tar", shard(0, 4, "json", label))
    refused(lambda: inspected(tmp_path), "sex, view", "--label-column")
    assert labels_of(load_images(tmp_path, how=Reading(label_column="sex"))) == ["f", "m", "f", "m"]
    refused(lambda: inspected(tmp_path, label_column="age"), "sex, view")


def test_shards_without_any_labels_are_one_class(tmp_path):
    for number in (0, 1):
        write_tar(tmp_path / f"{number}.tar", shard(3 * number, 3 * number + 3, ""))
    found = inspected(tmp_path)
    assert (found.splits, found.class_names) == ({"train": 6}, ("0",))


def test_what_is_not_a_labelled_image_is_counted(tmp_path):
    files = shard(0, 4) | {
        "00009.png": picture(9),
        "00000.top.png": picture(1),
        "00000.seg.png": picture(1),
        "00001.npy": b"x",
    }
    write_tar(tmp_path / "0.tar", files)
    write_files(tmp_path, {"index.json": "{}"})
    found = inspected(tmp_path)
    assert found.splits == {"train": 4}
    assert reasons(found) == {
        "beside the shards": 1,
        "an image without a label beside it": 1,
        "another image of the same sample": 1,
        "a mask of another image": 1,
        "not an image": 1,
    }


def test_shards_in_a_zip_are_read(tmp_path):
    files = {}
    for name in ("train-0", "test-0"):
        files[f"{name}.tar"] = write_tar(tmp_path / f"{name}.tar", shard(0, 3)).read_bytes()
    assert inspected(write_zip(tmp_path / "all.zip", files)).splits == {"train": 3, "test": 3}


@pytest.mark.parametrize("beside", [{"0.json": "{}"}, {"0.txt": "0 .5 .5 .1 .1"}])
def test_files_beside_images_in_folders_are_no_labels(tmp_path, beside):
    """Boxes, captions, and what photograph services write."""
    files = {
        f"{name}/{key}": content for name in ("cat", "dog") for key, content in {"0.png": picture(0), **beside}.items()
    }
    found = inspected(write_files(tmp_path, files))
    assert found.class_names == ("cat", "dog")
    assert reasons(found) == {"a file with the name of an image, whose contents are not used": 2}


def test_a_tar_of_class_folders_is_no_webdataset(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"cat/0.png": picture(0), "dog/0.png": picture(1)})
    assert inspected(path).layout == "image files in folders"


def test_a_huge_label_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "_MAX_LABEL_BYTES", 10)
    write_tar(tmp_path / "0.tar", shard(0, 3, label=lambda n: "x" * 11))
    refused(lambda: inspected(tmp_path), "11 bytes", "more than a label")


@pytest.mark.parametrize("label", [b"\xff\xfe\xff", b"{", b"[" * 10**5])
def test_a_damaged_label_is_named(tmp_path, label):
    write_tar(tmp_path / "0.tar", shard(0, 3, "json", lambda n: label))
    refused(lambda: inspected(tmp_path), "0.tar: 00000.json", "write it again")


def test_packed_shards_together_are_bounded_in_memory(tmp_path, monkeypatch):
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar.gz", shard(0, 3), "w:gz")
    monkeypatch.setattr(webdataset, "MAX_BYTES", 500)
    refused(lambda: open_data(tmp_path), "unpack to more than 500 bytes", "plain .tar")
