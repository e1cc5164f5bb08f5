"""Labels become classes: the values that are there, as names; and names that look private are noticed."""

from typing import Any

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dp_sinkhorn.data import Reading, from_arrays, open_data
from dp_sinkhorn.data.class_names import MAX_NAME_BYTES, are_integers, class_index, names_of, private_looking
from dp_sinkhorn.data.sources import dataset_of
from support.array_files import noise, ramp, refused, save

pytestmark = pytest.mark.quick

FAST = settings(deadline=None, max_examples=100, derandomize=True, database=None)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)


def images_of(labels: Any) -> np.ndarray:
    return noise(len(labels), 8, 8)


# --- from labels to classes -----------------------------------------------------------------------------


@FAST
@given(st.lists(INTEGERS, min_size=1, max_size=8, unique=True), st.randoms(use_true_random=False))
def test_integer_labels_are_the_classes_by_size(values, random):
    labels = [random.choice(values) for _ in range(20)] + values
    read = from_arrays(images_of(labels), np.array(labels, np.int64))
    assert read.class_names == tuple(str(value) for value in sorted(values))
    assert [int(read.class_names[place]) for place in read.labels] == labels
    assert read.arrays()[1].tolist() == labels


@FAST
@given(st.lists(NAMES, min_size=1, max_size=8, unique=True), st.randoms(use_true_random=False))
def test_text_labels_are_the_classes_by_alphabet(values, random):
    labels = [random.choice(values) for _ in range(20)] + values
    for form in (labels, np.array(labels), np.array(labels, object)):
        read = from_arrays(images_of(labels), form)
        assert read.class_names == tuple(sorted(values, key=int) if are_integers(values) else sorted(values))
        assert [read.class_names[place] for place in read.labels] == labels


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (range(1, 11), tuple(map(str, range(1, 11)))),
        ([2015, 2016, 2015], ("2015", "2016")),
        ([3, -1, 3], ("-1", "3")),
        (["10", "9", "2"], ("2", "9", "10")),
        (["mel", "nv", "bcc"], ("bcc", "mel", "nv")),
        ([True, False, True], ("False", "True")),
        ([b"cat", b"dog", b"cat"], ("cat", "dog")),
        (["Ä", "a", "日本"], ("a", "Ä", "日本")),
        ([7, 7], ("7",)),
    ],
)
def test_the_values_that_are_there_are_the_names(labels, names):
    labels = list(labels)
    assert from_arrays(images_of(labels), labels).class_names == names


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.uint64, ">i2", object])
def test_labels_of_every_integer_type_are_the_same(dtype):
    read = from_arrays(ramp(), np.array([5, 1, 5, 9], dtype))
    assert read.class_names == ("1", "5", "9")
    assert read.labels.dtype == torch.int64
    assert read.labels.tolist() == [1, 0, 1, 2]


def test_labels_of_one_column_are_squeezed():
    assert from_arrays(ramp(), np.array([[0], [3], [3], [1]])).labels.tolist() == [0, 2, 2, 1]


def test_no_labels_and_one_label_are_one_class():
    assert from_arrays(ramp(), None).class_names == ("0",)
    assert from_arrays(ramp(), [0, 0, 0, 0]).num_classes == 1


def test_booleans_in_objects_are_read_as_booleans():
    labels = [True, False, False, True]
    for form in (labels, np.array(labels), np.array(labels, object)):
        assert from_arrays(ramp(), form).labels.tolist() == [1, 0, 0, 1]


# --- declared classes -----------------------------------------------------------------------------------


def test_given_class_names_fix_the_number_and_order_of_classes():
    named = from_arrays(ramp(), ["b", "a", "b", "a"], class_names=["b", "c", "a"])
    assert named.class_names == ("b", "c", "a")
    assert named.labels.tolist() == [0, 2, 0, 2]
    assert from_arrays(ramp(), [0, 0, 2, 1], class_names=["x", "y", "z"]).labels.tolist() == [0, 0, 2, 1]


def test_declared_integer_names_are_matched_by_value():
    read = from_arrays(ramp(), [3, 1, 1, 3], how=Reading(classes=("3", "2", "1")))
    assert read.class_names == ("3", "2", "1")
    assert read.labels.tolist() == [0, 2, 2, 0]


@FAST
@given(st.lists(NAMES, min_size=1, max_size=8, unique=True), st.data())
def test_every_label_gets_the_place_of_its_name(names, data):
    text = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=20))
    index = class_index(np.array(text), tuple(names), len(text))
    assert [names[place] for place in index] == text
    places = np.array([names.index(name) for name in text])
    assert class_index(places, tuple(names), len(text), counted=True).tolist() == places.tolist()


