"""What `inspect` and `train` say of the data before anything is spent, and how options of reading are kept."""

import io
import json
import shlex
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dp_sinkhorn import DPSinkhorn, InputError
from dp_sinkhorn.data.sources import load_images, load_synthetic
from dp_sinkhorn.evaluation.classifiers import CLASSIFIERS
from dp_sinkhorn.training import speed
from support.asking import Asking, KilledError, charged, die, files_of
from support.image_files import SUMMARY, write_images
from support.small_release import RECORD, make_run
from support.toy import LEAN, pairs

FAST = pairs(LEAN["record"] | {"num_steps": 4, "noise_multiplier": 200})
KEYS = {
    "splits", "image_shape", "class_names", "images_per_class", "labels_from", "value_range", "skipped", "warnings",
    "unit", "layout", "converted",
}  # fmt: skip
READING = "--set", "reading.side=10"


@pytest.fixture
def run(command_line, monkeypatch, tmp_path_factory):
    """See `command_line`; with its own cache folder, and without measuring this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user_cache")))
    monkeypatch.setattr(speed, "measure_speed", lambda config, stages: speed.Speed(0.1, 1.0, 0.0))
    return command_line


@pytest.fixture
def data(tmp_path) -> Path:
    """Two classes of 20 training images, a test split, and a text file that is not read."""
    folder = write_images(tmp_path / "data" / "train", {"cat": 20, "dog": 20}).parent
    write_images(folder / "test", {"cat": 3, "dog": 4}, seed=1)
    (folder / "train" / "cat" / "notes.txt").write_text("of whom")
    return folder


class Terminal(io.StringIO):
    """A terminal on which somebody has typed these lines."""

    def isatty(self) -> bool:
        return True


def told(err: str) -> dict[str, str]:
    """The lines that say what was read, by their beginning."""
    return {head: line.removeprefix(head) for head in SUMMARY for line in err.splitlines() if line.startswith(head)}


# What is read, and where `train` stops.
def test_inspect_counts_what_train_reads(run, data):
    code, out, err = run("inspect", data, "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert set(facts) == KEYS
    assert facts["splits"] == {"train": 40, "test": 7}
    assert facts["image_shape"] == [1, 8, 8]
    assert facts["class_names"] == ["cat", "dog"]
    assert facts["images_per_class"] == {"cat": 20, "dog": 20}
    assert "folders" in facts["labels_from"]
    assert facts["unit"] == "record"
    images = [np.asarray(Image.open(path)) for path in data.rglob("*.png")]
    assert facts["value_range"] == [min(map(np.min, images)), max(map(np.max, images))]
    [skipped] = facts["skipped"]
    assert set(skipped) == {"reason", "count", "examples"}
    assert (skipped["count"], skipped["examples"]) == (1, ["train/cat/notes.txt"])
    assert any("1 file(s) were not read" in line for line in facts["warnings"])


def test_inspect_names_three_files_of_each_reason(run, data):
    for number in range(5):
        (data / "train" / "dog" / f"{number}.doc").write_bytes(b"")
    facts = json.loads(run("inspect", data, "--json")[1])
    assert [(one["count"], len(one["examples"])) for one in facts["skipped"]] == [(6, 3)]


def test_the_first_line_says_that_the_output_is_private(run, data):
    code, out, err = run("inspect", data)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "This output is about private data: do not hand it out."
    assert set(told(out)) == set(SUMMARY)
    assert "  cat: 20\n  dog: 20\n" in out
    assert "train/cat/notes.txt" in out
    assert "warning: 1 file(s) were not read" in out


def test_inspect_writes_one_picture_for_its_owner_and_nothing_else(run, data, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = files_of(tmp_path)
    assert run("inspect", data, "--out", "grid.png")[0] == 0
    after = files_of(tmp_path)
    assert after.keys() - before.keys() == {"here/grid.png"}
    assert {name: after[name] for name in before} == before
    assert Path("grid.png").stat().st_mode & 0o777 == 0o600
    with Image.open("grid.png") as picture:
        assert picture.width > 10 * 8
        assert len(picture.getcolors(2**24) or []) > 20


@pytest.mark.parametrize(
    ("name", "words"), [("photo.png", "exists already"), ("grid.jpg", "give a .png"), ("no/g.png", "does not exist")]
)
def test_inspect_overwrites_nothing(run, data, tmp_path, name, words):
    (tmp_path / "photo.png").write_bytes(b"kept")
    code, out, err = run("inspect", data, "--out", tmp_path / name)
    assert (code, out) == (2, "")
    assert words in err
    assert (tmp_path / "photo.png").read_bytes() == b"kept"


def private_names(folder: Path) -> list[str]:
    write_images(folder, {"patient 0017": 12, "patient 0018": 12})
    return []


def declared_public(folder: Path) -> list[str]:
    return [*private_names(folder), "--classes-are-public"]


def deep(folder: Path) -> list[str]:
    write_images(folder, {"cat/a": 12, "dog/b": 12})
    return []


def level_given(folder: Path) -> list[str]:
    return [*deep(folder), "--class-level", "1"]


def other_sizes(folder: Path) -> list[str]:
    write_images(folder, {"cat": 12})
    write_images(folder, {"dog": 12}, side=9)
    return []


def one_size(folder: Path) -> list[str]:
    return [*other_sizes(folder), "--side", "12"]


def damaged(folder: Path) -> list[str]:
    write_images(folder, {"cat": 12})
    (folder / "cat" / "000.png").write_bytes(b"no image")
    return []


def empty(folder: Path) -> list[str]:
    folder.mkdir()
    return []


def unknown_class(folder: Path) -> list[str]:
    write_images(folder, {"cat": 12, "dog": 12})
    return ["--classes", "cat,cow"]


def too_small(folder: Path) -> list[str]:
    write_images(folder, {"cat": 12}, side=7)
    return ["--side", "4"]


def few(folder: Path) -> list[str]:
    write_images(folder, {"cat": 12, "dog": 2})
    return []


MAKERS = [
    private_names, declared_public, deep, level_given, other_sizes, one_size, damaged, empty, unknown_class, too_small,
    few,
]  # fmt: skip


@pytest.mark.parametrize("make", MAKERS)
def test_inspect_ends_with_2_exactly_where_train_stops(run, tmp_path, make):
    options = make(tmp_path / "data")
    code, out, err = run("inspect", tmp_path / "data", *options, "--json")
    facts = json.loads(out)
    trained, _, why = run("train", tmp_path / "data", "--out", tmp_path / "run", *options, *FAST, "--dry-run", "--json")
    assert code == trained == (0 if make in (declared_public, level_given, one_size, few) else 2)
    assert set(facts) - {"error"} == KEYS
    assert ("error" in facts) is (code == 2)
    if code == 2:
        assert err == f"error: {facts['error']}\n"
        assert why.splitlines()[-1] == err.rstrip()


def test_names_of_any_file_or_class_are_printed_harmlessly(run, tmp_path):
    folder = write_images(tmp_path / "data", {"cat": 12, "dog": 12})
    (folder / "cat" / "\x1b[2Jnotes\n.txt").write_bytes(b"")
    write_images(folder / "extra", {"x\x1b[1m": 1})
    for arguments in (("inspect", folder), ("train", folder, "--out", tmp_path / "run", "--dry-run", *FAST)):
        _, out, err = run(*arguments)
        assert "\x1b" not in out + err.replace("\x1b[?25", "")


# What `train` says.
def test_train_says_what_it_read_in_five_lines_on_stderr_only(run, data, tmp_path):
    code, out, err = run("train", data, "--out", tmp_path / "run", *FAST, "--json")
    assert code == 0, err
    assert [line.partition(": ")[0] + ": " for line in err.splitlines()[:5]] == list(SUMMARY)
    lines = told(err)
    assert lines["images: "].startswith("40 train, 7 test; 8x8 pixels, grey")
    assert lines["files not read: "] == "1 (not an image)"
    assert lines["public: "] == "class names cat, dog; 40 records of 8x8 pixels, grey"
    assert "warning: 1 file(s) were not read: not an image" in err
    assert set(json.loads(out)) == {
        "run", "release", "epsilon", "delta", "private", "seconds", "peak_memory_bytes"
    }  # fmt: skip
    for name, content in files_of(tmp_path / "run").items():
        for word in (b"not an image", b"notes.txt", b"not read", b"7 test"):
            assert word not in content, name


def test_a_dry_run_says_the_same_and_never_asks(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Terminal(""))
    code, out, err = run("train", data, "--out", tmp_path / "run", *FAST, "--dry-run", "--json")
    assert code == 0, err
    assert set(told(err)) == set(SUMMARY)
    assert not set(json.loads(out)) & KEYS
    assert not (tmp_path / "run").exists()


def test_all_class_names_are_shown_before_they_become_public(run, tmp_path):
    names = [f"kind-{letter}{other}" for letter in "abcdef" for other in "ghijkl"]
    folder = write_images(tmp_path / "data", dict.fromkeys(names, 12))
    _, _, err = run("train", folder, "--out", tmp_path / "run", "--dry-run", *FAST)
    assert f"class names {', '.join(names)}; " in told(err)["public: "]


def test_public_files_do_not_depend_on_what_was_not_read(run, tmp_path):
    """The same records, with other files beside them and another test split, under one test seed."""
    seeded = ("--set", "test_seed=3")
    for name in ("one", "two"):
        write_images(tmp_path / name / "data" / "train", {"cat": 20, "dog": 20})
    write_images(tmp_path / "two" / "data" / "test", {"cat": 5}, seed=4)
    (tmp_path / "two" / "data" / "train" / "cat" / "notes.txt").write_text("of whom")
    public = []
    for name in ("one", "two"):
        folder = tmp_path / name / "run"
        assert run("train", tmp_path / name / "data", "--out", folder, *FAST, *seeded)[0] == 0
        files = files_of(folder)
        source = str(tmp_path / name).encode()
        public.append({
            path: content.replace(source, b"")
            for path, content in files.items()
            if not path.startswith("private") and path != "ledger.jsonl"  # its chain begins with a random number
        })  # fmt: skip
    assert public[0].keys() == public[1].keys()
    assert [path for path in public[0] if public[0][path] != public[1][path]] == []


def test_public_facts_do_not_depend_on_the_sizes_of_classes(run, tmp_path):
    facts = []
    for name, counts in (("one", {"cat": 20, "dog": 20}), ("two", {"cat": 39, "dog": 1})):
        data = write_images(tmp_path / name, counts)
        assert run("train", data, "--out", tmp_path / f"run_{name}", *FAST)[0] == 0
        config = (tmp_path / f"run_{name}" / "config.toml").read_text().replace(str(data), "")
        card = json.loads((tmp_path / f"run_{name}" / "release" / "card.json").read_text())
        noisy = ("clip_norm", "sensitivity", "class_prior", "weights_sha256", "warnings", "generator")
        facts.append((config, {key: value for key, value in card.items() if key not in noisy}))
    assert facts[0] == facts[1]


# Asking.
@pytest.mark.parametrize("answer", ["n\n", "\n", "no\n", ""])
def test_no_on_a_terminal_spends_nothing_and_ends_with_2(run, data, tmp_path, monkeypatch, answer):
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    asking = Asking(monkeypatch)
    code, out, err = run("train", data, "--out", tmp_path / "run", *FAST)
    assert (code, out) == (2, "")
    assert "\nTrain on what was read? [y/N] " in err
    assert err.endswith("error: not started, and nothing was spent; change the data or the options, or give --yes\n")
    assert not asking.made
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("answer", ["y\n", "yes\n"])
def test_yes_on_a_terminal_trains(run, data, tmp_path, monkeypatch, answer):
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    code, _, err = run("train", data, "--out", tmp_path / "run", *FAST)
    assert code == 0, err
    assert "Train on what was read?" in err


def test_the_option_yes_answers(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    code, _, err = run("train", data, "--out", tmp_path / "run", *FAST, "--yes")
    assert code == 0, err
    assert "Train on what was read?" not in err


@pytest.mark.parametrize(
    ("counts", "asks"),
    [
        ({"train/cat": 20, "train/dog": 20}, False),
        ({"train/cat": 20, "train/dog": 9}, True),
        ({"train/cat": 20, "train/dog": 10}, False),
        ({"train/cat": 20, "train/dog": 20, "extra/cat": 1}, True),
        ({"train/cat": 20, "train/dog": 20, "val/cat": 1}, False),
    ],
)
def test_train_asks_of_small_classes_and_unused_splits(run, tmp_path, monkeypatch, counts, asks):
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    monkeypatch.setattr("dp_sinkhorn.training.run_folder.start", lambda *parts: die())
    data = write_images(tmp_path / "data", counts)
    arguments = ("train", data, "--out", tmp_path / "run", *FAST)
    if asks:
        assert run(*arguments)[0] == 2
    else:
        with pytest.raises(KilledError):
            run(*arguments)


# Class names that look private.
@pytest.mark.parametrize("names", [("patient 7", "patient 8"), ("2019-03-04", "2019-03-05")])
def test_names_that_look_private_stop_before_a_charge(run, tmp_path, monkeypatch, names):
    asking = Asking(monkeypatch)
    data = write_images(tmp_path / "data", dict.fromkeys(names, 20))
    arguments = ("train", data, "--out", tmp_path / "run", *FAST)
    code, out, err = run(*arguments, "--yes")
    assert (code, out) == (2, "")
    for option in ("--label-column", "--class-level", "--classes", "--classes-are-public"):
        assert option in err.splitlines()[-1]
    assert f"class names {', '.join(names)}; " in told(err)["public: "]
    assert not asking.made
    assert not (tmp_path / "run").exists()
    assert run(*arguments, "--classes-are-public")[0] == 0
    assert charged(tmp_path / "run")


def test_declared_classes_are_taken_in_their_order(run, tmp_path):
    data = write_images(tmp_path / "data", {"cat": 20, "dog": 20})
    code, _, err = run("train", data, "--out", tmp_path / "run", *FAST, "--classes", "dog,emu,cat")
    assert code == 0, err
    card = json.loads((tmp_path / "run" / "release" / "card.json").read_text())
    assert card["class_names"] == ["dog", "emu", "cat"]


@pytest.mark.filterwarnings("ignore:.*too few:UserWarning")
def test_names_that_look_private_stop_python_too(tmp_path):
    images, labels = np.full((40, 8, 8), 200, np.uint8), np.repeat(["patient 7", "patient 8"], 20)
    with pytest.raises(InputError, match=r"reading\.classes_are_public"):
        DPSinkhorn(settings=LEAN["record"]).fit(images, labels, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    chosen = LEAN["record"] | {"num_steps": 4, "noise_multiplier": 200, "reading": {"classes_are_public": True}}
    assert DPSinkhorn(settings=chosen).fit(images, labels).privacy_.class_names == ("patient 7", "patient 8")


# Options of reading are kept.
WIDE = {"--side": 10, "--crop": "center", "--range": "0,200", "--classes": "dog,cat"}
KEPT = {"side": 10, "fit": "crop", "range": [0.0, 200.0], "classes": ["dog", "cat"]}


def words(options: dict[str, object]) -> list[object]:
    return [word for option in options.items() for word in option]


def test_options_of_reading_are_kept_with_the_run_and_its_samples(run, data, tmp_path):
    code, _, err = run("train", data, "--out", tmp_path / "run", *FAST, *words(WIDE))
    assert code == 0, err
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert config["settings"]["reading"] == KEPT | {"classes_are_public": False}
    card = json.loads((tmp_path / "run" / "release" / "card.json").read_text())
    assert {key: value for key, value in card["reading"].items() if value} == KEPT
    assert run("sample", tmp_path / "run", "--num", 6, "--out", tmp_path / "s.npz")[0] == 0
    with np.load(tmp_path / "s.npz") as arrays:
        assert json.loads(str(arrays["privacy"]))["reading"] == KEPT


@pytest.mark.filterwarnings("always::FutureWarning")
@pytest.mark.parametrize("form", ["--set", "toml", "former"])
def test_settings_of_reading_are_given_in_every_form(run, tmp_path, form):
    data, out = write_images(tmp_path / "data", {"cat": 12, "dog": 12}), tmp_path / "r"
    dry = ("train", data, "--out", out, "--dry-run", "--json", *FAST)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[reading]\nside = 10\n")
    chosen = {"--set": READING, "toml": ("--recipe", recipe), "former": ("--set", "image_side=10")}[form]
    code, text, err = run(*dry, *chosen)
    assert code == 0, err
    assert json.loads(text)["data"]["shape"] == [1, 10, 10]
    assert ("the setting image_side is now reading.side" in err) is (form == "former")
    # An option changes what the others say.
    assert json.loads(run(*dry, *chosen, "--side", 12)[1])["data"]["shape"] == [1, 12, 12]


def test_resume_reads_as_the_run_did_and_refuses_other_options(run, data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        Asking(patch, at=2, what=die)
        with pytest.raises(KilledError):
            run("train", data, "--out", out, *FAST, *words(WIDE))
    before = files_of(out)
    for option in (("--side", 12), ("--pad",), ("--classes", "cat,dog"), ("--range", "0,255"), ("--class-level", 1)):
        code, _, err = run("train", data, "--out", out, "--resume", *option)
        assert code == 2
        assert "was given, but the run in" in err.splitlines()[-1], err
    assert files_of(out) == before
    for option in ((), words(WIDE)):
        code, _, err = run("train", data, "--out", out, "--resume", *option)
        assert code == 0, err


def test_resume_in_python_reads_as_the_run_did(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (60, 16, 16), dtype=np.uint8), np.arange(60) % 2 + 1
    chosen = LEAN["record"] | {"num_steps": 4, "noise_multiplier": 200}
    with monkeypatch.context() as patch:
        Asking(patch, at=2, what=die)
        model = DPSinkhorn(settings=chosen | {"reading": {"side": 8}})
        with pytest.raises(KilledError):
            model.fit(images, labels, tmp_path / "run", classes=[2, 1])
    with pytest.raises(InputError, match=r"reading\.side=12 was given"):
        DPSinkhorn(settings=chosen | {"reading": {"side": 12}}).fit(images, labels, tmp_path / "run", resume=True)
    model = DPSinkhorn(settings=chosen).fit(images, labels, tmp_path / "run", resume=True)
    assert model.privacy_.image_shape == (1, 8, 8)
    assert model.privacy_.class_names == ("2", "1")


@pytest.fixture
def judged(monkeypatch) -> list[tuple]:
    """What `evaluate` compares; the comparison has its own tests."""
    given: list[tuple] = []

    def stop(*parts, **more):
        given.append(parts)
        raise InputError("compared")

    monkeypatch.setattr("dp_sinkhorn.evaluation.suite.evaluate", stop)
    return given


@pytest.mark.parametrize("name", ["s.npz", "s.parquet"])
def test_evaluate_reads_real_images_as_the_sample_says(run, tmp_path, judged, name):
    real = write_images(tmp_path / "real" / "train", {"cat": 12, "dog": 12}, side=20).parent
    write_images(real / "test", {"cat": 3, "dog": 3}, side=20)
    release = make_run(tmp_path / "run", **RECORD, reading={"side": 10, "classes": ["dog", "cat"], "range": [0, 200]})
    assert run("sample", release, "--num", 6, "--out", tmp_path / name)[0] == 0
    given = {"--side": 9, "--range": "0,100", "--classes": "cat,dog"}
    for options, side, names, value in (((), 10, ("dog", "cat"), 200), (words(given), 9, ("cat", "dog"), 100)):
        code, _, err = run("evaluate", tmp_path / name, "--real", real, "--extractor", "none", *options)
        assert (code, err.splitlines()[-1]) == (2, "error: compared")
        _, train, test = judged.pop()[:3]
        assert (train.shape, test.shape, train.class_names) == ((1, side, side), (1, side, side), names)
        expected = load_images(real, "test").pixels.double().clamp(max=value).mean() * 255 / value
        assert float(test.pixels.double().mean()) == pytest.approx(float(expected), abs=3)


def test_evaluate_tests_on_validation_images_and_says_so(run, tmp_path, judged):
    real = write_images(tmp_path / "real" / "train", {"cat": 12, "dog": 12}).parent
    write_images(real / "val", {"cat": 3, "dog": 4})
    synthetic = write_images(tmp_path / "synthetic", {"cat": 5, "dog": 5})
    code, _, err = run("evaluate", synthetic, "--real", real, "--extractor", "none")
    assert (code, len(judged[0][2])) == (2, 7)
    assert "has no test split; the validation split takes its place" in err
    write_images(real / "test", {"cat": 2, "dog": 2})
    code, _, err = run("evaluate", synthetic, "--real", real, "--extractor", "none")
    assert len(judged[1][2]) == 4
    assert "validation" not in err


def test_inspect_says_what_evaluate_will_test_on(run, tmp_path):
    real = write_images(tmp_path / "real" / "train", {"cat": 12, "dog": 12}).parent
    for split, expected in ((None, "evaluate needs one"), ("valid", "the validation split"), ("TEST", None)):
        if split:
            write_images(real / split, {"cat": 3, "dog": 3})
        found = [line for line in json.loads(run("inspect", real, "--json")[1])["warnings"] if "evaluate" in line]
        assert len(found) == (expected is not None)
        assert all(expected in line for line in found)


# Labels as the records had them.
ORIGINAL = tuple(str(number) for number in range(1, 11))


@pytest.fixture(scope="module")
def numbered(tmp_path_factory) -> Path:
    """A release of classes 1 to 10."""
    return make_run(tmp_path_factory.mktemp("numbered") / "run", ORIGINAL, **RECORD)


def written_labels(path: Path) -> list[int]:
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return sorted(arrays["labels"].tolist())
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return sorted(pq.read_table(path)["label"].to_pylist())
    return sorted(int(file.parent.name) for file in path.rglob("*.png"))


@pytest.mark.parametrize("name", ["s.npz", "s.parquet", "s"])
def test_samples_have_the_labels_that_the_records_had(run, numbered, tmp_path, name):
    assert run("sample", numbered, "--num", 40, "--out", tmp_path / name, "--balanced")[0] == 0
    assert written_labels(tmp_path / name) == sorted([*range(1, 11)] * 4)
    found = load_synthetic(tmp_path / name)
    assert found.class_names == ORIGINAL
    assert found.labels.bincount().tolist() == [4] * 10
    model = DPSinkhorn.load(numbered)
    assert set(model.sample(40, balanced=True)[1].tolist()) == set(range(1, 11))
    expected = model.sample(40, balanced=True)[0]
    assert sorted(image.tobytes() for image in found.arrays()[0]) == sorted(image.tobytes() for image in expected)


@pytest.mark.parametrize("name", ["s.npz", "s.parquet", "s"])
def test_sample_takes_labels_by_their_names(run, numbered, tmp_path, name):
    assert run("sample", numbered, "--num", 9, "--out", tmp_path / name, "--labels", "10, 3")[0] == 0
    assert set(written_labels(tmp_path / name)) == {3, 10}
    assert set(DPSinkhorn.load(numbered).sample(9, labels=[10, "3"])[1].tolist()) == {3, 10}
    code, _, err = run("sample", numbered, "--num", 9, "--out", tmp_path / "other.npz", "--labels", "0")
    assert code == 2
    assert "label '0' is no class of this release; its classes are 1, 2, 3, 4, 5, 6, 7, 8, 9, 10" in err


def test_text_labels_are_taken_by_name_or_by_place(run, tmp_path):
    release = make_run(tmp_path / "run", ("cat", "dog", "emu"), **RECORD)
    for number, labels in enumerate(("emu,cat", "2,0", "emu,0")):
        out = tmp_path / f"{number}.npz"
        assert run("sample", release, "--num", 9, "--out", out, "--labels", labels)[0] == 0
        assert written_labels(out) == sorted(written_labels(tmp_path / "0.npz"))
    for labels in ("owl", "3", "-1", "Cat", ""):
        code, _, err = run("sample", release, "--num", 9, "--out", tmp_path / "s.npz", "--labels", labels)
        assert code == 2
        assert "its classes are cat, dog, emu" in err


@pytest.mark.parametrize("name", ["s.npz", "s.parquet", "s"])
def test_labels_from_1_to_10_go_the_whole_way(run, tmp_path, monkeypatch, name):
    """From an archive through training and sampling to evaluation."""
    monkeypatch.setattr("dp_sinkhorn.evaluation.tstr.CLASSIFIERS", dict.fromkeys(CLASSIFIERS, CLASSIFIERS["logreg"]))
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (150, 8, 8), dtype=np.uint8), np.arange(150) % 10 + 1
    np.savez(
        tmp_path / "data.npz",
        train_images=images[:100], train_labels=labels[:100], test_images=images[100:], test_labels=labels[100:],
    )  # fmt: skip
    fast = pairs(LEAN["record"] | {"num_steps": 2, "noise_multiplier": 200, "num_generated": 80,
                                   "transport_steps": {"num_reference": 80}})  # fmt: skip
    code, _, err = run("train", tmp_path / "data.npz", "--out", tmp_path / "run", *fast)
    assert code == 0, err
    assert run("sample", tmp_path / "run", "--num", 50, "--out", tmp_path / name, "--balanced")[0] == 0
    arguments = ("--real", tmp_path / "data.npz", "--extractor", "none", "--json")
    code, out, err = run("evaluate", tmp_path / name, *arguments)
    assert code == 0, err
    scores = json.loads(out)
    assert scores["class_names"] == list(ORIGINAL)
    assert scores["class_shares"]["synthetic"] == [0.1] * 10


@pytest.mark.filterwarnings("ignore:.*too few:UserWarning")
def test_classes_declared_in_python_include_those_without_records():
    images, labels = np.full((40, 8, 8), 200, np.uint8), np.repeat([1, 2], 20)
    chosen = LEAN["record"] | {"num_steps": 2, "noise_multiplier": 200, "num_generated": 24}
    with pytest.warns(UserWarning, match=r"fewer than 10 training images: 3 \(0\)"):
        model = DPSinkhorn(settings=chosen).fit(images, labels, classes=[3, 2, 1])
    assert model.privacy_.class_names == ("3", "2", "1")
    assert set(model.sample(30, balanced=True)[1].tolist()) == {1, 2, 3}
    with pytest.raises(InputError, match="label '2' is not one of the 1 classes"):
        DPSinkhorn(settings=chosen).fit(images, labels, classes=[1])


# Large images.
@pytest.mark.parametrize(("side", "says"), [(64, False), (65, True)])
def test_a_run_on_large_images_says_how_long_it_will_take(run, tmp_path, monkeypatch, capsys, side, says):
    monkeypatch.setattr("dp_sinkhorn.training.run_folder.start", lambda *parts: die())
    data = write_images(tmp_path / "data", {"cat": 12, "dog": 12}, side=side)
    with pytest.raises(KilledError):
        run("train", data, "--out", tmp_path / "run", *FAST)
    assert ("training will take about 1 seconds on this machine" in capsys.readouterr().err) is says


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_run_that_memory_cannot_hold_is_refused_in_time(run, data, tmp_path, monkeypatch, more):
    monkeypatch.setattr(speed.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**20))
    asking = Asking(monkeypatch)
    code, out, err = run("train", data, "--out", tmp_path / "run", *FAST, *more)
    assert (code, out) == (2, "")
    assert "GiB are free; give a smaller --side, or fewer records" in err.splitlines()[-1]
    assert not asking.made
    assert not (tmp_path / "run").exists()


def test_the_command_to_type_next_reads_the_data_in_the_same_way(command_line, tmp_path):
    images, labels = np.zeros((40, 12, 10), np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "data.npz", train_images=images, train_labels=labels)
    given = ["--side", "9", "--pad", "--range", "0,255", "--classes", "0,1", "--classes-are-public"]
    code, out, err = command_line("inspect", tmp_path / "data.npz", *given)
    assert code == 0, err
    following = shlex.split(out.splitlines()[-1])
    assert following[:3] == ["dp-sinkhorn", "train", str(tmp_path / "data.npz")]
    assert sorted(following[3:]) == sorted([*given, "--out", "runs/mine"])
    code, again, err = command_line("inspect", tmp_path / "data.npz", *following[3:-2])
    assert (code, again) == (0, out), err
