"""A finished run of every stage, shared by the tests that only look at it."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from dp_sinkhorn.method import STAGES
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.training import run_folder as runs
from support.asking import in_blocks
from support.toy import SMALL, config, toy


@dataclass(frozen=True)
class Finished:
    """A run's folder, its card, and what its progress was told: (steps done, all, ε)."""

    folder: Path
    card: PrivacyCard
    told: list[tuple[int, int, float]]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """To be looked at, and copied before it is changed."""
    folder, told = tmp_path_factory.mktemp("finished") / "run", []
    with pytest.MonkeyPatch.context() as patch:
        in_blocks(patch, 100)  # as it is, whatever the module that asks first has made of it
        card = runs.start(toy(), config(base=SMALL), folder, STAGES, lambda *facts: told.append(facts)).card
    return Finished(folder, card, told)
