"""Profile a training step: the generator's passes, and everything else.

    python benchmarks/step.py DATA [--steps 50] [--set KEY=VALUE] [--json]

It makes steps of a run at the default settings and times their parts by the wall clock. `generator_share` is the share
of the generator's forward and backward passes in a step.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from dp_sinkhorn.data.sources import load_images
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.optimiser import Optimiser
from dp_sinkhorn.io.errors import InputError, one_line
from dp_sinkhorn.method import STAGES, resolve, settings_of
from dp_sinkhorn.privacy.accounting import Charge
from dp_sinkhorn.privacy.curator import Curator, Draw, Query
from dp_sinkhorn.settings import parse_overrides
from dp_sinkhorn.stages import base
from dp_sinkhorn.stages.transport_steps import TransportSetup
from dp_sinkhorn.training import run_folder as runs
from dp_sinkhorn.training.loop import Run

_WARM_UP = 5
_CHARGE = "charge"


class Stopwatch:
    """Wall seconds by part of a step."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def timed(self, part: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call, and add the time to that of a part."""
        start = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            self.spent[part] = self.spent.get(part, 0.0) + time.perf_counter() - start

    @contextmanager
    def on(self, owner: Any, name: str, part: str) -> Iterator[None]:
        """Time every call of `owner.name`."""
        real = getattr(owner, name)
        setattr(owner, name, lambda *args, **kwargs: self.timed(part, real, *args, **kwargs))
        try:
            yield
        finally:
            setattr(owner, name, real)


class TimedCurator(Curator):
    """A curator that times the parts of an answer: charge, subsample, contributions, noise."""

    def __init__(self, watch: Stopwatch, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.watch = watch

    def ask(self, query: Query) -> torch.Tensor:
        """See `Curator`. The noise gets the time that is left of charge, subsample and contributions."""
        before = sum(self.watch.spent.values())
        start = time.perf_counter()
        contribute = partial(self.watch.timed, "contributions", query.contribute)
        answer = super().ask(replace(query, contribute=contribute))
        whole, others = time.perf_counter() - start, sum(self.watch.spent.values()) - before
        self.watch.spent["noise"] = self.watch.spent.get("noise", 0.0) + whole - others
        return answer

    def _allow(self, charge: Charge) -> None:
        self.watch.timed(_CHARGE, super()._allow, charge)

    def _draw(self, query: Query) -> Draw:
        draw: Draw = self.watch.timed("subsample", super()._draw, query)
        return draw


def measure(data: str, steps: int, overrides: dict[str, Any]) -> dict[str, float]:
    """Median milliseconds of each part of a step.

    Raises:
        InputError: The run has too few steps.
    """
    images = load_images(data)
    config = resolve(settings_of(None, overrides), runs.facts_of(data, images))
    if steps + _WARM_UP > config.plan.num_steps:
        available = config.plan.num_steps
        raise InputError(f"--steps {steps} and {_WARM_UP} to warm up exceed the run's {available} steps; give fewer")
    watch = Stopwatch()
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        (Path(folder) / "private").mkdir()
        needed = config.only(STAGES.needed(config, config.trains))
        run = Run(needed, images, Path(folder), STAGES, partial(TimedCurator, watch))
        *before, training = run.stages
        for stage in before:
            for _ in stage.run(run.curator, run.state):
                pass
        for owner, name, part in (
            (Generator, "sample", "generator_forward"),
            (torch.Tensor, "backward", "generator_backward"),
            (TransportSetup, "class_sums", "contributions"),
            (Optimiser, "step", "optimiser"),
            (base, "update_average", "average"),
        ):
            stack.enter_context(watch.on(owner, name, part))
        walk = training.run(run.curator, run.state)
        for _ in range(steps + _WARM_UP):
            watch.spent.clear()
            start = time.perf_counter()
            next(walk)
            # A charge happens once in a block of steps and is measured as bookkeeping.
            whole = time.perf_counter() - start - watch.spent.pop(_CHARGE, 0.0)
            rows.append({**watch.spent, "step": whole})
        bookkeeping = [bookkeeping_of_a_block(run) for _ in range(20)]
    parts = {part: 1e3 * statistics.median(row[part] for row in rows[_WARM_UP:]) for part in rows[-1]}
    return parts | {"bookkeeping": 1e3 * statistics.median(bookkeeping) / run.block}


def bookkeeping_of_a_block(run: Run) -> float:
    """Seconds of what happens once in a block of steps: a charge before it and a checkpoint after it."""
    start = time.perf_counter()
    run.ledger.charge(Charge(name=run.learns, noise_multiplier=run.config.plan.noise_multiplier))
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
