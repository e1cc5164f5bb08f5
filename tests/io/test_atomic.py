"""Files and folders appear complete or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dp_sinkhorn.io import atomic as whole
from dp_sinkhorn.io.atomic import whole_folder, write_whole

pytestmark = pytest.mark.quick


def test_a_file_is_replaced_without_leftovers(tmp_path):
    path = tmp_path / "card.json"
    for content in (b"first", b"second, longer"):
        write_whole(path, content, mode=0o600)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch, error, where):
    path = tmp_path / "card.json"
    path.write_bytes(b"old")

    def fail(*args):
        raise error

    monkeypatch.setattr(*(whole.os, "fsync") if where == "fsync" else (Path, "replace"), fail)
    with pytest.raises(type(error)):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_several_processes_may_write_one_file_at_once(tmp_path, monkeypatch):
    """The partial file of another process that is writing is not touched."""
    other = tmp_path / ".cache.1.partial"
    other.write_bytes(b"half")
    write_whole(tmp_path / "cache", b"whole", shared=True)
    assert (other.read_bytes(), (tmp_path / "cache").read_bytes()) == (b"half", b"whole")


def test_a_folder_appears_with_all_its_files(tmp_path):
    left = tmp_path / ".release.partial"
    left.mkdir()
    (left / "torn").write_bytes(b"of a process that was killed")
    with whole_folder(tmp_path / "release") as folder:
        (folder / "a").write_bytes(b"1")
        assert not (tmp_path / "release").exists()
        (folder / "b").write_bytes(b"2")
    assert sorted(path.name for path in (tmp_path / "release").iterdir()) == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_an_interrupted_folder_leaves_nothing(tmp_path):
    def interrupted():
        with whole_folder(tmp_path / "release") as folder:
            (folder / "a").write_bytes(b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_a_complete_file(tmp_path):
    path = tmp_path / "ledger"
    program = (
        "import sys; from pathlib import Path; from dp_sinkhorn.io.atomic import write_whole\n"
        "for turn in range(10**9):\n"
        "    write_whole(Path(sys.argv[1]), bytes([turn % 256]) * 100_000)\n"
        "    turn or print('begun', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"begun\n"
        os.kill(process.pid, signal.SIGKILL)
    content = path.read_bytes()
    assert len(content) == 100_000
    assert len(set(content)) == 1
