"""Watches what a run asks, and does something before one of its questions."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from dp_sinkhorn.privacy.clipping import BoundedSum
from dp_sinkhorn.privacy.curator import Curator, Query
from dp_sinkhorn.privacy.ledger import read_charges
from dp_sinkhorn.privacy.mechanism import GaussianMechanism
from dp_sinkhorn.privacy.random import CryptoRandom


class Asking:
    """Counts the releases of each name that were made.

    Args:
        name: Whose question number `at` (from 0, of this process) is met by `what`, before anything is charged for it.
        released: Called with the name and the number of queries before each noisy tensor exists.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        name: str = "transport_steps",
        at: int = -1,
        what: Callable[[], object] = lambda: None,
        released: Callable[[str, int], object] = lambda name, queries: None,
    ) -> None:
        self.made = Counter[str]()
        asked, asking = Counter[str](), [""]
        real_ask, real_release = Curator.ask, GaussianMechanism.__call__

        def ask(curator: Curator, query: Query) -> Tensor:
            asking[0] = query.charge.name
            if asking[0] == name and asked[name] == at:
                what()
            asked[asking[0]] += 1
            return real_ask(curator, query)

        def release(mechanism: GaussianMechanism, total: BoundedSum, random: CryptoRandom) -> Tensor:
            released(asking[0], total.queries)
            self.made[asking[0]] += total.queries
            return real_release(mechanism, total, random)

        monkeypatch.setattr(Curator, "ask", ask)
        monkeypatch.setattr(GaussianMechanism, "__call__", release)

    @property
    def steps(self) -> int:
        """Steps of transport that were taken."""
        return self.made["transport_steps"]


class KilledError(BaseException):
    """Stands for kill -9: nobody catches it, and nothing is saved."""


def die() -> None:
    """As by kill -9."""
    raise KilledError


def signalled(number: int) -> Callable[[], None]:
    """Sends this process a signal."""
    return lambda: os.kill(os.getpid(), number)


def in_blocks(patch: pytest.MonkeyPatch, blocks: int) -> None:
    """From now on the steps of a run are charged and saved in so many blocks."""
    patch.setattr("dp_sinkhorn.training.loop._BLOCKS", blocks)


def charged(folder: Path) -> Counter[str]:
    """What the ledger of a run has charged, by name."""
    counts = Counter[str]()
    for charge in read_charges(folder / "ledger.jsonl"):
        counts[charge.name] += charge.count
    return counts


def files_of(folder: Path) -> dict[str, Any]:
    """Content of every file, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