def test_classes_of_a_source_can_be_put_into_another_order(tmp_path):
    path = save(tmp_path, images=ramp(), labels=[0, 1, 1, 0], class_names=["no", "yes"])
    read = open_data(path, Reading(classes=("yes", "maybe", "no"))).load()
    assert read.class_names == ("yes", "maybe", "no")
    assert read.labels.tolist() == [2, 0, 0, 2]
    refused(lambda: open_data(path, Reading(classes=("yes", "maybe"))).load(), "class 'no'", "--classes")


@pytest.mark.parametrize(
    ("labels", "names", "word"),
    [
        ([0.0, 1.0, 0.0, 1.0], None, "float64"),
        ([0.5, 1.0, 0.0, 1.0], None, "float64"),
        (np.array([0, None, 1, 1], object), None, "labels[1] is missing (None)"),
        (np.array(["a", None, "b", "b"], object), None, "labels[1] is missing (None)"),
        (["a", 1, "b", "b"], None, "Python objects (int and str)"),
        (["a", float("nan"), "b", "b"], None, "labels[1] is missing (nan)"),
        (np.array(["a", "b" * 10**6, "a", "a"], object), None, "1000000 characters"),
        (["a", "b" * 10**6, "a", "a"], None, "1000000 characters"),
        ([b"a", b"b" * 129, b"a", b"a"], None, "at most 128 bytes"),
        (["ä" * 65] * 4, None, "more than 128 bytes"),
        (np.eye(4, dtype=int), None, "--label-column"),
        (np.zeros((4, 2, 2), int), None, "(4, 2, 2)"),
        (3, None, "of type int"),
        ([], None, "no labels"),
        ([0, 1, 0], None, "3 labels do not match 4 images"),
        ([[0], [1, 2]], None, "labels are not an array"),
        (np.array([0, 2**63, 0, 0], np.uint64), None, "9223372036854775808"),
        ([0, 10**30, 0, 0], None, "is not an int64"),
        (np.array([0, -(10**30), 0, 0], object), None, "is not an int64"),
        (np.array(["2020-01-01"] * 4, "M8[D]"), None, "datetime64"),
        ([0, 1, 2, 0], ["a", "b"], "label 2 is not in 0..1"),
        ([0, 1, -1, 0], ["a", "b"], "label -1 is not in 0..1"),
        ([0, 1, 5, 0], ["0", "1"], "label '5'"),
        (["a", "b", "c", "a"], ["a", "b"], "label 'c'"),
        (["a", "b\n", "a", "a"], None, r"'b\n'"),
        (["a", "b\u202e", "a", "a"], None, r"'b\u202e'"),
        (["a", "\ud800", "a", "a"], None, r"'\ud800'"),
        (["a", "", "a", "a"], None, "class name ''"),
        ([0, 0, 1, 1], ["a", "a"], "'a' is given twice"),
        ([0, 0, 0, 0], [], "0 class names"),
        ([0, 0, 0, 0], [""], "class name ''"),
        (None, ["a", "b"], "labels are missing for 2 classes"),
    ],
)
def test_unusable_labels_are_refused(labels: Any, names: list[str] | None, word: str):
    refused(lambda: from_arrays(ramp(), labels, names), word)


def test_ten_thousand_classes_are_possible_and_more_are_not():
    assert len(names_of(np.arange(10_000))) == 10_000
    refused(lambda: names_of(np.arange(10_001)), "10001 different labels")


def test_a_name_may_have_as_many_bytes_as_a_card_allows():
    assert from_arrays(ramp(), ["a" * MAX_NAME_BYTES] * 4).class_names == ("a" * MAX_NAME_BYTES,)


# --- several labels for each image ----------------------------------------------------------------------


FLAGS = np.array([[0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 0, 1]])


@pytest.mark.parametrize("flags", [FLAGS, FLAGS.astype(bool), FLAGS.astype(float), 2 * FLAGS - 1])
def test_one_column_of_flags_is_read_as_not_and_yes(flags):
    read = from_arrays(ramp(), flags, how=Reading(label_column="1"))
    assert read.class_names == ("1", "not 1")
    assert [read.class_names[place] for place in read.labels] == ["1", "1", "not 1", "not 1"]


def test_a_column_of_other_numbers_is_read_as_it_is():
    read = from_arrays(ramp(), np.array([[5, 0], [7, 1], [5, 1], [9, 0]]), how=Reading(label_column="0"))
    assert read.class_names == ("5", "7", "9")
    assert read.labels.tolist() == [0, 1, 0, 2]


