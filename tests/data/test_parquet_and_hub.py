"""Parquet files and data sets by name are read back as written with pyarrow; hostile ones are refused."""

import io
import json
import shutil
import socket
import sys
from contextlib import suppress
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dp_sinkhorn.data import Reading, load_images, load_synthetic, open_data
from dp_sinkhorn.data.layouts import arrow_tables
from dp_sinkhorn.io.errors import InputError
from support.array_files import encoded, refused

PIXELS = np.random.default_rng(0).integers(0, 256, (130, 9, 8), dtype=np.uint8)
LABELS = np.arange(130) % 3


PNGS = [encoded(image) for image in PIXELS]


def write(path: Path, images=PNGS, labels=LABELS, features=None, packed: bool = True, group: int = 50, **more) -> Path:
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = [{"bytes": image, "path": None} for image in images]
    images = pa.array(rows, struct) if packed else pa.array(images, pa.binary())
    columns = {"image": images} | ({} if labels is None else {"label": pa.array(labels)}) | more
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=group, compression="zstd")
    return path


def classes(*names: str) -> dict:
    return {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}


@pytest.mark.parametrize("packed", [True, False])
def test_parquet_images_and_labels_round_trip(tmp_path, packed):
    found = load_images(write(tmp_path / "a.parquet", packed=packed))
    assert np.array_equal(found.pixels[:, 0].numpy(), PIXELS)
    assert found.labels.tolist() == LABELS.tolist()
    assert found.class_names == ("0", "1", "2")


def test_class_names_come_from_the_metadata_or_the_strings(tmp_path):
    path = write(tmp_path / "a.parquet", features=classes("x", "y", "z", "none of these"))
    assert load_synthetic(path).class_names == ("x", "y", "z", "none of these")
    # A ClassLabel counts through its names, whatever they are.
    found = load_images(write(tmp_path / "c.parquet", features=classes("3", "2", "1")))
    assert found.class_names == ("3", "2", "1")
    assert found.labels.tolist() == LABELS.tolist()
    words = [("emu", "cat", "dog")[label] for label in LABELS]
    for labels in (words, pa.array(words).dictionary_encode()):
        found = load_images(write(tmp_path / "b.parquet", labels=labels))
        assert found.class_names == ("cat", "dog", "emu")
        assert found.labels[:3].tolist() == [2, 0, 1]


def test_a_parquet_file_without_labels_is_one_class(tmp_path):
    assert load_images(write(tmp_path / "a.parquet", labels=None)).class_names == ("0",)


