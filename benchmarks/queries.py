"""Measure private queries a second in a whole training step: ours, and the same step written plainly.

    python benchmarks/queries.py [--json] [--repeats 15] [--records 60000] [--channels 64]

Ours    A step of the stage `batch_steps` as in a run: DCGAN generator with 64 channels, z = 16, 64 queries a step, each
        of 50 of 60,000 records, n = 50, L2²+L1, debias_fraction 0.4, 40 Sinkhorn iterations, cryptographic noise and
        subsamples, Adam, average of the weights. All charges are made before the first step.
Plain   One query for each generator pass, as in the paper: the same generator, geomloss with its default schedule (far
        fewer iterations, far from converged), `torch.randn`, Adam. L1 is PyTorch's `cdist` or a broadcast; the
        comparison takes the faster one.
Floor   One forward and backward pass of the generator, and the products of ‖x−y‖² and its gradient for 64 queries.

The steps take turns, and figures are medians. Records are MNIST images from $DP_SINKHORN_DATA, or random without it.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import geomloss
import torch
from torch import Tensor

from dp_sinkhorn.data.images import LabelledImages, to_unit_range
from dp_sinkhorn.data.sources import load_images
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.build import build_generator
from dp_sinkhorn.method import STAGES, resolve, settings_of
from dp_sinkhorn.privacy.curator import Curator
from dp_sinkhorn.privacy.mechanism import GaussianMechanism
from dp_sinkhorn.privacy.subsampling import PoissonSubsampler
from dp_sinkhorn.settings import RunConfig
from dp_sinkhorn.stages import batch_steps
from dp_sinkhorn.stages.batch_steps import BatchSetup, BatchStepsRules, ClippedBatches
from dp_sinkhorn.training.loop import Run
from dp_sinkhorn.training.run_folder import facts_of
from dp_sinkhorn.transport.costs import MixedCost
from dp_sinkhorn.transport.sinkhorn import Sinkhorn
from solver import Loss, by_broadcast, by_cdist, floor, interleaved

NOISE, BATCH = 1.1, 50
QUERIES = 64


def records(count: int) -> tuple[LabelledImages, str]:
    """Return `count` records of 28×28 pixels, and a description of them."""
    if "DP_SINKHORN_DATA" in os.environ:
        images = load_images(str(Path(os.environ["DP_SINKHORN_DATA"]) / "mnist"))
        return images.subset(torch.arange(min(count, len(images)))), "MNIST images"
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=source)
    labels = torch.randint(0, 10, (count,), generator=source)
    return LabelledImages(pixels, labels, tuple("0123456789")), "random images"


@dataclass(frozen=True, eq=False)
class Setting:
    """The records, and public constants of runs on them."""

    data: LabelledImages
    channels: int
    steps: int

    def resolved(self, queries: int) -> tuple[RunConfig, BatchStepsRules]:
        """The resolved run, and the rules of its stage."""
        settings = {"mode": "batch", "generator": "dcgan", "channels": self.channels, "latent_dim": 16}
        plan = {"expected_batch_size": BATCH, "noise_multiplier": NOISE, "num_steps": self.steps}
        steps = {"queries_per_step": queries, "l1_weight": 1.0, "debias_fraction": 0.4}
        chosen = settings_of(None, {**settings, **plan, "batch_steps": steps})
        config = resolve(chosen, facts_of("benchmark", self.data))
        return config, config.rules_of("batch_steps", BatchStepsRules)

    def generator(self, config: RunConfig) -> Generator:
        """The untrained generator of a run."""
        return build_generator(config.generator, self.data.shape, self.data.num_classes)


def charging_at_once(*arguments: Any, **more: Any) -> Curator:
    """A curator that makes all charges of a stage before its first query, so that no timed step charges."""
    return Curator(*arguments, **{**more, "ahead": None})


@contextmanager
def our_step(setting: Setting, queries: int) -> Iterator[Callable[[], Any]]:
    """Yield a function that makes one whole step of a run."""
    config, _ = setting.resolved(queries)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "private").mkdir()
        run = Run(config, setting.data, Path(folder), STAGES, charging_at_once)
        *before, training = run.stages
        for stage in before:
            for _ in stage.run(run.curator, run.state):
                pass
        steps = training.run(run.curator, run.state)
        yield lambda: next(steps)


def plain_step(setting: Setting, l1: Loss) -> Callable[[], None]:
    """Return a function that makes one step with one query, written plainly from the paper."""
    (config, rules), data = setting.resolved(1), setting.data
    generator = setting.generator(config)
    optimiser = torch.optim.Adam(generator.parameters(), lr=config.learning_rate)
    n, extra, weight, clip = config.num_generated, rules.num_fresh, rules.label_weight, rules.clip_norm
    pixels = data.pixels.flatten(1)
    transport = geomloss.SamplesLoss(
        "sinkhorn", p=2, blur=math.sqrt(rules.reg), debias=False, backend="tensorized", cost=l1
    )

    def with_labels(images: Tensor, labels: Tensor) -> Tensor:
        return torch.cat([images, weight * torch.nn.functional.one_hot(labels, data.num_classes)], dim=1)

    def clipped(gradient: Tensor) -> Tensor:
        return gradient * (clip / gradient.norm().clamp(min=1e-12)).clamp(max=1.0)

    def step() -> None:
        labels = torch.randint(0, data.num_classes, (n + extra,))
        images = generator(torch.rand(n + extra, config.generator.latent_dim), labels)
        index = (torch.rand(len(data)) < BATCH / len(data)).nonzero().squeeze(1)
        y = with_labels(to_unit_range(pixels[index]), data.labels[index])
        leaf = images.detach().requires_grad_()
        x = with_labels(leaf, labels)
        loss = 2.0 * transport(x[:n], y) - transport(x[:n], x[extra:])
        (gradient,) = torch.autograd.grad(loss, leaf)
        noise = 2.0 * clip * NOISE * torch.randn(n, leaf.shape[1])
        optimiser.zero_grad()
        images.backward(torch.cat([clipped(gradient[:n]) + noise, clipped(gradient[n:])]))
        optimiser.step()

    return step


def generator_and_products(setting: Setting) -> Callable[[], None]:
    """Return a function that does only what every step must do: the floor."""
    (config, rules), data = setting.resolved(QUERIES), setting.data
    generator = setting.generator(config)
    images = config.num_generated + rules.num_fresh
    latents = torch.Generator().manual_seed(0)
    labels = torch.randint(0, data.num_classes, (images,), generator=latents)
    pull = torch.ones(images, math.prod(data.shape))
    y = data.floats()[torch.arange(QUERIES * BATCH) % len(data)].view(QUERIES, BATCH, -1)
    products = floor(generator.sample(labels, latents).detach()[: config.num_generated].expand(QUERIES, -1, -1), y)

    def call() -> None:
        generator.sample(labels, latents).backward(pull)
        products()

    return call


class Clock:
    """Seconds by part of a step. The time of a part within another part counts in the inner one only."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self.inner: list[float] = []
        self.closed = False

    @contextmanager
    def part(self, owner: Any, name: str, part: str, *, whole: bool = False) -> Iterator[None]:
        """Add the time of every call of `owner.name` to a part; `whole`: parts that it calls count here."""
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.closed:
                return real(*args, **kwargs)
            self.closed = whole
            self.inner.append(0.0)
            start = time.perf_counter()
            try:
                return real(*args, **kwargs)
            finally:
                taken = time.perf_counter() - start
                self.spent[part] = self.spent.get(part, 0.0) + taken - self.inner.pop()
                if self.inner:
                    self.inner[-1] += taken
                self.closed = self.closed and not whole

        setattr(owner, name, call)
        try:
            yield
        finally:
            setattr(owner, name, real)


