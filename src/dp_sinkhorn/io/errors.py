"""Errors that a user can act on."""

from collections.abc import Iterable
from difflib import get_close_matches

MAX_MESSAGE = 1000  # characters: a hostile name or value must not fill the terminal


def one_line(value: object) -> str:
    """`str(value)` with line breaks, control characters and undecodable bytes escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The end of an error about a name that is not known: "; did you mean NAME?", or nothing where none is like it."""
    names = {name.casefold(): name for name in known}
    begun = [name for name in names if len(given) > 2 and name.startswith(given.casefold())]
    near = begun or get_close_matches(given.casefold(), names, 1)
    return f"; did you mean {names[near[0]]}?" if near else ""


class InputError(ValueError):
    """Invalid input; the message names the value and the remedy. The command line exits with code 2.

    Guarantees: the message is one printable line of at most `MAX_MESSAGE` characters. Control characters and line
    breaks of names and values are escaped; a longer message is shortened in the middle.
    """

    def __init__(self, message: str) -> None:
        line = one_line(message)
        half = MAX_MESSAGE // 2 - 1
        super().__init__(line if len(line) <= MAX_MESSAGE else f"{line[:half]}…{line[-half:]}")
