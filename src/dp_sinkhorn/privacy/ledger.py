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
    charges = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            entry = json.loads(line)
            charge = Charge.model_validate(entry["charge"])
            if zlib.crc32(charge.model_dump_json().encode()) != entry["crc32"]:
                raise ValueError("checksum")
        except (ValueError, KeyError, TypeError, ValidationError):
            raise InputError(f"{path} line {number} is damaged; the budget spent is unknown: start a new run") from None
        charges.append(charge)
    _drop_torn_end(path)
    return charges


def _drop_torn_end(path: Path) -> None:
    """Cut a last line that a crash left without its end: its `charge` never returned, so nothing was released."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
            os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
