"""What a file of samples says about its privacy."""

from typing import Any

from PIL.PngImagePlugin import PngInfo

from dp_sinkhorn.release.card import PrivacyCard


def privacy_facts(card: PrivacyCard) -> dict[str, Any]:
    """Plain facts; `card_sha256` is the hash of the release's `card.json`."""
    names = ("private", "epsilon", "delta", "neighboring_relation", "accountant", "num_records", "software")
    facts = {name: getattr(card, name) for name in names}
    reading = card.reading.model_dump(mode="json", exclude_defaults=True)
    return facts | {"reading": reading, "card_sha256": card.sha256(), "note": card.statement()}


def png_mark(card: PrivacyCard) -> PngInfo | None:
    """The warning as a text chunk of a picture that comes from a run which is not private."""
    return None if card.private else warning_mark(card.statement())


def warning_mark(text: str) -> PngInfo:
    """A picture's text chunk."""
    mark = PngInfo()
    mark.add_text("Warning", text)
    return mark
