"""Writing files and folders that are there whole or not at all, whatever stops the process."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, content: bytes, *, shared: bool = False, mode: int = 0o666) -> None:
    """Write a file: at any moment there is the old one, or none, or the new one, whole.

    Guarantees: when it returns, content and name are on disk; when it does not, no part of it is left, unless the
    process was killed.

    Args:
        shared: Several processes may write it at once. mode: Permissions, less the umask.

    Raises:
        OSError: It cannot be written.
    """
    own = f".{os.getpid()}" if shared else ""
    partial = path.with_name(f".{path.name}{own}.partial")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write files into, which becomes `folder` at the end of the block.

    Guarantees: as of `write_whole`.

    Raises:
        OSError: It cannot be written, or `folder` exists by then and holds something.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left behind by a process that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        partial.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(path: Path, line: str, *, mode: int = 0o666) -> None:
    """Add a line to a short text file: the old file or the new one, whole, is there at any moment."""
    before = path.read_bytes() if path.exists() else b""
    write_whole(path, before + line.encode() + b"\n", mode=mode)
