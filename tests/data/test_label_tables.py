"""Images with a table of labels: files are found as it names them, the column is sensible or chosen, rows counted."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dp_sinkhorn.data import Reading, load_images, open_data
from dp_sinkhorn.data.layouts import label_tables
from support.array_files import refused
from support.picture_files import (
    csv_text,
    first_pixels,
    image_bytes,
    inspected,
    json_lines,
    labels_of,
    read_or_refused,
    reasons,
    write_files,
    write_zip,
)

pytestmark = pytest.mark.quick

FAST = settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
LABELS = ["cat", "dog", "cat", "cat", "dog", "dog"]


def images(folder="", count=6, ending="png", name="im{}"):
    """Pictures of brightness 0, 10, 20, ..., so that a wrong label shows."""
    path = folder + name + ("." + ending if ending else "")
    pictures = [image_bytes(np.full((8, 8), 10 * n, np.uint8), ending or "png") for n in range(count)]
    return {path.format(n): content for n, content in enumerate(pictures)}


def write(root, table, text, files=None):
    return write_files(root, {**(images("images/") if files is None else files), table: text})


def read_labels(root, **how):
    """The labels of the pictures in the order of their brightness."""
    found = load_images(root, how=Reading(**how))
    return [label for _, label in sorted(zip(first_pixels(found), labels_of(found), strict=True))]


def rows(pattern="im{}.png", labels=LABELS):
    return [(pattern.format(number), label) for number, label in enumerate(labels)]


# --- forms of tables ------------------------------------------------------------------------------------

NAMES = [
    "im{}.png", "im{}", "images/im{}.png", "images/im{}", "./images/im{}.png", "../images/im{}.png", "IM{}.PNG",
    "images\\im{}.png", "/home/me/data/images/im{}.png", "im{}.jpg", "set-1/images/im{}.png", "elsewhere/im{}.png",
]  # fmt: skip


@pytest.mark.parametrize("pattern", NAMES)
@pytest.mark.parametrize("table", ["labels.csv", "tables/labels.csv", "images/labels.csv"])
def test_files_are_found_however_a_table_names_them(tmp_path, pattern, table):
    found = inspected(write(tmp_path, table, csv_text(("file", "label"), rows(pattern))))
    assert read_labels(tmp_path) == LABELS
    assert found.labels_from == f"the column label of {table}"
    assert found.skipped == ()


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", ", ", " ; "])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_separator_encoding_and_line_end_is_read(tmp_path, separator, encoding, end):
    labels = ["Käfer" if label == "dog" else label for label in LABELS]
    text = csv_text(("file", "note, free", "label"), [(a, "x", b) for a, b in rows(labels=labels)], separator, end)
    if separator.strip() == ",":
        text = text.replace("note, free", "note")
    assert read_labels(write(tmp_path, "labels.csv", text.encode(encoding))) == labels


@pytest.mark.parametrize("table", ["labels.csv", "metadata.csv", "a b.CSV", "metadata.tsv", "x.tab", "labels.txt"])
def test_the_table_s_name_does_not_matter(tmp_path, table):
    separator = {"metadata.tsv": "\t", "x.tab": "\t", "labels.txt": " "}.get(table, ",")
    assert read_labels(write(tmp_path, table, csv_text(("file", "label"), rows(), separator))) == LABELS


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("metadata.jsonl", json_lines(("file_name", "label"), rows())),
        ("metadata.ndjson", "\n" + json_lines(("file_name", "label"), rows()) + "\n\n"),
        ("metadata.json", json.dumps([{"file_name": name, "label": label} for name, label in rows()])),
        ("labels.json", json.dumps(dict(rows()))),
        ("labels.json", json.dumps({name: {"label": label} for name, label in rows()})),
        ("labels.json", json.dumps({"file": [name for name, _ in rows()], "label": LABELS})),
        ("dataset.json", json.dumps({"labels": rows("images/im{}.png")})),
    ],
)
def test_json_is_read_in_its_usual_shapes(tmp_path, table, text):
    assert read_labels(write(tmp_path, table, text)) == LABELS


@pytest.mark.parametrize("table", ["labels.csv", "labels.txt", "labels.tsv"])
def test_a_table_without_a_header_loses_no_row(tmp_path, table):
    separator = {"labels.csv": ",", "labels.txt": " ", "labels.tsv": "\t"}[table]
    write(tmp_path, table, csv_text((), rows(), separator))
    assert read_labels(tmp_path) == LABELS
    assert read_labels(tmp_path, label_column="2") == LABELS


def test_quotes_line_breaks_and_excel_s_first_line_are_understood(tmp_path):
    body = csv_text((), [(f'"{a}"', '"two\n\nlines; of ""text"""', b) for a, b in rows()], ";")
    write(tmp_path, "labels.csv", "sep=;\r\nfile;note;label\r\n" + body)
    assert read_labels(tmp_path) == LABELS