def parts(step: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Median milliseconds of each part of our step."""
    rows: list[dict[str, float]] = []
    for _ in range(repeats + 3):
        clock = Clock()
        with ExitStack() as stack:
            for owner, name, part, whole in (
                (Generator, "sample", "generator forward", True),
                (Tensor, "backward", "generator backward", True),
                (BatchSetup, "debiasing_gradient", "debiasing solve", True),
                (ClippedBatches, "__call__", "gather, and the rest of the queries", False),
                (PoissonSubsampler, "draw_padded", "subsample", True),
                (batch_steps, "transport_between", "labels and weights", False),
                (MixedCost, "matrix", "cost", True),
                (Sinkhorn, "__call__", "solver", True),
                (MixedCost, "gradient", "gradient", True),
                (batch_steps, "clipped_queries", "clip", True),
                (GaussianMechanism, "__call__", "noise", True),
                (torch.optim.Adam, "step", "optimiser", True),
            ):
                stack.enter_context(clock.part(owner, name, part, whole=whole))
            start = time.perf_counter()
            step()
            whole_step = time.perf_counter() - start
        rows.append(clock.spent | {"the rest": whole_step - sum(clock.spent.values()), "step": whole_step})
    return {part: 1e3 * statistics.median(row[part] for row in rows[3:]) for part in rows[-1]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--records", type=int, default=60_000)
    parser.add_argument("--channels", type=int, default=64, help="feature maps of the generator")
    arguments = parser.parse_args()
    data, kind = records(arguments.records)
    setting = Setting(data, arguments.channels, steps=3 * arguments.repeats + 5)
    with ExitStack() as stack:
        ours_by_queries = {
            queries: stack.enter_context(our_step(setting, queries)) for queries in (1, QUERIES, 4 * QUERIES)
        }
        calls: dict[str, Callable[[], Any]] = {
            "ours": ours_by_queries[QUERIES],
            "plain, cdist": plain_step(setting, by_cdist),
            "plain, broadcast": plain_step(setting, by_broadcast),
            "floor": generator_and_products(setting),
        }
        times = interleaved(calls, arguments.repeats)
        parts_ms = {queries: parts(step, arguments.repeats) for queries, step in ours_by_queries.items()}
    ours = QUERIES / times["ours"]["ms"]
    plain = 1.0 / min(times["plain, cdist"]["ms"], times["plain, broadcast"]["ms"])
    result = {
        "ratio_vs_plain_step": ours / plain,
        "queries_per_second": {"ours": 1e3 * ours, "plain": 1e3 * plain},
        "times_floor": times["ours"]["ms"] / times["floor"]["ms"],
        "step_ms": times,
        "parts_ms": parts_ms,
        "threads": torch.get_num_threads(),
        "records": kind,
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{kind}, {torch.get_num_threads()} threads, medians of {arguments.repeats} rounds\n")
    print("| step | queries | ms (quartiles) | queries a second |\n|---|---|---|---|")
    for name, row in times.items():
        queries = 1 if name.startswith("plain") else QUERIES
        low, high = row["quartiles_ms"]
        print(f"| {name} | {queries} | {row['ms']:.1f} ({low:.1f}-{high:.1f}) | {1e3 * queries / row['ms']:.0f} |")
    print(f"\nratio_vs_plain_step {result['ratio_vs_plain_step']:.1f}, times_floor {result['times_floor']:.2f}\n")
    print(f"| part of our step, ms | {' | '.join(f'{queries} queries' for queries in parts_ms)} |")
    print("|---" * (1 + len(parts_ms)) + "|")
    for part in parts_ms[QUERIES]:
        print(f"| {part} | {' | '.join(f'{spent[part]:.2f}' for spent in parts_ms.values())} |")


if __name__ == "__main__":
    main()
