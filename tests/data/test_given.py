"""What Python hands over: the same images and labels in any form are the same bytes; anything else is one line."""

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from dp_sinkhorn.data import Reading, from_arrays, open_data
from dp_sinkhorn.data.sources import dataset_of
from support.array_files import encoded, noise, ramp, refused, save

pytestmark = pytest.mark.quick


class Lazy(Sequence):
    """A column that makes an image whenever it is asked for one; `most` is how many were in memory at once."""

    def __init__(self, images):
        self.images, self.alive, self.most = images, [], 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, place):
        image = Image.fromarray(self.images[place])
        self.alive = [one for one in self.alive if one() is not None] + [weakref.ref(image)]
        self.most = max(self.most, len(self.alive))
        return image


def pillow(images: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(image) for image in images]


def structs(images: np.ndarray) -> list[dict[str, Any]]:
    return [{"bytes": encoded(image), "path": None} for image in images]


def hugging_face(images: np.ndarray, decode: bool = True) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(decode=decode)})
    return datasets.Dataset.from_dict({"image": structs(images)}, features)


def paths(images: np.ndarray, folder: Path) -> list[Path]:
    """Files without an order in their names."""
    found = [folder / f"{(7 * number) % 10}.png" for number in range(len(images))]
    for path, image in zip(found, images, strict=True):
        path.write_bytes(encoded(image))
    return found


# --- images ---------------------------------------------------------------------------------------------

IMAGE_FORMS: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "floats": lambda images, _: images / 255,
    "channels first": lambda images, _: images.transpose(0, 3, 1, 2) if images.ndim == 4 else images[:, None],
    "channels last": lambda images, _: images if images.ndim == 4 else images[..., None],
    "nested lists": lambda images, _: images.tolist(),
    "list of arrays": lambda images, _: list(images),
    "Series of arrays": lambda images, _: pandas.Series(list(images)),
    "torch": lambda images, _: torch.from_numpy(images),
    "torch with a gradient": lambda images, _: torch.from_numpy(images / 255).requires_grad_(),
    "tuple of tensors": lambda images, _: tuple(torch.from_numpy(images / 255).requires_grad_()),
    "Pillow": lambda images, _: pillow(images),
    "Series of Pillow": lambda images, _: pandas.Series(pillow(images)),
    "lazy column": lambda images, _: Lazy(images),
    "paths": lambda images, folder: paths(images, folder),
    "tuple of texts": lambda images, folder: tuple(map(str, paths(images, folder))),
    "array of texts": lambda images, folder: np.array(list(map(str, paths(images, folder)))),
    "Series of paths": lambda images, folder: pandas.Series(paths(images, folder)),
    "Series of texts": lambda images, folder: pandas.Series(list(map(str, paths(images, folder)))),
    "categories of texts": lambda images, folder: pandas.Series(map(str, paths(images, folder)), dtype="category"),
    "encoded": lambda images, _: [encoded(image) for image in images],
    "structs": lambda images, _: structs(images),
    "structs of paths": lambda images, folder: [{"bytes": None, "path": str(path)} for path in paths(images, folder)],
    "Series of structs": lambda images, _: pandas.Series(structs(images)),
    "each in another form": lambda images, folder: [
        pillow(images)[0], structs(images)[1], paths(images, folder)[2], *pillow(images)[3:]
    ],
    "Hugging Face": lambda images, _: hugging_face(images)["image"],
    "Hugging Face, a list": lambda images, _: hugging_face(images)[:]["image"],
    "Hugging Face, encoded": lambda images, _: hugging_face(images, decode=False)["image"],
    **{
        f"Hugging Face as {form}": lambda images, _, form=form: hugging_face(images).with_format(form)["image"]
        for form in ("numpy", "torch", "pandas", "arrow")
    },
}  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", IMAGE_FORMS)
def test_the_same_images_in_any_form_are_the_same_bytes(form, channels, tmp_path):
    images, labels = noise(5, 8, 9, channels), [2, 0, 1, 0, 2]
    read = from_arrays(IMAGE_FORMS[form](images, tmp_path), labels)
    assert read.sha256() == from_arrays(images, labels).sha256()


