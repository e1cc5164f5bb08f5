"""Resuming a run after an interruption."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.random import CryptoRandom
from support.asking import Asking, KilledError, charged, die, files_of, in_blocks, signalled
from support.toy import LEAN, resume, start, toy

STEPS = 40  # in blocks of two


@pytest.fixture(scope="module", autouse=True)
def _blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        in_blocks(patch, STEPS // 2)
        yield


def test_a_killed_run_continues_and_never_spends_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        Asking(patch, at=13, what=die)
        with pytest.raises(KilledError):
            start(folder, num_steps=STEPS)
    assert not (folder / "release").exists()
    assert charged(folder)["transport_steps"] == 14  # the step it died in is charged
    early = files_of(folder / "samples")
    assert set(early) == {f"step-{step:05d}.png" for step in (2, 4, 8)}
    asking = Asking(monkeypatch)
    result = resume(folder)
    # After the crash, the missing picture at the end of the block is taken; earlier pictures stay unchanged.
    steps = (2, 4, 8, 14, 20, 26, 32, 40)
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [f"step-{step:05d}.png" for step in steps]
    assert files_of(folder / "samples").items() >= early.items()
    assert asking.made == {"transport_steps": STEPS - 14}
    assert result.card.num_steps == STEPS
    assert 9.9 <= result.card.epsilon <= 10.0


@pytest.mark.parametrize("mode", LEAN)
def test_a_resumed_run_reaches_the_state_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Without noise and with all records in every query; otherwise only the randomness differs."""
    monkeypatch.setattr(CryptoRandom, "normal", lambda self, *shape: torch.zeros(shape, dtype=torch.float64))
    monkeypatch.setattr(CryptoRandom, "integers", lambda self, width, *shape: torch.zeros(shape, dtype=torch.int64))
    data, changes = toy(40), {"num_steps": STEPS, "expected_batch_size": 40, "noise_multiplier": 100.0}
    name = {"record": "transport_steps", "embedding": "class_embedding", "batch": "batch_steps"}[mode]
    broken = tmp_path / "broken"
    with monkeypatch.context() as patch:
        # In the middle of a block; if no step asks, after the release that the steps learn from.
        Asking(patch, name, 0 if mode == "embedding" else 6, signalled(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            start(broken, data, LEAN[mode], **changes)
    resume(broken, data)
    start(tmp_path / "whole", data, LEAN[mode], **changes)
    found, wanted = (load_file(path / "release" / "weights.safetensors") for path in (broken, tmp_path / "whole"))
    assert found.keys() == wanted.keys()
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], rtol=1e-4, atol=1e-5)


def test_resuming_a_finished_run_changes_nothing(finished, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    before = files_of(folder)
    assert resume(folder, num_steps="20").card.sha256() == finished.card.sha256()
    with pytest.raises(InputError, match="the records are not those"):
        resume(folder, toy(seed=1))
    assert files_of(folder) == before
    # It does not need its checkpoint, damaged or missing.
    checkpoint = folder / "private" / "checkpoint.safetensors"
    checkpoint.write_bytes(b"torn")
    assert resume(folder).card.sha256() == finished.card.sha256()
    checkpoint.unlink()
    assert resume(folder).card.sha256() == finished.card.sha256()
