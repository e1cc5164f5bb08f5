"""A run: all stages in order with checkpoints in between, then the release."""

import copy
import importlib
import json
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.generators.build import build_generator
from dp_sinkhorn.io.atomic import append_line
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import epsilon_pld
from dp_sinkhorn.privacy.curator import Curator
from dp_sinkhorn.privacy.ledger import LEDGER, Header, Ledger
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.release.weights import write_release
from dp_sinkhorn.settings import RunConfig
from dp_sinkhorn.stages.base import Stage, Stages, State
from dp_sinkhorn.training.checkpoint import CHECKPOINT, CheckpointInfo, load_checkpoint, save_checkpoint
from dp_sinkhorn.training.progress import Callback, TrainingProgress
from dp_sinkhorn.training.snapshots import Snapshots

METRICS = "metrics.jsonl"
LOCK = "lock"
# Steps are charged, run and checkpointed in this many blocks. A crash loses the budget of the rest of one block;
# Ctrl-C and SIGTERM lose nothing.
_BLOCKS, _BLOCKS_A_REPORT = 100, 5
_STOPPING = (
    b"\nstopping after this step, so that no budget is lost (before the first step this may take some minutes). "
    b"A second Ctrl-C stops at once and may lose budget\n"
)

# Public facts only, as everything that is shown: a log may be kept where records may not.
_LOG = logging.getLogger("dp_sinkhorn")


def ignore(progress: TrainingProgress) -> None:
    """A `Callback` that does nothing."""


@dataclass(frozen=True)
class TrainingResult:
    """The result of a run. `seconds` and `peak_memory_bytes` are of this process only, not of parts before a resume."""

    card: PrivacyCard
    seconds: float
    peak_memory_bytes: int


