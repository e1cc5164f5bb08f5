"""What other systems lack is not needed to import the package, to lock a run, or to write its files."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dp_sinkhorn.io.atomic import sync_folder, whole_folder, write_whole
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.safe_read import read_bytes
from dp_sinkhorn.privacy.ledger import Charge, Header, Ledger, read_charges
from dp_sinkhorn.release.signature import exposed_key_warning
from dp_sinkhorn.training.loop import only_process, peak_memory_bytes

ONLY_POSIX = ("fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty")
IMPORTS = f"""
import importlib, pkgutil, sys
import cryptography.hazmat.primitives.serialization, filelock, numba, psutil, sklearn.linear_model, torch, typer
for name in {ONLY_POSIX!r}:
    sys.modules[name] = None  # an import of it fails
import dp_sinkhorn
names = [module.name for module in pkgutil.walk_packages(dp_sinkhorn.__path__, "dp_sinkhorn.")]
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:
        if error.name in {ONLY_POSIX!r} or "dp_sinkhorn" in str(error.name):
            raise SystemExit(f"{{name}}: {{error}}")
        print("skipped", name, error)
print(len(names))
from dp_sinkhorn.training.loop import peak_memory_bytes
assert peak_memory_bytes() > 2**20
"""
HOLDS = """
import sys, time
from pathlib import Path
from dp_sinkhorn.training.loop import only_process
with only_process(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def test_every_module_imports_without_the_modules_of_posix() -> None:
    command = [sys.executable, "-c", IMPORTS]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert ran.returncode == 0, ran.stderr[-2000:] + ran.stdout
    assert int(ran.stdout.split()[-1]) > 100


@pytest.fixture
def without_posix(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The names of `os` as on Windows, where also no folder can be opened; the flags of every opened file."""
    flags: list[int] = []
    really = os.open

    def opened(path: object, flag: int, *more: int, **named: int) -> int:
        flags.append(flag)
        if os.path.isdir(path):  # type: ignore[arg-type] # noqa: PTH112
            raise PermissionError(13, "Permission denied", str(path))
        return really(path, flag, *more, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        for name in ("O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY", "O_SYNC"):
            patch.delattr(os, name)
        patch.setattr(os, "O_BINARY", 0x8000, raising=False)  # without effect on Linux
        patch.setattr(os, "open", opened)
        yield flags


def test_files_are_written_and_read_without_what_posix_adds(tmp_path: Path, without_posix: list[int]) -> None:
    write_whole(tmp_path / "file", b"a\nb\n")
    assert read_bytes(tmp_path / "file", 10, "give less") == b"a\nb\n"
    with whole_folder(tmp_path / "folder") as partial:
        (partial / "part").write_bytes(b"c\n")
    assert (tmp_path / "folder" / "part").read_bytes() == b"c\n"
    with pytest.raises(InputError, match="cannot read"):
        read_bytes(tmp_path / "folder", 10, "give a file")


def test_a_ledger_has_the_same_line_ends_on_every_system(tmp_path: Path, without_posix: list[int]) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.begin(Header(run=16 * "00", config_sha256=32 * "00"))
    charge = Charge(name="steps", noise_multiplier=2.0, sample_rate=0.5, count=3)
    ledger.charge(charge)
    assert read_charges(tmp_path / "ledger.jsonl") == [charge]
    appended = [flag for flag in without_posix if flag & os.O_APPEND]
    assert appended
    assert all(flag & 0x8000 for flag in appended)


def test_a_folder_is_flushed_where_it_can_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "missing")


def test_the_peak_memory_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    most = peak_memory_bytes()
    monkeypatch.setitem(sys.modules, "resource", None)
    assert 2**20 < peak_memory_bytes() <= 1.01 * most


def test_modes_of_a_key_file_mean_nothing_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(b"")
    key.chmod(0o644)
    assert "has mode 644" in str(exposed_key_warning(key))
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        assert exposed_key_warning(key) is None


def test_a_lock_refuses_another_process_and_ends_with_its_own(tmp_path: Path) -> None:
    private = tmp_path / "run" / "private"
    private.parent.mkdir()
    command = [sys.executable, "-c", HOLDS, str(private)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "locked\n"
            refused = pytest.raises(InputError, match=f"another process is training in {private.parent}; wait")
            with refused, only_process(private):
                pass
        finally:
            process.kill()
    for _ in range(2):
        with only_process(private):
            assert (private / "lock").stat().st_mode & 0o777 == 0o600


def test_a_lock_ends_with_an_error_and_hides_none(tmp_path: Path) -> None:
    for error in (BlockingIOError("of the run itself"), KeyboardInterrupt()):
        with pytest.raises(type(error)), only_process(tmp_path / "private"):
            raise error
