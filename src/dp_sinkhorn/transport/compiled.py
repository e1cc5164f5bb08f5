"""Loops as machine code, kept for the next process where its cache can be written."""

import importlib
import warnings
from collections.abc import Callable
from typing import Any


def compiled(function: Callable[..., None], signature: Any, **options: Any) -> Callable[..., None]:
    """The function compiled for one signature, from the cache of an earlier process if there is one.

    Args:
        signature: numba's. options: Of `numba.njit`.
    """
    njit = importlib.import_module("numba").njit
    try:
        loop: Callable[..., None] = njit(signature, cache=True, **options)(function)
    except Exception as error:  # the cache's folder may be read-only, full or broken in any way; the loop is not
        loop = njit(signature, **options)(function)
        warnings.warn(
            f"compiled code is not kept for the next process ({error}); set NUMBA_CACHE_DIR to a writable folder",
            RuntimeWarning,
            stacklevel=3,
        )
    return loop
