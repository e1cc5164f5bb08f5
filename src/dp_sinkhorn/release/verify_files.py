"""Checks of the files beside the card: weights, README, ledger, signature. They read only."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.safe_read import MAX_TEXT_BYTES, read_bytes
from dp_sinkhorn.privacy.accounting import Charge, merged
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.release.model_card import model_card
from dp_sinkhorn.release.signature import MAX_KEY_BYTES, SIGNATURE, is_signed_by, load_public_key
from dp_sinkhorn.release.version_1 import present_charge_names
from dp_sinkhorn.release.weights import CARD, README, read_tensors

if TYPE_CHECKING:
    from dp_sinkhorn.stages.base import Stages

_ROWS = ("private:", "epsilon:", "epsilon_rdp:", "delta:", "| ε (", "| δ |")
SignatureState = Literal["none", "not checked", "valid", "invalid"]


def weights_problem(folder: Path, card: PrivacyCard, stages: "Stages") -> str | None:
    """What is wrong with the weights; None if they match the card's hash, fit its generator and are finite."""
    try:
        read_tensors(folder, card, stages)
    except InputError as error:
        return str(error)
    return None


def readme_findings(folder: Path, card: PrivacyCard, stages: "Stages") -> tuple[list[str], list[str]]:
    """(problems, notes): whether `README.md` states the card's ε and δ."""
    path = folder / README
    content = _read(path, MAX_TEXT_BYTES)
    if content is None:
        return [], [f"there is no {README} that can be read; {CARD} holds the claim"]
    text, expected = content.decode("utf-8", errors="replace"), model_card(card, stages)
    # The claim is "The release is (ε, δ)-differentially private" or "NOT PRIVATE"; no second claim may stand there.
    claim = card.statement().partition(":")[0]
    words = claim.rpartition("-")[2]
    rows, known = ([line for line in source.splitlines() if line.startswith(_ROWS)] for source in (text, expected))
    if claim not in text or text.count(words) != expected.count(words) or rows != known:
        return [f"{path} states another claim than the card"], []
    same = text == expected or card.card_version < 3  # earlier versions wrote other texts
    return [], [] if same else [f"{path} differs from the text that this version writes for the card"]


def ledger_problems(charges: Iterable[Charge], card: PrivacyCard) -> list[str]:
    """Each kind of release whose count differs between the ledger and the card, as a sentence."""
    if card.card_version == 1:
        names = present_charge_names(card.mode)
        charges = [charge.model_copy(update={"name": names.get(charge.name, charge.name)}) for charge in charges]
    ledger, claimed = _counts(charges), _counts(card.charges)
    return [
        f"the ledger holds {ledger.get(kind, 0)} releases {kind[0]!r} (noise multiplier {kind[1]:g}, sample rate "
        f"{kind[2]:.6g}), the card {claimed.get(kind, 0)}"
        for kind in sorted(ledger.keys() | claimed.keys())
        if ledger.get(kind, 0) != claimed.get(kind, 0)
    ]


def check_signature(folder: Path, public_key: Path | None) -> tuple[SignatureState, str | None]:
    """The state of `card.sig`, and what is wrong with it.

    Raises:
        InputError: `public_key` is not an Ed25519 public key.
    """
    path = folder / SIGNATURE
    key = None if public_key is None else load_public_key(public_key)
    if not path.is_file():
        return "none", None if key is None else f"there is no {path}, so {public_key} signed nothing here"
    if key is None:
        return "not checked", None
    card, signature = _read(folder / CARD, MAX_TEXT_BYTES), _read(path, MAX_KEY_BYTES)
    if card is not None and signature is not None and is_signed_by(card, signature, key):
        return "valid", None
    return "invalid", f"{path} is not a signature of {folder / CARD} by {public_key}: another key, or an altered file"


def _counts(charges: Iterable[Charge]) -> dict[tuple[str, float, float], int]:
    return {(c.name, c.noise_multiplier, c.sample_rate): c.count for c in merged(charges)}


def _read(path: Path, limit: int) -> bytes | None:
    """The file, or None if it cannot be read or is larger than `limit`."""
    try:
        return read_bytes(path, limit, "give an undamaged release")
    except InputError:
        return None
