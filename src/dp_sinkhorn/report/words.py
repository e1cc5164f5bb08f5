"""Numbers and names as the page shows them."""

from dp_sinkhorn.evaluation.uncertainty import plus_minus

_LONGEST = 40


def number(value: float) -> str:
    """Four significant digits, with commas between thousands."""
    return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def percent(share: float | None, error: float | None = None) -> str:
    """A share in per cent with one decimal, or with its standard error; a dash for none."""
    if share is None:
        return "–"
    return f"{f'{100.0 * share:.1f}' if error is None else measured(100.0 * share, 100.0 * error)}\N{NO-BREAK SPACE}%"


def measured(value: float, error: float) -> str:
    """A value with its standard error, on one line."""
    return plus_minus(value, error).replace(" ", "\N{NO-BREAK SPACE}")


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def shown(name: str) -> str:
    """A class name, shortened. Cards hold names of printable characters only."""
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
