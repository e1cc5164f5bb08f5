"""Check that a run draws new randomness at each start and at each resumption."""

import tempfile
from pathlib import Path

import numpy as np

from dp_sinkhorn.audit.neighbouring import Violation
from dp_sinkhorn.audit.stand_in import on_stand_in, smooth_images
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.settings import RunConfig
from dp_sinkhorn.stages.base import Stages
from dp_sinkhorn.training.loop import Run

_RECORDS, _STEPS = 40, 2
# Numbers of 64-bit words. By chance, one of the few is among the many once in 10¹¹ audits.
_FEW, _MANY = 64, 1 << 21


def check_fresh_randomness(config: RunConfig, stages: Stages) -> str:
    """Start a short run twice and resume one of them twice: no two sources may give the same words.

    Equal words are found at any position, so a source that restarts is found even if it is read at another position.

    Raises:
        Violation: Two sources share words, or a source declares a fixed seed.
    """
    needed = config.only(stages.needed(config, config.trains))
    short = on_stand_in(needed, _RECORDS, stages, steps=_STEPS)
    images = smooth_images(short.data, _RECORDS, seed=3)
    with tempfile.TemporaryDirectory(prefix="dp-sinkhorn-") as folder:
        first, second = (_opened(short, images, Path(folder) / name, stages) for name in ("first", "second"))
        starts = [run.curator.random.bits(_FEW) for run in (first, second)]
        first.train()
        resumed = [_opened(short, images, Path(folder) / "first", stages) for _ in range(2)]
        words = [*starts, *(run.curator.random.bits(_FEW) for run in resumed)]
        names = ("a start", "a second start", "a resumption", "a second resumption")
        for later in range(1, 4):
            for earlier in range(later):
                if np.isin(words[later], words[earlier]).any():
                    raise Violation(
                        f"{names[later]} draws the same random numbers as {names[earlier]}: a seed is fixed"
                    )
        long = _opened(short, images, Path(folder) / "first", stages).curator.random.bits(_MANY)
        if np.isin(np.concatenate(words), long).any():
            raise Violation("a resumption repeats random numbers that were drawn before: a seed is fixed")
        if not all(run.curator.random.is_private for run in (first, second, *resumed)):
            raise Violation("the noise comes from a fixed test seed: anyone who knows it can subtract the noise")
    return "two starts and two resumptions share no random number"


def _opened(config: RunConfig, images: LabelledImages, folder: Path, stages: Stages) -> Run:
    (folder / "private").mkdir(parents=True, exist_ok=True)
    return Run(config, images, folder, stages)
