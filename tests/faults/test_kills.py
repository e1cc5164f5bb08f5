"""Runs killed at random moments: never more released than charged, and in the end as good a model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("driver.py")


def kill(folder: Path, kills: int, seed: int, mode: str) -> dict[str, Any]:
    words = [sys.executable, str(DRIVER), str(folder), str(kills), str(seed), mode]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("mode", ["record", "embedding", "batch"])
def test_a_killed_run_continues_or_refuses_and_never_undercounts(tmp_path: Path, mode: str) -> None:
    result = kill(tmp_path, 6, seed=0, mode=mode)
    assert result["problems"] == []
    assert result["kills"] == 6
    assert result["finished"] >= 1
    assert "crashed" not in result


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mode", ["record", "embedding", "batch"])
def test_two_hundred_kills(tmp_path: Path, mode: str, seed: int) -> None:
    result = kill(tmp_path, 20, seed=100 + seed, mode=mode)
    assert result["problems"] == []
    assert result["kills"] == 20
    assert "crashed" not in result
    # Some of them came between a charge and its release.
    assert result["unused"] > 0
