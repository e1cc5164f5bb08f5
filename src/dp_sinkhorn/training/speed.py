"""How fast this machine trains, measured without the private records."""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.features.random_fourier import fourier_map
from dp_sinkhorn.privacy.plan import CLASS_EMBEDDING, CLASS_FEATURES, CLASS_MOMENTS, CLASSIFIER
from dp_sinkhorn.settings import EmbeddingRules, RunConfig
from dp_sinkhorn.stages.class_embedding import class_embedding, embedding_rules, embedding_step
from dp_sinkhorn.training.loop import Run
from dp_sinkhorn.training.methods import SurroundedMethod
from dp_sinkhorn.training.surroundings import needed_features

_WARM_UP, _STEPS, _DISTINCT = 3, 10, 500


@dataclass(frozen=True)
class Speed:
    """Seconds of this machine.

    Args:
        step: Of one step. before: Of the records' features, on which class means, classifier and embedding rest; 0: of
            none. after: Of the steps on an embedding that follow the others; 0: none do.
    """

    step: float
    before: float
    after: float

    def whole(self, config: RunConfig) -> float:
        """Of a run: all but a minute or so of what else is released before the steps and made of it after them."""
        return self.before + self.step * config.privacy.num_steps + self.after


def measure_speed(config: RunConfig) -> Speed:
    """Median times of a few steps of this run, and the time of its records' features, on random images."""
    random = torch.Generator().manual_seed(0)
    # Steps on an embedding take the same time whatever the records.
    count, classes = config.data.num_records, len(config.data.class_names)
    held = min(count, _DISTINCT) if isinstance(config.rules, EmbeddingRules) else count
    some = torch.randint(256, (_DISTINCT, *config.data.shape), generator=random, dtype=torch.uint8)
    labels = torch.randint(classes, (held,), generator=random)
    names = config.data.class_names
    images = LabelledImages(some[torch.arange(held) % _DISTINCT], labels, names)
    with tempfile.TemporaryDirectory(prefix="dp-sinkhorn-") as folder:
        (Path(folder) / "private").mkdir()
        # On many records the other releases take longer than the steps measured here.
        only_steps = config.without(CLASS_MOMENTS, CLASS_FEATURES, CLASSIFIER, CLASS_EMBEDDING)
        run = Run(only_steps, images, Path(folder))
        seconds = _median_seconds(run.step)
    part = images.subset(torch.arange(min(count, _DISTINCT)))
    method = run.method
    before = after = 0.0
    start = time.perf_counter()
    if (known := needed_features(part, config)) is not None:
        before = time.perf_counter() - start
    if config.embedded is not None and isinstance(method, SurroundedMethod):
        start = time.perf_counter()
        embedding = class_embedding(part, fourier_map(config, method.statistics.variance), known).value
        before += time.perf_counter() - start
        if config.matching is not None:
            rules = embedding_rules(embedding, method.statistics, config, config.matching.num_generated)
            each = _median_seconds(lambda step: embedding_step(run.generator, run.optimiser, rules, random))
            after = config.matching.num_steps * each
    return Speed(seconds, before * count / len(part), after)


def _median_seconds(step: Callable[[int], float]) -> float:
    seconds = []
    for number in range(_WARM_UP + _STEPS):
        start = time.perf_counter()
        step(number)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[_WARM_UP:])
