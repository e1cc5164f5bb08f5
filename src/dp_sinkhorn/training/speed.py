"""How fast this machine takes a run's steps, measured without the private records."""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from dp_sinkhorn.config import RunConfig
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.training.trainer import Run

_WARM_UP, _STEPS, _DISTINCT = 3, 10, 500


def seconds_per_step(config: RunConfig) -> float:
    """Median time of a few steps of this run on as many random images, which are thrown away."""
    random = torch.Generator().manual_seed(0)
    count, classes = config.data.num_records, len(config.data.class_names)
    some = torch.randint(256, (_DISTINCT, *config.data.shape), generator=random, dtype=torch.uint8)
    images = LabelledImages(
        some[torch.arange(count) % _DISTINCT],
        torch.randint(classes, (count,), generator=random),
        config.data.class_names,
    )
    with tempfile.TemporaryDirectory(prefix="dp-sinkhorn-") as folder:
        (Path(folder) / "private").mkdir()
        run = Run(config, images, Path(folder))
        seconds = []
        for step in range(_WARM_UP + _STEPS):
            start = time.perf_counter()
            run.step(step)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[_WARM_UP:])