def test_columns_of_numbers_of_rows_are_no_labels(tmp_path):
    """As pandas writes its index."""
    write(tmp_path, "labels.csv", csv_text(("", "file", "kind"), [(n, *row) for n, row in enumerate(rows())]))
    assert read_labels(tmp_path) == LABELS


@pytest.mark.parametrize("header", [("label", "file"), ("kind", "name"), ("kind", "x")])
def test_labels_that_could_be_file_names_are_not_taken_for_them(tmp_path, header):
    """Files 0.png to 5.png and labels 0 and 1, in the first column."""
    labels = ["0", "1", "1", "0", "1", "0"]
    table = csv_text(header, [(label, f"{n}.png") for n, label in enumerate(labels)])
    assert read_labels(write(tmp_path, "labels.csv", table, images(name="{}"))) == labels


@pytest.mark.parametrize("folders", [("a/", "b/"), ("part_1/", "part_2/"), ("img/", "more/deep/")])
def test_images_may_lie_in_several_folders(tmp_path, folders):
    first, second = images(folders[0], 6), images(folders[1], 6)
    files = dict([*list(first.items())[:3], *list(second.items())[3:]])
    write(tmp_path, "labels.csv", csv_text(("image_id", "label"), rows("im{}")), files)
    assert read_labels(tmp_path) == LABELS


def test_a_table_of_each_folder_means_the_files_of_its_folder(tmp_path):
    """As Hugging Face's image folders: train/metadata.csv and test/metadata.csv name 0.png, ..."""
    other = ["dog"] * 5 + ["cat"]
    files = {**images("train/"), **images("test/")}
    files |= {"train/metadata.csv": csv_text(("file_name", "label"), rows())}
    files |= {"test/metadata.csv": csv_text(("file_name", "label"), rows(labels=other))}
    data = open_data(write_files(tmp_path, files))
    assert labels_of(data.load()) == LABELS
    assert labels_of(data.load("test")) == other


def test_tables_of_several_places_mean_the_files_of_their_place(tmp_path):
    files = {**images("north/", 3), **images("south/", 3)}
    files |= {"north/a.csv": csv_text(("file", "label"), rows()[:3])}
    files |= {"south/a.csv": csv_text(("file", "label"), rows(labels=["emu"] * 3))}
    found = load_images(write_files(tmp_path, files))
    assert labels_of(found) == [*LABELS[:3], "emu", "emu", "emu"]


def test_a_table_in_an_archive_is_found(tmp_path):
    files = {f"wrap/{name}": content for name, content in images("images/").items()}
    path = write_zip(tmp_path / "a.zip", {**files, "wrap/labels.csv": csv_text(("file", "label"), rows())})
    assert read_labels(path) == LABELS


def test_an_archive_of_images_beside_the_table_is_opened(tmp_path):
    write_zip(tmp_path / "images.zip", images())
    write_files(tmp_path, {"labels.csv": csv_text(("file", "label"), rows())})
    assert read_labels(tmp_path) == LABELS


# --- columns --------------------------------------------------------------------------------------------


def many(*columns):
    """A table with these columns of values beside the files."""
    return csv_text(
        ("file", *(name for name, _ in columns)),
        [(f"im{n}.png", *(values[n] for _, values in columns)) for n in range(6)],
    )


COLOUR, SHAPE = ("colour", ["r", "g", "r", "r", "g", "g"]), ("shape", ["x", "y", "y", "x", "x", "y"])


@pytest.mark.parametrize("name", ["label", "Class", "category", "target", "diagnosis", "dx", "y"])
def test_a_column_called_label_is_the_sensible_one(tmp_path, name):
    assert read_labels(write(tmp_path, "a.csv", many(COLOUR, (name, LABELS), SHAPE))) == LABELS


