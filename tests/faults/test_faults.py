"""Faults of a machine: signals, a full disk, torn and foreign files, a clock that jumps."""

import errno
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.io.atomic import append_line
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.method import STAGES
from dp_sinkhorn.privacy.ledger import Ledger
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.release.verify import verify
from dp_sinkhorn.training import checkpoint, loop
from dp_sinkhorn.training import run_folder as runs
from support import toy
from support.asking import Asking, KilledError, charged, die, files_of, in_blocks, signalled

STEPS = 30  # in blocks of two
CHECKPOINT = Path("private") / checkpoint.CHECKPOINT


@pytest.fixture(scope="module", autouse=True)
def _blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        in_blocks(patch, STEPS // 2)
        yield


def start(folder: Path, **changes: Any) -> Any:
    return toy.start(folder, toy.toy(60), num_steps=STEPS, **changes)


def resume(folder: Path, **given: Any) -> Any:
    return toy.resume(folder, toy.toy(60), **given)


def steps_charged(folder: Path) -> int:
    return charged(folder)["transport_steps"]


def interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int, number: int = signal.SIGINT) -> int:
    """Run until a signal in step `at`; returns the number of steps made."""
    with monkeypatch.context() as patch:
        asking = Asking(patch, at=at, what=signalled(number))
        with pytest.raises(KeyboardInterrupt):
            start(folder)
        return asking.steps


@pytest.fixture(scope="module")
def dead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that died before step 21 as by kill -9: nothing was saved after its last block. Copy it before use."""
    folder = tmp_path_factory.mktemp("dead") / "run"
    with pytest.MonkeyPatch.context() as patch:
        Asking(patch, at=21, what=die)
        with pytest.raises(KilledError):
            start(folder)
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that got Ctrl-C in step 20, in the middle of a block. Copy it before use."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupted(folder, patch, at=20)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def refusal(folder: Path, data: LabelledImages | None = None, **given: Any) -> str:
    before = files_of(folder)
    with pytest.raises(InputError) as caught:
        toy.resume(folder, data or toy.toy(60), **given)
    assert before == files_of(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_after_its_step_and_wastes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert interrupted(folder, monkeypatch, at=20, number=number) == 21  # the step it came in is finished
    assert capfd.readouterr().err.count("stopping after this step") == 1
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert steps_charged(folder) == 22
    assert not (folder / "release").exists()
    asking = Asking(monkeypatch)
    card = resume(folder).card
    assert asking.steps == STEPS - 21
    assert set(asking.made) == {"transport_steps"}
    assert steps_charged(folder) == card.num_steps == STEPS
    assert verify(folder, STAGES).ok


def test_a_run_stops_even_if_its_terminal_is_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`train 2>&1 | tee log`: Ctrl-C ends both."""
    real = os.write

    def write(descriptor: int, content: bytes) -> int:
        if descriptor == 2:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return real(descriptor, content)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        assert interrupted(folder, monkeypatch, at=20) == 21


