"""The files of a folder or of an archive, as one list of entries.

Hidden files and what operating systems leave behind are left out. No entry leads out of its root.
"""

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, cast

from dp_sinkhorn.data.files import (
    CHUNK_BYTES,
    FREE_BYTES,
    MAX_BYTES,
    MAX_EXPANSION,
    check_directory,
    in_memory,
    read_payload,
    reading,
)
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.safe_read import open_regular

MAX_FILES = 10**6  # listed and sorted before any of them is read
_MAX_DEPTH = 16
_HEAD_BYTES = 132  # up to the mark of a DICOM file
_JUNK = frozenset({
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin", "lost+found",
    "system volume information", "icon\r", "__pycache__",
})  # fmt: skip
ZIP_ENDINGS = (".zip",)
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_ARCHIVES = (*ZIP_ENDINGS, *sorted(TAR_ENDINGS, key=len, reverse=True))
_LOCAL_HEADER = 30  # bytes before the name of a member of a ZIP archive
_ZEROS = 512  # at least so many end a tar archive
# zipfile decompresses other methods without a bound on memory.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


_Opener = Callable[[], IO[bytes]]


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
    def stem(self) -> str:
        """The name without its ending."""
        return self.name.rpartition(".")[0] or self.name

    @cached_property
    def head(self) -> bytes:
        """The first bytes, by which files without an ending are recognised; empty if they cannot be read."""
        try:
            with closing(self.open()) as file:
                return file.read(_HEAD_BYTES)
        except (InputError, OSError):
            return b""

    @property
    def where(self) -> str:
        """For messages."""
        return str(self.path) if self.path is not None else f"{self.root}: {'/'.join(self.parts)}"

    def __str__(self) -> str:
        return "/".join(self.parts)


@dataclass(frozen=True, repr=False)
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
    with reading(path, "check its permissions, or get it again"):
        if path.is_dir():
            entries = list(islice(_walk(path, path, ()), MAX_FILES + 1))
        elif is_archive(path.name):
            entries = list(_archive_entries(lambda: open_regular(path), path.name, str(path)))
        else:
            entries = [_file(path, (path.name,), str(path.parent))]
    if len(entries) > MAX_FILES:
        raise InputError(f"{path} holds more than {MAX_FILES} files; give fewer, or an .npz")
    entries.sort(key=lambda entry: entry.parts)
    return Tree(str(path), tuple(entries))


def archive_tree(entry: Entry) -> Tree:
    """The files of an archive that lies in a folder or in another archive.

    Raises:
        InputError: It is damaged or hostile.
    """
    with reading(Path(entry.where), "get it again"):
        source = entry.open if entry.path is not None else _in_memory(entry)
        entries = sorted(_archive_entries(source, entry.name, entry.where), key=lambda one: one.parts)
    return Tree(entry.where, tuple(entries))


def _in_memory(entry: Entry) -> _Opener:
    """An opener of an entry that would be unpacked again each time."""
    with closing(entry.open()) as file:
        content = file.read()
    return in_memory(content)


def unpacked(tree: Tree) -> Tree:
    """The tree with the files of each archive in it in the archive's place, in a folder of the archive's name.

    Raises:
        InputError: An archive is damaged or hostile, or all together hold too much.
    """
    entries: list[Entry] = []
    held = 0
    for entry in tree.entries:
        if not is_archive(entry.name):
            entries.append(entry)
            continue
        inner = archive_tree(entry).entries
        held += sum(one.size for one in inner)
        if held > MAX_BYTES or len(entries) + len(inner) > MAX_FILES:
            raise InputError(f"the archives in {tree.root} hold too much; unpack them, or give one of them")
        ending = next(known for known in _ARCHIVES if entry.name.lower().endswith(known))
        above = (*entry.folder, entry.name[: -len(ending)] or entry.name)
        entries += [Entry((*above, *one.parts), one.root, one.size, one.open, one.path) for one in inner]
    entries.sort(key=lambda one: one.parts)
    return Tree(tree.root, tuple(entries))


def is_archive(name: str) -> bool:
    """Whether a file of this name can be opened as a tree."""
    return name.lower().endswith(_ARCHIVES)


def is_junk(parts: tuple[str, ...]) -> bool:
    """Hidden files, and what operating systems leave behind."""
    return any(part.startswith(".") or part.lower() in _JUNK for part in parts)


def _walk(folder: Path, root: Path, parts: tuple[str, ...]) -> Iterator[Entry]:
    if len(parts) > _MAX_DEPTH:
        raise InputError(f"{folder} lies more than {_MAX_DEPTH} folders deep; give a folder nearer to the images")
    for path in sorted(islice(folder.iterdir(), MAX_FILES + 1)):
        below = (*parts, path.name)
        if is_junk((path.name,)):
            continue
        is_folder = path.is_dir()
        if path.is_symlink():
            _check_link(path, root, is_folder)
        if is_folder:
            yield from _walk(path, root, below)
        else:
            yield _file(path, below, str(root))


