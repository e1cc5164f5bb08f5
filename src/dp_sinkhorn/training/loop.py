"""A whole run: charge, train in blocks, checkpoint, release."""

import copy
import fcntl
import json
import math
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dp_sinkhorn.build import build_generator
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.generators.base import as_released
from dp_sinkhorn.io.atomic import write_whole
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import COARSE, epsilon_pld
from dp_sinkhorn.privacy.ledger import LEDGER, Header, Ledger
from dp_sinkhorn.privacy.plan import STEP
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.release.weights import write_release
from dp_sinkhorn.settings import RunConfig
from dp_sinkhorn.training.checkpoint import CHECKPOINT, Place, load_checkpoint, save_checkpoint
from dp_sinkhorn.training.methods import Method, begin_method, restore_method
from dp_sinkhorn.training.observation import Observer, unobserved
from dp_sinkhorn.training.optimiser import learning_rate_share, make_optimiser, update_average
from dp_sinkhorn.training.snapshots import Snapshots, Watcher

# Steps are charged, run and checkpointed in this many blocks; a crash wastes the rest of one block's budget, an
# interruption by Ctrl-C or SIGTERM none of it.
_BLOCKS, _BLOCKS_A_REPORT = 100, 5
_STOPPING = (
    b"\nstopping where nothing is lost: at the end of this step, or (some minutes) of what comes before the first. "
    b"Once more: at once, and budget may be lost\n"
)