@pytest.mark.parametrize(
    "other",
    [
        ("age", ["1.5", "2.5", "1.5", "2.5", "1.5", "2.5"]),
        ("id", [f"HAM_{n}" for n in range(6)]),
        ("patient_id", ["P1", "P1", "P2", "P2", "P3", "P3"]),
        ("split", ["train"] * 6),
        ("empty", [""] * 6),
    ],
)
def test_numbers_identifiers_persons_and_splits_are_no_classes(tmp_path, other):
    assert read_labels(write(tmp_path, "a.csv", many(other, COLOUR))) == COLOUR[1]


def test_several_columns_stop_and_are_listed(tmp_path):
    write(tmp_path, "a.csv", many(COLOUR, SHAPE))
    refused(lambda: inspected(tmp_path), "a.csv", "--label-column", "colour, shape")
    assert read_labels(tmp_path, label_column="shape") == SHAPE[1]
    refused(lambda: inspected(tmp_path, label_column="nope"), "no column nope", "colour, shape")


def test_each_image_may_have_a_label_of_its_own(tmp_path):
    """Two images of two classes: a column called label is never taken for identifiers."""
    table = csv_text(("file", "size", "label"), [("im0.png", 1, "cat"), ("im1.png", 1, "dog")])
    assert read_labels(write(tmp_path, "a.csv", table, images(count=2))) == ["cat", "dog"]


def test_a_column_of_several_labels_is_picked_and_named(tmp_path):
    """As of chest X-rays: a column of 0 and 1 for each finding; pandas writes 1.0 where some are missing."""
    first, second = ("Edema", ["1", "0", "0", "1", "0", "0"]), ("Mass", ["1.0", "", "0.0", "0.0", "1.0", "1.0"])
    write(tmp_path, "a.csv", many(first, second))
    refused(lambda: inspected(tmp_path), "Edema, Mass")
    assert read_labels(tmp_path, label_column="Edema") == ["Edema" if v == "1" else "not Edema" for v in first[1]]
    assert read_labels(tmp_path, label_column="Mass") == ["Mass", "not Mass", "not Mass", "Mass", "Mass"]
    assert reasons(inspected(tmp_path, label_column="Mass"))["a row without a label in a.csv"] == 1


@pytest.mark.parametrize("values", [["0", "1"] * 3, ["3", "7"] * 3, ["-1", "0"] * 3])
def test_integers_stay_as_they_are_written(tmp_path, values):
    write(tmp_path, "a.csv", many(("label", values)))
    assert read_labels(tmp_path) == values
    assert read_labels(tmp_path, label_column="label") == values


# --- rows, files and folders ----------------------------------------------------------------------------


def test_rows_without_file_and_files_without_row_are_counted(tmp_path):
    table = csv_text(("file", "label"), [*rows()[:4], ("im4.png", ""), ("gone.png", "cat"), ("lost.png", "dog")])
    found = inspected(write(tmp_path, "labels.csv", table))
    assert found.splits == {"train": 4}
    assert reasons(found) == {
        "a row without its file in labels.csv": 2,
        "a row without a label in labels.csv": 1,
        "an image without a row in the table": 2,
    }
    assert next(one for one in found.skipped if "its file" in one.reason).examples == ("gone.png", "lost.png")
    assert len([line for line in found.attention if "were not read" in line]) == 3


def test_a_table_of_more_files_than_there_are_is_still_used(tmp_path):
    table = csv_text(("file", "label"), [*rows(), *((f"gone{n}.png", "cat") for n in range(100))])
    found = inspected(write(tmp_path, "labels.csv", table))
    assert found.splits == {"train": 6}
    assert reasons(found) == {"a row without its file in labels.csv": 100}


def test_two_labels_of_a_file_are_refused_and_two_rows_are_not(tmp_path):
    table = csv_text(("file", "label"), [*rows(), ("im0.png", "cat")])
    assert read_labels(write(tmp_path, "labels.csv", table)) == LABELS
    write(tmp_path, "labels.csv", table + "im0.png,dog\n")
    refused(lambda: inspected(tmp_path), "im0.png", "two labels")


