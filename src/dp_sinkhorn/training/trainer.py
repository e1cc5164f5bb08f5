"""A whole run: charge, train in blocks, checkpoint, release."""

import copy
import fcntl
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from dp_sinkhorn.build import build_generator
from dp_sinkhorn.card import PrivacyCard
from dp_sinkhorn.config import RunConfig
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.errors import InputError
from dp_sinkhorn.privacy.accounting import COARSE, epsilon_pld
from dp_sinkhorn.privacy.ledger import Ledger
from dp_sinkhorn.privacy.plan import STEP
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.release import write_release
from dp_sinkhorn.training.checkpoint import (
    load_checkpoint,
    optimiser_tensors,
    restore_optimiser,
    save_checkpoint,
)
from dp_sinkhorn.training.methods import Method, begin_method, restore_method
from dp_sinkhorn.training.snapshots import Snapshots, Watcher

# Steps are charged, run and checkpointed in this many blocks; a crash wastes the rest of one block's budget.
_BLOCKS, _BLOCKS_A_REPORT = 100, 5
_BETAS = (0.9, 0.99)

Progress = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, an upper bound on the ε spent so far)."""


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
    """
    start = time.monotonic()
    with _only_process(folder / "private"):
        run = Run(config, data, folder)
        run.train(progress or (lambda done, total, epsilon: None), watcher)
        card = write_release(
            folder / "release",
            config,
            run.ledger.charges,
            run.method.class_shares,
            run.method.clip_norm,
            run.method.sensitivity,
            run.average.state_dict(),
        )
    return TrainingResult(card, time.monotonic() - start, peak_memory_bytes())


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Run:
    """A run's state: but for the method's records, a function of released tensors and public facts."""

    def __init__(self, config: RunConfig, data: LabelledImages, folder: Path) -> None:
        settings = config.settings
        self.config = config
        self.private = folder / "private"
        self.metrics_path = folder / "metrics.jsonl"
        num_steps = config.privacy.num_steps
        self.block = math.ceil(num_steps / _BLOCKS)
        self.snapshots = Snapshots(folder / "samples", num_steps, self.block, data.class_names)
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.random = CryptoRandom(settings.test_seed)
        self.generator = build_generator(config.generator, data.shape, data.num_classes, config.device, settings.seed)
        self.average = copy.deepcopy(self.generator).requires_grad_(requires_grad=False)
        self.optimiser = torch.optim.Adam(self.generator.parameters(), lr=config.learning_rate, betas=_BETAS)
        if self.ledger.charges:
            # What the ledger holds beyond the checkpoint was lost in a crash: it stays spent.
            self.method = self._restore(data)
        else:
            self.method = begin_method(config, data, self.ledger, self.random)
            self._save()

    def train(self, progress: Progress, watcher: Watcher | None = None) -> None:
        """Run the steps that the ledger has not charged yet."""
        plan, block = self.config.privacy, self.block
        first = self.ledger.count(STEP) // plan.queries_per_step
        self._show(first, watcher)  # where a crash came between a checkpoint and its picture
        reported = 0
        while first < plan.num_steps:
            if first >= reported:
                # Accounting takes a while: ε is worked out for some blocks ahead, an upper bound until then.
                reported = min(first + _BLOCKS_A_REPORT * block, plan.num_steps)
                ahead = [*self.ledger.charges, plan.step_charge(first, reported - first)]
                epsilon = epsilon_pld(ahead, plan.target_delta, COARSE)
            last = min(first + block, plan.num_steps)
            self.ledger.charge(plan.step_charge(first, last - first))
            for step in range(first, last):
                pull = self.step(step)
            self._save()
            first = last
            progress(first, plan.num_steps, epsilon)
            if watcher is not None:
                watcher.facts(first, epsilon, pull)
            self._show(first, watcher)
            if first >= reported:
                self._log({"step": first, "epsilon": epsilon, "field_rms": pull})

    def step(self, step: int) -> float:
        """One update, already charged; returns the size of the released field."""
        settings, plan = self.config.settings, self.config.privacy
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * learning_rate_share(
                step, plan.num_steps, settings.warmup, settings.schedule
            )
        # Latents are public: seeded by (seed, step), they need no state in the checkpoint.
        latents = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        try:
            pull = self.method.step(self.generator, self.optimiser, latents, self.random)
        except FloatingPointError:
            raise InputError(
                f"training diverged at step {step}; give a smaller learning_rate than {self.config.learning_rate:g}"
            ) from None
        update_average(self.average, self.generator, settings.average_decay, step)
        return pull

    def _save(self) -> None:
        tensors = {f"released.{name}": value for name, value in self.method.released().items()}
        tensors |= {f"generator.{name}": value for name, value in self.generator.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        tensors |= {f"optimiser.{name}": value for name, value in optimiser_tensors(self.optimiser).items()}
        save_checkpoint(self.private / "checkpoint.safetensors", tensors)

    def _restore(self, data: LabelledImages) -> Method:
        tensors = load_checkpoint(self.private / "checkpoint.safetensors")

        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

        self.generator.load_state_dict(part("generator."))
        self.average.load_state_dict(part("average."))
        if optimiser := part("optimiser."):
            restore_optimiser(self.optimiser, optimiser)
        return restore_method(self.config, data, part("released."))

    def _show(self, step: int, watcher: Watcher | None) -> None:
        picture = self.snapshots.take(step, self.average)
        if picture is not None and watcher is not None:
            watcher.picture(step, picture)

    def _log(self, entry: dict[str, int | float]) -> None:
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def learning_rate_share(step: int, num_steps: int, warmup: float, schedule: Literal["cosine", "constant"]) -> float:
    """Share of the learning rate: linear warm-up over the first `warmup` of the steps, then (cosine) falling to 0."""
    rise = min(1.0, (step + 1) / max(1.0, warmup * num_steps))
    return rise if schedule == "constant" else rise * 0.5 * (1.0 + math.cos(math.pi * step / num_steps))


@torch.no_grad()
def update_average(average: nn.Module, generator: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of weights and running statistics, over fewer steps at the start."""
    weight = 1.0 - min(decay, (step + 1) / (step + 10))
    state, current = average.state_dict(), generator.state_dict()
    floating = [name for name, value in state.items() if value.is_floating_point()]
    torch._foreach_lerp_([state[name] for name in floating], [current[name] for name in floating], weight)
    for name in state.keys() - set(floating):
        state[name].copy_(current[name])


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