def test_an_interrupted_release_is_made_again_at_no_cost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(loop.Run, "finish", lambda *_: signal.raise_signal(signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):  # at once: nothing can be lost
                start(folder)
    finally:
        signal.signal(signal.SIGINT, before)
    assert steps_charged(folder) == STEPS
    asking = Asking(monkeypatch)
    card = resume(folder).card
    assert not asking.made
    assert card.num_steps == steps_charged(folder) == STEPS


def test_of_two_runs_started_in_one_folder_one_continues(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both found the folder empty."""
    real, first = runs.check_new, []

    def slow(path: Path) -> None:
        real(path)
        if not first:
            first.append(None)
            start(folder)

    monkeypatch.setattr(runs, "check_new", slow)
    with pytest.raises(InputError, match="exists already; give another folder"):
        start(folder)
    assert (folder / "release" / "card.json").is_file()
    assert resume(folder).card.num_steps == STEPS


def test_a_second_process_on_the_same_run_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other() -> None:
        with pytest.raises(InputError, match="another process is training"):
            resume(folder)

    asking = Asking(monkeypatch, at=1, what=other)
    start(folder)
    assert asking.steps == STEPS


def test_a_run_without_memory_on_resuming_can_be_resumed_again(
    stopped: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(stopped, folder)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 3.1 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "build_generator", full)
        assert "enough memory, then continue with train --resume" in refusal(folder)
    # The same holds for a device that this machine does not have.
    config = folder / "config.toml"
    config.write_text(config.read_text().replace('device = "cpu"', 'device = "cuda:99"'))
    assert "device='cuda:99' cannot be used here" in refusal(folder)
    assert resume(folder, device="cpu").card.num_steps == STEPS


def test_a_line_of_metrics_is_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, "1")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            append_line(path, "2")
    append_line(path, "3")
    assert path.read_text() == "1\n3\n"


def test_a_second_signal_stops_at_once_and_costs_the_block(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        # The first step of a block comes before its charge, the second after it.
        asking = Asking(patch, at=21, what=twice)
        with pytest.raises(KeyboardInterrupt):
            start(folder)
        assert asking.steps == 21
    asking = Asking(monkeypatch)
    resume(folder)
    assert asking.steps == STEPS - 22


def test_charged_steps_after_an_orderly_stop_are_made_once(
    stopped: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash after the resume must not make them again."""
    shutil.copytree(stopped, folder)
    with monkeypatch.context() as patch:
        # The remaining step is made, and one of the next block; then the process dies before anything is saved.
        asking = Asking(patch, at=2, what=die)
        with pytest.raises(KilledError):
            resume(folder)
        assert asking.steps == 2
    asking = Asking(monkeypatch)
    resume(folder)
    assert asking.steps == STEPS - 24
    assert steps_charged(folder) == STEPS


def test_steps_lost_in_a_crash_stay_spent_and_are_not_repeated(
    dead: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(dead, folder)
    assert steps_charged(folder) == 22
    asking = Asking(monkeypatch)
    assert resume(folder).card.num_steps == STEPS
    assert asking.steps == STEPS - 22
    assert steps_charged(folder) == STEPS


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("place", ["ledger", "checkpoint"])
def test_a_failing_disk_is_one_line_and_the_run_can_continue(
    stopped: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, code: int, place: str
) -> None:
    shutil.copytree(stopped, folder)
    with monkeypatch.context() as patch:
        asking = Asking(patch)
        module = Ledger if place == "ledger" else loop
        name = "charge" if place == "ledger" else "save_checkpoint"
        real = getattr(module, name)

        def fail(*args: Any) -> None:
            if asking.steps >= 5:
                raise OSError(code, os.strerror(code))
            real(*args)

        patch.setattr(module, name, fail)
        with pytest.raises(InputError, match=f"cannot write .*{os.strerror(code)}; make room, then continue"):
            resume(folder)
        assert asking.steps == 5
    if code == errno.ENOSPC:
        resume(folder)
        assert steps_charged(folder) == STEPS


def test_a_disk_full_from_the_start_is_reported_with_its_cost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first charge nothing is spent or left; before the first checkpoint the run cannot continue."""

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "charge", full)
        with pytest.raises(InputError, match=r"make room, then start it again \(nothing was spent\)"):
            start(folder)
    assert not folder.exists()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", full)
        with pytest.raises(InputError, match="make room, then start a new run: this one spent budget"):
            start(folder)
    assert charged(folder) == {"class_counts": 1}
    assert "cannot continue" in refusal(folder)


def test_nothing_was_released_for_half_a_ledger_line(
    stopped: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up inside a line."""
    shutil.copytree(stopped, folder)
    with monkeypatch.context() as patch:
        asking = Asking(patch)
        real = os.write
        patch.setattr(
            "dp_sinkhorn.privacy.ledger.os.write",
            lambda descriptor, content: real(descriptor, content[:40] if asking.steps >= 5 else content),
        )
        with pytest.raises(InputError, match="make room"):
            resume(folder)
        assert asking.steps == 5
    assert not (folder / "ledger.jsonl").read_bytes().endswith(b"\n")
    asking = Asking(monkeypatch)
    resume(folder)
    assert asking.steps == STEPS - 26
    assert steps_charged(folder) == STEPS


def test_a_torn_or_foreign_checkpoint_is_refused(dead: Path, folder: Path) -> None:
    shutil.copytree(dead, folder)
    path = folder / CHECKPOINT
    content = path.read_bytes()
    for share in (0.0, 0.001, 0.5, 0.999):
        path.write_bytes(content[: int(share * len(content))])
        assert "missing or damaged" in refusal(folder)
    path.write_bytes(content)
    tensors, info = checkpoint.load_checkpoint(path)
    for name in ("generator.", "average."):
        left = {key: value for key, value in tensors.items() if not key.startswith(name)}
        checkpoint.save_checkpoint(path, left, info)
        assert "does not fit this run" in refusal(folder)
    # What the stages have learnt is lost but charged, so it is not asked again.
    left = {key: value for key, value in tensors.items() if not key.startswith("learnt.")}
    checkpoint.save_checkpoint(path, left, info)
    with pytest.raises(InputError, match="class_counts was charged and asked before, and its answer is lost"):
        resume(folder)
    assert steps_charged(folder) == 22


def test_files_of_another_run_with_the_same_settings_are_refused(dead: Path, stopped: Path, tmp_path: Path) -> None:
    for name in ("ledger.jsonl", str(CHECKPOINT)):
        folder = tmp_path / name.replace("/", "-")
        shutil.copytree(dead, folder)
        shutil.copy(stopped / name, folder / name)
        assert "belongs to another run" in refusal(folder)


def test_a_ledger_that_lost_its_last_lines_is_refused(dead: Path, folder: Path) -> None:
    """Each line is whole, so only the checkpoint shows that there were more. Otherwise ε would be too low."""
    shutil.copytree(dead, folder)
    path = folder / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-3]))
    assert "has lost lines" in refusal(folder)


