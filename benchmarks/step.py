"""Where the time of a training step goes: the generator's own passes, and everything else.

    python benchmarks/step.py DATA [--steps 50] [--set KEY=VALUE] [--json]

Times a step's parts by the clock, on one run's real state, at the default settings. Prints `generator_share`,
the part of the step spent in the generator's forward and backward passes.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from dp_sinkhorn.build import resolve

from dp_sinkhorn.data.sources import load_images
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.optimiser import Optimiser
from dp_sinkhorn.io.errors import InputError, one_line
from dp_sinkhorn.privacy.mechanism import GaussianMechanism
from dp_sinkhorn.privacy.subsampling import PoissonSubsampler
from dp_sinkhorn.settings import make_settings, parse_overrides
from dp_sinkhorn.stages import transport_steps as step
from dp_sinkhorn.training import loop as trainer
from dp_sinkhorn.training import run_folder as runs


@contextmanager
def timed(owner: Any, name: str, spent: dict[str, float], part: str) -> Iterator[None]:
    """Add the time of every call of `owner.name` to spent[part]."""
    real: Callable[..., Any] = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return real(*args, **kwargs)
        finally:
            spent[part] = spent.get(part, 0.0) + time.perf_counter() - start

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, real)


def measure(data: str, steps: int, overrides: dict[str, str | None]) -> dict[str, float]:
    """Median milliseconds of a step's parts."""
    images = load_images(data)
    config = resolve(make_settings(None, overrides), runs.facts_of(data, images))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "private").mkdir()
        run = trainer.Run(config, images, Path(folder))
        rows: list[dict[str, float]] = []
        for number in range(steps + 5):
            spent: dict[str, float] = {}
            with (
                timed(Generator, "sample", spent, "generator_forward"),
                timed(torch.Tensor, "backward", spent, "generator_backward"),
                timed(PoissonSubsampler, "draw", spent, "subsample"),
                timed(step, "_contributions", spent, "contributions"),
                timed(step, "_sum", spent, "contributions"),
                timed(GaussianMechanism, "__call__", spent, "noise"),
                timed(Optimiser, "step", spent, "optimiser"),
                timed(trainer, "update_average", spent, "average"),
            ):
                start = time.perf_counter()
                run.step(number)
                spent["step"] = time.perf_counter() - start
            rows.append(spent)
        bookkeeping = [bookkeeping_of_a_block(run) for _ in range(20)]
    parts = {part: 1e3 * statistics.median(row[part] for row in rows[5:]) for part in rows[-1]}
    return parts | {"bookkeeping": 1e3 * statistics.median(bookkeeping) / run.block}


def bookkeeping_of_a_block(run: trainer.Run) -> float:
    """Seconds for what happens once in a block of steps: a durable charge before it and a checkpoint after it."""
    start = time.perf_counter()
    run.ledger.charge(run.config.privacy.step_charge(0, 1))
    run.save()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default=str(Path(os.environ.get("DP_SINKHORN_DATA", "."), "mnist")))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        parts = measure(arguments.data, arguments.steps, parse_overrides(arguments.set))
    except InputError as error:
        parser.error(one_line(str(error)))
    whole, bookkeeping = parts.pop("step"), parts.pop("bookkeeping")
    share = (parts["generator_forward"] + parts["generator_backward"]) / whole
    if arguments.json:
        result = {"generator_share": share, "step_ms": whole, "parts_ms": parts}
        print(json.dumps(result | {"bookkeeping_ms": bookkeeping, "bookkeeping_share": bookkeeping / whole}))
        return
    print(f"{torch.get_num_threads()} threads, median of {arguments.steps} steps")
    for part, spent in {**parts, "the rest": whole - sum(parts.values())}.items():
        print(f"{part.replace('_', ' '):<20}{spent:8.2f} ms {100 * spent / whole:6.1f} %")
    print(f"{'step':<20}{whole:8.2f} ms")
    print(f"generator share     {100 * share:8.1f} %")
    print(
        f"ledger, checkpoint  {bookkeeping:8.2f} ms {100 * bookkeeping / whole:6.1f} % of a step, spread over its block"
    )


if __name__ == "__main__":
    main()
