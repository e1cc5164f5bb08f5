"""The ledger: on disk before anything is released, and read back whole or not at all."""

import json
import os
from pathlib import Path

import pytest

from dp_sinkhorn.errors import InputError
from dp_sinkhorn.privacy.accounting import Charge
from dp_sinkhorn.privacy.ledger import Ledger

CHARGES = [
    Charge(name="first_moments", noise_multiplier=37.31),
    Charge(name="step", noise_multiplier=2.419, sample_rate=0.1, first=0, count=20),
    Charge(name="step", noise_multiplier=2.419, sample_rate=0.1, first=20, count=20),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    for charge in CHARGES:
        ledger.charge(charge)
    return path


def test_charges_are_read_back_in_order(path: Path) -> None:
    assert Ledger(path).charges == CHARGES
    assert len(path.read_bytes().splitlines()) == 3


def test_a_reopened_ledger_appends(path: Path) -> None:
    more = Charge(name="step", noise_multiplier=2.419, sample_rate=0.1, first=40, count=1)
    ledger = Ledger(path)
    ledger.charge(more)
    assert ledger.charges == Ledger(path).charges == [*CHARGES, more]


def test_count_adds_the_releases_of_one_name(path: Path) -> None:
    ledger = Ledger(path)
    assert (ledger.count("step"), ledger.count("first_moments"), ledger.count("other")) == (40, 1, 0)


def test_no_file_is_an_empty_ledger_and_makes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "none.jsonl"
    assert Ledger(path).charges == []
    assert not path.exists()


def test_a_charge_is_synced_whole_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.jsonl"
    synced: list[tuple[bool, bytes]] = []
    really = os.fsync

    def recording(descriptor: int) -> None:
        content = path.read_bytes() if path.exists() else b""
        synced.append((os.path.samestat(os.fstat(descriptor), path.stat()), content))
        really(descriptor)

    monkeypatch.setattr(os, "fsync", recording)
    ledger = Ledger(path)
    for number, charge in enumerate(CHARGES, start=1):
        synced.clear()
        ledger.charge(charge)
        of_file = [content for is_file, content in synced if is_file]
        assert of_file[-1] == path.read_bytes()
        assert of_file[-1].count(b"\n") == number
        # The first line makes a file: its name must be durable too.
        assert [is_file for is_file, _ in synced] == ([True, False] if number == 1 else [True])


def test_a_failed_sync_does_not_count_as_charged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(path)

    def failing(descriptor: int) -> None:
        raise OSError("disk gone")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="disk gone"):
        ledger.charge(CHARGES[0])
    assert ledger.charges == CHARGES


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"noise_multiplier":', b'"noise_multiplier":1'),
        (b'"count":', b'"count":1'),
        (b'"first":', b'"first":1'),
        (b'"crc32":', b'"crc32":1'),
        (b'"sample_rate":', b'"sample_rate":0.'),
        (b'"charge"', b'"chargE"'),
        (b"{", b""),
        (b"}", b""),
    ],
)
def test_damage_in_any_line_is_refused_by_its_number(path: Path, number: int, before: bytes, after: bytes) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    assert before in lines[number - 1]
    lines[number - 1] = lines[number - 1].replace(before, after, 1)
    damaged = b"".join(lines)
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=rf"ledger\.jsonl line {number} is damaged") as caught:
        Ledger(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("line", [b"", b"null", b"[]", b"7", b"{}", b"\xff\xfe", b'{"charge":{},"crc32":0}'])
def test_a_line_that_is_no_charge_is_refused(path: Path, line: bytes) -> None:
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(InputError, match="line 4 is damaged"):
        Ledger(path)


def test_every_flipped_digit_of_the_middle_line_is_noticed(path: Path) -> None:
    content = path.read_bytes()
    start, end = content.index(b"\n") + 1, content.rindex(b"\n", 0, -1)
    for place in range(start, end):
        if content[place : place + 1].isdigit():
            digit = b"1" if content[place : place + 1] != b"1" else b"2"
            path.write_bytes(content[:place] + digit + content[place + 1 :])
            with pytest.raises(InputError, match="line 2 is damaged"):
                Ledger(path)


def test_a_torn_last_line_is_dropped_and_cut_off(path: Path) -> None:
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for kept in range(1, len(last) - 1):
        path.write_bytes(whole + last[:kept])
        assert Ledger(path).charges == CHARGES
        assert path.read_bytes() == whole


def test_a_whole_charge_that_lost_only_its_line_end_counts(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert Ledger(path).charges == CHARGES
    assert path.read_bytes() == whole


def test_a_charge_after_a_torn_line_starts_a_line_of_its_own(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"charge":{"name":"st')
    Ledger(path).charge(CHARGES[1])
    assert Ledger(path).charges == [*CHARGES, CHARGES[1]]


def test_a_line_is_plain_json(path: Path) -> None:
    entry = json.loads(path.read_bytes().splitlines()[1])
    assert entry["charge"] == CHARGES[1].model_dump()
    assert set(entry) == {"charge", "crc32"}
