"""What several runs on the same records spend together."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.paths import AnyPath
from dp_sinkhorn.privacy.accounting import Charge, epsilons
from dp_sinkhorn.privacy.ledger import LEDGER, read_ledger
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.release.weights import CARD
from dp_sinkhorn.stages.base import Stages
from dp_sinkhorn.training.run_folder import stored_config


@dataclass(frozen=True)
class RunBudget:
    """What one run spent, by its ledger: `epsilon` at its own `delta`."""

    run: str
    epsilon: float
    delta: float


@dataclass(frozen=True)
class TotalBudget:
    """What several runs spent together.

    Args:
        epsilon: Bound by privacy-loss distributions on all charges of all ledgers, at `delta`. epsilon_rdp: The looser
            Rényi bound.
        runs: Each run alone.
    """

    epsilon: float
    epsilon_rdp: float
    delta: float
    runs: tuple[RunBudget, ...]

    def to_json_dict(self) -> dict[str, Any]:
        """Every field by its name, as plain data."""
        return asdict(self)


def total_budget(runs: Sequence[AnyPath], stages: Stages, delta: float | None = None) -> TotalBudget:
    """Compose the ledgers of several runs on the same records.

    Guarantees: if all runs saw the same records, everything that they released is together (ε, δ)-DP for one record.
    Charged releases count, also those that an interruption lost.

    Args:
        runs: Run folders, finished or not. stages: All that may be in their configuration.
        delta: δ of the total; default: the largest that a run was made for.

    Raises:
        InputError: A folder holds no run or a damaged one, a run is given twice or used a test seed, or the charges
            cannot be analysed.
    """
    if not runs:
        raise InputError("no run was given; give the folders of all runs on these records")
    seen: dict[str, Path] = {}
    charges: list[Charge] = []
    found = []
    for folder in map(Path, runs):
        header, spent = read_ledger(folder / LEDGER)
        if header is not None and (other := seen.setdefault(header.run, folder)) is not folder:
            raise InputError(
                f"{folder} and {other} are one run; give one of them (if both were resumed, no total is known)"
            )
        charges += spent
        own = _delta(folder, stages)
        found.append(RunBudget(str(folder), epsilons(spent, own).pld, own))
    delta = max(run.delta for run in found) if delta is None else delta
    total = epsilons(charges, delta)
    return TotalBudget(total.pld, total.rdp, delta, tuple(found))


def _delta(folder: Path, stages: Stages) -> float:
    """The δ that a run was made for.

    Raises:
        InputError: Its noise came from a test seed.
    """
    if (path := folder / "release" / CARD).is_file():  # of any version
        card = PrivacyCard.from_file(path)
        delta, private = card.delta, card.private
    else:
        settings = stored_config(folder, stages).settings
        delta, private = settings.target_delta, settings.test_seed is None
    if not private:
        raise InputError(f"{folder} used a test seed, so its noise hides nothing; no budget covers what it released")
    return delta
