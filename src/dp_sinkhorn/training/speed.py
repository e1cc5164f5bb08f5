"""The speed of training on this machine, measured without the private records."""

import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.features.scattering import SCATTERING, num_features
from dp_sinkhorn.generators.build import size_of
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.curator import Curator, Query
from dp_sinkhorn.settings import RunConfig
from dp_sinkhorn.stages.base import Stage, Stages
from dp_sinkhorn.training.loop import Run

_WARM_UP, _STEPS, _DISTINCT = 3, 10, 500
_ALWAYS_BYTES = 2**29


@dataclass(frozen=True)
class Speed:
    """Measured times on this machine, in seconds.

    Args:
        step: One training step. before: All queries before the steps, as far as their time grows with the records.
        after: All finishing steps, which see no record; 0 without such steps.
    """

    step: float
    before: float
    after: float

    def whole(self, config: RunConfig) -> float:
        """Estimated seconds of a run, without the computations on the answers before and after the steps."""
        return self.before + self.step * config.plan.num_steps + self.after


def measure_speed(config: RunConfig, stages: Stages) -> Speed:
    """Time a few steps of this run (median), and its other queries on some hundred random images."""
    random = torch.Generator().manual_seed(0)
    count, classes = config.data.num_records, config.data.num_classes
    # The time of steps without queries does not depend on the number of records.
    held = count if config.plan.queries_per_step else min(count, _DISTINCT)
    some = torch.randint(256, (_DISTINCT, *config.data.shape), generator=random, dtype=torch.uint8)
    labels = torch.randint(classes, (held,), generator=random)
    images = LabelledImages(some[torch.arange(held) % _DISTINCT], labels, config.data.class_names)
    part = images.subset(torch.arange(min(held, _DISTINCT)))
    step = _seconds_of_a_step(config.only(stages.needed(config, config.trains)), images, stages)
    before, after = _seconds_outside_steps(config, part, stages)
    return Speed(step, before * count / len(part), after)


def check_memory(config: RunConfig, stages: Stages) -> None:
    """Refuse a run that this machine's free memory cannot hold, by public facts: records, image shape and stages.

    Raises:
        InputError: It cannot.
    """
    records, values = config.data.num_records, math.prod(config.data.shape)
    scattered = any(SCATTERING.name in stage.needs for stage in stages.running(config))
    features = num_features(config.data.shape) if scattered else 0
    # Pixels and cosine coordinates, features as float16, weights with their gradients and averages, and the rest.
    weights = size_of(config.generator, config.data.shape, config.data.num_classes)
    needed = records * (2 * values + 2 * features) + 24 * weights + _ALWAYS_BYTES
    if needed > (free := psutil.virtual_memory().available):
        raise InputError(
            f"training on {records} records of shape {config.data.shape} needs about {needed / 2**30:.1f} GiB of "
            f"memory, and {free / 2**30:.1f} GiB are free; give a smaller --side, or fewer records"
        )


class _TimedCurator(Curator):
    """Adds up the seconds that queries spend on the records."""

    seconds = 0.0

    def ask(self, query: Query) -> Tensor:
        """See `Curator`."""

        def contribute(draw: Any) -> Any:
            start = time.perf_counter()
            total = query.contribute(draw)
            self.seconds += time.perf_counter() - start
            return total

        return super().ask(Query(query.charge, query.sensitivity, contribute, query.public, query.capacity))


def _seconds_of_a_step(config: RunConfig, images: LabelledImages, stages: Stages) -> float:
    with _open(config, images, stages) as run:
        _run_until(run, config.trains)
        moments = [time.perf_counter()]
        for number, _ in enumerate(stages[config.trains].run(run.curator, run.state)):
            moments.append(time.perf_counter())
            if number + 1 == _WARM_UP + _STEPS:
                break
    return _median(moments)


def _seconds_outside_steps(config: RunConfig, part: LabelledImages, stages: Stages) -> tuple[float, float]:
    """Seconds of the queries before the training steps, on these images; seconds of the finishing steps."""
    finishing = [stage for stage in stages.running(config) if stage.finishing_steps(config)]
    after = 0.0
    with _open(config, part, stages) as run:
        _run_until(run, config.trains)
        assert isinstance(run.curator, _TimedCurator)  # noqa: S101
        for stage in finishing:
            after += _seconds_of_finishing(stage, run)
        return run.curator.seconds, after


def _seconds_of_finishing(stage: Stage, run: Run) -> float:
    """Seconds of all finishing steps of a stage, extrapolated from a few of each kind."""
    config = run.config
    run.state.config = stage.shortened(config, _WARM_UP + _STEPS)
    moments = [time.perf_counter()]
    run.state.report = lambda done: moments.append(time.perf_counter())
    stage.finish(run.state)
    seconds, first = 0.0, 0
    for few, number in zip(stage.finishing_parts(run.state.config), stage.finishing_parts(config), strict=True):
        if few:
            seconds += number * _median(moments[first : first + few + 1])
        first += few
    return seconds


def _run_until(run: Run, name: str) -> None:
    """Run all stages before the one of this name."""
    for stage in run.stages:
        if stage.name == name:
            return
        for _ in stage.run(run.curator, run.state):
            pass


@contextmanager
def _open(config: RunConfig, images: LabelledImages, stages: Stages) -> Iterator[Run]:
    """A run on public images in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="dp-sinkhorn-") as folder:
        (Path(folder) / "private").mkdir()
        yield Run(config, images, Path(folder), stages, _TimedCurator)


def _median(moments: list[float]) -> float:
    """Median of the seconds between moments, without the first few."""
    seconds = [later - earlier for earlier, later in pairwise(moments)]
    return statistics.median(seconds[min(_WARM_UP, len(seconds) - 1) :])
