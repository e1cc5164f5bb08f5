"""A finished run of every stage, shared by tests that do not change it."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from dp_sinkhorn.method import STAGES
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.training import run_folder as runs
from dp_sinkhorn.training.progress import TrainingProgress
from support.asking import in_blocks
from support.toy import SMALL, config, toy


@dataclass(frozen=True)
class Finished:
    """A run's folder, its card, and what a callback was told."""

    folder: Path
    card: PrivacyCard
    told: list[TrainingProgress]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished run. Copy it before you change it."""
    folder, told = tmp_path_factory.mktemp("finished") / "run", []
    with pytest.MonkeyPatch.context() as patch:
        in_blocks(patch, 100)  # as it is, whatever the module that asks first has made of it
        card = runs.start(toy(), config(base=SMALL), folder, STAGES, [told.append]).card
    return Finished(folder, card, told)
