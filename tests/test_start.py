"""What a verb imports before it works: in processes of their own, since the tests have imported PyTorch."""

import os
import subprocess
import sys
from importlib.metadata import version

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


def test_a_plan_imports_only_what_it_needs():
    printed, imported = start("plan", "--num-records", 60_000)
    assert "noise multiplier" in printed
    assert "dp_accounting" in imported
    assert not imported & {"sklearn", "numba", "pandas", "pyarrow", "sympy", "matplotlib"}


def test_a_look_at_the_digits_imports_only_what_it_needs():
    printed, imported = start("inspect", "digits")
    assert "1,437 records" in printed
    assert not imported & {"sklearn", "numba", "pandas", "pyarrow", "sympy", "matplotlib"}


def test_a_check_of_a_release_imports_only_what_it_needs(tmp_path):
    make_run(tmp_path / "run", **RECORD)
    printed, imported = start("verify", tmp_path / "run")
    assert "nothing contradicts" in printed
    assert not imported & {"sklearn", "numba", "pandas", "pyarrow", "sympy", "matplotlib"}


def test_garbage_is_still_collected():
    """Training makes cycles, so that only the search at the end is left out."""
    code = (
        "import gc, sys; from dp_sinkhorn.cli import main; sys.argv = ['dp-sinkhorn', '--version']\n"
        "try: main()\n"
        "except SystemExit: print(gc.isenabled(), gc.get_freeze_count())"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[1] == "True 0"
