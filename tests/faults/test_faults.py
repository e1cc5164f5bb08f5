"""What goes wrong on a machine: signals, a full disk, torn and foreign files, a clock that jumps."""

import errno
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.ledger import Ledger, read_charges
from dp_sinkhorn.settings import Settings, make_settings
from dp_sinkhorn.training import checkpoint, methods
from dp_sinkhorn.training import loop as trainer
from dp_sinkhorn.training import run_folder as runs

STEPS = 200  # blocks of two
SMALL = {"num_steps": STEPS, "generator": "mlp", "width": 16, "num_generated": 16, "num_reference": 16}


def toy(seed: int = 0, count: int = 60) -> LabelledImages:
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=random, dtype=torch.uint8)
    return LabelledImages(pixels, torch.arange(count) % 2, ("0", "1"))


def settings(**changes: Any) -> Settings:
    return make_settings(None, {**SMALL, "min_dimensions": 4, **changes})


class Steps:
    """Counts steps, and does something before one of them."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, at: int = -1, what: Callable[[], object] = lambda: None
    ) -> None:
        self.taken = 0
        real = methods.training_step

        def step(*args: Any) -> float:
            if self.taken == at:
                what()
            self.taken += 1
            return real(*args)

        monkeypatch.setattr(methods, "training_step", step)


def charged(folder: Path) -> int:
    return sum(charge.count for charge in read_charges(folder / "ledger.jsonl") if charge.name == "step")


def interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int, number: int = signal.SIGINT) -> int:
    """A run that got a signal in step `at`; how many steps it took."""
    with monkeypatch.context() as patch:
        steps = Steps(patch, at, lambda: os.kill(os.getpid(), number))
        with pytest.raises(KeyboardInterrupt):
            runs.start(toy(), "toy", settings(), folder)
        return steps.taken


def dead(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """A run that died before step `at` as by kill -9: nothing was saved after its last block."""

    def die() -> None:
        raise SystemError("killed")

    with monkeypatch.context() as patch:
        Steps(patch, at, die)
        with pytest.raises(SystemError):
            runs.start(toy(), "toy", settings(), folder)


def refusal(folder: Path, data: LabelledImages | None = None) -> str:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(InputError) as caught:
        runs.resume(data or toy(), folder, {})
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_in_good_order_and_wastes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    folder = tmp_path / "run"
    assert interrupted(folder, monkeypatch, at=20, number=number) == 21  # the step it came in is finished
    assert capfd.readouterr().err.count("stopping where nothing is lost") == 1
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert charged(folder) == 22
    assert not (folder / "release").exists()
    steps = Steps(monkeypatch)
    card = runs.resume(toy(), folder, {}).card
    assert steps.taken == STEPS - 21
    assert charged(folder) == card.num_steps == STEPS


def test_a_stop_does_not_mind_a_terminal_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`train 2>&1 | tee log`: Ctrl-C ends both."""
    real = os.write

    def write(descriptor: int, content: bytes) -> int:
        if descriptor == 2:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return real(descriptor, content)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        assert interrupted(folder, monkeypatch, at=20) == 21
    runs.resume(toy(), folder, {})
    assert charged(folder) == STEPS


