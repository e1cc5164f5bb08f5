"""Folders of images: which folders are splits, classes, persons or nothing; the ambiguous stops, and says how on."""

import pytest

from dp_sinkhorn.data import Reading, load_images, load_synthetic, open_data
from dp_sinkhorn.data.layouts.image_folders import split_of_folder
from support.array_files import refused
from support.picture_files import first_pixels, inspected, labels_of, picture, reasons, write_files

pytestmark = pytest.mark.quick


def write(root, *names, each=1):
    """So many grey pictures in each folder."""
    for name in names:
        for number in range(each):
            picture(root / name / f"{number}.png", "L", 20)
    return root


# --- classes --------------------------------------------------------------------------------------------


def test_classes_are_sorted_folders_and_files_are_sorted(tmp_path):
    picture(tmp_path / "train" / "dog" / "b.png", "L", 40)
    picture(tmp_path / "train" / "dog" / "a.PNG", "L", 30)
    picture(tmp_path / "train" / "cat" / "c.bmp", "L", 20)
    picture(tmp_path / "test" / "cat" / "d.png", "L", 10)
    (tmp_path / "test" / "dog").mkdir()
    train, test = load_images(tmp_path), load_images(tmp_path, "test")
    assert train.class_names == test.class_names == ("cat", "dog")
    assert first_pixels(train) == [[20], [30], [40]]
    assert train.labels.tolist() == [0, 1, 1]
    assert (test.labels.tolist(), first_pixels(test)) == ([0], [[10]])


def test_folders_that_are_numbers_are_sorted_by_size(tmp_path):
    assert load_images(write(tmp_path, "10", "2", "1")).class_names == ("1", "2", "10")


@pytest.mark.parametrize("folder", ["", "images/", "train/", "train/images/", "data/imgs/"])
def test_images_in_one_folder_are_one_class(tmp_path, folder):
    found = inspected(write(tmp_path, folder or ".", each=2))
    assert found.splits == {"train": 2}
    assert found.class_names == ("0",)
    assert found.labels_from == "nothing: one class"


def test_a_single_folder_of_another_name_is_the_only_class(tmp_path):
    assert load_images(write(tmp_path, "cat")).class_names == ("cat",)


def test_files_that_are_not_images_are_counted_with_examples(tmp_path):
    write(tmp_path, "cat", "dog")
    write_files(tmp_path, {f"notes {n}.pdf": b"x" for n in range(5)} | {"cat/0.txt": "a box", "data.xlsx": b"x"})
    found = inspected(tmp_path)
    assert reasons(found) == {
        "not an image": 5,
        "a file with the name of an image, whose contents are not used": 1,
        "a spreadsheet (save it as CSV)": 1,
    }
    pdfs = next(one for one in found.skipped if one.reason == "not an image")
    assert pdfs.examples == ("notes 0.pdf", "notes 1.pdf", "notes 2.pdf")
    assert sum("were not read" in line for line in found.attention) == 3


def test_a_class_name_with_a_line_break_is_refused(tmp_path):
    refused(lambda: load_images(write(tmp_path, "a\nb", "c")), r"a\nb")


def test_words_in_file_names_are_no_classes_and_it_is_said(tmp_path):
    """As in the archive of cats and dogs: cat.0.jpg, dog.0.jpg."""
    for name in ("cat", "dog"):
        for number in range(3):
            picture(tmp_path / f"{name}.{number}.png", "L", 20)
    found = inspected(tmp_path)
    assert found.class_names == ("0",)
    assert any("2 words (cat, dog)" in warning for warning in found.warnings)


@pytest.mark.parametrize("names", [(), ("train",), ("train/cat",)])
def test_folders_without_images_are_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.pdf").write_text("x")
    refused(lambda: load_images(tmp_path), str(tmp_path), "no images" if names else "no files")


@pytest.mark.parametrize("column", ["label", "nope"])
def test_a_label_column_without_a_table_is_refused(tmp_path, column):
    refused(lambda: inspected(write(tmp_path, "cat", "dog"), label_column=column), f"--label-column {column}", "table")


def test_classes_may_be_declared_and_others_are_refused(tmp_path):
    write(tmp_path, "cat", "dog")
    assert inspected(tmp_path, classes="dog,cat,emu").images_per_class == {"dog": 1, "cat": 1, "emu": 0}
    refused(lambda: inspected(tmp_path, classes="dog,emu"), "'cat'")


# --- splits ---------------------------------------------------------------------------------------------

