"""Every layout of arrays and tables, written with random sizes, names and splits, is read back as it was written."""

import itertools
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dp_sinkhorn.data import open_data
from dp_sinkhorn.data.class_names import are_integers
from support.array_files import write_cifar10, write_cifar100, write_idx, write_parquet, write_svhn

# The same examples on every machine and in every run.
FEW = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
WORDS = {
    "train": ["train", "Train", "TRAIN", "training"],
    "validation": ["val", "valid", "validation", "VAL", "dev"],
    "test": ["test", "Test", "TEST", "testing"],
}
TEXTS = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=12)


@dataclass
class Written:
    """Images and the classes of their labels, by split; what the split is called; and all classes in order."""

    images: dict[str, np.ndarray]
    labels: dict[str, list[int]]
    words: dict[str, str]
    names: list[str]

    def values(self, split: str) -> list[int] | list[str]:
        """Labels as a user has them: integers that are names, or texts."""
        names = [int(name) for name in self.names] if are_integers(self.names) else self.names
        return [names[label] for label in self.labels[split]]


@st.composite
def written(
    draw: st.DrawFn,
    names: st.SearchStrategy[list[str]],
    splits: tuple[str, ...] = ("train", "validation", "test"),
    side: int | None = None,
    channels: tuple[int, ...] = (1, 3),
) -> Written:
    """Random data in which the training split has every class."""
    classes = draw(names)
    held = ["train", *(split for split in splits if split != "train" and draw(st.booleans()))]
    height, width = (side, side) if side else (draw(st.integers(8, 14)), draw(st.integers(8, 14)))
    depth = draw(st.sampled_from(channels))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    images, labels = {}, {}
    for split in held:
        own = list(range(len(classes))) if split == "train" else []
        own += random.integers(0, len(classes), draw(st.integers(1, 6))).tolist()
        random.shuffle(own)
        shape = (len(own), height, width) + ((depth,) if depth > 1 else ())
        images[split] = random.integers(0, 256, shape, dtype=np.uint8)
        images[split].flat[0] = 255
        labels[split] = own
    return Written(images, labels, {split: draw(st.sampled_from(WORDS[split])) for split in held}, classes)


def by_size(numbers: set[int]) -> list[str]:
    return [str(number) for number in sorted(numbers)]


def in_order(names: set[str]) -> list[str]:
    return sorted(names, key=int) if are_integers(list(names)) else sorted(names)


INTEGERS = st.sets(st.integers(-3, 3000), min_size=1, max_size=5).map(by_size)
WORD_NAMES = st.sets(TEXTS, min_size=1, max_size=5).map(in_order)
VALUES = INTEGERS | WORD_NAMES
DECLARED = st.lists(TEXTS, min_size=1, max_size=5, unique=True)  # in any order


def check(source: Path, data: Written, names: list[str] | None = None) -> None:
    """Everything is read as it was written, and nothing is left out."""
    read = open_data(source)
    assert set(read.found.parts) == set(data.images)
    expected = data.names if names is None else names
    for split, images in data.images.items():
        own = read.load(split)
        assert np.array_equal(own.arrays()[0], images)
        assert own.class_names == tuple(expected)
        assert [own.class_names[place] for place in own.labels] == [data.names[label] for label in data.labels[split]]
    summary = read.summary()
    assert summary.splits == {split: len(data.images[split]) for split in summary.splits}
    assert set(summary.splits) == set(data.images)
    counts = np.bincount(data.labels["train"], minlength=len(data.names)).tolist()
    assert summary.images_per_class == dict(zip(expected, counts, strict=True))
    assert summary.skipped == ()


NUMBER = itertools.count()


@pytest.fixture
def fresh(tmp_path) -> Callable[[], Path]:
    """A new folder for every example."""

    def make() -> Path:
        folder = tmp_path / str(next(NUMBER))
        folder.mkdir()
        return folder

    return make


def arrays_of(data: Written, pattern: str, images: str, labels: str) -> Mapping[str, np.ndarray]:
    arrays = {}
    for split, word in data.words.items():
        arrays[pattern.format(word, images)] = data.images[split]
        arrays[pattern.format(word, labels)] = np.array(data.values(split))
    return arrays


NAMES = st.tuples(
    st.sampled_from(["{0}_{1}", "{1}_{0}", "{1}-{0}", "{0}.{1}"]),
    st.sampled_from([("images", "labels"), ("x", "y"), ("X", "y"), ("data", "targets"), ("imgs", "label")]),
)


