"""How fast this machine trains, measured without the private records."""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from dp_sinkhorn.config import EmbeddingRules, RunConfig
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.privacy.plan import CLASS_FEATURES, CLASS_MOMENTS
from dp_sinkhorn.training.embedding import class_embedding
from dp_sinkhorn.training.fourier import fourier_map
from dp_sinkhorn.training.methods import EmbeddingMethod
from dp_sinkhorn.training.surroundings import needed_features
from dp_sinkhorn.training.trainer import Run

_WARM_UP, _STEPS, _DISTINCT = 3, 10, 500


@dataclass(frozen=True)
class Speed:
    """Seconds of this machine.

    Args:
        step: Of one step. before: Of the records' features, on which class means, classifier and embedding rest; 0: of
            none.
    """

    step: float
    before: float

    def whole(self, config: RunConfig) -> float:
        """Of a run: all but a minute or so of what else is released before the steps and made of it after them."""
        return self.before + self.step * config.privacy.num_steps


def measure_speed(config: RunConfig) -> Speed:
    """Median time of a few steps of this run, and the time of its records' features, on random images."""
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
        run = Run(_steps_only(config), images, Path(folder))
        seconds = []
        for step in range(_WARM_UP + _STEPS):
            start = time.perf_counter()
            run.step(step)
            seconds.append(time.perf_counter() - start)
    part = images.subset(torch.arange(min(count, _DISTINCT)))
    method = run.method
    embedded = fourier_map(config, method.statistics.variance) if isinstance(method, EmbeddingMethod) else None
    start = time.perf_counter()
    known = needed_features(part, config)
    if embedded is not None:
        class_embedding(part, embedded, known)
    nothing = known is None and embedded is None
    before = 0.0 if nothing else (time.perf_counter() - start) * count / len(part)
    return Speed(statistics.median(seconds[_WARM_UP:]), before)


def _steps_only(config: RunConfig) -> RunConfig:
    """The run without what its steps do not need: on many records that takes longer than the steps measured here."""
    plan = config.privacy
    once = {name: noise for name, noise in plan.once.items() if name not in (CLASS_MOMENTS, CLASS_FEATURES)}
    return config.model_copy(update={"privacy": plan.model_copy(update={"once": once, "classifier": None})})
