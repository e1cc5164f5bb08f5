"""Check a release: recompute ε from the card's own facts, and compare everything that states or backs the claim."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.paths import AnyPath
from dp_sinkhorn.privacy.accounting import epsilons
from dp_sinkhorn.privacy.groups import epsilon_of_several
from dp_sinkhorn.privacy.ledger import LEDGER, read_charges
from dp_sinkhorn.privacy.tradeoff import AttackBounds, attack_bounds
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.release.verify_facts import claims, contradictions, unfamiliar_words
from dp_sinkhorn.release.verify_files import (
    SignatureState,
    check_signature,
    ledger_problems,
    readme_findings,
    weights_problem,
)
from dp_sinkhorn.release.weights import CARD, find_release

if TYPE_CHECKING:
    from dp_sinkhorn.stages.base import Stages

SEVERAL = (2, 3, 5)  # numbers of images of one person for which ε is computed
LedgerState = Literal["none", "equal", "different"]


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Args:
        whole_batches: Names of releases that change by one sensitivity however many records change.
        ok: Nothing contradicts the card, and it claims privacy. problems: Why `ok` is false, one sentence each.
        notes: Observations that are no contradictions.
        epsilon_pld, epsilon_rdp: Recomputed bounds; None if the charges cannot be analysed.
        attack: Bounds on every membership attack, if the charges are true; None without secret noise.
        weights_match: Whether the weights are the file that the card describes.
        ledger: Whether the run's ledger holds the card's charges; "none": there was no ledger to compare.
        signature: State of the card's signature; "not checked": it exists, but no public key was given.
    """

    card: PrivacyCard
    whole_batches: frozenset[str]
    ok: bool
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    epsilon_pld: float | None
    epsilon_rdp: float | None
    attack: AttackBounds | None
    weights_match: bool
    ledger: LedgerState
    signature: SignatureState

    @property
    def epsilon_of_several(self) -> dict[int, float]:
        """ε of several images of one person together (`SEVERAL`), at the card's δ, if the charges are true.

        inf: no bound. Empty without secret noise, or if the charges cannot be analysed. Takes seconds.
        """
        card = self.card
        if not card.private or self.epsilon_pld is None:
            return {}
        return {images: epsilon_of_several(card.charges, card.delta, images, self.whole_batches) for images in SEVERAL}

    def to_json_dict(self) -> dict[str, object]:
        """Plain data; the curve as a list of [FPR, TPR]."""
        attack = self.attack
        return {
            "ok": self.ok,
            "private": self.card.private,
            "epsilon_card": self.card.epsilon,
            "epsilon_pld": self.epsilon_pld,
            "epsilon_rdp": self.epsilon_rdp,
            "delta": self.card.delta,
            "epsilon_of_several_images": {
                str(images): epsilon if math.isfinite(epsilon) else None
                for images, epsilon in self.epsilon_of_several.items()
            },
            "problems": list(self.problems),
            "notes": list(self.notes),
            "weights_match": self.weights_match,
            "ledger": self.ledger,
            "signature": self.signature,
            "tpr_at_fpr_1_percent": None if attack is None else attack.tpr_at_1_percent,
            "tpr_at_fpr_0_1_percent": None if attack is None else attack.tpr_at_01_percent,
            "tradeoff_curve": None if attack is None else [list(point) for point in attack.curve],
        }


def verify(
    path: AnyPath, stages: "Stages", ledger: AnyPath | None = None, public_key: AnyPath | None = None
) -> Verification:
    """Check a release (or a finished run, with its ledger). Reads only.

    Args:
        path: A release folder, or a run folder that holds one. stages: All that may be on a card.
        ledger: The run's ledger; default: the one beside the release in a run folder, if any.
        public_key: PEM file with the Ed25519 key that must have signed the card.

    Raises:
        InputError: There is no readable card, it lists a stage that is not among `stages`, or `ledger` or `public_key`
            cannot be read.
    """
    path, ledger = Path(path), None if ledger is None else Path(ledger)
    folder = find_release(path)
    card = PrivacyCard.from_file(folder / CARD)
    problems, notes = list(contradictions(card, stages)), unfamiliar_words(card, stages)

    bounds, attack = None, None
    try:
        bounds = epsilons(card.charges, card.delta, card.epsilon)
        over, more = claims(card, bounds)
        problems, notes = over + problems, notes + more
        attack = attack_bounds(card.charges) if card.private else None
    except InputError as error:
        problems.insert(0, str(error))

    weights = weights_problem(folder, card, stages)
    signature, wrong = check_signature(folder, None if public_key is None else Path(public_key))
    stated, differing = readme_findings(folder, card, stages)
    problems += [text for text in (weights, wrong) if text] + stated
    ledger_state, missing = _compare_ledger(_ledger_of(path, folder, ledger), card, named=ledger is not None)
    return Verification(
        card=card,
        whole_batches=frozenset(name for name, stage in stages.items() if stage.bounds_whole_batches),
        ok=not problems + missing,
        problems=(*problems, *missing),
        notes=(*notes, *differing),
        epsilon_pld=None if bounds is None else bounds.pld,
        epsilon_rdp=None if bounds is None else bounds.rdp,
        attack=attack,
        weights_match=weights is None,
        ledger=ledger_state,
        signature=signature,
    )


def _ledger_of(path: Path, folder: Path, given: Path | None) -> Path | None:
    if given is not None:
        return given
    beside = path / LEDGER
    return beside if folder != path and beside.is_file() else None


def _compare_ledger(path: Path | None, card: PrivacyCard, *, named: bool) -> tuple[LedgerState, list[str]]:
    """The ledger's state and what is wrong with it; a ledger that the user named must be a file."""
    if path is None:
        return "none", []
    if named and not path.is_file():
        raise InputError(f"{path} is not a file; give a run's {LEDGER}")
    try:
        problems = ledger_problems(read_charges(path), card)
    except InputError as error:
        problems = [str(error)]
    return "different" if problems else "equal", problems
