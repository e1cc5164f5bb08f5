"""The hooks before a commit run what `make lint` runs."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.quick
def test_hooks_before_a_commit_run_the_commands_of_make_lint():
    assert [hook["entry"] for hook in _hooks()] == _commands("lint")


@pytest.mark.quick
def test_hooks_before_a_commit_download_nothing_and_look_at_all_files():
    assert {hook["language"] for hook in _hooks()} == {"system"}
    assert not any(hook["pass_filenames"] for hook in _hooks())


def _hooks() -> list[dict]:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repository["repo"] == "local"
    return repository["hooks"]


def _commands(target: str) -> list[str]:
    """The commands of a target, with the folder that $(VENV) names by default."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (venv,) = re.findall(r"^VENV \?= (\S+)$", text, re.MULTILINE)
    (recipe,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", text, re.MULTILINE)
    return [line.strip().replace("$(VENV)", venv) for line in recipe.splitlines()]
