"""What several runs on the same records spend together."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.paths import AnyPath
from dp_sinkhorn.privacy.accounting import Charge, epsilons
from dp_sinkhorn.privacy.ledger import LEDGER, Header, counts, read_ledger
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.release.verify_files import ledger_problems
from dp_sinkhorn.release.weights import CARD
from dp_sinkhorn.settings import read_config
from dp_sinkhorn.stages.base import Stages
from dp_sinkhorn.training.run_folder import CONFIG, checkpoint_info

_PUT_BACK = "put the run's own ledger back"


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


def total_budget(runs: Sequence[AnyPath] | AnyPath, stages: Stages, delta: float | None = None) -> TotalBudget:
    """Compose the ledgers of several runs on the same records.

    Guarantees: if all runs saw the same records, everything that they released is together (ε, δ)-DP for one record.
    Charged releases count, also those that an interruption lost.

    Args:
        runs: Run folders, finished or not. stages: All that may be in their configuration.
        delta: δ of the total; default: the largest that a run was made for.

    Raises:
        InputError: A folder holds no run or a damaged one, its ledger lacks charges of its card or checkpoint, a run is
            given twice or used a test seed, or the charges cannot be analysed.
    """
    if isinstance(runs, str | PathLike):
        runs = [runs]
    if not runs:
        raise InputError("no run was given; give the folders of all runs on these records")
    seen: dict[str, Path] = {}
    charges: list[Charge] = []
    found = []
    for folder in map(Path, runs):
        header, spent = read_ledger(folder / LEDGER)
        if header is None:
            raise InputError(f"{folder / LEDGER} holds no charge; {_PUT_BACK}, or leave out a run that charged nothing")
        if (other := seen.setdefault(header.run, folder)) is not folder:
            raise InputError(
                f"{folder} and {other} are one run; give one of them (if both were resumed, no total is known)"
            )
        charges += spent
        own = _delta(folder, header, spent, stages)
        found.append(RunBudget(str(folder), epsilons(spent, own).pld, own))
    delta = max(run.delta for run in found) if delta is None else delta
    total = epsilons(charges, delta)
    return TotalBudget(total.pld, total.rdp, delta, tuple(found))


def _delta(folder: Path, header: Header, spent: list[Charge], stages: Stages) -> float:
    """The δ that a run was made for.

    The hashes of a ledger do not show that lines are missing at its end; the card or the checkpoint does.

    Raises:
        InputError: The noise came from a test seed, or the ledger is not the one of card, configuration and checkpoint.
    """
    if (path := folder / "release" / CARD).is_file():  # of any version
        card = PrivacyCard.from_file(path)
        if problems := ledger_problems(spent, card):
            raise InputError(f"{folder}: {problems[0]}; {_PUT_BACK}")
        delta, private = card.delta, card.private
    else:
        config = read_config(folder / CONFIG, stages)
        if config.sha256() != header.config_sha256:
            raise InputError(f"{folder / CONFIG} is not the configuration that {LEDGER} names; put the run's own back")
        info = checkpoint_info(folder)
        charged = counts(spent)
        if info is not None and any(count > charged[name] for name, count in info.taken.items()):
            raise InputError(f"{folder / LEDGER} lacks releases that the run's checkpoint has; {_PUT_BACK}")
        delta, private = config.settings.target_delta, config.settings.test_seed is None
    if not private:
        raise InputError(f"{folder} used a test seed, so its noise hides nothing; no budget covers what it released")
    return delta
