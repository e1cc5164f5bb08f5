"""Mistyped names: whatever the kind, the error names what was meant."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dp_sinkhorn.api import make_plan
from dp_sinkhorn.data.reading import Reading
from dp_sinkhorn.data.sources import load_images
from dp_sinkhorn.evaluation.extractors import find_extractor
from dp_sinkhorn.io.errors import InputError, did_you_mean
from support.small_release import RECORD, make_run


@pytest.mark.quick
def test_the_nearest_name_is_meant_whatever_its_case():
    known = ["melanoma", "Nevus", "num_steps"]
    assert did_you_mean("nevus", known) == "; did you mean Nevus?"
    assert did_you_mean("num_step", known) == "; did you mean num_steps?"
    assert did_you_mean("owl", known) == did_you_mean("owl", []) == ""


PLAN = ("plan", "--num-records", 1000)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("trian", "digits"), "train"),
        (("--verison",), "--version"),
        (("train", "digits", "--out", "r", "--epsilom", 3), "--epsilon"),
        (("plan", "--eps", 3), "--epsilon"),
        (("inspect", "digit"), "digits"),
        ((*PLAN, "--set", "num_step=3"), "num_steps"),
        ((*PLAN, "--set", "epsilon=3"), "target_epsilon"),
        ((*PLAN, "--set", "class_moment.budget_share=0.3"), "class_moments"),
        ((*PLAN, "--set", "class_moments.budget_shar=0.3"), "class_moments.budget_share"),
        ((*PLAN, "--set", "reading.sid=8"), "reading.side"),
        ((*PLAN, "--set", "num_references=8"), "transport_steps.num_reference"),
        ((*PLAN, "--set", "generator=mpl"), "mlp"),
        ((*PLAN, "--set", "mode=recrd"), "record"),
        ((*PLAN, "--set", "reading.fit=croop"), "crop"),
        ((*PLAN, "--recipe", "mnist_papr"), "mnist_paper"),
        ((*PLAN, "--recipe", "recipe.toml"), "learning_rate"),
        (("sample", "run", "--num", 5, "--out", "s.npz", "--labels", "melanom"), "melanoma"),
        (("sample", "run", "--num", 5, "--out", "s", "--layout", "dpimagebnch"), "dpimagebench"),
        (("evaluate", "s.npz", "--real", "digits", "--extractor", "eficientnet-lite"), "efficientnet-lite0"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value)),
)
def test_a_mistyped_word_is_answered_with_what_was_meant(command_line, tmp_path, monkeypatch, words, meant):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text("learning_rat = 0.1\n")
    (tmp_path / "s.npz").touch()
    if words[0] == "sample":
        make_run(tmp_path / "run", ("melanoma", "nevus"), **RECORD)
        (tmp_path / "s.npz").unlink()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = command_line(*words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: ")
    assert f"did you mean {meant}?" in err
    assert sorted(tmp_path.rglob("*")) == before


def png() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    return file.getvalue()


def write_table(folder):
    (folder / "1.png").write_bytes(png())
    (folder / "labels.csv").write_text("file,finding\n1.png,yes\n")
    return folder


def write_parquet(folder):
    pq.write_table(pa.table({"image": [{"bytes": png(), "path": ""}], "finding": [1]}), folder / "train.parquet")
    return folder / "train.parquet"


def write_matrix(folder):
    flags = np.eye(2, dtype=np.uint8)
    np.savez(folder / "a.npz", images=np.zeros((2, 8, 8), np.uint8), labels=flags, label_names=["finding", "view"])
    return folder / "a.npz"


def write_shard(folder):
    with tarfile.open(folder / "train-0.tar", "w") as shard:
        for name, content in (("1.png", png()), ("1.json", json.dumps({"finding": 1, "view": 2}).encode())):
            fact = tarfile.TarInfo(name)
            fact.size = len(content)
            shard.addfile(fact, io.BytesIO(content))
    return folder


@pytest.mark.parametrize("write", [write_table, write_parquet, write_matrix, write_shard], ids=lambda f: f.__name__)
def test_a_mistyped_column_is_answered_with_what_was_meant(tmp_path, write):
    with pytest.raises(InputError, match=r"did you mean finding\?"):
        load_images(write(tmp_path), "train", Reading(label_column="findng"))


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda: make_plan(1000, settings={"num_step": 3}), "num_steps"),
        (lambda: make_plan(1000, settings={"class_moments": {"budget_shar": 0.3}}), "class_moments.budget_share"),
        (lambda: load_images("digits", "tran"), "train"),
        (lambda: find_extractor("inceptoin:x"), "inception:FILE"),
    ],
)
def test_python_names_what_was_meant_too(call, meant):
    with pytest.raises(InputError) as caught:
        call()
    assert f"did you mean {meant}?" in str(caught.value)
