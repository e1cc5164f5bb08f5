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

import torch
from torch import Tensor, nn

from dp_sinkhorn.build import build_generator
from dp_sinkhorn.card import PrivacyCard
from dp_sinkhorn.config import RunConfig
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.errors import InputError
from dp_sinkhorn.privacy.accounting import COARSE, epsilon_pld
from dp_sinkhorn.privacy.ledger import Ledger
from dp_sinkhorn.privacy.mechanism import GaussianMechanism
from dp_sinkhorn.privacy.plan import STEP
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.subsampling import PoissonSubsampler
from dp_sinkhorn.release import write_release
from dp_sinkhorn.training.checkpoint import (
    load_checkpoint,
    optimiser_tensors,
    restore_optimiser,
    save_checkpoint,
)
from dp_sinkhorn.training.statistics import ReleasedStatistics, release_statistics
from dp_sinkhorn.training.step import PrivateRecords, StepRules, training_step
from dp_sinkhorn.transport.subspace import Subspace

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


def train(config: RunConfig, data: LabelledImages, folder: Path, progress: Progress | None = None) -> TrainingResult:
    """Train, or go on training, in a run folder that holds this `config` as `config.toml`; then release.

    Raises:
        InputError: The folder's ledger or checkpoint does not allow to go on.
    """
    start = time.monotonic()
    with _only_process(folder / "private"):
        run = _Run(config, data, folder)
        run.train(progress or (lambda done, total, epsilon: None))
        card = write_release(
            folder / "release",
            config,
            run.ledger.charges,
            run.statistics.class_prior,
            run.rules.mechanism.sensitivity,
            run.average.state_dict(),
        )
    return TrainingResult(card, time.monotonic() - start, peak_memory_bytes())


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _Run:
    """The state of a run. Everything here but `records` is a function of released tensors and public facts."""

    def __init__(self, config: RunConfig, data: LabelledImages, folder: Path) -> None:
        settings = config.settings
        self.config = config
        self.private = folder / "private"
        self.metrics_path = folder / "metrics.jsonl"
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.random = CryptoRandom(settings.test_seed)
        self.generator = build_generator(config.generator, data.shape, data.num_classes, config.device, settings.seed)
        self.average = copy.deepcopy(self.generator).requires_grad_(requires_grad=False)
        self.optimiser = torch.optim.Adam(self.generator.parameters(), lr=settings.learning_rate, betas=_BETAS)
        if self.ledger.charges:
            # What the ledger holds beyond the checkpoint was lost in a crash: it stays spent.
            self.statistics = self._restore()
        else:
            self.statistics = release_statistics(data, config, self.ledger, self.random)
            self._save()
        self.rules = _rules(config, self.statistics)
        # In float64: the row of a float32 matrix product may depend on the other rows of its chunk.
        subspace = self.rules.subspace
        exact = Subspace(subspace.centre.double(), subspace.basis.double())
        coordinates = torch.cat([exact.project(chunk.to(config.device).double()) for chunk in data.float_chunks()])
        self.records = PrivateRecords(coordinates, data.labels.to(config.device))

    def train(self, progress: Progress) -> None:
        """Run the steps that the ledger has not charged yet."""
        plan = self.config.privacy
        block = math.ceil(plan.num_steps / _BLOCKS)
        first = self.ledger.count(STEP)
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
                pull = self._step(step)
            self._save()
            first = last
            progress(first, plan.num_steps, epsilon)
            if first >= reported:
                self._log({"step": first, "epsilon": epsilon, "field_rms": pull})

    def _step(self, step: int) -> float:
        settings, plan = self.config.settings, self.config.privacy
        for group in self.optimiser.param_groups:
            group["lr"] = settings.learning_rate * schedule(step, plan.num_steps, settings.warmup)
        # Latents are public: seeded by (seed, step), they need no state in the checkpoint.
        latents = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        try:
            pull = training_step(self.generator, self.optimiser, self.records, self.rules, latents, self.random)
        except FloatingPointError:
            raise InputError(
                f"training diverged at step {step}; give a smaller learning_rate than {settings.learning_rate:g}"
            ) from None
        update_average(self.average, self.generator, settings.average_decay, step)
        return pull

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {
            "statistics.class_counts": self.statistics.class_counts,
            "statistics.variance": torch.tensor(self.statistics.variance, dtype=torch.float64),
            "statistics.centre": self.statistics.subspace.centre,
            "statistics.basis": self.statistics.subspace.basis,
        }
        tensors |= {f"generator.{name}": value for name, value in self.generator.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        tensors |= {f"optimiser.{name}": value for name, value in optimiser_tensors(self.optimiser).items()}
        save_checkpoint(self.private / "checkpoint.safetensors", tensors)

    def _restore(self) -> ReleasedStatistics:
        tensors = load_checkpoint(self.private / "checkpoint.safetensors")

        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

        self.generator.load_state_dict(part("generator."))
        self.average.load_state_dict(part("average."))
        if optimiser := part("optimiser."):
            restore_optimiser(self.optimiser, optimiser)
        return ReleasedStatistics(
            class_counts=tensors["statistics.class_counts"],
            variance=float(tensors["statistics.variance"]),
            subspace=Subspace(tensors["statistics.centre"], tensors["statistics.basis"]),
        )

    def _log(self, entry: dict[str, int | float]) -> None:
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def schedule(step: int, num_steps: int, warmup: float) -> float:
    """Share of the learning rate: linear warm-up over the first `warmup` of the steps, times a cosine to 0."""
    rise = min(1.0, (step + 1) / max(1.0, warmup * num_steps))
    return rise * 0.5 * (1.0 + math.cos(math.pi * step / num_steps))


@torch.no_grad()
def update_average(average: nn.Module, generator: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of the weights, over fewer steps at the start."""
    weight = 1.0 - min(decay, (step + 1) / (step + 10))
    torch._foreach_lerp_(list(average.parameters()), list(generator.parameters()), weight)


def _rules(config: RunConfig, statistics: ReleasedStatistics) -> StepRules:
    settings, plan = config.settings, config.privacy
    classes = len(config.data.class_names)

    def labels(images: int) -> Tensor:
        return torch.arange(classes, device=config.device).repeat_interleave(images // classes)

    subspace = statistics.subspace
    return StepRules(
        subspace=Subspace(subspace.centre.to(config.device), subspace.basis.to(config.device)),
        labels=labels(config.num_generated),
        reference_labels=labels(config.num_reference),
        expected_counts=(plan.sample_rate * statistics.class_counts).to(config.device),
        subsampler=PoissonSubsampler(plan.num_records, plan.sample_rate),
        mechanism=GaussianMechanism(config.relative_clip_norm * math.sqrt(statistics.variance), plan.noise_multiplier),
        reg=settings.relative_reg * statistics.variance,
        potential_iterations=settings.potential_iterations,
        rest_weight=settings.rest_weight,
    )


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
