"""The privacy facts that files of samples carry."""

from typing import Any

from PIL.PngImagePlugin import PngInfo

from dp_sinkhorn.release.card import PrivacyCard


def privacy_facts(card: PrivacyCard) -> dict[str, Any]:
    """The card's main facts as plain data; `card_sha256` is the hash of the release's `card.json`."""
    names = ("private", "epsilon", "delta", "neighboring_relation", "accountant", "num_records", "software")
    facts = {name: getattr(card, name) for name in names}
    reading = card.reading.model_dump(mode="json", exclude_defaults=True)
    return facts | {"reading": reading, "card_sha256": card.sha256(), "note": card.statement()}


def png_mark(card: PrivacyCard) -> PngInfo | None:
    """The warning of a run that is not private, as a text chunk for PNG; None for a private run."""
    return None if card.private else warning_mark(card.statement())


def warning_mark(text: str) -> PngInfo:
    """A PNG text chunk named Warning."""
    mark = PngInfo()
    mark.add_text("Warning", text)
    return mark
