"""Reading data files that may be damaged or hostile: bounded memory, errors of one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dp_sinkhorn.io.errors import InputError

MAX_BYTES = 2**31  # of one array; ten times the largest data set of 28x28 digits in common use
# What a packed file may grow to: deflate reaches 1000 to 1, real images rarely 20 to 1. Below the free size
# nothing is refused: small sets of flat images are harmless.
MAX_EXPANSION, FREE_BYTES = 200, 2**26
CHUNK_BYTES = 2**20


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
        raise InputError(f"{path} cannot be read ({reason}); {remedy}") from error


def read_payload(stream: IO[bytes], size: int, name: str, stored: int) -> bytearray:
    """Read the `size` bytes that a header promises and that must end the stream.

    The buffer grows with what the stream really holds: a header cannot make us allocate more than that, and a
    packed file not more than `MAX_EXPANSION` times its own size beyond `FREE_BYTES`.

    Args:
        stored: Bytes that the file takes on disk.

    Raises:
        InputError: `size` is above `MAX_BYTES`, or the stream holds fewer or more bytes, or grows without end.
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