def _check_link(path: Path, root: Path, is_folder: bool) -> None:
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{path} is a link out of {root}; copy its target there")
    if is_folder:
        raise InputError(f"{path} is a link to another folder of {root}, which would be read twice; remove it")


def _file(path: Path, parts: tuple[str, ...], root: str) -> Entry:
    if not path.is_file():  # a broken link, or a pipe, which would block
        raise InputError(f"{path} is not a file that can be read; remove it")
    return Entry(parts, root, path.stat().st_size, lambda: open_regular(path), path)


def _below(name: str, archive: str) -> tuple[str, ...]:
    parts = tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
    if ".." in parts or name.startswith("/"):
        raise InputError(f"{archive} holds {name!r}, a path out of the archive; get it again")
    if len(parts) > _MAX_DEPTH + 1:
        raise InputError(f"{archive} holds {name!r}, more than {_MAX_DEPTH} folders deep; write fewer folders")
    return parts


def _archive_entries(source: _Opener, name: str, where: str) -> Iterator[Entry]:
    return (_zip_entries if name.lower().endswith(ZIP_ENDINGS) else _tar_entries)(source, where)


def _zip_entries(source: _Opener, where: str) -> Iterator[Entry]:
    with closing(source()) as file:
        check_directory(file, file.seek(0, io.SEEK_END), where, MAX_FILES * 100)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    for number, info in enumerate(members):
        if number >= MAX_FILES:
            raise InputError(f"{where} holds more than {MAX_FILES} files; give fewer, or an .npz")
        parts = _below(info.filename, where)
        if info.is_dir() or not parts or is_junk(parts):
            continue
        if info.flag_bits & 0x1:
            raise InputError(f"{where} is encrypted; unpack it and give the folder")
        if info.compress_type not in _COMPRESSIONS:
            raise InputError(f"{where} is compressed by a method other than deflate; unpack it and give the folder")
        yield Entry(parts, where, info.file_size, _zip_opener(source, info, where))


def _zip_opener(source: _Opener, info: zipfile.ZipInfo, where: str) -> _Opener:
    """Opens one member without reading the archive's list of members again."""

    def opened() -> IO[bytes]:
        name = f"{where}: {info.filename}"
        with reading(Path(name), "get the archive again"), closing(source()) as file:
            file.seek(info.header_offset)
            header = file.read(_LOCAL_HEADER)
            if not header.startswith(b"PK\x03\x04") or len(header) < _LOCAL_HEADER:
                raise InputError(f"{name} is not where the archive's list says; get the archive again")
            file.seek(sum(struct.unpack_from("<HH", header, 26)), io.SEEK_CUR)
            with zipfile.ZipExtFile(file, "r", info) as stream:
                return io.BytesIO(read_payload(cast(IO[bytes], stream), info.file_size, name, info.compress_size))

    return opened


def _tar_entries(source: _Opener, where: str) -> Iterator[Entry]:
    with closing(source()) as packed:
        content = _decompressed(packed, where)
    if content is not None:
        source = in_memory(content)
    with closing(source()) as file:
        if not file.read(1):
            raise InputError(f"{where} is empty; get it again")
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for number, member in enumerate(archive):
                if number >= MAX_FILES:
                    raise InputError(f"{where} holds more than {MAX_FILES} files; give fewer, or an .npz")
                parts = _below(member.name, where)
                if not parts or is_junk(parts) or member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise InputError(
                        f"{where} holds {member.name!r}, which is no plain file; unpack it and give the folder"
                    )
                yield Entry(parts, where, member.size, _tar_opener(source, member.offset_data, member.size, where))
            # tarfile takes a damaged header, or the end of a cut archive, for the end of the list.
            file.seek(archive.offset)
            end = file.read(_ZEROS)
            if len(end) < _ZEROS or end.strip(b"\0"):
                raise InputError(f"{where} is damaged or cut: its list of files has no end; get it again")


def _decompressed(file: IO[bytes], where: str) -> bytes | None:
    """A compressed tar archive, in memory, since it can be read in one pass only; None if it is not compressed."""
    stored = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(6)
    file.seek(0)
    stream: IO[bytes]
    if head.startswith(b"\x1f\x8b"):
        stream = gzip.GzipFile(fileobj=file)  # type: ignore[assignment]
    elif head.startswith(b"BZh"):
        stream = bz2.BZ2File(file)
    elif head == b"\xfd7zXZ\0":
        stream = lzma.LZMAFile(file)  # noqa: SIM115 - closed below
    else:
        return None
    most = min(MAX_BYTES, max(FREE_BYTES, MAX_EXPANSION * stored))
    content = io.BytesIO()
    with stream:
        while chunk := stream.read(CHUNK_BYTES):
            content.write(chunk)
            if content.tell() > most:
                raise InputError(f"{where} unpacks to more than {most} bytes (a decompression bomb?); give the folder")
    return content.getvalue()


def _tar_opener(source: _Opener, start: int, size: int, where: str) -> _Opener:
    def opened() -> IO[bytes]:
        with reading(Path(where), "get the archive again"), closing(source()) as file:
            file.seek(start)
            return io.BytesIO(file.read(size))  # tarfile has checked that the archive holds so many bytes

    return opened