def test_an_interrupted_release_is_made_again_at_no_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(trainer.Run, "released_tensors", lambda *_: signal.raise_signal(signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):  # at once: nothing can be lost
                runs.start(toy(), "toy", settings(), folder)
    finally:
        signal.signal(signal.SIGINT, before)
    assert charged(folder) == STEPS
    steps = Steps(monkeypatch)
    card = runs.resume(toy(), folder, {}).card
    assert steps.taken == 0
    assert card.num_steps == charged(folder) == STEPS


def test_of_two_runs_started_in_one_folder_at_once_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other began while this one was still working out its noise."""
    folder = tmp_path / "run"
    real = runs.resolve
    first: list[object] = []

    def slow(*arguments: Any) -> Any:
        config = real(*arguments)
        if not first:
            first.append(None)
            runs.start(toy(), "toy", settings(), folder)
        return config

    monkeypatch.setattr(runs, "resolve", slow)
    with pytest.raises(InputError, match="exists already; give another --out"):
        runs.start(toy(), "toy", settings(), folder)
    assert (folder / "release" / "card.json").is_file()
    assert runs.resume(toy(), folder, {}).card.num_steps == STEPS


def test_no_memory_on_resuming_is_not_the_end_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    interrupted(folder, monkeypatch, at=20)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 3.1 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(methods, "PrivateRecords", full)
        assert "memory enough, then go on with train --resume" in refusal(folder)
    assert runs.resume(toy(), folder, {}).card.num_steps == STEPS


def test_a_run_of_a_machine_with_another_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    interrupted(folder, monkeypatch, at=20)
    config = folder / "config.toml"
    config.write_text(config.read_text().replace('device = "cpu"', 'device = "cuda:99"'))
    assert "device='cuda:99' cannot be used here" in refusal(folder)
    assert runs.resume(toy(), folder, {"device": "cpu"}).card.num_steps == STEPS


def test_settings_may_be_repeated_that_need_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    batch = {"sanitize": "batch", "queries_per_step": 2, "num_steps": STEPS, "generator": "mlp", "width": 16}
    with monkeypatch.context() as patch:
        patch.setattr(methods, "batch_step", lambda *_: signal.raise_signal(signal.SIGINT) or 0.0)
        with pytest.raises(KeyboardInterrupt):
            runs.start(toy(), "toy", make_settings(None, batch), folder)
    with pytest.raises(InputError, match=r"queries_per_step=3 was given, but the run in .* has 2"):
        runs.resume(toy(), folder, {"queries_per_step": 3})
    assert runs.resume(toy(), folder, {"queries_per_step": 2}).card.queries_per_step == 2


def test_a_line_of_metrics_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    trainer._append(path, {"step": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            trainer._append(path, {"step": 2})
    trainer._append(path, {"step": 3})
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'


def test_a_second_signal_does_not_wait_and_costs_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        steps = Steps(patch, 20, twice)
        with pytest.raises(KeyboardInterrupt):
            runs.start(toy(), "toy", settings(), folder)
        assert steps.taken == 20
    steps = Steps(monkeypatch)
    runs.resume(toy(), folder, {})
    assert steps.taken == STEPS - 22


def test_charged_steps_of_a_good_stop_are_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash after the resume must not open them a second time."""
    folder = tmp_path / "run"
    interrupted(folder, monkeypatch, at=20)
    with monkeypatch.context() as patch:

        def die() -> None:
            raise SystemError("killed")

        steps = Steps(patch, 1, die)  # the left-over step is taken, then the process dies before anything is saved
        with pytest.raises(SystemError):
            runs.resume(toy(), folder, {})
        assert steps.taken == 1
    steps = Steps(monkeypatch)
    runs.resume(toy(), folder, {})
    assert steps.taken == STEPS - 24
    assert charged(folder) == STEPS


def test_steps_of_a_crash_stay_spent_and_are_not_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    dead(folder, monkeypatch, at=21)
    assert charged(folder) == 22
    steps = Steps(monkeypatch)
    runs.resume(toy(), folder, {})
    assert steps.taken == STEPS - 22
    assert charged(folder) == STEPS


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("place", ["ledger", "checkpoint"])
def test_a_disk_that_fails_is_one_line_and_the_run_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, place: str
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        steps = Steps(patch)
        module = Ledger if place == "ledger" else trainer
        name = "charge" if place == "ledger" else "save_checkpoint"
        real = getattr(module, name)

        def fail(*args: Any) -> None:
            if steps.taken >= 30:
                raise OSError(code, os.strerror(code))
            real(*args)

        patch.setattr(module, name, fail)
        with pytest.raises(InputError, match=f"cannot write .*{os.strerror(code)}; make room, then go on"):
            runs.start(toy(), "toy", settings(), folder)
        assert steps.taken == 30
    runs.resume(toy(), folder, {})
    assert charged(folder) == STEPS


def test_a_disk_that_is_full_from_the_start_says_what_it_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first charge nothing is spent and nothing left; before the first checkpoint no run can go on."""
    folder = tmp_path / "run"

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "charge", full)
        with pytest.raises(InputError, match=r"make room, then start it again \(nothing was spent\)"):
            runs.start(toy(), "toy", settings(), folder)
    assert not folder.exists()
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_checkpoint", full)
        with pytest.raises(InputError, match="make room, then start a new run: this one spent budget"):
            runs.start(toy(), "toy", settings(), folder)
    assert read_charges(folder / "ledger.jsonl")
    assert "cannot go on" in refusal(folder)


def test_half_a_ledger_line_means_nothing_was_released_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up inside a line."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        steps = Steps(patch)
        real = os.write
        patch.setattr(
            "dp_sinkhorn.privacy.ledger.os.write",
            lambda descriptor, content: real(descriptor, content[:40] if steps.taken >= 30 else content),
        )
        with pytest.raises(InputError, match="make room"):
            runs.start(toy(), "toy", settings(), folder)
        assert steps.taken == 30
    assert not (folder / "ledger.jsonl").read_bytes().endswith(b"\n")
    steps = Steps(monkeypatch)
    runs.resume(toy(), folder, {})
    assert steps.taken == STEPS - 30
    assert charged(folder) == STEPS


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_torn_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    folder = tmp_path / "run"
    dead(folder, monkeypatch, at=21)
    path = folder / "private" / trainer.CHECKPOINT
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "missing or damaged" in refusal(folder)


def test_a_checkpoint_with_other_tensors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    dead(folder, monkeypatch, at=21)
    path = folder / "private" / trainer.CHECKPOINT
    tensors, place = checkpoint.load_checkpoint(path)
    for name in ("generator.", "released.", "average."):
        left = {key: value for key, value in tensors.items() if not key.startswith(name)}
        checkpoint.save_checkpoint(path, left, place)
        assert "does not fit this run" in refusal(folder)


def test_files_of_another_run_with_the_same_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    dead(one, monkeypatch, at=21)
    dead(other, monkeypatch, at=41)
    original = (one / "ledger.jsonl").read_bytes()
    shutil.copy(other / "ledger.jsonl", one / "ledger.jsonl")
    assert "belongs to another run" in refusal(one)
    (one / "ledger.jsonl").write_bytes(original)
    shutil.copy(other / "private" / trainer.CHECKPOINT, one / "private" / trainer.CHECKPOINT)
    assert "belongs to another run" in refusal(one)


def test_a_ledger_that_lost_its_last_lines_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line is whole: only the checkpoint knows that there were more. Without it ε would be under-counted."""
    folder = tmp_path / "run"
    dead(folder, monkeypatch, at=21)
    path = folder / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-3]))
    assert "has lost lines" in refusal(folder)


