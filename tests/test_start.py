"""What a verb imports before it works: in processes of their own, since the tests have imported PyTorch."""

import os
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest

from support.small_release import RECORD, make_run

SLOW = {"torch", "sklearn", "numba", "pandas"}
MAIN = "import sys; sys.argv = ['dp-sinkhorn', *sys.argv[1:]]; from dp_sinkhorn.cli import main; main()"


def start(*words: object, module: bool = False, **more: str) -> tuple[str, set[str]]:
    """Run the command line: what it prints, and the packages that it imports."""
    way = ("-m", "dp_sinkhorn") if module else ("-c", MAIN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *way, *map(str, words)],
        capture_output=True,
        text=True,
        env=os.environ | more,
    )
    log = done.stderr.splitlines()
    assert done.returncode == 0, [line for line in log if not line.startswith("import time:")]
    return done.stdout, {line.rpartition("|")[2].strip().partition(".")[0] for line in log}


@pytest.mark.parametrize("module", [False, True])
def test_the_version_is_that_of_the_package(module):
    printed, imported = start("--version", module=module)
    assert printed == f"dp-sinkhorn {version('dp-sinkhorn')}\n"
    assert not imported & (SLOW | {"numpy", "scipy"})


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["plan", "-h"]])
def test_help_is_printed_at_once(words):
    printed, imported = start(*words)
    assert "Usage: dp-sinkhorn" in printed
    assert "-h" in printed
    assert not imported & (SLOW | {"numpy", "scipy"})


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("dp-sinkhorn ver", ["verify"]), ("dp-sinkhorn plan --eps", ["--epsilon"]), ("dp-sinkhorn --ver", ["--version"])],
)
def test_the_shell_completes_verbs_and_options_at_once(typed, offered):
    words = typed.split()
    asked = {"COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1), "_DP_SINKHORN_COMPLETE": "complete_bash"}
    printed, imported = start(**asked)
    assert printed.split() == offered
    assert not imported & (SLOW | {"numpy", "scipy"})


def test_a_plan_does_without_pytorch():
    printed, imported = start("plan", "--num-records", 60_000)
    assert "noise multiplier" in printed
    assert "dp_accounting" in imported
    assert not imported & SLOW


def test_checking_a_release_does_without_pytorch(tmp_path):
    make_run(tmp_path / "run", **RECORD | {"generator": "conv"})
    printed, imported = start("verify", tmp_path / "run")
    assert printed.startswith("holds: nothing contradicts the card")
    assert "several" in printed.lower()
    assert not imported & SLOW


def test_a_run_that_begins_without_pytorch_ends_in_a_release(tmp_path):
    """The verbs of a first run, each in a process that has not imported PyTorch, so that imports wait."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 255, (200, 8, 8), dtype=np.uint8), np.arange(200) % 2
    np.savez(tmp_path / "data.npz", train_images=images, train_labels=labels)
    few = ["num_steps=6", "num_generated=20", "width=16", "channels=8", "noise_multiplier=200", "average_decay=0.5"]
    sets = [word for pair in few for word in ("--set", pair)]
    run = tmp_path / "run"
    assert "release" in start("train", tmp_path / "data.npz", "--out", run, *sets)[0]
    assert start("sample", run, "--num", 4, "--out", tmp_path / "made.npz")[0]
    assert np.load(tmp_path / "made.npz")["images"].shape == (4, 8, 8)
    assert start("verify", run)[0].startswith("holds")