def train(
    config: RunConfig,
    records: LabelledImages,
    folder: Path,
    stages: Stages,
    callback: Callback = ignore,
    curator: Callable[..., Curator] = Curator,
) -> TrainingResult:
    """Train, or continue training, in a run folder that holds this `config` as `config.toml`; then release.

    If `callback` raises, the steps before are saved.

    Raises:
        InputError: The run cannot continue from the folder's ledger and checkpoint.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, when the current step is done and saved; at once after a second
            signal.
    """
    start = time.monotonic()
    with only_process(folder / "private"):
        with _orderly_stop() as stop:
            run = Run(config, records, folder, stages, curator)
            plan = config.plan
            goal = (run.state.step, run.all_steps, plan.num_records, plan.target_epsilon, plan.target_delta)
            _LOG.info("run in %s from step %d of %d: %d records, target epsilon %g, delta %g", folder, *goal)
            run.train(callback, stop)
        if stop.is_set():
            raise KeyboardInterrupt
        # From here on nothing can be lost: a resumed run makes the release again.

        def release(state: State) -> PrivacyCard:
            return write_release(folder / "release", state, run.ledger.charges, stages)

        card = release(run.finish(callback, release))
    _LOG.info("release in %s: epsilon %.6g, delta %g", folder / "release", card.epsilon, card.delta)
    return TrainingResult(card, time.monotonic() - start, peak_memory_bytes())


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far; the present one, if the system does not keep the largest."""
    memory = psutil.Process().memory_info()
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # Windows
        return int(getattr(memory, "peak_wset", memory.rss))
    peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if sys.platform == "darwin" else peak * 1024


def new_identity(test_seed: int | None) -> str:
    """A random identifier of a run, independent of its records."""
    return CryptoRandom(test_seed).bits(2).tobytes().hex()


class Run:
    """A run: its state, its ledger and its curator.

    Args:
        folder: Run folder; its folder `private` exists. curator: Makes the curator; an audit passes its own.
    """

    def __init__(
        self,
        config: RunConfig,
        records: LabelledImages,
        folder: Path,
        stages: Stages,
        curator: Callable[..., Curator] = Curator,
    ) -> None:
        self.config, self.stages = config, stages.running(config)
        self.learns = config.plan.learns
        self.folder, self.private = folder, folder / "private"
        self.block = math.ceil(config.plan.num_steps / _BLOCKS)
        self.snapshots = Snapshots(folder / "samples", self.block, config)
        self.ledger = Ledger(folder / LEDGER)
        fresh = not self.ledger.charges
        if fresh:
            self._refuse_traces()
            identity = new_identity(config.settings.test_seed)
            self.ledger.begin(Header(run=identity, config_sha256=config.sha256()))
        self.curator = curator(
            records,
            config.plan.charges,
            self.ledger,
            CryptoRandom(config.settings.test_seed),
            ahead={self.learns: self.block * config.plan.queries_per_step} if self._asks_in_steps else None,
            private=self.private if config.settings.private_metrics else None,
        )
        self.state = self._begin()
        if not fresh:
            self._restore()

    @property
    def _asks_in_steps(self) -> bool:
        return self.config.plan.queries_per_step > 0

    def _begin(self) -> State:
        config = self.config
        shape, classes = config.data.shape, config.data.num_classes
        generator = build_generator(config.generator, shape, classes, config.device, config.settings.seed)
        average = copy.deepcopy(generator).requires_grad_(requires_grad=False)
        generator.precision = getattr(torch, config.precision)
        trains = next(stage for stage in self.stages if stage.name == config.trains)
        return State(config, generator, average, trains.optimiser(generator, config.learning_rate))

    def _refuse_traces(self) -> None:
        """Refuse to start where files show that an earlier run has released something."""
        for trace in (self.private / CHECKPOINT, self.folder / METRICS, self.folder / "samples"):
            if trace.exists():
                raise InputError(
                    f"{self.ledger.path} is missing or has lost its charges, but {trace} shows that this run has "
                    "released something; the budget spent is unknown: put the ledger back or start a new run"
                )

    @property
    def all_steps(self) -> int:
        """Number of training steps and of the finishing steps, which see no record."""
        return self.config.plan.num_steps + sum(stage.finishing_steps(self.config) for stage in self.stages)

    def train(self, callback: Callback = ignore, stop: threading.Event | None = None) -> None:
        """Run the stages in order until all are done or `stop` is set."""
        plan, state = self.config.plan, self.state
        self._picture()  # a crash may have come between a checkpoint and its picture
        reported, epsilon = 0, 0.0
        for place, stage in enumerate(self.stages):
            self.curator.keep_views({need for later in self.stages[place:] for need in later.needs})
            for _ in self._steps(stage):
                if stop is not None and stop.is_set():
                    self.save(stopped=True)
                    raise KeyboardInterrupt
                if stage.name != self.config.trains:
                    self.save()
                    continue
                last = self._end_of_block()
                if state.step < last:
                    continue
                if last > reported:
                    # Accounting is slow, so ε is computed some blocks ahead: an upper bound until then.
                    reported = min(last + (_BLOCKS_A_REPORT - 1) * self.block, plan.num_steps)
                    epsilon = self._epsilon(reported)
                self.save()
                picture = self._picture()
                if last >= reported:
                    line = {"step": last, "epsilon": epsilon, "field_rms": state.field_size}
                    append_line(self.folder / METRICS, json.dumps(line))
                    if self.config.settings.private_metrics:
                        stage.figures(self.curator, state)
                # Last, when everything is on disk: a callback may raise.
                callback(TrainingProgress(last, self.all_steps, epsilon, state.field_size, picture))

    def _steps(self, stage: Stage) -> Iterator[None]:
        """What the stage yields."""
        _LOG.info("stage %s", stage.name)
        try:
            yield from stage.run(self.curator, self.state)
        except FloatingPointError:
            raise self._diverged(f" at step {self.state.step}") from None

    def _end_of_block(self) -> int:
        """Number of steps after which the run is next saved."""
        if self._asks_in_steps:
            return self.curator.charged(self.learns) // self.config.plan.queries_per_step
        return min(math.ceil(self.state.step / self.block) * self.block, self.config.plan.num_steps)

    def _epsilon(self, steps: int) -> float:
        """An upper bound on the ε spent after so many steps."""
        plan, ahead = self.config.plan, list(self.ledger.charges)
        if self._asks_in_steps and (charge := plan.charge(self.learns)) is not None:
            more = steps * plan.queries_per_step - self.curator.charged(charge.name)
            ahead.append(charge.model_copy(update={"count": max(0, more)}))
        # The coarse bound may exceed the planned ε of the whole run.
        return min(epsilon_pld(ahead, plan.target_delta), plan.target_epsilon)

    def finish(self, callback: Callback, release: Callable[[State], object]) -> State:
        """Let the stages turn the averaged generator into the network that is released.

        Args:
            release: Writes a release; called before each long part, so that an interruption leaves a valid one.

        Raises:
            InputError: A number is not finite.
        """
        state, plan = self.state, self.config.plan
        self._finite(state.average.state_dict())
        state.report = lambda done: callback(
            TrainingProgress(plan.num_steps + done, self.all_steps, plan.target_epsilon)
        )
        state.average.eval()  # as a release draws
        state.finished, state.spec, state.steps_after = state.average, self.config.generator, 0
        try:
            for stage in self.stages:
                if stage.finishing_steps(self.config):
                    release(state)
                stage.finish(state)
        except FloatingPointError:
            raise self._diverged(" after the last step") from None
        self._finite(state.finished.state_dict())
        return state

    def _finite(self, tensors: dict[str, Tensor]) -> None:
        if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
            raise self._diverged()

    def _diverged(self, when: str = "") -> InputError:
        return InputError(
            f"training diverged{when}, and the budget in {self.ledger.path} is spent; start a new run with a smaller "
            f"learning_rate than {self.config.learning_rate:g}"
        )

    def save(self, *, stopped: bool = False) -> None:
        """Write the checkpoint. `stopped`: No charged release beyond it has been made."""
        state = self.state
        tensors = {f"learnt.{name}": value for name, value in state.learnt.items()}
        tensors |= {f"generator.{name}": value for name, value in state.generator.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in state.average.state_dict().items()}
        tensors |= {f"optimiser.{name}": value for name, value in state.optimiser.tensors().items()}
        taken = {charge.name: self.curator.taken(charge.name) for charge in self.config.plan.charges}
        info = CheckpointInfo(self.ledger.head, state.step, stopped, taken, self.curator.fingerprint)
        save_checkpoint(self.private / CHECKPOINT, tensors, info)

    def _picture(self) -> Image.Image | None:
        return self.snapshots.take(self.state.step, self.state.average)

    def _restore(self) -> None:
        """Continue from the checkpoint.

        After a crash, releases that the ledger charges beyond the checkpoint may have been made: they stay spent and
        are not made again. After an orderly stop with an unchanged ledger they have not been made, so they are made
        now. The ledger is marked before the first of them, so that no copy of this checkpoint can make them again.
        Steps that see no record cost nothing and are repeated.
        """
        path = self.private / CHECKPOINT
        tensors, info = load_checkpoint(path)
        header = self.ledger.header
        if header is None or header.config_sha256 != self.config.sha256():
            raise InputError(
                f"{self.folder / 'config.toml'} is not the configuration that this run began with, or was "
                "written by another version; put the original back or start a new run"
            )
        if info.ledger not in self.ledger.heads:
            raise InputError(
                f"{path} belongs to another run, or {self.ledger.path.name} has lost lines; the budget spent is "
                "unknown: put back the files of this run or start a new one"
            )
        info.check_records(self.curator.fingerprint, self.folder)

        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

        state = self.state
        try:
            state.generator.load_state_dict(part("generator."))
            state.average.load_state_dict(part("average."))
            state.optimiser.restore(part("optimiser."))
            state.learnt = part("learnt.")
            if info.stopped and info.ledger == self.ledger.head:
                self.curator.continue_from(info.taken)
        except (KeyError, RuntimeError, ValueError):
            raise InputError(f"{path} does not fit this run, so it cannot continue; start a new run") from None
        queries = self.config.plan.queries_per_step
        state.step = self.curator.taken(self.learns) // queries if queries else info.step


@contextmanager
def only_process(private: Path) -> Iterator[None]:
    """Lock the run's private folder: two processes on one run would each count only their own charges.

    The lock ends with its process, however that ends. Its file stays: removing it would let two processes lock.
    """
    private.mkdir(mode=0o700, exist_ok=True)
    private.chmod(0o700)
    lock = FileLock(private / LOCK, mode=0o600, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"another process is training in {private.parent}; wait for it or stop it") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _orderly_stop() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second signal interrupts at once. Only the main thread gets signals."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        with suppress(OSError):  # the terminal or the pipe may have gone with the same Ctrl-C
            os.write(2, _STOPPING)  # not print: the signal may have interrupted a print

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