@pytest.mark.parametrize("what", ["deleted", "emptied", "only its header"])
@pytest.mark.parametrize("left", ["private/checkpoint.safetensors", "metrics.jsonl", "samples"])
def test_a_run_without_its_ledger_is_not_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, left: str
) -> None:
    """What it released stays released: a second run beside it would be charged alone."""
    folder = tmp_path / "run"
    dead(folder, monkeypatch, at=21)
    ledger = folder / "ledger.jsonl"
    if what == "deleted":
        ledger.unlink()
    else:
        ledger.write_bytes(b"" if what == "emptied" else ledger.read_bytes().splitlines(keepends=True)[0])
    for trace in ("private/checkpoint.safetensors", "metrics.jsonl", "samples"):
        path = folder / trace
        assert path.exists()
        if trace != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(
        InputError, match=r"ledger\.jsonl is missing or has lost its charges.*the budget spent is unknown"
    ):
        runs.resume(toy(), folder, {})
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_other_records_of_the_same_shape_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    dead(folder, monkeypatch, at=21)
    assert "the records are not those" in refusal(folder, toy(seed=1))


def test_an_edited_config_is_refused_but_for_harmless_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    dead(folder, monkeypatch, at=21)
    config = folder / "config.toml"
    original = config.read_text()
    noise = next(line for line in original.splitlines() if line.startswith("noise_multiplier"))
    for before, after in (
        (noise, noise + "1"),
        ("num_steps = 200", "num_steps = 2000"),
        ("learning_rate = ", "learning_rate = 1"),
        ("width = 16", "width = 17"),
    ):
        assert before in original
        config.write_text(original.replace(before, after))
        assert "config.toml is not the configuration that this run began with" in refusal(folder)
    config.write_text(original.replace('source = "toy"', 'source = "moved"'))
    runs.resume(toy(), folder, {"device": "cpu"})
    assert charged(folder) == STEPS


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def weights(folder: Path) -> dict[str, torch.Tensor]:
        runs.start(toy(), "toy", settings(test_seed=1), folder)
        return load_file(folder / "release" / "weights.safetensors")

    steady = weights(tmp_path / "steady")
    moments = random.Random(0)
    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: moments.uniform(-1e9, 1e9))
    jumping = weights(tmp_path / "jumping")
    assert all(torch.equal(jumping[name], steady[name]) for name in steady)
    same = [(tmp_path / name / "ledger.jsonl").read_bytes() for name in ("steady", "jumping")]
    assert same[0] == same[1]


def test_noise_after_a_resume_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs go on from copies of one folder: equal noise would cancel in their difference."""
    folder, copy = tmp_path / "run", tmp_path / "copy"
    interrupted(folder, monkeypatch, at=20)
    shutil.copytree(folder, copy)
    drawn: list[torch.Tensor] = []
    real = trainer.CryptoRandom.normal

    def normal(self: trainer.CryptoRandom, *shape: int) -> torch.Tensor:
        drawn.append(real(self, *shape).flatten())
        return drawn[-1].view(shape)

    monkeypatch.setattr(trainer.CryptoRandom, "normal", normal)
    counts = []
    for path in (folder, copy):
        runs.resume(toy(), path, {})
        counts.append(len(drawn))
    first, second = drawn[: counts[0]], drawn[counts[0] :]
    values = torch.cat(drawn)
    assert len(first) == len(second) == STEPS - 21
    assert values.unique().numel() == values.numel()


def test_a_run_that_diverged_in_its_last_step_is_not_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    monkeypatch.setattr(
        trainer, "update_average", lambda average, *_: next(average.parameters()).data.fill_(float("inf"))
    )
    with pytest.raises(InputError, match=r"diverged, and the budget in .*ledger\.jsonl is spent; start a new run with"):
        runs.start(toy(), "toy", settings(num_steps=1), folder)
    assert not (folder / "release").exists()
    assert charged(folder) == 1
