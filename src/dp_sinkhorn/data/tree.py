"""The files of a folder or of an archive, as one list of entries.

Hidden files and what operating systems leave behind are left out. No entry leads out of its root.
"""

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dp_sinkhorn.data.files import FREE_BYTES, MAX_BYTES, MAX_EXPANSION, check_directory, read_payload, reading
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.safe_read import open_regular

MAX_FILES = 10**6  # listed and sorted before any of them is read
_MAX_DEPTH = 16
_JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"})
ZIP_ENDINGS = (".zip",)
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# zipfile decompresses other methods without a bound on memory.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class Entry:
    """A file.

    Args:
        parts: Its path below the root. root: Name of the folder or archive, for messages.
        size: Bytes, unpacked. open: A seekable stream, which the caller closes.
    """

    parts: tuple[str, ...]
    root: str
    size: int
    open: Callable[[], IO[bytes]]
    path: Path | None = None  # on disk

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.parts[-1]

    @property
    def folder(self) -> tuple[str, ...]:
        """The path without the last part."""
        return self.parts[:-1]

    @property
    def ending(self) -> str:
        """The name's ending in lower case, with its dot; "" if there is none."""
        stem, dot, ending = self.name.rpartition(".")
        return f".{ending.lower()}" if dot and stem else ""

    @property
    def where(self) -> str:
        """For messages."""
        return str(self.path) if self.path is not None else f"{self.root}: {'/'.join(self.parts)}"

    def __str__(self) -> str:
        return "/".join(self.parts)


@dataclass(frozen=True)
class Tree:
    """All files below a root, sorted by path."""

    root: str
    entries: tuple[Entry, ...]

    def by_name(self) -> dict[str, Entry]:
        """The first entry of each name, in lower case."""
        found: dict[str, Entry] = {}
        for entry in self.entries:
            found.setdefault(entry.name.lower(), entry)
        return found

    def ending(self, *endings: str) -> list[Entry]:
        """The entries with one of these endings."""
        return [entry for entry in self.entries if entry.name.lower().endswith(endings)]


def tree_of(path: Path) -> Tree:
    """The files of a folder, of a `.zip` or `.tar` archive, or a file by itself.

    Raises:
        InputError: There are too many, a link leads out of the folder, or an archive is damaged or hostile.
    """
    name = path.name.lower()
    with reading(path, "check its permissions, or get it again"):
        if path.is_dir():
            entries = list(_walk(path, path, ()))
        elif name.endswith(ZIP_ENDINGS):
            entries = list(_zip_entries(path))
        elif name.endswith(TAR_ENDINGS):
            entries = list(_tar_entries(path))
        else:
            entries = [_file(path, (path.name,), str(path.parent))]
    if len(entries) > MAX_FILES:
        raise InputError(f"{path} holds more than {MAX_FILES} files; give fewer, or an .npz")
    entries.sort(key=lambda entry: entry.parts)
    return _unwrapped(Tree(str(path), tuple(entries)))


def _unwrapped(tree: Tree) -> Tree:
    """Without folders at the top that hold everything else, as archives have them."""
    entries = tree.entries
    while entries and len(entries[0].parts) > 2 and len({entry.parts[0] for entry in entries}) == 1:
        if min(len(entry.parts) for entry in entries) < 3:
            break
        entries = tuple(Entry(entry.parts[1:], entry.root, entry.size, entry.open, entry.path) for entry in entries)
    return Tree(tree.root, entries)


def is_junk(parts: tuple[str, ...]) -> bool:
    """Hidden files, and what operating systems leave behind."""
    return any(part.startswith(".") or part.lower() in _JUNK for part in parts)


def _walk(folder: Path, root: Path, parts: tuple[str, ...]) -> Iterator[Entry]:
    if len(parts) > _MAX_DEPTH:
        raise InputError(f"{folder} lies more than {_MAX_DEPTH} folders deep; give a folder nearer to the images")
    for path in sorted(folder.iterdir()):
        below = (*parts, path.name)
        if is_junk((path.name,)):
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
            raise InputError(f"{path} is a link out of {root}; copy its target there")
        if path.is_dir():
            yield from _walk(path, root, below)
        else:
            yield _file(path, below, str(root))


def _file(path: Path, parts: tuple[str, ...], root: str) -> Entry:
    if not path.is_file():  # a broken link, or a pipe, which would block
        raise InputError(f"{path} is not a file that can be read; remove it")
    return Entry(parts, root, path.stat().st_size, lambda: open_regular(path), path)


def _below(name: str, archive: Path) -> tuple[str, ...]:
    parts = tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
    if ".." in parts or name.startswith("/"):
        raise InputError(f"{archive} holds {name!r}, a path out of the archive; get it again")
    return parts


def _zip_entries(path: Path) -> Iterator[Entry]:
    file = open_regular(path)
    stored = file.seek(0, io.SEEK_END)
    check_directory(file, stored, path, MAX_FILES * 100)
    archive = zipfile.ZipFile(file)
    for number, info in enumerate(archive.infolist()):
        if number >= MAX_FILES:
            raise InputError(f"{path} holds more than {MAX_FILES} files; give fewer, or an .npz")
        parts = _below(info.filename, path)
        if info.is_dir() or not parts or is_junk(parts):
            continue
        if info.flag_bits & 0x1:
            raise InputError(f"{path} is encrypted; unpack it and give the folder")
        if info.compress_type not in _COMPRESSIONS:
            raise InputError(f"{path} is compressed by a method other than deflate; unpack it and give the folder")
        yield Entry(parts, str(path), info.file_size, _zip_opener(archive, info, path))


def _zip_opener(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Callable[[], IO[bytes]]:
    def opened() -> IO[bytes]:
        name = f"{path}: {info.filename}"
        with reading(Path(name), "get the archive again"), archive.open(info) as stream:
            return io.BytesIO(read_payload(stream, info.file_size, name, info.compress_size))

    return opened


def _tar_entries(path: Path) -> Iterator[Entry]:
    file = open_regular(path)
    stored = file.seek(0, io.SEEK_END)
    file.seek(0)
    plain = path.name.lower().endswith(".tar")
    # A compressed archive can be read in one pass only, so its files are held in memory.
    archive = tarfile.open(fileobj=file, mode="r:" if plain else "r|*")  # noqa: SIM115 - its entries read from it
    held, most = 0, stored if plain else min(MAX_BYTES, max(FREE_BYTES, MAX_EXPANSION * stored))
    for number, member in enumerate(archive):
        if number >= MAX_FILES:
            raise InputError(f"{path} holds more than {MAX_FILES} files; give fewer, or an .npz")
        parts = _below(member.name, path)
        if not parts or is_junk(parts) or member.isdir():
            continue
        if not member.isreg():
            raise InputError(f"{path} holds {member.name!r}, which is no plain file; unpack it and give the folder")
        held += member.size
        if held > most:
            raise InputError(f"{path} unpacks to more than {most} bytes (a decompression bomb?); give the folder")
        if plain:
            yield Entry(parts, str(path), member.size, _tar_opener(archive, member, path))
        else:
            stream = archive.extractfile(member)
            assert stream is not None  # noqa: S101 - it is a plain file
            content = stream.read()
            yield Entry(parts, str(path), member.size, _memory_opener(content))


def _memory_opener(content: bytes) -> Callable[[], IO[bytes]]:
    return lambda: io.BytesIO(content)


def _tar_opener(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> Callable[[], IO[bytes]]:
    def opened() -> IO[bytes]:
        with reading(path, "get the archive again"):
            stream = archive.extractfile(member)
            assert stream is not None  # noqa: S101 - it is a plain file
            return stream

    return opened
