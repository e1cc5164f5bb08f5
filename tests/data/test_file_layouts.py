"""Every layout of image files, written with random sizes, names and splits, is read back as it was written."""

import csv
import io
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dp_sinkhorn.data import Reading, open_data
from dp_sinkhorn.data.layouts.image_folders import split_of_folder, unused_split
from support.picture_files import image_bytes, labels_of, write_files, write_tar, write_zip

# The same examples on every machine and in every run.
FEW = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
WORDS = {
    "train": ["train", "Train", "TRAIN", "training", "train_set"],
    "validation": ["val", "valid", "validation", "VAL", "dev", "val2017"],
    "test": ["test", "Test", "TEST", "testing", "Test Data"],
}
CONTAINERS: dict[str, Callable[[Path, Mapping[str, bytes]], Path]] = {
    "data": write_files,
    "data.zip": write_zip,
    "data.tar": write_tar,
    "data.tar.gz": lambda path, files: write_tar(path, files, "w:gz"),
}
# What folders and labels may be called: anything but words that mean something else.
_SAYS_MORE = {"images", "image", "data", "all", "mask", "label", "labels", "-1", "1", "0"}
NAMES = (
    st.text("abcdefXYZäß犬0123456789 _-()+", min_size=1, max_size=12)
    .map(str.strip)
    .filter(
        lambda name: (
            bool(name) and not split_of_folder(name) and not unused_split(name) and name.lower() not in _SAYS_MORE
        )
    )
)


@dataclass
class Sample:
    """An image file, what it shows, and which class and person it belongs to."""

    stem: str
    ending: str
    content: bytes
    pixels: np.ndarray
    label: str
    person: int

    @property
    def file(self) -> str:
        return f"{self.stem}.{self.ending}"


@dataclass
class Written:
    """Samples by split, and what the splits are called."""

    samples: dict[str, list[Sample]]
    words: dict[str, str]
    classes: list[str]

    def all(self) -> Iterable[tuple[str, Sample]]:
        return ((split, sample) for split, samples in self.samples.items() for sample in samples)

    def expected(self) -> dict[str, list[tuple[str, bytes]]]:
        return {
            split: sorted((sample.label, sample.pixels.tobytes()) for sample in samples)
            for split, samples in self.samples.items()
        }


@st.composite
def written(draw: st.DrawFn, least_classes: int = 1, labels: st.SearchStrategy[str] = NAMES) -> Written:
    """Random samples; the training split has every class, with two persons at least."""
    classes = draw(st.lists(labels, min_size=least_classes, max_size=4, unique_by=str.casefold))
    height, width = draw(st.integers(8, 14)), draw(st.integers(8, 14))
    colour = draw(st.booleans())
    endings = draw(st.lists(st.sampled_from(["png", "bmp", "tif", "jp2", "PNG"]), min_size=1, max_size=3))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    number = itertools.count()

    def sample(label: str, person: int) -> Sample:
        pixels = random.integers(0, 256, (height, width, 3) if colour else (height, width), dtype=np.uint8)
        pixels.flat[0] = 255
        count = next(number)
        ending = endings[count % len(endings)]
        return Sample(f"{draw_stem}{count:03d}", ending, image_bytes(pixels, ending.lower()), pixels, label, person)

    draw_stem = draw(st.text("abXY_ -ä", max_size=4)).strip() + "n"
    held = ["train", *(split for split in ("validation", "test") if draw(st.booleans()))]
    samples = {"train": [sample(label, person) for label in classes for person in (0, 1)]}
    samples["train"] += [
        sample(draw(st.sampled_from(classes)), draw(st.integers(0, 3))) for _ in range(draw(st.integers(0, 4)))
    ]
    for split in held[1:]:
        samples[split] = [sample(draw(st.sampled_from(classes)), 0) for _ in range(draw(st.integers(1, 4)))]
    return Written(samples, {split: draw(st.sampled_from(WORDS[split])) for split in held}, classes)