def test_a_column_that_cannot_be_chosen_is_said():
    notes = dataset_of(ramp(), [0, 1, 0, 1], how=Reading(label_column="1")).summary().warnings
    assert any("--label-column 1 has no effect" in text for text in notes)
    notes = dataset_of(ramp(), FLAGS, how=Reading(label_column="1")).summary().warnings
    assert not any("has no effect" in text for text in notes)


def test_a_table_of_pandas_names_its_columns():
    table = pandas.DataFrame(FLAGS, columns=["Atelectasis", "Edema", "Mass"])
    read = from_arrays(ramp(), table, how=Reading(label_column="Edema"))
    assert read.class_names == ("Edema", "not Edema")
    refused(lambda: from_arrays(ramp(), table), "Atelectasis, Edema, Mass")
    assert from_arrays(ramp(), table["Mass"]).labels.tolist() == [0, 0, 0, 1]


def test_several_labels_ask_for_a_column():
    for chosen in (None, "3", "-1", "Edema"):
        how = Reading(label_column=chosen)
        refused(lambda how=how: from_arrays(ramp(), FLAGS, how=how), "3 labels for each image", "0, 1, 2", "argmax")


# --- names that look private ----------------------------------------------------------------------------

PRIVATE = [
    "2024-01-31",
    "20240131",
    "20240131235959",
    "scan_2024.1.31",
    "31.01.2024",
    "1/31/2024",
    "31 January 2024",
    "31Jan2024",
    "Jan 31, 2024",
    "2024-Jan-31",
    "2024-01-31T12:00",
    "patient 12",
    "Patient_0012",
    "patient12",
    "PATIENTS-3",
    "subject#7",
    "sub_subject.7",
    "case 5",
    "TrainCase5",
    "patient-id 77",
    "Patient No. 7",
    "mrn:123",
    "PID_9",
    "person1",
]
HARMLESS = [
    "2015",
    "2015-2016",
    "2015-13-45",
    "1234567890",
    "cat",
    "briefcase 3",
    "lowercase_7",
    "suitcase12",
    "patient",
    "case",
    "in case of 3",
    "march 3",
    "mayfly",
    "digit 10",
    "class_2024",
    "rapid 9",
    "T-shirt/top",
    "airplane",
    "stage 2",
    "1.2.3",
]


@pytest.mark.parametrize("name", PRIVATE)
def test_dates_and_persons_look_private(name):
    assert private_looking(["cat", name], [500, 500]) is not None
    data = dataset_of(ramp(), ["cat", "cat", name, name])
    refused(data.check_names, "become public", "--label-column", "--classes a,b,c", "--classes-are-public")
    assert data.load().class_names  # reading alone is no harm: inspect shows the names


@pytest.mark.parametrize("name", HARMLESS)
def test_usual_names_do_not_look_private(name):
    assert private_looking(["cat", name], [500, 500]) is None
    dataset_of(ramp(), ["cat", "cat", name, name]).check_names()


@FAST
@given(st.dates(), st.sampled_from(["%Y-%m-%d", "%Y%m%d", "%d.%m.%Y", "%m/%d/%Y", "%d %b %Y", "%B %d, %Y"]))
def test_every_complete_date_of_a_record_looks_private(date, form):
    if 1900 <= date.year < 2100:
        for text in (date.strftime(form), f"scan_{date.strftime(form)}_a"):
            assert private_looking([text, "x"], [9, 9]) is not None, text


@pytest.mark.parametrize(("classes", "each", "private"), [(50, 1, False), (51, 4, True), (51, 5, False)])
def test_many_classes_of_few_images_look_like_identifiers(classes, each, private):
    names = [f"k{number}" for number in range(classes)]
    assert (private_looking(names, [each] * classes) is not None) == private


@pytest.mark.parametrize(("form", "classes", "private"), [("P{:03}", 21, True), ("p_{}", 21, True), ("P{}", 20, False)])
def test_many_numbered_persons_are_recognised(form, classes, private):
    names = [form.format(number) for number in range(classes)]
    assert (private_looking(names, [100] * classes) is not None) == private


def test_names_that_are_declared_or_public_are_not_questioned():
    labels = ["case 1", "case 2", "case 1", "case 2"]
    refused(lambda: dataset_of(ramp(), labels).check_names(), "'case 1' looks like a person's")
    dataset_of(ramp(), labels, how=Reading(classes=("case 1", "case 2"))).check_names()
    dataset_of(ramp(), labels, how=Reading(classes_are_public=True)).check_names()
    declared = pandas.Categorical(labels)
    refused(dataset_of(ramp(), declared).check_names, "looks like a person's")