def test_rows_that_name_several_files_are_no_guess(tmp_path):
    write(tmp_path, "labels.csv", csv_text(("file", "label"), rows()), {**images("a/"), **images("b/")})
    refused(lambda: inspected(tmp_path), "several files", "im0.png", "a/im0.png")
    write_files(tmp_path, {"labels.csv": csv_text(("file", "label"), [*rows("a/im{}"), *rows("b/im{}")])})
    assert inspected(tmp_path).splits == {"train": 12}


@pytest.mark.parametrize("table", ["labels.csv", "data.tsv", "metadata.jsonl"])
def test_a_table_that_names_no_image_stops_one_class(tmp_path, table):
    """Else its labels would be ignored."""
    separator = "\t" if table.endswith("tsv") else ","
    names = ("who", "label")
    body = [(f"other{n}", label) for n, label in enumerate(LABELS)]
    write(tmp_path, table, json_lines(names, body) if "json" in table else csv_text(names, body, separator))
    refused(lambda: inspected(tmp_path), table, "names no image", "who, label", "--class-level 0")
    assert inspected(tmp_path, class_level=0).class_names == ("0",)
    refused(lambda: inspected(tmp_path, label_column="label"), table, "names no image")


def test_a_table_that_names_no_image_is_counted_beside_class_folders(tmp_path):
    write(tmp_path, "prices.csv", "day,price\n1,2\n", {**images("cat/"), **images("dog/")})
    found = inspected(tmp_path)
    assert found.class_names == ("cat", "dog")
    assert reasons(found) == {"a table that is not used": 1}


def test_a_readme_with_commas_is_no_table(tmp_path):
    write(tmp_path, "README.txt", "Hello, world\none, two, three\nim0.png, im1.png, all\n", images("cat/"))
    assert inspected(tmp_path).class_names == ("cat",)


def test_a_column_of_other_values_and_class_folders_are_ambiguous(tmp_path):
    files = {**images("cat/", 3, name="c{}"), **images("dog/", 3, name="d{}")}
    names = [f"{label}{n}.png" for label in "cd" for n in range(3)]
    write(tmp_path, "meta.csv", csv_text(("file", "age"), zip(names, [1, 2, 1, 2, 1, 2], strict=True)), files)
    refused(lambda: inspected(tmp_path), "age", "meta.csv", "cat, dog", "--label-column age", "--class-level")
    assert inspected(tmp_path, label_column="age").class_names == ("1", "2")
    found = inspected(tmp_path, class_level=1)
    assert found.class_names == ("cat", "dog")
    assert reasons(found) == {"a table that is not used": 1}


def test_a_table_that_agrees_with_its_folders_is_not_ambiguous(tmp_path):
    files = {**images("cat/", 3, name="c{}"), **images("dog/", 3, name="d{}")}
    names = [(f"{label}{n}.png", folder) for label, folder in (("c", "cat"), ("d", "dog")) for n in range(3)]
    found = inspected(write(tmp_path, "meta.csv", csv_text(("file", "kind"), names), files))
    assert found.images_per_class == {"cat": 3, "dog": 3}
    assert not any("not used" in warning for warning in found.warnings)


def test_a_column_called_label_counts_before_folders_and_it_is_said(tmp_path):
    files = {**images("north/", 3, name="c{}"), **images("south/", 3, name="d{}")}
    names = [f"{label}{n}.png" for label in "cd" for n in range(3)]
    found = inspected(write(tmp_path, "a.csv", csv_text(("file", "label"), zip(names, LABELS, strict=True)), files))
    assert found.class_names == ("cat", "dog")
    assert any("(north, south) are not used" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label\nim0.png,cat\nim1.png\nim2.png,dog\n", ("1 fields in row 2", "2 columns")),
        ("file,label,label\nim0.png,cat,cat\nim1.png,dog,dog\n", ("two columns called label",)),
        ("file,label\nim0.png,cat,dog\nim1.png,dog\n", ("fields in row 1",)),
    ],
)
def test_a_damaged_table_that_names_images_is_refused(tmp_path, text, words):
    refused(lambda: inspected(write(tmp_path, "labels.csv", text)), "labels.csv", *words)


