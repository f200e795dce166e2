"""Compilation that works wherever the package lies: on a full disk, read-only, without a home."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import structlog
from numba import njit

log = structlog.get_logger()

P = ParamSpec("P")
R = TypeVar("R")


_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
_REORDERED: dict[str, Any] = {**_OPTIONS, "fastmath": {"reassoc", "contract", "nsz"}}


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` as a part of compiled functions of the same file; kept on disk with them."""
    made: Callable[P, R] = njit(**_OPTIONS)(function)
    return made


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` as machine code that releases the GIL, compiled at its first call.

    The code is kept for the next start where numba can write: ``NUMBA_CACHE_DIR`` if set, else
    ``__pycache__`` beside the source, else the user's cache folder. Where none is writable, or what
    is kept cannot be read or written, every start compiles anew. ``function`` raises nothing itself
    but ``MemoryError``.
    """
    return _kept(function, _OPTIONS)


def reordered(function: Callable[P, R]) -> Callable[P, R]:
    """As :func:`compiled`, for sums whose order does not matter: they run several lanes at a time,
    so that the last bits depend on the machine."""
    return _kept(function, _REORDERED)


def _kept(function: Callable[P, R], options: dict[str, Any]) -> Callable[P, R]:
    fresh: Callable[P, R] = njit(**options)(function)
    try:
        kept = njit(cache=True, **options)(function)
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