def check(folder: Path, files: Mapping[str, bytes | str], data: Written, container: str, **how: Any) -> None:
    """Write the files into a folder or archive, read them, and compare images, labels and splits."""
    content = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
    path = CONTAINERS[container](folder / container, content)
    try:
        found = open_data(path, Reading(**how))
        read = {}
        for split in found.found.parts:
            images = found.load(split)
            rows = images.pixels.numpy().transpose(0, 2, 3, 1)
            read[split] = sorted((label, row.tobytes()) for label, row in zip(labels_of(images), rows, strict=True))
        assert read == data.expected()
        assert sorted(found.class_names) == sorted(data.classes)
        summary = found.summary()
        assert summary.splits == {split: len(samples) for split, samples in data.samples.items()}
        assert sum(summary.images_per_class.values()) == summary.splits["train"]
        assert summary.skipped == ()
    finally:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


containers = st.sampled_from(list(CONTAINERS))
wraps = st.sampled_from(["", "wrap/", "my data/v1/"])


@FEW
@given(written(), containers, wraps)
def test_splits_of_class_folders(tmp_path, data, container, wrap):
    named = data.words if len(data.samples) > 1 else {"train": ""}
    files = {
        f"{wrap}{named[split]}/{s.label}/{s.file}".replace("//", "/").lstrip("/"): s.content for split, s in data.all()
    }
    check(tmp_path, files, data, container)


@FEW
@given(written(least_classes=2), containers, wraps)
def test_class_folders_of_splits(tmp_path, data, container, wrap):
    files = {f"{wrap}{s.label}/{data.words[split]}/{s.file}": s.content for split, s in data.all()}
    check(tmp_path, files, data, container)


@FEW
@given(written(least_classes=2), containers, st.sampled_from([1, 2]), st.booleans())
def test_classes_and_persons_with_a_level(tmp_path, data, container, level, junk):
    folders = {1: "{split}/{label}/P{person}", 2: "{split}/P{person}/{label}"}[level]
    files = {
        f"{folders.format(split=data.words[split], label=s.label, person=s.person)}/{s.file}": s.content
        for split, s in data.all()
    }
    if junk:
        files |= {"__MACOSX/._x": b"x", ".DS_Store": b"x", f"{next(iter(files)).rpartition('/')[0]}/Thumbs.db": b"x"}
    check(tmp_path, files, data, container, class_level=level)


def table(rows: Iterable[Iterable[str]], separator: str, mark: str = "") -> str:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=separator).writerows(rows)
    return mark + buffer.getvalue()


@FEW
@given(written(), containers, st.data())
def test_tables_of_labels(tmp_path, data, container, draw):
    pick = lambda *options: draw.draw(st.sampled_from(options))  # noqa: E731
    wrap = draw.draw(wraps)
    by_folder = pick(True, False) or len(data.samples) == 1
    parts = ("images/", "more images/") if pick(True, False) else ("images/",)
    above = {split: f"{word}/" if by_folder and len(data.samples) > 1 else "" for split, word in data.words.items()}
    place = {
        s.file: f"{above[split]}{parts[number % len(parts)]}{s.file}" for number, (split, s) in enumerate(data.all())
    }
    naming = pick("file", "stem", "path", "path of stem", "from above")
    named = {
        "file": lambda s: s.file,
        "stem": lambda s: s.stem,
        "path": lambda s: place[s.file],
        "path of stem": lambda s: place[s.file].rpartition(".")[0],
        "from above": lambda s: f"/home/me/{place[s.file]}",
    }[naming]
    header, rows = [pick("file", "image_id", "path", "x"), pick("label", "class", "kind")], []
    for split, sample in data.all():
        rows.append([named(sample), sample.label] + ([] if by_folder else [data.words[split]]))
    if not by_folder:
        header.append(pick("split", "partition", "subset"))
    order = draw.draw(st.permutations(range(len(header))))
    name = pick("labels.csv", "metadata.csv", "a.tsv", "metadata.jsonl")
    if name.endswith("jsonl"):
        text = "".join(json.dumps({header[n]: row[n] for n in order}) + "\n" for row in rows)
    else:
        separator = "\t" if name.endswith("tsv") else pick(",", ";", "|")
        text = table(([row[n] for n in order] for row in [header, *rows]), separator, pick("", "\ufeff"))
    files: dict[str, bytes | str] = {wrap + place[s.file]: s.content for _, s in data.all()}
    check(tmp_path, {**files, wrap + name: text}, data, container, label_column=header[1])


