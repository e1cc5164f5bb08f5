"""Numbers and names as the page shows them."""

_LONGEST = 40


def number(value: float) -> str:
    """Four significant digits, with commas between thousands."""
    return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def percent(share: float | None) -> str:
    """A share in per cent with one decimal; a dash for none."""
    return "–" if share is None else f"{100.0 * share:.1f}\N{NO-BREAK SPACE}%"


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def shown(name: str) -> str:
    """A class name, shortened. Cards hold names of printable characters only."""
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
