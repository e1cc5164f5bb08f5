"""Reading files that may be damaged or hostile: bounded memory, errors of one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dp_sinkhorn.errors import InputError

MAX_BYTES = 2**31  # of one array; ten times the largest data set of 28x28 digits in common use
CHUNK_BYTES = 2**20


def one_line(value: object) -> str:
    """`str(value)` with line breaks, control characters and undecodable bytes escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Turn whatever a reader of `path` raises into one `InputError` that ends with `remedy`."""
    try:
        yield
    except InputError:
        raise
    # Decoders that are fed a damaged file raise nearly anything: OSError, SyntaxError, zlib.error, ...
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{one_line(path)} cannot be read ({one_line(reason)}); {remedy}") from error


def read_payload(stream: IO[bytes], size: int, name: str) -> bytearray:
    """Read the `size` bytes that a header promises and that must end the stream.

    The buffer grows with what the stream really holds: a header cannot make us allocate more than that.

    Raises:
        InputError: `size` is above `MAX_BYTES`, or the stream holds fewer or more bytes.
    """
    if size > MAX_BYTES:
        raise InputError(f"{name} promises {size} bytes, more than {MAX_BYTES}; give a smaller data set")
    payload = bytearray()
    while len(payload) < size and (chunk := stream.read(min(CHUNK_BYTES, size - len(payload)))):
        payload += chunk
    if len(payload) < size:
        raise InputError(f"{name} holds {len(payload)} of the {size} bytes its header promises; get the file again")
    if stream.read(1):
        raise InputError(f"{name} holds more than the {size} bytes its header promises; get the file again")
    return payload