def test_damaged_json_lines_are_refused(tmp_path):
    refused(lambda: inspected(write(tmp_path, "metadata.jsonl", '{"file_name": "im0.png"\n')), "metadata.jsonl")


# --- splits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["split", "Partition", "set", "subset"])
@pytest.mark.parametrize("words", [("train", "val", "test"), ("TRAINING", "valid", "Testing")])
def test_a_column_says_the_splits(tmp_path, name, words):
    write(tmp_path, "a.csv", many(("label", LABELS), (name, [words[0]] * 3 + [words[1]] + [words[2]] * 2)))
    data = open_data(tmp_path)
    assert {split: labels_of(data.load(split)) for split in data.found.parts} == {
        "train": LABELS[:3],
        "validation": LABELS[3:4],
        "test": LABELS[4:],
    }


@pytest.mark.parametrize("values", ["012012", "012340", "110110"])
def test_numbered_folds_are_no_splits(tmp_path, values):
    found = inspected(write(tmp_path, "a.csv", many(("label", LABELS), ("fold", values))))
    assert found.splits == {"train": 6}
    assert any("fold" in warning and "is not used" in warning for warning in found.warnings)


def test_images_of_other_splits_are_counted(tmp_path):
    found = inspected(write(tmp_path, "a.csv", many(("label", LABELS), ("split", ["train"] * 4 + ["extra"] * 2))))
    assert found.splits == {"train": 4}
    assert reasons(found) == {"an image of a split that no verb uses": 2}


def test_a_table_for_each_split_is_read(tmp_path):
    files = {"train.csv": csv_text(("file", "label"), rows()[:4]), "test.csv": csv_text(("file", "label"), rows()[4:])}
    data = open_data(write_files(tmp_path, {**images("images/"), **files}))
    assert labels_of(data.load()) == LABELS[:4]
    assert labels_of(data.load("test")) == LABELS[4:]


def test_equal_names_in_folders_of_splits_follow_their_tables(tmp_path):
    """train/im0.png of train.csv and test/im0.png of test.csv."""
    other = ["dog"] * 5 + ["cat"]
    files = {
        "train.csv": csv_text(("file", "label"), rows()),
        "test.csv": csv_text(("file", "label"), rows(labels=other)),
    }
    data = open_data(write_files(tmp_path, {**images("train/"), **images("test/"), **files}))
    assert labels_of(data.load()) == LABELS
    assert labels_of(data.load("test")) == other


@pytest.mark.parametrize("test_table", [None, csv_text(("id", "order"), [(f"te{n}", n) for n in range(6)])])
def test_a_contest_s_test_images_without_labels_are_counted(tmp_path, test_table):
    files = {**images("train/", name="tr{}"), **images("test/", name="te{}")}
    files["train.csv"] = csv_text(("id", "label"), rows("tr{}", ["0", "1"] * 3))
    files["sample_submission.csv"] = csv_text(("id", "label"), rows("te{}", ["0"] * 6))
    if test_table is not None:
        files["test.csv"] = test_table
    found = inspected(write_files(tmp_path, files))
    assert found.splits == {"train": 6}
    assert found.images_per_class == {"0": 3, "1": 3}
    assert reasons(found)["an image without a row in the table"] == 6


# --- CelebA ---------------------------------------------------------------------------------------------

MALE = [1, -1, -1, 1, -1, 1, 1, -1]