SPLITS = [
    ("TRAIN", "TEST", {"train": 2, "test": 2}),
    ("training", "testing", {"train": 2, "test": 2}),
    ("Train", "valid", {"train": 2, "validation": 2}),
    ("train", "val", {"train": 2, "validation": 2}),
    ("Training", "Validation", {"train": 2, "validation": 2}),
    ("train", "dev", {"train": 2, "validation": 2}),
    ("train_set", "test_set", {"train": 2, "test": 2}),
    ("Training Data", "Test Data", {"train": 2, "test": 2}),
    ("train2017", "val2017", {"train": 2, "validation": 2}),
    ("trainImages", "testImages", {"train": 2, "test": 2}),
    ("images_train", "images-test", {"train": 2, "test": 2}),
]


@pytest.mark.parametrize(("first", "second", "expected"), SPLITS)
@pytest.mark.parametrize("form", ["{}/{}", "wrap/{}/{}", "{1}/{0}"])
def test_splits_are_known_by_their_usual_names(tmp_path, first, second, expected, form):
    """At the top, below a folder around all, or inside each class."""
    write(tmp_path, *(form.format(split, name) for split in (first, second) for name in ("cat", "dog")))
    found = inspected(tmp_path)
    assert found.splits == expected
    assert found.class_names == ("cat", "dog")
    assert any("evaluate uses the validation split" in w for w in found.warnings) == ("test" not in expected)


@pytest.mark.parametrize("name", ["cat", "trainer", "train station", "steam_train", "contest", "valley", "testis", "0"])
def test_other_names_are_no_splits(name):
    assert split_of_folder(name) is None


def test_all_three_splits_are_kept_apart(tmp_path):
    for value, split in enumerate(("train", "val", "test")):
        picture(tmp_path / split / "cat" / "a.png", "L", value)
    data = open_data(tmp_path)
    assert {split: first_pixels(data.load(split)) for split in data.found.parts} == {
        "train": [[0]],
        "validation": [[1]],
        "test": [[2]],
    }
    assert data.evaluation_split == "test"


def test_parts_that_no_verb_uses_are_counted(tmp_path):
    write(tmp_path, "train/cat", "train/dog", "unlabeled", "extra/cat", each=3)
    found = inspected(tmp_path)
    assert found.splits == {"train": 6}
    assert reasons(found) == {
        "the split 'extra', which no verb uses": 3,
        "the split 'unlabeled', which no verb uses": 3,
    }
    assert len([line for line in found.attention if "no verb uses" in line]) == 2


@pytest.mark.parametrize("names", [("test",), ("val", "test"), ("test/cat", "test/dog"), ("VAL/cat", "TEST/cat")])
def test_splits_without_training_images_are_refused(tmp_path, names):
    refused(lambda: load_images(write(tmp_path, *names)), "no training images", "test")


def test_a_class_called_test_beside_others_is_a_class(tmp_path):
    found = inspected(write(tmp_path, "car", "plane", "test"))
    assert found.class_names == ("car", "plane", "test")
    assert found.splits == {"train": 3}


def test_a_class_called_train_beside_others_is_ambiguous(tmp_path):
    write(tmp_path, "car", "train")
    refused(lambda: load_images(tmp_path), "'car'", "'train'", "--class-level 1")
    assert load_images(tmp_path, how=Reading(class_level=1)).class_names == ("car", "train")


def test_images_beside_splits_are_ambiguous(tmp_path):
    write(tmp_path, ".", "train/cat")
    refused(lambda: load_images(tmp_path), "0.png", "'train'")


@pytest.mark.parametrize("names", [("plane", "test", "train"), ("test", "train"), ("test",)])
def test_folders_of_sampled_images_have_classes_only(tmp_path, names):
    for label, name in enumerate(names):
        picture(tmp_path / name / "a.png", "L", label)
    images = load_synthetic(tmp_path)
    assert images.class_names == names
    assert first_pixels(images) == [[label] for label in range(len(names))]


def test_test_classes_must_be_training_classes(tmp_path):
    write(tmp_path, "train/cat", "train/dog", "test/cat", "test/fox")
    refused(lambda: load_images(tmp_path, "test"), "'fox'", "remove it")
    assert inspected(tmp_path, classes="cat,dog,fox").splits == {"train": 2, "test": 2}
    (tmp_path / "test" / "fox").rename(tmp_path / "test" / "Dog")
    refused(lambda: load_images(tmp_path, "test"), "'Dog'", "rename it to 'dog'")


def test_test_images_without_classes_are_counted(tmp_path):
    """As in contests: train/cat, train/dog, and test/1.png to be labelled."""
    write(tmp_path, "train/cat", "train/dog", "test", each=3)
    found = inspected(tmp_path)
    assert found.splits == {"train": 6}
    assert reasons(found) == {"an image without a class, in the test split": 3}