def test_a_damaged_ledger_is_refused(dead: Path, folder: Path) -> None:
    shutil.copytree(dead, folder)
    path = folder / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for damaged in (
        [lines[0], *lines[2:]],
        [*lines[:3], *lines[2:]],
        [line.replace(b'"count":2', b'"count":1') for line in lines],
    ):
        path.write_bytes(b"".join(damaged))
        assert "ledger.jsonl" in refusal(folder)


@pytest.mark.parametrize("what", ["deleted", "emptied", "only its header"])
@pytest.mark.parametrize("left", [str(CHECKPOINT), "metrics.jsonl", "samples"])
def test_a_run_that_lost_its_ledger_cannot_start_again(dead: Path, folder: Path, what: str, left: str) -> None:
    """Its releases were made, but a second run in the folder would charge only its own."""
    shutil.copytree(dead, folder)
    ledger = folder / "ledger.jsonl"
    if what == "deleted":
        ledger.unlink()
    else:
        ledger.write_bytes(b"" if what == "emptied" else ledger.read_bytes().splitlines(keepends=True)[0])
    for trace in (str(CHECKPOINT), "metrics.jsonl", "samples"):
        path = folder / trace
        assert path.exists()
        if trace != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    told = refusal(folder)
    assert "ledger.jsonl is missing or has lost its charges" in told
    assert "the budget spent is unknown" in told


def test_other_records_of_the_same_shape_are_refused(dead: Path) -> None:
    assert "the records are not those" in refusal(dead, toy.toy(60, seed=1))


def test_an_edited_config_is_refused_except_harmless_fields(dead: Path, folder: Path) -> None:
    shutil.copytree(dead, folder)
    config = folder / "config.toml"
    original = config.read_text()
    noise = next(line for line in original.splitlines() if line.startswith("noise_multiplier"))
    for before, after in (
        (noise, noise + "1"),
        (f"num_steps = {STEPS}", f"num_steps = {STEPS}0"),
        ("learning_rate = ", "learning_rate = 1"),
        ("width = 16", "width = 17"),
        ("rest_weight = 0.1", "rest_weight = 0.2"),
    ):
        assert before in original
        config.write_text(original.replace(before, after))
        assert "config.toml is not the configuration that this run began with" in refusal(folder)
    config.write_text(original.replace('source = "toy"', 'source = "moved"'))
    resume(folder, device="cpu")
    assert steps_charged(folder) == STEPS


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def weights(folder: Path) -> dict[str, torch.Tensor]:
        toy.start(folder, test_seed=1)
        return load_file(folder / "release" / "weights.safetensors")

    steady = weights(tmp_path / "steady")
    moments = random.Random(0)
    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: moments.uniform(-1e9, 1e9))
    jumping = weights(tmp_path / "jumping")
    assert all(torch.equal(jumping[name], steady[name]) for name in steady)
    same = [(tmp_path / name / "ledger.jsonl").read_bytes() for name in ("steady", "jumping")]
    assert same[0] == same[1]


def test_noise_after_a_resume_is_new(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs continue from copies of one folder. Equal noise would cancel in their difference."""
    drawn: list[torch.Tensor] = []
    real = CryptoRandom.normal

    def normal(self: CryptoRandom, *shape: int) -> torch.Tensor:
        drawn.append(real(self, *shape).flatten())
        return drawn[-1].view(shape)

    monkeypatch.setattr(CryptoRandom, "normal", normal)
    counts = []
    for name in "ab":
        shutil.copytree(stopped, tmp_path / name)
        resume(tmp_path / name)
        counts.append(len(drawn))
    assert counts == [STEPS - 21, 2 * (STEPS - 21)]
    values = torch.cat(drawn)
    assert values.unique().numel() == values.numel()


def test_a_run_that_diverged_in_its_last_step_is_not_released(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "dp_sinkhorn.stages.base.update_average",
        lambda average, *_: next(average.parameters()).data.fill_(float("inf")),
    )
    with pytest.raises(InputError, match=r"diverged, and the budget in .*ledger\.jsonl is spent; start a new run with"):
        toy.start(folder, num_steps=1)
    assert not (folder / "release").exists()
    assert steps_charged(folder) == 1
