"""`dp-sinkhorn audit` as a user meets it."""

import json
import sys

import numpy as np
import pytest

from dp_sinkhorn import cli

SETTINGS = [
    *("generator=mlp", "width=16", "num_steps=20", "num_generated=20", "num_reference=20", "min_dimensions=4"),
    *("class_prior=uniform", "expected_batch_size=30"),
]
SET = [part for pair in SETTINGS for part in ("--set", pair)]
LITTLE = ["--draws", "100", "--steps", "10", "--canaries", "60"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dp-sinkhorn", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call


def test_a_run_passes_without_its_records_and_is_left_as_it_was(run, tmp_path):
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 255, (60, 8, 8), dtype=np.uint8), np.arange(60) % 2
    data, folder = tmp_path / "data.npz", tmp_path / "run"
    np.savez(data, train_images=images, train_labels=labels)
    assert run("train", data, "--out", folder, *SET)[0] == 0
    data.unlink()
    before = sorted(path.stat().st_mtime_ns for path in folder.rglob("*"))
    code, out, err = run("audit", folder, *LITTLE, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["passed"]
    assert all(check["ok"] for check in result["checks"])
    assert result["checks"][0]["name"] == "card"
    assert sorted(path.stat().st_mtime_ns for path in folder.rglob("*")) == before
    assert result["epsilon_claimed"] == json.loads((folder / "release" / "card.json").read_text())["epsilon"]
    assert 0.0 < result["epsilon_lower_bound"] <= result["epsilon_claimed"]
    assert result["epsilon_lower_bound"] == max(result["epsilon_from_step"], result["epsilon_from_canaries"])


def test_a_recipe_with_a_fixed_seed_fails_and_the_table_says_so(run, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('sanitize = "batch"\nqueries_per_step = 2\nnoise_multiplier = 2.0\ntest_seed = 1\n')
    few = [*SET[:6], "--set", "num_generated=8", "--set", "sinkhorn_iterations=5"]
    code, out, err = run("audit", "--recipe", recipe, *few, *LITTLE)
    assert code == 2, err
    lines = out.splitlines()
    failed = [line for line in lines if "FAILED  " in line]
    assert len(failed) == 1
    assert failed[0].startswith("fresh randomness")
    assert "a seed is fixed" in failed[0]
    assert sum("  ok  " in line for line in lines) == 8
    assert "FAILED: the claim is contradicted" in lines
    assert "no private record is read" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "either a run folder or --recipe"),
        (["somewhere", "--recipe", "mnist_paper"], "either a run folder or --recipe"),
        (["somewhere"], "somewhere holds no run"),
        (["somewhere", "--set", "num_steps=3"], "--set num_steps=3"),
        (["--recipe", "nowhere.toml"], "cannot read nowhere.toml"),
        (["--recipe", "mnist_paper", "--draws", "5"], "draws=5 is too few"),
        (["--recipe", "mnist_paper", "--canaries", "0"], "canaries=0 is too few"),
        (["--recipe", "mnist_paper", "--steps", "0"], "steps=0 is too few"),
    ],
)
def test_bad_input_is_one_line(run, arguments, words):
    code, out, err = run("audit", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert words in err
    assert len(err.splitlines()) == 1
