"""The scripts in examples/ run, and do what they promise."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from dp_sinkhorn.evaluation.classifiers import CLASSIFIERS
from dp_sinkhorn.method import settings_of
from support.toy import SMALL, changed

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch, tmp_path):
    """Run a script in an empty folder, with small runs; returns its variables."""

    def small(recipe, given):
        return settings_of(recipe, changed(SMALL, **given))

    def run(name: str, *arguments: str) -> dict[str, object]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        return runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    monkeypatch.setattr("dp_sinkhorn.api.settings_of", small)
    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fit_and_sample(example, capsys):
    example("fit_and_sample.py")
    assert "1000 images of 8×8 pixels, classes [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]" in capsys.readouterr().out
    assert {path.name for path in Path("release").iterdir()} == {"weights.safetensors", "card.json", "README.md"}


@pytest.fixture
def one_generator_more(monkeypatch):
    """What a test registers is gone afterwards."""
    from dp_sinkhorn.generators import build, spec

    monkeypatch.setattr(build, "_BUILDERS", dict(build._BUILDERS))
    monkeypatch.setitem(spec.DEFAULT_SIZES, "upsampler", (1, 1))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_own_generator(example, one_generator_more, capsys):
    example("own_generator.py")
    assert "100 images by upsampler" in capsys.readouterr().out


def test_own_cost(example, capsys):
    example("own_cost.py")
    assert capsys.readouterr().out.count("divergence") == 2


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_transport_loss(example):
    found = example("transport_loss.py")
    assert found["after"] < 0.7 * found["before"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_read_card(example, command_line, tmp_path, capsys):
    from support.small_release import RECORD, make_run

    make_run(tmp_path / "mine", **RECORD)
    found = example("read_card.py", "mine")
    assert found["epsilon"] == pytest.approx(found["card"]["epsilon"], rel=1e-4)
    assert "verify: passed" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_notebook_goes_from_arrays_to_a_release_in_ten_cells(example, monkeypatch, capsys):
    monkeypatch.setattr("dp_sinkhorn.evaluation.tstr.CLASSIFIERS", dict.fromkeys(CLASSIFIERS, CLASSIFIERS["logreg"]))
    cells = json.loads((EXAMPLES / "first_release.ipynb").read_text(encoding="utf-8"))["cells"]
    assert len(cells) == 10
    assert not any(cell.get("outputs") for cell in cells)
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)  # noqa: S102
    printed = capsys.readouterr().out
    assert "nothing contradicts the card" in printed
    assert "hand out: release/README.md release/card.json release/weights.safetensors synthetic.npz" in printed
    with np.load("synthetic.npz") as archive:
        assert archive["images"].shape == (2000, 8, 8)
        assert np.bincount(archive["labels"]).tolist() == [200] * 10


def test_every_example_is_tested():
    tested = Path(__file__).read_text()
    assert [file.name for file in EXAMPLES.glob("*.[ip]*") if f'"{file.name}"' not in tested] == []
