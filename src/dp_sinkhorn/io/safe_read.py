"""Reading files that may be damaged or hostile: regular files only, bounded size, JSON and TOML without traps."""

import json
import os
import reprlib
import stat
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from dp_sinkhorn.io.errors import InputError

# Cards and configurations are some kilobytes; 10,000 class names of the greatest length still fit.
MAX_TEXT_BYTES = 1 << 22
# A dotted TOML key of n parts costs n² / 2; a list of 10,000 numbers on one line has 10,000 dots.
MAX_SQUARED_DOTS = 2 * 10**8

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 200


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading; a pipe or a device is refused without waiting for it.

    Raises:
        InputError: It is something else.
        OSError: It cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is not a regular file; give a file")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, limit: int, remedy: str) -> bytes:
    """All of a regular file of at most `limit` bytes; never more than that is held.

    Raises:
        InputError: It cannot be read, is larger, or is no regular file.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise InputError(f"{path} is larger than {limit} bytes; {remedy}")
            # Python takes memory for what it is asked for, so it is not asked for `limit`.
            content = file.read(size + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; {remedy}") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {path}: {error}; {remedy}") from None  # a NUL in the name
    if len(content) != size:
        raise InputError(f"{path} changed while it was read, or is no real file; {remedy}")
    return content


def parse_json(content: bytes) -> Any:
    """JSON as RFC 8259 has it: no NaN, and no key given twice, so that two readers cannot disagree.

    Raises:
        ValueError: It is anything else, or nested too deeply.
    """
    try:
        return json.loads(content, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_toml(content: bytes) -> dict[str, Any]:
    """TOML of bounded work.

    Raises:
        ValueError: It is no TOML, nested too deeply, or made of endless dotted keys.
    """
    if sum(line.count(b".") ** 2 for line in content.splitlines()) > MAX_SQUARED_DOTS:
        raise ValueError("it has endless dotted keys")
    try:
        return tomllib.loads(content.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def shown(value: object) -> str:
    """A short `repr`, whatever the value: nested deeply, endless, or a number too long for Python to write."""
    try:
        return _short.repr(value)
    except ValueError:
        return "a number of thousands of digits"


def listed(names: Sequence[str], most: int) -> str:
    """The names with commas between them: the first `most`, and how many there are where that is not all."""
    more = f", … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise ValueError(f"the key {name!r} is given twice")
        made[name] = value
    return made


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