@FEW
@given(written(least_classes=2), containers, st.sampled_from(["split tables", "split folders"]))
def test_a_table_for_each_split(tmp_path, data, container, form):
    files: dict[str, bytes | str] = {}
    for split, samples in data.samples.items():
        word = split if form == "split tables" else data.words[split]
        folder = "images" if form == "split tables" else word
        for sample in samples:
            files[f"{folder}/{sample.file}"] = sample.content
        text = table([("file_name", "label"), *((s.file, s.label) for s in samples)], ",")
        files[f"{split}.csv" if form == "split tables" else f"{word}/metadata.csv"] = text
    check(tmp_path, files, data, container)


@FEW
@given(
    written(least_classes=2, labels=st.sampled_from(["not Male", "Male"])),
    st.sampled_from(["csv", "txt"]),
    st.booleans(),
)
def test_celeba(tmp_path, data, kind, nested):
    folder = "img_align_celeba/" * (1 + nested)
    files: dict[str, bytes | str] = {folder + s.file.replace(" ", ""): s.content for _, s in data.all()}
    numbers = {"train": 0, "validation": 1, "test": 2}
    attributes = [(s.file.replace(" ", ""), -1, 1 if s.label == "Male" else -1) for _, s in data.all()]
    partition = [(s.file.replace(" ", ""), numbers[split]) for split, s in data.all()]
    if kind == "csv":
        files["list_attr_celeba.csv"] = table([("image_id", "Bald", "Male"), *attributes], ",")
        files["list_eval_partition.csv"] = table([("image_id", "partition"), *partition], ",")
    else:
        lines = "".join(f"{name} {bald:2d} {male:2d}\n" for name, bald, male in attributes)
        files["list_attr_celeba.txt"] = f"{len(attributes)}\nBald Male \n{lines}"
        files["list_eval_partition.txt"] = "".join(f"{name} {number}\n" for name, number in partition)
    check(tmp_path, files, data, "data", label_column="Male")


@FEW
@given(written(), st.sampled_from(["cls", "json", "txt"]), st.sampled_from([".tar", ".tar.gz"]), st.integers(1, 3))
def test_webdataset(tmp_path, data, ending, packed, per_shard):
    files: dict[str, bytes] = {}
    for split, samples in data.samples.items():
        for number, first in enumerate(range(0, len(samples), per_shard)):
            members: dict[str, bytes | str] = {}
            for sample in samples[first : first + per_shard]:
                members[sample.file] = sample.content
                label = json.dumps({"label": sample.label}) if ending == "json" else sample.label
                members[f"{sample.stem}.{ending}"] = label
            name = f"{split}-{number:04d}{packed}"
            path = write_tar(tmp_path / name, members, "w" if packed == ".tar" else "w:gz")
            files[name] = path.read_bytes()
            path.unlink()
    check(tmp_path, files, data, "data")


@FEW
@given(written(), containers, wraps, st.sampled_from(["", "images/"]))
def test_images_without_labels(tmp_path, data, container, wrap, folder):
    for _, sample in data.all():
        sample.label = "0"
    data.classes = ["0"]
    if len(data.samples) == 1 and not folder:
        wrap = ""  # a single folder of another name than "images" is a class
    named = data.words if len(data.samples) > 1 else {"train": ""}
    files = {
        f"{wrap}{named[split]}/{folder}{s.file}".replace("//", "/").lstrip("/"): s.content for split, s in data.all()
    }
    check(tmp_path, files, data, container)


@pytest.mark.parametrize("damage", ["label", "split", "pixel"])
def test_the_comparison_of_these_tests_finds_what_is_wrong(tmp_path, damage):
    pixels = np.full((8, 8), 7, np.uint8)
    samples = [Sample(f"{n}", "png", image_bytes(pixels + n), pixels + n, "ab"[n % 2], 0) for n in range(4)]
    files = {f"train/{s.label}/{s.file}": s.content for s in samples}
    data = Written({"train": samples}, {"train": "train"}, ["a", "b"])
    check(tmp_path, files, data, "data")
    if damage == "label":
        samples[0].label, samples[1].label = "b", "a"
    elif damage == "pixel":
        samples[0].pixels = pixels + 9
    else:
        data.samples["test"] = [data.samples["train"].pop()]
    with pytest.raises(AssertionError):
        check(tmp_path, files, data, "data")