def celeba(root, kind, nested=False):
    """The official files, with eight images."""
    names = [f"{n:06d}.jpg" for n in range(1, 9)]
    folder = "img_align_celeba/img_align_celeba" if nested else "img_align_celeba"
    files = {
        f"{folder}/{name}": image_bytes(np.full((22, 18, 3), 20 * n, np.uint8), "jpg") for n, name in enumerate(names)
    }
    attributes = [(name, -1, male, 1) for name, male in zip(names, MALE, strict=True)]
    partition = list(zip(names, [0, 0, 0, 0, 1, 1, 2, 2], strict=True))
    boxes = [(name, 95, 71, 226, 313) for name in names]
    if kind == "csv":
        files["list_attr_celeba.csv"] = csv_text(("image_id", "Bald", "Male", "Young"), attributes)
        files["list_eval_partition.csv"] = csv_text(("image_id", "partition"), partition)
        files["list_bbox_celeba.csv"] = csv_text(("image_id", "x_1", "y_1", "width", "height"), boxes)
    else:
        lines = "".join(f"{name} {bald:2d} {male:2d} {young:2d}\n" for name, bald, male, young in attributes)
        files["list_attr_celeba.txt"] = f"8\nBald Male Young \n{lines}"
        files["list_eval_partition.txt"] = csv_text((), partition, " ")
        files["list_bbox_celeba.txt"] = "8\nimage_id x_1 y_1 width height\n" + csv_text((), boxes, "    ")
        files["list_landmarks_align_celeba.txt"] = "8\nlefteye_x lefteye_y\n" + csv_text(
            (), [b[:3] for b in boxes], "  "
        )
        files["identity_CelebA.txt"] = csv_text((), [(name, n // 2) for n, name in enumerate(names)], " ")
    return write_files(root, files)


@pytest.mark.parametrize("kind", ["txt", "csv"])
@pytest.mark.parametrize("nested", [False, True])
def test_celeba_has_its_official_labels_and_splits(tmp_path, kind, nested):
    data = open_data(celeba(tmp_path, kind, nested), Reading(label_column="Male", side=16, fit="crop"))
    expected = ["Male" if male == 1 else "not Male" for male in MALE]
    for split, place in (("train", slice(4)), ("validation", slice(4, 6)), ("test", slice(6, 8))):
        found = data.load(split)
        assert found.class_names == ("not Male", "Male")
        assert labels_of(found) == expected[place]
        brightness = found.pixels.to(float).mean((1, 2, 3)).tolist()
        assert brightness == pytest.approx([20.0 * n for n in range(8)][place], abs=2)


@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_celeba_without_a_column_lists_them(tmp_path, kind):
    refused(lambda: inspected(celeba(tmp_path, kind)), "--label-column", "Bald, Male, Young")


# --- persons --------------------------------------------------------------------------------------------


def test_a_column_of_persons_is_said(tmp_path):
    patients = ("patient_id", ["P1", "P1", "P1", "P2", "P3", "P3"])
    found = inspected(write(tmp_path, "a.csv", many(("label", LABELS), patients)))
    note = next(warning for warning in found.warnings if "look like persons" in warning)
    assert "has 3, for whom ε is at least 3 times as large" in note


def test_folders_of_persons_are_said_beside_a_table(tmp_path):
    """As of CheXpert, whose table names its files from a folder above."""
    paths = [f"train/patient{n // 2:05d}/study{1 + n % 2}/view1" for n in range(6)]
    files = {f"{path}.jpg": image_bytes(np.full((8, 8), 9, np.uint8), "jpg") for path in paths}
    files["train.csv"] = csv_text(
        ("Path", "Sex"), [(f"CheXpert-v1.0/{p}.jpg", "MF"[n % 2]) for n, p in enumerate(paths)]
    )
    found = inspected(write_files(tmp_path, files))
    assert found.images_per_class == {"F": 3, "M": 3}
    assert any("3 sub-folders look like persons" in warning for warning in found.warnings)


# --- bounds ---------------------------------------------------------------------------------------------


def test_a_huge_table_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(label_tables, "MAX_TABLE_BYTES", 50)
    refused(
        lambda: inspected(write(tmp_path, "labels.csv", csv_text(("file", "label"), rows()))), "more than 50", "smaller"
    )


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "9" * 10**5, '"' + "x" * 10**6, "\0\0", ",\n" * 1000])
@pytest.mark.parametrize("table", ["a.json", "a.jsonl", "a.csv", "a.txt"])
def test_hostile_tables_do_not_stop_folders_of_classes(tmp_path, text, table):
    write(tmp_path, table, text, {**images("cat/", 1), **images("dog/", 1)})
    assert inspected(tmp_path).class_names == ("cat", "dog")


@FAST
@given(
    st.binary(max_size=300) | st.text("abcim0123.png,;\t\n\"'| ", max_size=200).map(str.encode),
    st.sampled_from(["csv", "txt", "json", "jsonl"]),
)
def test_any_bytes_as_a_table_are_read_or_refused_in_one_line(tmp_path, content, ending):
    write_files(tmp_path, {**images("images/", 2), f"labels.{ending}": content})
    read_or_refused(tmp_path)
    (tmp_path / f"labels.{ending}").unlink()
