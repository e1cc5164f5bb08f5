"""Safe reading of damaged or hostile files: regular files only, bounded size, strict JSON and bounded TOML."""

import json
import os
import reprlib
import stat
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from dp_sinkhorn.io.errors import InputError

# Cards and configurations have some kilobytes; 10,000 class names of the greatest length still fit.
MAX_TEXT_BYTES = 1 << 22
# Parsing a dotted key of n parts takes n²/2 operations; a line of 10,000 decimal numbers, with 10,000 dots, is allowed.
MAX_SQUARED_DOTS = 2 * 10**8

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 200


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading; a pipe or a device is refused without blocking.

    Raises:
        InputError: The path is not a regular file.
        OSError: The file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # Windows has no pipes among its files
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is not a regular file; give a file")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, limit: int, remedy: str) -> bytes:
    """Read a regular file of at most `limit` bytes; no more than that is ever in memory.

    Raises:
        InputError: The file cannot be read, is larger, or is not a regular file.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise InputError(f"{path} is larger than {limit} bytes; {remedy}")
            # read(n) allocates n bytes, so n is the size of the file and not `limit`.
            content = file.read(size + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; {remedy}") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {path}: {error}; {remedy}") from None  # a NUL in the name
    if len(content) != size:
        raise InputError(f"{path} changed during reading, or is not a real file; {remedy}")
    return content


def parse_json(content: bytes) -> Any:
    """Parse strict JSON (RFC 8259): without NaN and without repeated keys, so that all readers agree.

    Raises:
        ValueError: The content is anything else, or nested too deeply.
    """
    try:
        return json.loads(content, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_toml(content: bytes) -> dict[str, Any]:
    """Parse TOML with bounded work.

    Raises:
        ValueError: The content is not TOML, is nested too deeply, or has too long dotted keys.
    """
    if sum(line.count(b".") ** 2 for line in content.splitlines()) > MAX_SQUARED_DOTS:
        raise ValueError("it has too long dotted keys")
    try:
        return tomllib.loads(content.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def shown(value: object) -> str:
    """A short `repr` of any value: deeply nested, very long, or an integer too long for Python to print."""
    try:
        return _short.repr(value)
    except ValueError:
        return "a number of thousands of digits"


def listed(names: Sequence[str], most: int) -> str:
    """The first `most` names, separated by commas; if there are more, their total number."""
    more = f", … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"the key {name!r} is given twice")
        result[name] = value
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