def test_one_colour_image_makes_all_rgb_and_two_sizes_need_a_side(tmp_path):
    colour = np.stack([PIXELS[0], 255 - PIXELS[0], PIXELS[0] // 2], -1)
    found = load_images(write(tmp_path / "a.parquet", [*PNGS, encoded(colour)], labels=None))
    assert found.shape == (3, 9, 8)
    assert np.array_equal(found.pixels[-1].numpy(), np.moveaxis(colour, -1, 0))
    assert np.array_equal(found.pixels[5, 2].numpy(), PIXELS[5])
    other = write(tmp_path / "b.parquet", [*PNGS, encoded(np.zeros((20, 30), np.uint8))], labels=None)
    refused(lambda: load_images(other), "8x9 pixels", "image 130", "30x20", "--side 32")
    assert load_images(other, how=Reading(side=16, fit="pad")).shape == (1, 16, 16)


def test_a_row_group_without_a_dictionary_is_read(tmp_path):
    # Beyond a megabyte, a row group stores values without a dictionary, as in most files on the hub.
    noise = np.random.default_rng(0).integers(0, 256, (1200, 64, 64), dtype=np.uint8)
    found = load_images(write(tmp_path / "a.parquet", [encoded(image) for image in noise], labels=None, group=1200))
    assert np.array_equal(found.pixels[:, 0].numpy(), noise)


def write_splits(folder, names=("a", "b", "c")):
    folder.mkdir(parents=True)
    for shard in range(2):
        part = slice(65 * shard, 65 * shard + 65)
        write(folder / f"train-0000{shard}-of-00002.parquet", PNGS[part], LABELS[part], classes(*names))
    write(folder / "validation-00000-of-00001.parquet", PNGS[:5], LABELS[:5], classes(*names))
    write(folder / "test-00000-of-00001.parquet", PNGS[:7], [0, 1, 0, 1, 0, 1, 0], classes(*names))


@pytest.mark.parametrize("place", [".", "data", "plain_text"])
def test_splits_in_the_layout_of_the_hub_are_read(tmp_path, place):
    write_splits(tmp_path / "set" / place)
    (tmp_path / "set" / "README.md").write_text("hello")
    data = open_data(tmp_path / "set")
    assert np.array_equal(data.load().pixels[:, 0].numpy(), PIXELS)
    assert data.load().labels.tolist() == LABELS.tolist()
    test = data.load("test")
    assert test.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert test.class_names == ("a", "b", "c")
    assert data.summary().splits == {"train": 130, "validation": 5, "test": 7}
    assert data.found.unused == [("not a Parquet file", "README.md")]


@pytest.mark.parametrize("folders", [("train", "test"), ("Training", "testing"), ("data/train", "data/test")])
def test_folders_may_say_the_splits(tmp_path, folders):
    for folder, count in zip(folders, (130, 7), strict=True):
        (tmp_path / folder).mkdir(parents=True)
        write(tmp_path / folder / "part-0.parquet", PNGS[:count], LABELS[:count])
    assert open_data(tmp_path).summary().splits == {"train": 130, "test": 7}


def test_a_file_without_a_split_is_the_training_split(tmp_path):
    refused(lambda: load_images(write(tmp_path / "single.parquet"), "test"), "no test split")
    write(tmp_path / "more.parquet")
    assert len(load_images(tmp_path)) == 260
    write(tmp_path / "train-1.parquet")
    refused(lambda: load_images(tmp_path), "more.parquet beside files of splits")


def test_tables_in_several_folders_are_refused(tmp_path):
    write_splits(tmp_path / "one")
    write_splits(tmp_path / "two")
    refused(lambda: load_images(tmp_path), "several folders, one, two")


def test_splits_that_differ_are_refused(tmp_path):
    write_splits(tmp_path / "set")
    write(tmp_path / "set" / "test-00000-of-00001.parquet", PNGS[:7], LABELS[:7], classes("c", "b", "a"))
    refused(lambda: load_images(tmp_path / "set"), "declares other classes")
    write(tmp_path / "set" / "test-00000-of-00001.parquet", PNGS[:7], None)
    refused(lambda: load_images(tmp_path / "set"), "has no column label")
    write(tmp_path / "set" / "train-00001-of-00002.parquet", PNGS, None)
    refused(lambda: load_images(tmp_path / "set"), "has different columns")


def test_withheld_labels_leave_the_split_out(tmp_path):
    write_splits(tmp_path / "set")
    write(tmp_path / "set" / "test-00000-of-00001.parquet", PNGS[:7], [-1] * 7, classes("a", "b", "c"))
    data = open_data(tmp_path / "set")
    assert list(data.found.parts) == ["train", "validation"]
    assert ("images without labels", "the test split") in data.found.unused
    assert data.evaluation_split == "validation"


def test_label_column_chooses_among_columns(tmp_path):
    words = [("emu", "cat", "dog")[label] for label in LABELS]
    path = write(tmp_path / "a.parquet", labels=None, species=pa.array(words), sex=pa.array(LABELS % 2))
    refused(lambda: load_images(path), "species, sex", "--label-column")
    assert load_images(path, how=Reading(label_column="species")).class_names == ("cat", "dog", "emu")
    assert load_images(path, how=Reading(label_column="sex")).labels.tolist() == (LABELS % 2).tolist()
    refused(lambda: load_images(path, how=Reading(label_column="age")), "no column age", "species, sex")
    refused(lambda: load_images(path, how=Reading(label_column="image")), "no column image", "species, sex")


def test_integer_labels_without_names_are_the_names(tmp_path):
    found = load_images(write(tmp_path / "a.parquet", labels=LABELS + 2015))
    assert found.class_names == ("2015", "2016", "2017")
    assert found.arrays()[1].tolist() == (LABELS + 2015).tolist()


def test_booleans_are_two_classes(tmp_path):
    found = load_images(write(tmp_path / "a.parquet", labels=LABELS == 0))
    assert found.class_names == ("False", "True")
    assert found.labels.tolist() == (LABELS == 0).tolist()


def test_tables_beside_image_files_are_not_taken_for_images(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    pq.write_table(pa.table({"file_name": ["a.png"], "label": [1]}), tmp_path / "metadata.parquet")
    data = open_data(tmp_path)
    assert len(data.load()) == 1
    assert [name for _, name in data.found.unused] == ["metadata.parquet"]


def test_the_training_split_declares_the_classes_and_the_colour_mode(tmp_path):
    write(tmp_path / "train.parquet", labels=[("a", "b", "c")[label] for label in LABELS])
    colour = encoded(np.repeat(PIXELS[0][..., None], 3, -1))
    write(tmp_path / "test.parquet", [PNGS[0], colour], ["c", "a"])
    test = load_images(tmp_path, "test")
    assert test.labels.tolist() == [2, 0]
    assert test.shape == (1, 9, 8)
    write(tmp_path / "test.parquet", PNGS[:1], ["z"])
    refused(lambda: load_images(tmp_path, "test"), "'z' is not one of the 3 classes")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": [*PNGS[:9], None], "labels": LABELS[:10]}, ["image 9", "no bytes"]),
        ({"images": [*PNGS[:9], b"no image"], "labels": None}, ["image 9", "cannot be read"]),
        ({"images": [*PNGS[:9], PNGS[9][:-40]], "labels": None}, ["image 9", "cannot be read"]),
        (
            {"images": [encoded(np.zeros((9, 8), np.float32), "TIFF")], "labels": None},
            ["does not declare the range", "--range"],
        ),
        ({"images": [], "labels": None}, ["holds no images"]),
        ({"labels": [-1, *LABELS[1:]], "features": classes("a", "b", "c")}, ["label -1 is not in 0..2"]),
        ({"labels": [10**9, *LABELS[1:]], "features": classes("a", "b", "c")}, ["label 1000000000"]),
        ({"labels": [None, *LABELS[1:].tolist()]}, ["row 0", "no label"]),
        ({"labels": ["x" * 2000] * 130}, ["2000 bytes"]),
        ({"labels": ["bad\nname"] * 130}, ["bad\\nname", "not printable"]),
        ({"labels": LABELS, "features": classes("only", "two")}, ["label 2 is not in 0..1"]),
        ({"features": {"label": {"_type": "ClassLabel", "names": {"0": "a"}}}}, ["class names that are not strings"]),
        ({"labels": None, "identifier": pa.array(range(130))}, ["no column label", "identifier"]),
        ({"labels": None, "target": pa.array(LABELS.astype(float))}, ["type double in column target"]),
        ({"labels": LABELS.astype(float)}, ["labels of type double", "integers"]),
        ({"labels": [b"cat"] * 130}, ["labels of type binary"]),
        ({"labels": [[1]] * 130}, ["labels of type list"]),
        ({"labels": [None] * 130}, ["labels of type null"]),
        ({"image": pa.array([1.0] * 130)}, ["no column image"]),
    ],
)
def test_unusable_tables_are_refused(tmp_path, change, words):
    refused(lambda: load_images(write(tmp_path / "a.parquet", **change)), *words)


def test_one_of_two_image_columns_must_be_named_image(tmp_path):
    table = pa.table({"left": pa.array(PNGS, pa.binary()), "right": pa.array(PNGS, pa.binary())})
    pq.write_table(table, tmp_path / "a.parquet")
    refused(lambda: load_images(tmp_path / "a.parquet"), "left, right", "rename the column")
    pq.write_table(table.rename_columns(["image", "right"]), tmp_path / "a.parquet")
    assert len(load_images(tmp_path / "a.parquet")) == 130


def test_a_path_in_the_table_is_never_opened(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "secret.png")
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = pa.array([{"bytes": None, "path": str(tmp_path / "secret.png")}], struct)
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    refused(lambda: load_images(tmp_path / "a.parquet"), "no bytes", "embedded")


def test_bombs_are_refused_before_they_unpack(tmp_path, monkeypatch):
    # One large value, repeated, is 2 KB on disk and 10 MB unpacked. Another row group promises too many bytes.
    repeated = write(tmp_path / "a.parquet", [PNGS[0] + bytes(10**6)] * 10, None)
    assert repeated.stat().st_size < 10_000
    monkeypatch.setattr(arrow_tables, "FREE_BYTES", 4 * 10**6)
    refused(lambda: load_images(repeated), "unpacks to more than 4000000 bytes", "bomb")
    refused(lambda: load_images(write(tmp_path / "b.parquet", [bytes(5 * 10**6)], None)), "promises 5000", "bomb")
    huge = io.BytesIO()
    Image.new("1", (14_000, 14_000)).save(huge, "PNG")
    refused(lambda: load_images(write(tmp_path / "c.parquet", [huge.getvalue()], None), how=Reading(side=8)), "image 0")


def test_damaged_files_are_refused(tmp_path):
    content = write(tmp_path / "a.parquet").read_bytes()
    for number, damaged in enumerate((b"", b"PAR1", content[:-9], content[: len(content) // 2], b"x" * 100)):
        path = tmp_path / f"{number}.parquet"
        path.write_bytes(damaged)
        refused(lambda path=path: load_images(path), f"{number}.parquet cannot be read")
    random = np.random.default_rng(0)
    for _ in range(20):
        changed = bytearray(content)
        for place in random.integers(0, len(content), 5):
            changed[place] ^= int(random.integers(1, 256))
        (tmp_path / "z.parquet").write_bytes(changed)
        with suppress(InputError):  # no other error may be raised; some changes are harmless
            load_images(tmp_path / "z.parquet")


def test_links_out_of_a_parquet_folder_are_refused(tmp_path):
    outside = write(tmp_path / "outside.parquet")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.parquet").symlink_to(outside)
    refused(lambda: load_images(tmp_path / "set"), "link out of")


@pytest.fixture
def cached(tmp_path, monkeypatch) -> str:
    """The name of a data set in the cache of `datasets`, laid out as after a download."""
    files = {
        "train": str(write(tmp_path / "a.parquet", features=classes("a", "b", "c"))),
        "test": str(write(tmp_path / "b.parquet", PNGS[:7], LABELS[:7], classes("a", "b", "c"))),
    }
    datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "built"))
    (built,) = (tmp_path / "built" / "parquet").glob("*/*/*/")
    place = tmp_path / "cache" / "somebody___toy_set" / "default" / "0.0.0" / built.name
    shutil.copytree(built, place)
    for file in place.glob("parquet-*.arrow"):
        file.rename(place / file.name.replace("parquet-", "toy_set-"))
    facts = json.loads((place / "dataset_info.json").read_text())
    facts |= {"dataset_name": "toy_set", "config_name": "default"}
    (place / "dataset_info.json").write_text(json.dumps(facts))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return "somebody/toy_set"


def test_a_data_set_by_name_is_read_from_the_cache(cached):
    assert list(open_data(cached).found.parts) == ["train", "test"]
    train, test = (load_images(cached, split) for split in ("train", "test"))
    assert np.array_equal(train.pixels[:, 0].numpy(), PIXELS)
    assert train.class_names == test.class_names == ("a", "b", "c")
    assert torch.equal(test.labels, torch.from_numpy(LABELS[:7]))


def test_an_unknown_name_is_refused_without_a_network_request(cached, monkeypatch):
    asked = []

    def no_network(*args, **kwargs):
        asked.append(args)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    refused(lambda: load_images("somebody/other"), "'somebody/other' does not exist", "fetch it first")
    refused(lambda: load_images("mistyped"), "'mistyped' does not exist")
    assert asked == []
    assert not datasets.config.HF_HUB_OFFLINE  # as it was
    refused(lambda: load_images("../mistyped"), "../mistyped does not exist")
    refused(lambda: load_images("mistyped.npz"), "mistyped.npz does not exist")


def test_without_datasets_a_name_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(lambda: load_images("somebody/toy_set"), "does not exist here", "-c constraints.txt '.[datasets]'")
