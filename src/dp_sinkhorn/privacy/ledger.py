"""The ledger: every release is written down, durably, before it happens."""

import json
import os
import zlib
from pathlib import Path

from pydantic import ValidationError

from dp_sinkhorn.errors import InputError
from dp_sinkhorn.privacy.accounting import Charge


class Ledger:
    """Append-only file of charges, one checksummed JSON object a line.

    Guarantees: when `charge` returns, the line is on disk. A crash between a charge and its release leaves
    the charge: spent budget is over-counted, never under-counted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.charges: list[Charge] = _read(path)

    def charge(self, charge: Charge) -> None:
        """Write a charge and wait until it is durable."""
        body = charge.model_dump_json()
        line = f'{{"charge":{body},"crc32":{zlib.crc32(body.encode())}}}\n'.encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if os.write(descriptor, line) != len(line):
                raise OSError(f"could not write a whole line to {self.path}")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if not self.charges:
            _sync_folder(self.path.parent)
        self.charges.append(charge)

    def count(self, name: str) -> int:
        """How many releases of this name have been charged."""
        return sum(charge.count for charge in self.charges if charge.name == name)


def _read(path: Path) -> list[Charge]:
    if not path.exists():
        return []
    *lines, torn = path.read_bytes().split(b"\n")
    charges = []
    for number, line in enumerate(lines, start=1):
        charge = _parse(line)
        if charge is None:
            raise InputError(f"{path} line {number} is damaged; the budget spent is unknown: start a new run")
        charges.append(charge)
    if torn:
        charges += _mend_end(path, torn)
    return charges


def _parse(line: bytes) -> Charge | None:
    """The charge of a line, or None if the line is not whole and unchanged."""
    try:
        entry = json.loads(line)
        charge = Charge.model_validate(entry["charge"])
        return charge if zlib.crc32(charge.model_dump_json().encode()) == entry["crc32"] else None
    except (ValueError, KeyError, TypeError, ValidationError):
        return None


def _mend_end(path: Path, torn: bytes) -> list[Charge]:
    """Mend a last line without its end. A whole charge counts; a part of one was left by a crash inside
    `charge`, which never returned, so nothing was released for it, and the part is cut off.
    """
    charge = _parse(torn)
    with path.open("r+b") as file:
        if charge is None:
            file.truncate(path.stat().st_size - len(torn))
        else:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        file.flush()
        os.fsync(file.fileno())
    return [] if charge is None else [charge]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
