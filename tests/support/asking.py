"""Watches the queries of a run, and does something before one of them."""

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
        name: `what` is called before the charge of query number `at` of this name, from 0 in this process.
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
        """Number of transport steps made."""
        return self.made["transport_steps"]


class KilledError(BaseException):
    """In place of kill -9: nothing catches it, and nothing is saved."""


def die() -> None:
    """As by kill -9."""
    raise KilledError


def signalled(number: int) -> Callable[[], None]:
    """Sends this process a signal."""
    return lambda: os.kill(os.getpid(), number)


def in_blocks(patch: pytest.MonkeyPatch, blocks: int) -> None:
    """Let runs charge and save their steps in this many blocks."""
    patch.setattr("dp_sinkhorn.training.loop._BLOCKS", blocks)


def charged(folder: Path) -> Counter[str]:
    """Number of charged releases in the ledger of a run, by name."""
    counts = Counter[str]()
    for charge in read_charges(folder / "ledger.jsonl"):
        counts[charge.name] += charge.count
    return counts


def files_of(folder: Path) -> dict[str, Any]:
    """Content of every file, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