Progress = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, an upper bound on the ε spent so far); steps that see no record count too."""


@dataclass(frozen=True)
class TrainingResult:
    """What a run gave. `seconds` and `peak_memory_bytes` are of this process (a resumed part, then)."""

    card: PrivacyCard
    seconds: float
    peak_memory_bytes: int


def train(
    config: RunConfig,
    data: LabelledImages,
    folder: Path,
    progress: Progress | None = None,
    watcher: Watcher | None = None,
) -> TrainingResult:
    """Train, or go on training, in a run folder that holds this `config` as `config.toml`; then release.

    Raises:
        InputError: The folder's ledger or checkpoint does not allow to go on.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; the step it came in was finished and saved. A second one does not
            wait for that.
    """
    start = time.monotonic()
    with _only_process(folder / "private"):
        with _stop_in_good_order() as stop:
            run = Run(config, data, folder)
            progress = progress or (lambda done, total, epsilon: None)
            run.train(progress, watcher, stop)
        if stop.is_set():
            raise KeyboardInterrupt
        # From here on nothing can be lost: a resumed run makes the release again.
        card = write_release(
            folder / "release",
            config,
            run.ledger.charges,
            run.method.class_shares,
            run.method.clip_norm,
            run.method.sensitivity,
            run.released_tensors(progress),
            run.method.warnings,
        )
    return TrainingResult(card, time.monotonic() - start, peak_memory_bytes())


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Run:
    """A run's state: but for the method's records, a function of released tensors and public facts."""

    def __init__(self, config: RunConfig, data: LabelledImages, folder: Path, observe: Observer = unobserved) -> None:
        settings = config.settings
        self.config = config
        self.observe = observe
        self.private = folder / "private"
        self.metrics_path = folder / "metrics.jsonl"
        num_steps = config.privacy.num_steps
        self.block = math.ceil(num_steps / _BLOCKS)
        self.snapshots = Snapshots(folder / "samples", num_steps, self.block, data.class_names)
        self.ledger = Ledger(folder / LEDGER)
        self.random = CryptoRandom(settings.test_seed)
        self.data_sha256 = data.sha256()
        self.generator = build_generator(config.generator, data.shape, data.num_classes, config.device, settings.seed)
        self.average = copy.deepcopy(self.generator).requires_grad_(requires_grad=False)
        self.generator.precision = getattr(torch, config.precision)
        self.optimiser = make_optimiser(self.generator, config)
        if self.ledger.charges:
            self.method = self._restore(data)
        else:
            self._refuse_traces(folder)
            identity = CryptoRandom(settings.test_seed).bits(2).tobytes().hex()
            self.ledger.begin(Header(run=identity, config_sha256=config.sha256()))
            self.next_step = 0
            self.method = begin_method(config, data, self.ledger, self.random)
            self.save()

    def _refuse_traces(self, folder: Path) -> None:
        """A ledger without charges begins a run, but not beside what an earlier one released."""
        for trace in (self.private / CHECKPOINT, self.metrics_path, folder / "samples"):
            if trace.exists():
                raise InputError(
                    f"{self.ledger.path} is missing or has lost its charges, but {trace} shows that this run has "
                    "released something; the budget spent is unknown: put the ledger back or start a new run"
                )

    @property
    def all_steps(self) -> int:
        """Those that learn from the records, and those that follow them and see none."""
        matching = self.config.matching
        return self.config.privacy.num_steps + (matching.num_steps if matching else 0)

    @property
    def charged_steps(self) -> int:
        """How many steps the ledger has charged; steps that see no record count once they are taken."""
        queries = self.config.privacy.queries_per_step
        return self.ledger.count(STEP) // queries if queries else self.next_step

    def released_tensors(self, progress: Progress) -> dict[str, Tensor]:
        """What is handed out: the averaged generator, finished, and what the method puts around it.

        Raises:
            InputError: A number is not finite.
        """
        self._finite(self.average.state_dict())
        plan = self.config.privacy
        try:
            finished = self.method.finished(
                self.average,
                lambda done: progress(plan.num_steps + done, self.all_steps, plan.target_epsilon),
            )
        except FloatingPointError:
            raise self._diverged(" after the last step") from None
        weights = self._finite(finished.state_dict())
        with as_released(finished):
            return weights | self._finite(self.method.around(finished))

    def _finite(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
            raise self._diverged()
        return tensors

    def _diverged(self, when: str = "") -> InputError:
        return InputError(
            f"training diverged{when}, and the budget in {self.ledger.path} is spent; start a new run with a smaller "
            f"learning_rate than {self.config.learning_rate:g}"
        )

    def train(self, progress: Progress, watcher: Watcher | None = None, stop: threading.Event | None = None) -> None:
        """Run the steps that are left, charging a block of them ahead, until all are done or `stop` is set."""
        plan, block = self.config.privacy, self.block
        self._show(self.next_step, watcher)  # where a crash came between a checkpoint and its picture
        reported = 0
        while self.next_step < plan.num_steps:
            first, last = self.next_step, self.charged_steps
            if first == last:
                last = min(first + block, plan.num_steps)
                for charge in plan.step_charges(first, last - first):
                    self.ledger.charge(charge)
            if last > reported:
                # Accounting takes a while: ε is worked out for some blocks ahead, an upper bound until then.
                reported = min(last + (_BLOCKS_A_REPORT - 1) * block, plan.num_steps)
                ahead = [*self.ledger.charges, *plan.step_charges(last, reported - last)]
                # The coarse bound may lie above what the plan has shown for the whole run.
                epsilon = min(epsilon_pld(ahead, plan.target_delta, COARSE), plan.target_epsilon)
            for step in range(first, last):
                pull = self.step(step)
                self.next_step = step + 1
                if stop is not None and stop.is_set():
                    self.save(stopped=True)
                    raise KeyboardInterrupt
            self.save()
            progress(last, self.all_steps, epsilon)
            if watcher is not None:
                watcher.facts(last, epsilon, pull)
            self._show(last, watcher)
            if last >= reported:
                _append(self.metrics_path, {"step": last, "epsilon": epsilon, "field_rms": pull})
                if self.config.settings.private_metrics:
                    with as_released(self.generator):
                        figures = self.method.private_figures(self.generator, self.random)
                    if figures:
                        _append(self.private / "metrics.jsonl", {"step": last, **figures})

    def step(self, step: int) -> float:
        """One update, already charged; returns the size of the released field."""
        settings, plan = self.config.settings, self.config.privacy
        share = learning_rate_share(step, plan.num_steps, settings.warmup, settings.schedule)
        self.optimiser.set_rate(self.config.learning_rate * share)
        # Latents are public: seeded by (seed, step), they need no state in the checkpoint.
        latents = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        try:
            pull = self.method.step(self.generator, self.optimiser, latents, self.random, self.observe)
        except FloatingPointError:
            raise self._diverged(f" at step {step}") from None
        update_average(self.average, self.generator, settings.average_decay, step)
        return pull

    def save(self, *, stopped: bool = False) -> None:
        """Write the checkpoint. `stopped`: charged steps beyond it have not been taken."""
        tensors = {f"released.{name}": value for name, value in self.method.released().items()}
        tensors |= {f"generator.{name}": value for name, value in self.generator.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        tensors |= {f"optimiser.{name}": value for name, value in self.optimiser.tensors().items()}
        place = Place(self.ledger.head, self.next_step, stopped, self.data_sha256)
        save_checkpoint(self.private / CHECKPOINT, tensors, place)

    def _show(self, step: int, watcher: Watcher | None) -> None:
        picture = self.snapshots.take(step, self.average)
        if picture is not None and watcher is not None:
            watcher.picture(step, picture)

    def _restore(self, data: LabelledImages) -> Method:
        """Go on from the checkpoint.

        Steps that the ledger holds beyond it may have been taken before a crash: they are not taken again, and
        stay spent. Only where the run stopped in good order is it known that they were not taken. They can be
        taken then, once: before the first of them the checkpoint forgets that it stopped in good order. Steps that
        see no record cost nothing, so they are taken again.
        """
        path = self.private / CHECKPOINT
        tensors, place = load_checkpoint(path)
        header = self.ledger.header
        if header is None or header.config_sha256 != self.config.sha256():
            raise InputError(
                f"{path.parent.parent / 'config.toml'} is not the configuration that this run began with, or was "
                "written by another version; put the original back or start a new run"
            )
        if place.ledger not in self.ledger.heads:
            raise InputError(
                f"{path} belongs to another run, or {self.ledger.path.name} has lost lines; the budget spent is "
                "unknown: put back the files of this run or start a new one"
            )
        place.check_data(self.data_sha256, path.parent.parent)

        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

        misfit = InputError(f"{path} does not fit this run, so it cannot go on; start a new run")
        try:
            self.generator.load_state_dict(part("generator."))
            self.average.load_state_dict(part("average."))
            self.optimiser.restore(part("optimiser."))
        except (KeyError, RuntimeError, ValueError):
            raise misfit from None
        try:
            method = restore_method(self.config, data, part("released."))
        except (KeyError, ValueError):  # a RuntimeError is too little memory for the records, which may change
            raise misfit from None
        free = self.config.privacy.queries_per_step == 0
        unused = free or (place.stopped and place.ledger == self.ledger.head)
        self.next_step = place.next_step if unused else self.charged_steps
        if unused:
            save_checkpoint(path, tensors, replace(place, stopped=False))
        return method


def _append(path: Path, entry: Mapping[str, int | float]) -> None:
    """One line more, whole or not at all; there are some twenty."""
    before = path.read_bytes() if path.exists() else b""
    write_whole(path, before + json.dumps(entry).encode() + b"\n")


@contextmanager
def _only_process(private: Path) -> Iterator[None]:
    """Hold the run's private folder: two processes on one run would each count only their own charges."""
    private.mkdir(exist_ok=True)
    descriptor = os.open(private, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InputError(f"another process is training in {private.parent}; wait for it or stop it") from None
    finally:
        os.close(descriptor)


@contextmanager
def _stop_in_good_order() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; the next of them interrupts at once. Only the main thread gets signals."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        with suppress(OSError):  # the terminal or the pipe may have gone with the same Ctrl-C
            os.write(2, _STOPPING)  # not print: the signal may have come in the midst of one

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