def test_a_lazy_column_is_decoded_one_at_a_time():
    images = Lazy(noise(50, 8, 8))
    read = from_arrays(images, None)
    assert np.array_equal(read.pixels[:, 0].numpy(), images.images)
    assert images.most <= 2


@pytest.mark.parametrize("form", ["Pillow", "paths", "structs", "Hugging Face", "Hugging Face as pandas"])
def test_pictures_of_several_sizes_need_a_side(form, tmp_path):
    images = [noise(1, 8, 9)[0], noise(1, 20, 20)[0]]
    given = IMAGE_FORMS[form](images, tmp_path)
    refused(lambda: from_arrays(given, None), "9x8 pixels", "20x20", 'in Python settings={"reading": {"side": 32}}')
    refused(lambda: from_arrays(given, None, how=Reading(side=8)), '"fit": "crop"')
    assert from_arrays(given, None, how=Reading(side=8, fit="crop")).shape == (1, 8, 8)


def test_a_listed_path_is_read_as_in_a_folder(tmp_path):
    images = noise(2, 8, 8)
    one, other = paths(images, tmp_path)
    assert from_arrays([one, other], None).sha256() == from_arrays(images, None).sha256()
    one.write_bytes(b"hello")
    message = refused(lambda: open_data(tmp_path).load(), str(one), "no image of a known format")
    assert refused(lambda: from_arrays([one, other], None)) == message


# --- labels ---------------------------------------------------------------------------------------------


def class_label(labels: list[Any], form: str | None = None) -> Any:
    names = sorted(set(labels))
    features = datasets.Features({"label": datasets.ClassLabel(names=[str(name) for name in names])})
    table = datasets.Dataset.from_dict({"label": [names.index(label) for label in labels]}, features)
    return table.with_format(form)["label"]


LABEL_FORMS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "array": np.array,
    "array of objects": lambda labels: np.array(labels, object),
    "Series": pandas.Series,
    "Series with an index": lambda labels: pandas.Series(labels, index=range(90, 90 + len(labels))),
    "Series of objects": lambda labels: pandas.Series(labels, dtype=object),
    "Categorical": pandas.Categorical,
    "Series of categories": lambda labels: pandas.Series(labels, dtype="category"),
    "index of categories": pandas.CategoricalIndex,
    "table of one column": lambda labels: pandas.DataFrame({"label": labels}),
    "Hugging Face": lambda labels: datasets.Dataset.from_dict({"label": labels})["label"],
    "ClassLabel": class_label,
    "ClassLabel as numpy": lambda labels: class_label(labels, "numpy"),
    "ClassLabel as torch": lambda labels: class_label(labels, "torch"),
    "Arrow": lambda labels: datasets.Dataset.from_dict({"label": labels}).with_format("arrow")["label"],
}
INTEGER_FORMS: dict[str, Callable[[list[int]], Any]] = {
    "torch": torch.tensor,
    "list of tensors": lambda labels: list(torch.tensor(labels)),
    "small integers": lambda labels: np.array(labels, np.uint8),
    "nullable integers": lambda labels: pandas.Series(labels, dtype="Int64"),
}


@pytest.mark.parametrize("classes", [None, ("10", "9", "2", "0"), ("b", "a", "c", "d")])
@pytest.mark.parametrize("form", LABEL_FORMS | INTEGER_FORMS)
def test_the_same_labels_in_any_form_are_the_same_bytes(form, classes):
    kinds = [[9, 10, 2, 9]] if form in INTEGER_FORMS else [[9, 10, 2, 9], ["c", "a", "b", "c"]]
    for labels in kinds:
        if classes is not None and not set(map(str, labels)) <= set(classes):
            continue
        how = Reading(classes=classes)
        read = from_arrays(ramp(), (LABEL_FORMS | INTEGER_FORMS)[form](labels), how=how)
        assert read.sha256() == from_arrays(ramp(), labels, how=how).sha256()
        assert [read.class_names[label] for label in read.labels] == list(map(str, labels))