# --- levels and persons ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "level", "classes"),
    [
        ([f"{label}/P{n}" for label in ("cat", "dog") for n in range(3)], 1, ("cat", "dog")),
        ([f"P{n}/{label}" for label in ("cat", "dog") for n in range(3)], 2, ("cat", "dog")),
        ([f"train/P{n}/{label}" for label in ("cat", "dog") for n in range(3)], 2, ("cat", "dog")),
        ([f"{label}/P{n}/visit {n % 2}" for label in ("cat", "dog") for n in range(3)], 1, ("cat", "dog")),
    ],
)
def test_folders_in_folders_stop_and_name_all_readings(tmp_path, names, level, classes):
    write(tmp_path, *names, each=4)
    message = refused(lambda: load_images(tmp_path), "folders in folders", "--class-level 1 for", "--class-level 2 for")
    assert f"--class-level {level} for 2 class(es) (cat, dog)" in message
    found = inspected(tmp_path, class_level=level)
    assert found.class_names == classes
    most = 4 if names[0].startswith("cat") and len({n.split("/")[1] for n in names}) == 6 else 8
    note = next(warning for warning in found.warnings if "look like persons" in warning)
    assert "3 sub-folders look like persons" in note
    assert f"has {most}, for whom" in note
    assert f"at least {most} times as large" in note
    assert "one image, not for all of a person's" in note


def test_only_training_images_of_a_person_count(tmp_path):
    write(tmp_path, "train/cat/P1", "train/dog/P2", each=3)
    write(tmp_path, "test/cat/P1", each=9)
    note = next(w for w in inspected(tmp_path, class_level=1).warnings if "persons" in w)
    assert "has 3, for whom" in note


def test_persons_as_classes_are_refused_by_name(tmp_path):
    write(tmp_path, *(f"patient {n}/{label}" for n in range(3) for label in ("cat", "dog")))
    data = open_data(tmp_path, Reading(class_level=1))
    refused(data.check_names, "patient 0", "--class-level", "--classes-are-public")


def test_level_0_is_one_class(tmp_path):
    write(tmp_path, "a/x", "b/y")
    found = inspected(tmp_path, class_level=0)
    assert (found.class_names, found.splits) == (("0",), {"train": 2})


def test_a_level_beyond_the_folders_is_refused(tmp_path):
    refused(lambda: inspected(write(tmp_path, "cat", "dog"), class_level=2), "--class-level 2", "0 to 1")


@pytest.mark.parametrize("names", [("cat/images", "dog/images"), ("a/b/cat/x/y", "a/b/dog/x/y")])
def test_levels_of_one_name_are_not_ambiguous(tmp_path, names):
    assert load_images(write(tmp_path, *names)).class_names == ("cat", "dog")


def test_images_beside_class_folders_are_ambiguous(tmp_path):
    write(tmp_path, ".", "cat")
    refused(lambda: load_images(tmp_path), "0.png", "--class-level 0")
    assert inspected(tmp_path, class_level=0).splits == {"train": 2}
    found = inspected(tmp_path, class_level=1)
    assert found.splits == {"train": 1}
    assert reasons(found) == {"an image beside the class folders": 1}


# --- masks and lists ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}.png", "masks/{}.png"),
        ("images/{}.png", "labels/{}.png"),
        ("train/images/{}.png", "train/masks/{}_mask.png"),
        ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
        ("{}.png", "{}_mask.png"),
        ("cat/cat ({}).png", "cat/cat ({})_mask_1.png"),
    ],
)
def test_masks_beside_images_are_neither_class_nor_image(tmp_path, image, mask):
    for number in range(3):
        picture(tmp_path / image.format(number), "RGB", (1, 2, 3))
        picture(tmp_path / mask.format(number), "L", 255)
    found = inspected(tmp_path)
    assert found.splits == {"train": 3}
    assert len(found.class_names) == 1
    assert reasons(found) == {"a mask of another image": 3}


@pytest.mark.parametrize("names", [("mask", "no mask"), ("masks", "faces")])
def test_a_class_called_mask_beside_another_is_a_class(tmp_path, names):
    assert load_images(write(tmp_path, *names)).class_names == tuple(sorted(names))


def test_lists_of_files_say_the_splits_of_class_folders(tmp_path):
    """As of Food-101: images/cat/0.png, train.txt, test.txt."""
    write(tmp_path, "images/cat", "images/dog", each=3)
    lists = {"train.txt": "cat/0\ncat/1\ndog/2\n", "test.txt": "cat/2\ndog/0\n"}
    write_files(tmp_path, lists)
    data = open_data(tmp_path)
    assert labels_of(data.load()) == ["cat", "cat", "dog"]
    assert labels_of(data.load("test")) == ["cat", "dog"]
    found = data.summary()
    assert reasons(found) == {"an image that no list of a split names": 1}
    assert any("test.txt and train.txt" in warning for warning in found.warnings)
