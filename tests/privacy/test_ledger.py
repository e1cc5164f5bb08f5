"""The ledger: on disk before a release, and read back completely or refused."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import Charge
from dp_sinkhorn.privacy.ledger import MAX_LEDGER_BYTES, Header, Ledger, read_charges

pytestmark = pytest.mark.quick

CHARGES = [
    Charge(name="first_moments", noise_multiplier=37.31),
    Charge(name="step", noise_multiplier=2.419, sample_rate=0.1, first=0, count=20),
    Charge(name="step", noise_multiplier=2.419, sample_rate=0.1, first=20, count=20),
]
HEADER = Header(run="0123456789abcdef" * 2, config_sha256="ab" * 32)


def written(path: Path, header: Header = HEADER, charges: list[Charge] = CHARGES) -> Path:
    ledger = Ledger(path)
    ledger.begin(header)
    for charge in charges:
        ledger.charge(charge)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "ledger.jsonl")


def test_charges_are_read_back_in_order(path: Path) -> None:
    assert Ledger(path).charges == CHARGES
    assert Ledger(path).header == HEADER
    assert len(path.read_bytes().splitlines()) == 4


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
    ledger.begin(HEADER)
    for number, charge in enumerate(CHARGES, start=1):
        synced.clear()
        ledger.charge(charge)
        of_file = [content for is_file, content in synced if is_file]
        assert of_file[-1] == path.read_bytes()
        assert of_file[-1].count(b"\n") == number + 1
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


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"noise_multiplier":', b'"noise_multiplier":1'),
        (b'"count":', b'"count":1'),
        (b'"first":', b'"first":1'),
        (b'"chain":"', b'"chain":"1'),
        (b'"sample_rate":', b'"sample_rate":0.'),
        (b'"entry"', b'"entrY"'),
        (b"{", b""),
        (b"}", b""),
    ],
)
def test_damage_in_any_line_is_refused_by_its_number(path: Path, number: int, before: bytes, after: bytes) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    assert before in lines[number - 1]
    lines[number - 1] = lines[number - 1].replace(before, after, 1)
    refused(path, b"".join(lines), number)


def refused(path: Path, content: bytes, number: int) -> None:
    """Both readers name the damaged line in a message of one line and do not change the file."""
    path.write_bytes(content)
    for read in (Ledger, read_charges):
        with pytest.raises(InputError, match=rf"ledger\.jsonl line {number} is damaged") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "line", [b"", b"null", b"[]", b"7", b"{}", b"\xff\xfe", b'{"entry":{},"chain":""}', b"[" * 10**5]
)
def test_a_line_that_is_no_charge_is_refused(path: Path, line: bytes) -> None:
    refused(path, path.read_bytes() + line + b"\n", 5)


def test_every_flipped_digit_of_a_line_is_noticed(path: Path) -> None:
    content = path.read_bytes()
    for number in (1, 3):
        start = sum(len(line) for line in content.splitlines(keepends=True)[: number - 1])
        for place in range(start, content.index(b"\n", start)):
            if content[place : place + 1].isdigit():
                digit = b"1" if content[place : place + 1] != b"1" else b"2"
                refused(path, content[:place] + digit + content[place + 1 :], number)


@pytest.mark.parametrize(
    ("order", "number"),
    [
        ((0, 1, 3), 3),  # a line is missing
        ((0, 2, 3), 2),
        ((1, 2, 3), 1),
        ((0, 1, 1, 2, 3), 3),  # a line comes twice
        ((0, 2, 1, 3), 2),  # lines have changed places
        ((0, 0, 1, 2, 3), 2),
    ],
)
def test_whole_lines_missing_doubled_or_moved_are_noticed(path: Path, order: tuple[int, ...], number: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    refused(path, b"".join(lines[index] for index in order), number)


def test_a_line_of_another_run_does_not_fit(path: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "other.jsonl", HEADER.model_copy(update={"run": "f" * 32}))
    lines, others = (file.read_bytes().splitlines(keepends=True) for file in (path, other))
    assert lines[3].partition(b"chain")[0] == others[3].partition(b"chain")[0]
    refused(path, b"".join([*lines[:3], others[3]]), 4)


def test_the_chain_is_what_the_documents_say(path: Path) -> None:
    """Recomputed: SHA-256 of the previous hash, a line feed, and the entry as written."""
    before = ""
    for line in path.read_text().splitlines():
        entry = line.removeprefix('{"entry":').partition(',"chain":')[0]
        before = hashlib.sha256(f"{before}\n{entry}".encode()).hexdigest()
        assert json.loads(line)["chain"] == before
    assert Ledger(path).head == before


def test_a_torn_last_line_is_dropped_and_cut_off(path: Path) -> None:
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for kept in range(1, len(last) - 1, 7):
        path.write_bytes(whole + last[:kept])
        assert read_charges(path) == CHARGES
        assert path.read_bytes() == whole + last[:kept]
        assert Ledger(path).charges == CHARGES
        assert path.read_bytes() == whole


def test_a_whole_charge_that_lost_only_its_line_end_counts(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert read_charges(path) == CHARGES
    assert path.read_bytes() == whole[:-1]
    assert Ledger(path).charges == CHARGES
    assert path.read_bytes() == whole


def test_a_charge_after_a_torn_line_starts_a_line_of_its_own(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"entry":{"name":"st')
    Ledger(path).charge(CHARGES[1])
    assert Ledger(path).charges == [*CHARGES, CHARGES[1]]


def test_a_first_charge_that_never_returned_leaves_a_fresh_ledger(path: Path) -> None:
    """The header is complete and the charge is not: nothing was released, and the next run writes its own header."""
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"\n") + 30])
    ledger = Ledger(path)
    assert ledger.charges == []
    other = HEADER.model_copy(update={"run": "f" * 32})
    ledger.begin(other)
    ledger.charge(CHARGES[0])
    assert (Ledger(path).header, Ledger(path).charges) == (other, CHARGES[:1])


def test_a_ledger_is_begun_once_and_before_its_first_charge(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="begun before"):
        Ledger(path).begin(HEADER)
    with pytest.raises(ValueError, match="begun"):
        Ledger(tmp_path / "new.jsonl").charge(CHARGES[0])
    assert not (tmp_path / "new.jsonl").exists()


def test_a_file_above_the_size_limit_is_refused(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(MAX_LEDGER_BYTES + 1)
    with pytest.raises(InputError, match="is larger than"):
        Ledger(path)


def test_reading_a_missing_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_charges(tmp_path / "none.jsonl")


def test_a_line_is_plain_json(path: Path) -> None:
    entry = json.loads(path.read_bytes().splitlines()[1])
    assert entry["entry"] == CHARGES[0].model_dump()
    assert set(entry) == {"entry", "chain"}