def test_a_type_that_declares_classes_keeps_their_order():
    severity = pandas.Categorical(["none", "mild", "none", "mild"], ["none", "mild", "severe"])
    features = datasets.Features({"label": datasets.ClassLabel(names=severity.categories.tolist())})
    column = datasets.Dataset.from_dict({"label": [0, 1, 0, 1]}, features)["label"]
    for labels in (severity, pandas.Series(severity), column):
        read = from_arrays(ramp(), labels)
        assert read.class_names == ("none", "mild", "severe")
        assert read.labels.tolist() == [0, 1, 0, 1]
        chosen = from_arrays(ramp(), labels, class_names=["severe", "mild", "none"])
        assert chosen.labels.tolist() == [2, 1, 2, 1]
        refused(lambda labels=labels: dataset_of(ramp(), labels, Reading(classes=("none",))).load(), "class 'mild'")


# --- what cannot be read --------------------------------------------------------------------------------


def broken_column() -> Any:
    rows = [*structs(ramp())[:3], {"bytes": b"hello", "path": None}]
    return datasets.Dataset.from_dict({"image": rows}, datasets.Features({"image": datasets.Image()}))["image"]


def withheld() -> Any:
    features = datasets.Features({"label": datasets.ClassLabel(names=["a", "b"])})
    return datasets.Dataset.from_dict({"label": [0, -1, 1, 0]}, features)["label"]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (lambda: (image for image in ramp()), ["of type generator", "list"]),
        (lambda: iter(pillow(ramp())), ["of type list_iterator"]),
        (lambda: map(str, "ab"), ["of type map"]),
        (lambda: set("ab"), ["of type set"]),
        (lambda: {"image": ramp()}, ["of type dict"]),
        (lambda: None, ["of type NoneType"]),
        (lambda: "folder", ["of type str"]),
        (lambda: pillow(ramp())[0], ["of type Image"]),
        (lambda: encoded(ramp()[0]), ["of type bytes"]),
        (lambda: hugging_face(ramp()), ["of type Dataset"]),
        (lambda: hugging_face(ramp()).to_iterable_dataset()["image"], ["of type IterableColumn"]),
        (lambda: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(4, 8, 8))), ["DataLoader"]),
        (lambda: torch.zeros(4, 8, 8, device="meta"), ["images are not an array"]),
        (lambda: torch.zeros(4, 8, 8).to_sparse(), ["images are not an array"]),
        (lambda: pandas.DataFrame(ramp().reshape(4, -1)), ["(4, 64)"]),
        (lambda: pandas.Series([1, 2, 3, 4]), ["(4,)"]),
        (list, ["(0,)"]),
        (lambda: [1, 2, 3, 4], ["images[0] is of type int"]),
        (lambda: [None, *pillow(ramp())], ["images[0] is of type NoneType"]),
        (lambda: [*pillow(ramp())[:3], None], ["images[3] is a NoneType"]),
        (lambda: pandas.Series(["a.png", float("nan")], dtype=object), ["a.png cannot be read"]),
        (lambda: pandas.Series([encoded(ramp()[0]), float("nan")]), ["images[1] is a float"]),
        (lambda: [*pillow(ramp())[:3], ramp()[3]], ["images[3] is a ndarray"]),
        (lambda: [*ramp()[:3], pillow(ramp())[3]], ["images[3] is of type Image"]),
        (lambda: [*ramp()[:3], "3.png"], ["images[3] is of type str"]),
        (lambda: [*ramp()[:3], np.zeros((9, 9), np.uint8)], ["(8, 8) and (9, 9)", "Pillow", '"reading": {"side": 32}']),
        (lambda: [*ramp()[:3], np.zeros((8, 8))], ["float64 and uint8"]),
        (lambda: ["a.png", "b.png"], ["a.png cannot be read (No such file"]),
        (lambda: ["a\0b"], [r"a\x00b cannot be read"]),
        (lambda: [""], ["regular file"]),
        (lambda: [{"bytes": None, "path": None}], ["images[0] is a dict without bytes or path"]),
        (lambda: [{"image": pillow(ramp())[0], "label": 0}], ["images[0] is a dict without bytes or path"]),
        (lambda: [b"hello"], ["images[0] cannot be read", "no image of a known format"]),
        (broken_column, ["images[3] cannot be read"]),
        (lambda: Lazy([*ramp()[:3], None]), ["images[3] cannot be read"]),
    ],
)
def test_other_images_are_refused(images, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(lambda: from_arrays(images(), None), *words)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (lambda: (label for label in [0, 1, 0, 1]), ["labels are of type generator"]),
        (lambda: "label", ["labels are of type str"]),
        (lambda: {0, 1}, ["of type set"]),
        (lambda: hugging_face(ramp()), ["of type Dataset"]),
        (lambda: torch.tensor([0.0, 1.0, 0.0, 1.0], requires_grad=True), ["float32"]),
        (lambda: [0, 1, 0], ["3 labels do not match 4 images"]),
        (lambda: pandas.Categorical(["a", "b", "a"]), ["3 labels do not match 4 images"]),
        (lambda: class_label(["a", "b", "a"]), ["3 labels do not match 4 images"]),
        (lambda: [0, 1, None, 1], ["labels[2] is missing (None)"]),
        (lambda: ["a", float("nan"), "b", "b"], ["labels[1] is missing (nan)"]),
        (lambda: np.array([0, 1, np.nan, 1]), ["labels[2] is missing (nan)"]),
        (lambda: pandas.Series([0, 1, None, 1]), ["labels[2] is missing"]),
        (lambda: pandas.Series([0, 1, None, 1], dtype="Int64"), ["labels[2] is missing"]),
        (lambda: pandas.Series([0, 1, pandas.NA, 1], dtype=object), ["labels[2] is missing (<NA>)"]),
        (lambda: pandas.Series(["a", "b", None, "a"]), ["labels[2] is missing"]),
        (lambda: pandas.Series([True, None, False, True], dtype="boolean"), ["labels[1] is missing"]),
        (lambda: pandas.Categorical(["a", None, "a", "b"]), ["labels[1] is missing"]),
        (lambda: pandas.Categorical([1, None, 2, 1]), ["labels[1] is missing"]),
        (lambda: pandas.Categorical([0.5, 1.5, 0.5, 1.5]), ["labels are float64"]),
        (lambda: datasets.Dataset.from_dict({"label": ["a", None, "a", "b"]})["label"], ["labels[1] is missing"]),
        (withheld, ["label -1 is not in 0..1"]),
        (lambda: ["a", 1, "b", "b"], ["int and str"]),
        (lambda: [True, 1, False, 0], ["bool and int"]),
        (lambda: [0, 1.0, 0, 1], ["float and int"]),
        (lambda: [b"a", "a", "b", "b"], ["bytes and str"]),
        (lambda: [[0, 1], (1, 0), [0, 0], [1, 1]], ["list and tuple"]),
    ],
)
def test_other_labels_are_refused(labels, words):
    refused(lambda: from_arrays(ramp(), labels()), *words)


# --- a data set on disk ---------------------------------------------------------------------------------


def test_a_path_or_name_is_a_data_set_as_in_the_shell(tmp_path):
    path = save(tmp_path, train_images=ramp(), train_labels=["a", "b", "a", "b"], test_images=noise(2, 8, 8))
    for source in (path, str(path)):
        assert dataset_of(source, None).load().sha256() == open_data(path).load().sha256()
    assert dataset_of("digits", None, Reading(side=16)).load().shape == (1, 16, 16)
    refused(lambda: dataset_of("digits", [0, 1]), "digits", "leave labels out")
    refused(lambda: dataset_of(tmp_path / "digits", None), "does not exist")
    # Not where images of a certain split are meant, as in `evaluate`.
    refused(lambda: from_arrays("digits", None), "of type str")
    refused(lambda: from_arrays(path, None), "Path")
