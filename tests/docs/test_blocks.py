"""The Python and console blocks of the documents run as they stand, page by page, in the order of the page.

A page's folder holds a small finished run on digits, `runs/mine`, unless the page trains one.
"""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from dp_sinkhorn.evaluation.classifiers import CLASSIFIERS
from dp_sinkhorn.method import settings_of
from support.toy import SMALL, changed

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TRAINS = "--out runs/mine"


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(block: str) -> list[list[str]]:
    """The words of each line that begins with a prompt; what a command prints stands on other lines."""
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ ")]


PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if blocks(page)]


@pytest.fixture
def small_runs(monkeypatch, tmp_path):
    """Whatever a page trains or evaluates is small, unless the page says otherwise."""

    def small(recipe, given):
        return settings_of(recipe, changed(SMALL, **given) if recipe is None else given)

    monkeypatch.setattr("dp_sinkhorn.method.settings_of", small)
    monkeypatch.setattr("dp_sinkhorn.api.settings_of", small)
    monkeypatch.setattr("dp_sinkhorn.evaluation.tstr.CLASSIFIERS", dict.fromkeys(CLASSIFIERS, CLASSIFIERS["logreg"]))
    # The features of EfficientNet take most of the time; tests/evaluation covers them.
    monkeypatch.setattr("dp_sinkhorn.evaluation.extractors.find_extractor", lambda name: (None, "left out by a test"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    return tmp_path_factory.mktemp("documents") / "mine"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_of_a_page_run(page, small_runs, finished, command_line, monkeypatch, tmp_path):
    if not any(TRAINS in block for _, block in blocks(page)):
        if not finished.exists():
            code, _, err = command_line("train", "digits", "--out", finished)
            assert code == 0, err
        shutil.copytree(finished, tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for kind, block in blocks(page):
        if kind == "python":
            exec(compile(block, str(page), "exec"), names)  # noqa: S102
            continue
        assert commands(block), f"a console block without a line that begins with '$ ': {block}"
        for verb, *arguments in commands(block):
            assert verb == "dp-sinkhorn", f"{verb}: a block whose commands are not run is an sh block"
            code, _, err = command_line(*arguments)
            assert code == 0, f"{arguments}: {err}"


def test_the_training_loop_of_the_losses_page_learns(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for kind, block in blocks(ROOT / "docs" / "how-to" / "losses.md"):
        if kind == "python":
            exec(compile(block, "losses.md", "exec"), names)  # noqa: S102
    assert names["distance_after"] < 0.5 * names["distance_before"]
    assert "converged: True" in capsys.readouterr().out
