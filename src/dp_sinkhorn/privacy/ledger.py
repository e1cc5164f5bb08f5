"""The ledger: a durable record of every charge, written before its release.

Each line is one JSON object. The first line names the run and its configuration. Each further line is a charge, or the
mark of a resumption that takes charged releases. Every line ends with a SHA-256 over its entry and the hash of the line
before it, so a changed, missing, doubled or foreign line is found.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dp_sinkhorn.io.atomic import sync_folder
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.paths import AnyPath
from dp_sinkhorn.io.safe_read import read_bytes
from dp_sinkhorn.privacy.accounting import CHARGE_NAME, MAX_KINDS, Charge

LEDGER = "ledger.jsonl"  # in a run's folder
MAX_LEDGER_BYTES = 1 << 24  # about 80,000 charges; a run writes about a hundred

_Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Header(BaseModel):
    """The run that a ledger belongs to: its random identifier and the hash of its configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ledger_version: Literal[1] = 1
    run: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    config_sha256: _Hash


class Resumption(BaseModel):
    """The mark of a resumed run that is about to make releases which are charged and not made.

    Args:
        taken: Number of releases of each name that are already made.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resumption: Literal[1] = 1
    taken: Annotated[dict[Annotated[str, Field(pattern=CHARGE_NAME)], int], Field(max_length=MAX_KINDS)]


Entry = Header | Charge | Resumption


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    entry: Entry
    chain: _Hash


class Ledger:
    """Append-only file of charges.

    Guarantees: when `charge` returns, the line is on disk. After a crash between a charge and its release the charge
    stands: the spent budget may be over-counted and is never under-counted.

    Raises:
        InputError: The file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: Header | None
        self.header, self.charges, self.heads = _read(path, mend=True)

    @property
    def head(self) -> str:
        """The hash at the end of the last line. It identifies the whole ledger so far."""
        return self.heads[-1] if self.heads else ""

    def begin(self, header: Header) -> None:
        """Set the header. It is written with the first charge, so a run that spends nothing leaves no ledger.

        Raises:
            ValueError: The ledger holds charges already.
        """
        if self.charges:
            raise ValueError(f"{self.path} was begun before")
        # A crash during the first charge may have left a header. Nothing was released for it.
        self.path.unlink(missing_ok=True)
        self.header, self.heads = header, []

    def charge(self, charge: Charge) -> None:
        """Write a charge and wait until it is durable.

        Raises:
            ValueError: The ledger was not begun.
            OSError: The line could not be written; then nothing may be released for it.
        """
        self._append(charge)
        self.charges.append(charge)

    def mark_resumption(self, taken: dict[str, int]) -> None:
        """Write durably that charged releases beyond `taken` are about to be made; `head` changes.

        An earlier checkpoint does not match the new head, so these releases cannot be made a second time.

        Raises:
            ValueError, OSError: See `charge`.
        """
        self._append(Resumption(taken=taken))

    def _append(self, entry: Charge | Resumption) -> None:
        if self.header is None:
            raise ValueError("an entry needs a ledger that was begun")
        entries: list[Entry] = [entry] if self.heads else [self.header, entry]
        text, heads = "", [self.head]
        for each in entries:
            heads.append(_link(heads[-1], each))
            text += f'{{"entry":{each.model_dump_json()},"chain":"{heads[-1]}"}}\n'
        content = text.encode()
        as_given = getattr(os, "O_BINARY", 0)  # Windows would write other line ends
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | as_given, 0o644)
        try:
            if os.write(descriptor, content) != len(content):
                raise OSError(f"could not write a whole line to {self.path}")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if not self.heads:
            sync_folder(self.path.parent)
        self.heads += heads[1:]

    def count(self, name: str) -> int:
        """Count the charged releases of this name."""
        return counts(self.charges)[name]


def read_charges(path: AnyPath) -> list[Charge]:
    """Read the charges of a ledger without changing the file.

    Raises:
        InputError: The file is missing or damaged.
    """
    return read_ledger(path)[1]


def read_ledger(path: AnyPath) -> tuple[Header | None, list[Charge]]:
    """Read header and charges of a ledger without changing the file.

    Raises:
        InputError: The file is missing or damaged.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; give a run's {LEDGER}")
    return _read(path, mend=False)[:2]


def counts(charges: Iterable[Charge]) -> Counter[str]:
    """Number of charged releases of each name."""
    found: Counter[str] = Counter()
    for charge in charges:
        found[charge.name] += charge.count
    return found


def _link(before: str, entry: Entry) -> str:
    return hashlib.sha256(f"{before}\n{entry.model_dump_json()}".encode()).hexdigest()


def _read(path: Path, *, mend: bool) -> tuple[Header | None, list[Charge], list[str]]:
    """Header, charges, and the hash that ends each line."""
    if not path.exists():
        return None, [], []
    content = read_bytes(path, MAX_LEDGER_BYTES, "give a run's own ledger.jsonl")
    *lines, torn = content.split(b"\n")
    entries: list[Entry] = []
    heads: list[str] = []
    for number, line in enumerate(lines, start=1):
        entry = _parse(line, heads, first=number == 1)
        if entry is None:
            raise InputError(
                f"{path} line {number} is damaged, or lines are missing; the budget spent is unknown: start a new run"
            )
        entries.append(entry)
    if torn:
        # A crash inside `charge` left a line without its end. Nothing was released for it. A complete charge counts
        # nevertheless; an incomplete one is cut off.
        entry = _parse(torn, heads, first=not entries)
        entries += [] if entry is None else [entry]
        if mend:
            _mend_end(path, torn, whole=entry is not None)
    header = entries[0] if entries and isinstance(entries[0], Header) else None
    return header, [entry for entry in entries if isinstance(entry, Charge)], heads


def _parse(line: bytes, heads: list[str], *, first: bool) -> Entry | None:
    """The entry of a line, whose hash is appended to `heads`; None if the line is damaged or out of place."""
    try:
        parsed = _Line.model_validate_json(line)
    except ValidationError:
        return None
    if isinstance(parsed.entry, Header) != first or parsed.chain != _link(heads[-1] if heads else "", parsed.entry):
        return None
    heads.append(parsed.chain)
    return parsed.entry


def _mend_end(path: Path, torn: bytes, *, whole: bool) -> None:
    """End a complete last line with a line break, or cut off an incomplete one."""
    with path.open("r+b") as file:
        if whole:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        else:
            file.truncate(path.stat().st_size - len(torn))
        file.flush()
        os.fsync(file.fileno())