@FEW
@given(data=written(VALUES), how=NAMES, packed=st.booleans())
def test_npz(fresh, data, how, packed):
    pattern, parts = how
    path = fresh() / "data.npz"
    (np.savez_compressed if packed else np.savez)(path, **arrays_of(data, pattern, *parts))
    check(path, data)
    check(path.parent, data)


@FEW
@given(data=written(DECLARED))
def test_npz_with_class_names(fresh, data):
    path = fresh() / "data.npz"
    arrays = {}
    matched = are_integers(data.names)
    for split in data.images:
        arrays[f"{split}_images"] = data.images[split]
        arrays[f"{split}_labels"] = np.array(data.values(split) if matched else data.labels[split])
    np.savez(path, class_names=np.array(data.names), **arrays)
    check(path, data)


@FEW
@given(data=written(VALUES), how=NAMES)
def test_npy(fresh, data, how):
    folder = fresh()
    pattern, parts = how
    for name, array in arrays_of(data, pattern, *parts).items():
        np.save(folder / f"{name}.npy", array)
    check(folder, data)


@FEW
@given(data=written(VALUES))
def test_npy_in_folders(fresh, data):
    folder = fresh()
    for split, word in data.words.items():
        (folder / word).mkdir()
        np.save(folder / word / "images.npy", data.images[split])
        np.save(folder / word / "labels.npy", data.values(split))
    check(folder, data)


@FEW
@given(
    data=written(st.sets(st.integers(0, 255), min_size=1, max_size=5).map(by_size), channels=(1,)), packed=st.booleans()
)
def test_idx(fresh, data, packed):
    ending = "{}-idx{}-ubyte.gz" if packed else "{}-idx{}-ubyte"
    splits = {word: (data.images[split], data.values(split)) for split, word in data.words.items()}
    check(write_idx(fresh(), splits, ending, packed), data)


@FEW
@given(data=written(DECLARED, ("train", "test"), 32, (3,)), batches=st.integers(1, 3))
def test_cifar_10(fresh, data, batches):
    train, test = (
        (data.images[split], data.labels[split]) if split in data.images else None for split in ("train", "test")
    )
    names = [name.encode("latin-1", "replace").decode("latin-1") for name in data.names]  # as Python 2 has them
    if len(set(names)) == len(names):
        data.names = names
        check(write_cifar10(fresh(), train, test, names, min(batches, len(train[1]))), data)


@FEW
@given(
    data=written(
        st.integers(1, 5).map(lambda count: [f"class {place}" for place in range(count)]), ("train",), 32, (3,)
    )
)
def test_cifar_100(fresh, data):
    splits = {split: (data.images[split], data.labels[split], [0] * len(data.labels[split])) for split in data.images}
    check(write_cifar100(fresh(), splits, data.names, ["all"]), data)


@FEW
@given(
    data=written(st.sets(st.integers(0, 9), min_size=1, max_size=5).map(by_size), ("train", "test"), 32, (3,)),
    packed=st.booleans(),
)
def test_svhn(fresh, data, packed):
    folder = fresh()
    for split, word in data.words.items():
        write_svhn(folder / f"{word}_32x32.mat", data.images[split], data.values(split), packed)
    check(folder, data)


@FEW
@given(data=written(VALUES), place=st.sampled_from(["", "data", "plain_text"]))
def test_parquet(fresh, data, place):
    folder = fresh()
    for split, word in data.words.items():
        write_parquet(folder / place / f"{word}-00000-of-00001.parquet", data.images[split], data.values(split))
    check(folder, data)


@FEW
@given(data=written(DECLARED))
def test_parquet_with_class_labels(fresh, data):
    folder = fresh()
    for split, word in data.words.items():
        write_parquet(folder / f"{word}.parquet", data.images[split], data.labels[split], data.names)
    check(folder, data)


@FEW
@given(data=written(VALUES), inner=st.sampled_from(["", "folder", "deep/folder"]))
def test_arrays_in_a_zip(fresh, data, inner):
    folder = fresh()
    np.savez(folder / "data.npz", **arrays_of(data, "{0}_{1}", "images", "labels"))
    with zipfile.ZipFile(folder / "data.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.write(folder / "data.npz", os.path.join(inner, "data.npz"))  # noqa: PTH118 - a name in an archive
    check(folder / "data.zip", data)
