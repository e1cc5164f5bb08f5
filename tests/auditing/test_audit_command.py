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


def test_a_run_with_a_test_seed_fails_and_without_it_passes_and_no_record_is_read(run, tmp_path):
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 255, (60, 8, 8), dtype=np.uint8), np.arange(60) % 2
    data = tmp_path / "data.npz"
    np.savez(data, train_images=images, train_labels=labels)
    for name, more, code in (("sound", [], 0), ("seeded", ["--set", "test_seed=1"], 2)):
        assert run("train", data, "--out", tmp_path / name, *SET, *more)[0] == 0
        before = sorted(path.stat().st_mtime_ns for path in (tmp_path / name).rglob("*"))
        moved = data.rename(tmp_path / "moved.npz")
        found, out, err = run("audit", tmp_path / name, *LITTLE, "--json")
        moved.rename(data)
        assert found == code, err
        result = json.loads(out)
        assert result["passed"] == (code == 0)
        assert sorted(path.stat().st_mtime_ns for path in (tmp_path / name).rglob("*")) == before
        card = json.loads((tmp_path / name / "release" / "card.json").read_text())
        assert result["epsilon_claimed"] == card["epsilon"]
        assert 0.0 < result["epsilon_lower_bound"] <= result["epsilon_claimed"]
        assert result["epsilon_lower_bound"] == max(result["epsilon_from_step"], result["epsilon_from_canaries"])
        wrong = {check["name"] for check in result["checks"] if not check["ok"]}
        assert wrong == (set() if code == 0 else {"card", "fresh randomness"})


def test_a_recipe_is_audited_without_a_run_and_the_table_says_what_that_means(run, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('sanitize = "batch"\nqueries_per_step = 2\nnoise_multiplier = 2.0\n')
    few = [*SET[:6], "--set", "num_generated=8", "--set", "sinkhorn_iterations=5"]
    code, out, err = run("audit", "--recipe", recipe, *few, *LITTLE)
    assert code == 0, err
    lines = out.splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == ["fresh randomness", "sensitivity", "trade-off"]
    assert "passed" in lines
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
