"""Directions stored as int8: made from descriptors, and compared without decoding them first."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from worker.core.types import Descriptors, FloatArray
from worker.errors import DescriptorInvalid
from worker.kernels.jit import compiled, reordered
from worker.kernels.threads import thread_pool

_WORTH_A_THREAD_BYTES = 64 << 20
_INFINITE_BITS = 0x7F800000
"""Of a float32's bits without its sign: those of finite numbers are smaller, in their order."""


def stored_directions(made: Descriptors) -> Descriptors:
    """What the int8 codec of :mod:`worker.index.codec` makes of float32 descriptors, to the bit:
    int8 of the same shapes, (n, d) and (n, cells, d). Those that are int8 are taken as they are.

    Raises :class:`DescriptorInvalid` for a row that is NaN, infinite or zero.
    """
    return Descriptors(_stored(made.global_nd), _stored(made.patches_ncd))


def _stored(descriptors: np.ndarray) -> np.ndarray:
    if descriptors.dtype == np.int8:
        return descriptors
    rows_nd = np.ascontiguousarray(descriptors, dtype=np.float32)
    rows_nd = rows_nd.reshape(-1, rows_nd.shape[-1])
    stored_nd = np.empty(rows_nd.shape, dtype=np.int8)
    if not _store(rows_nd, rows_nd.view(np.int32), stored_nd):
        raise DescriptorInvalid("a descriptor is NaN, infinite or zero: it has no direction")
    return stored_nd.reshape(descriptors.shape)


def warm_up() -> None:
    """Compile or load what stores descriptors now, so that no commit waits for it (a second)."""
    one_nd = np.ones((1, 1), dtype=np.float32)
    stored_directions(Descriptors(one_nd, one_nd[None]))


@compiled
def _store(rows_nd: np.ndarray, bits_nd: np.ndarray, stored_nd: np.ndarray) -> bool:
    """Whether every row has a direction. Bits are compared as integers: several at a time."""
    for row in range(rows_nd.shape[0]):
        peak = np.int32(0)
        for at in range(rows_nd.shape[1]):
            peak = max(peak, bits_nd[row, at] & np.int32(0x7FFFFFFF))
        if peak == 0 or peak >= _INFINITE_BITS:
            return False
        largest = np.float32(0)
        for at in range(rows_nd.shape[1]):
            if bits_nd[row, at] & np.int32(0x7FFFFFFF) == peak:
                largest = abs(rows_nd[row, at])
                break
        stretch = np.float32(127) / largest
        for at in range(rows_nd.shape[1]):
            stored_nd[row, at] = np.int8(np.rint(rows_nd[row, at] * stretch))
    return True


def direction_cosines(
    parts: Sequence[np.ndarray], query_d: FloatArray, threads: int = 1
) -> FloatArray:
    """``decode(stored) . query`` of several arrays, one after the other: float32 (sum of n,).

    ``parts``: rows int8 (n, d), which have unit length once decoded. ``threads`` share them where
    they are large.
    """
    query_d = np.ascontiguousarray(query_d, dtype=np.float32)
    ends = list(accumulate(len(part) for part in parts))
    cosines_n = np.empty(ends[-1] if ends else 0, dtype=np.float32)
    outs = [cosines_n[end - len(part) : end] for part, end in zip(parts, ends, strict=True)]
    if threads == 1 or sum(part.nbytes for part in parts) < _WORTH_A_THREAD_BYTES:
        for part, out in zip(parts, outs, strict=True):
            _cosines(part, query_d, out)
        return cosines_n
    for _ in thread_pool(threads).map(_cosines, parts, [query_d] * len(parts), outs):
        pass
    return cosines_n


@reordered
def _cosines(stored_nd: np.ndarray, query_d: np.ndarray, cosines_n: np.ndarray) -> None:
    for row in range(stored_nd.shape[0]):
        shared = np.float32(0)
        square = np.float32(0)
        for at in range(stored_nd.shape[1]):
            number = np.float32(stored_nd[row, at])
            shared += number * query_d[at]
            square += number * number
        cosines_n[row] = shared / max(np.sqrt(square), np.float32(1))
