"""Loops compiled by numba, cached on disk for later processes."""

import importlib
import warnings
from collections.abc import Callable
from typing import Any


def compiled(function: Callable[..., None], signature: Any, **options: Any) -> Callable[..., None]:
    """Compile a function for one signature, or load it from the cache.

    Warns if the cache cannot be written.

    Args:
        signature: A numba signature.
        options: Of `numba.njit`.
    """
    njit = importlib.import_module("numba").njit
    try:
        loop: Callable[..., None] = njit(signature, cache=True, **options)(function)
    except Exception as error:  # the cache may be read-only, full or damaged; compile without it
        loop = njit(signature, **options)(function)
        warnings.warn(
            f"compiled code is not kept for the next process ({error}); set NUMBA_CACHE_DIR to a writable folder",
            RuntimeWarning,
            stacklevel=3,
        )
    return loop
