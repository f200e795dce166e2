"""Compilation that works wherever the package lies: on a full disk, read-only, without a home."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import structlog
from numba import njit

log = structlog.get_logger()

P = ParamSpec("P")
R = TypeVar("R")


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` as a part of compiled functions of the same file; kept on disk with them."""
    made: Callable[P, R] = njit(nogil=True, error_model="numpy")(function)
    return made


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` as machine code that releases the GIL, compiled at its first call.

    The code is kept for the next start where numba can write: ``NUMBA_CACHE_DIR`` if set, else
    ``__pycache__`` beside the source, else the user's cache folder. Where none is writable, or what
    is kept cannot be read or written, every start compiles anew. ``function`` raises nothing itself
    but ``MemoryError``.
    """
    fresh = inlined(function)
    try:
        kept = njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError as error:
        log.info("kernel_not_kept", detail=str(error))
        return fresh
    kept_works = True

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal kept_works
        if kept_works:
            try:
                result: R = kept(*args, **kwargs)
                return result
            except Exception as error:
                # A damaged file raises whatever its bytes lead to, a full disk OSError.
                kept_works = False
                folder = kept.stats.cache_path
                log.warning("kernel_not_kept", folder=folder, detail=repr(error))
        return fresh(*args, **kwargs)

    return call
