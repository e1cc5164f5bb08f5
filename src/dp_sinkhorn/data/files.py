"""Reading data files that may be damaged or hostile, with bounded memory and one-line errors."""

import io
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dp_sinkhorn.io.errors import InputError

MAX_BYTES = 2**31  # of one array; ten times the largest data set of 28x28 digits in common use
# Largest ratio of decompressed to stored size. Deflate reaches 1000, real images rarely 20. Up to FREE_BYTES any ratio
# is allowed: small sets of flat images are harmless.
MAX_EXPANSION, FREE_BYTES = 200, 2**26
CHUNK_BYTES = 2**20


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Turn any exception of a reader of `path` into one `InputError` that ends with `remedy`."""
    try:
        yield
    except InputError:
        raise
    # On a damaged file decoders raise nearly anything: OSError, SyntaxError, zlib.error, ...
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{path} cannot be read ({reason}); {remedy}") from error


def read_payload(stream: IO[bytes], size: int, name: str, stored: int) -> bytearray:
    """Read the `size` bytes that a header promises; the stream must end after them.

    The buffer grows with the bytes that the stream really holds, so a false header allocates nothing. A compressed
    file may grow to `FREE_BYTES` or `MAX_EXPANSION` times its stored size, whichever is more.

    Args:
        size: Bytes that the header promises. name: Of the data, for messages.
        stored: Size of the file on disk, in bytes.

    Raises:
        InputError: `size` is above `MAX_BYTES`, or the stream holds fewer or more bytes, or expands too much.
    """
    if size > MAX_BYTES:
        raise InputError(f"{name} promises {size} bytes, more than {MAX_BYTES}; give a smaller data set")
    most = max(FREE_BYTES, MAX_EXPANSION * stored)
    payload = bytearray()
    while len(payload) < size and (chunk := stream.read(min(CHUNK_BYTES, size - len(payload)))):
        payload += chunk
        if len(payload) > most:
            raise InputError(
                f"{name} unpacks to more than {MAX_EXPANSION} times the {stored} bytes of its file (a decompression "
                "bomb?); if it is what you want, save it uncompressed"
            )
    if len(payload) < size:
        raise InputError(f"{name} holds {len(payload)} of the {size} bytes its header promises; get the file again")
    if stream.read(1):
        raise InputError(f"{name} holds more than the {size} bytes its header promises; get the file again")
    return payload


def in_memory(content: bytes | memoryview) -> Callable[[], IO[bytes]]:
    """An opener of bytes, in the place of a file's."""
    return lambda: io.BytesIO(content)


_END, _END_BYTES, _LOCATOR, _LOCATOR_BYTES, _MAX_COMMENT = b"PK\x05\x06", 22, b"PK\x06\x07", 20, 2**16


def check_directory(file: IO[bytes], stored: int, where: object, most: int) -> None:
    """Refuse a ZIP archive with a long central directory before zipfile reads it and makes an object of each member.

    The directory is located as zipfile locates it.

    Args:
        stored: Size of the file in bytes. most: Bytes that the directory may have.
    """
    start = file.seek(max(0, stored - _MAX_COMMENT - _END_BYTES - _LOCATOR_BYTES))
    tail = file.read()
    file.seek(0, os.SEEK_SET)
    at = stored - start - _END_BYTES
    if not (at >= 0 and tail[at:].startswith(_END) and tail.endswith(b"\0\0")):
        at = tail.rfind(_END)
    if at < 0 or len(tail) < at + _END_BYTES:
        return  # not an archive: zipfile raises the error
    if tail[max(0, at - _LOCATOR_BYTES) : at].startswith(_LOCATOR):
        raise InputError(f"{where} is a ZIP64 archive, of more than 4 GiB; write smaller ones, or unpack it")
    (directory,) = struct.unpack_from("<L", tail, at + 12)
    if directory > most:
        raise InputError(f"{where} has a list of members of more than {most} bytes; write fewer files, or unpack it")
