"""Atomic writes: a file or folder appears complete or not at all, even if the process is killed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, content: bytes, *, shared: bool = False, mode: int = 0o666) -> None:
    """Write a file atomically: a reader finds the old file (or none) or the complete new one.

    Guarantees: on return, content and name are on disk. After an error no partial file is left; only a killed process
    may leave one, under a hidden name.

    Args:
        shared: Whether several processes may write the file at the same time.
        mode: Permissions, less the umask.

    Raises:
        OSError: The file cannot be written.
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
    """Yield a temporary folder to write files into; the end of the block renames it to `folder`.

    Guarantees: those of `write_whole`.

    Raises:
        OSError: The folder cannot be written, or `folder` exists and is not empty.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in partial.iterdir():
            with path.open("r+b") as file:  # Windows flushes only files that are open for writing
                os.fsync(file.fileno())
        partial.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk; Windows, which opens no folders, does this by itself."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(path: Path, line: str, *, mode: int = 0o666) -> None:
    """Append a line to a short text file atomically, by writing the whole file again."""
    before = path.read_bytes() if path.exists() else b""
    write_whole(path, before + line.encode() + b"\n", mode=mode)
