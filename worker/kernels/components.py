"""Largest connected set of matches per candidate, as machine code; see ``region_growing``.

Loads numba: import it only where it is about to run.

A pair (query patch i, cell j) has the number ``i * (c + 1) + j``. Row q and column c are never
matches: the step tables lead there when a step leaves the query or the grid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worker.core.types import BoolArray, FloatArray, IntArray
from worker.kernels.jit import compiled, inlined


@inlined
def _mark(
    similarity_qc: FloatArray, tau: np.float32, row_major: IntArray, waiting: BoolArray
) -> int:
    """Mark all matches as waiting; their number."""
    q, c = similarity_qc.shape
    count = 0
    for i in range(q):
        similarity_c = similarity_qc[row_major[i]]
        waiting_c = waiting[i * (c + 1) : i * (c + 1) + c]
        for j in range(c):
            matches = similarity_c[j] >= tau
            waiting_c[j] = matches
            count += matches
    return count


@inlined
def _grow(
    i: int,
    j: int,
    waiting: BoolArray,
    query_next: IntArray,
    cell_next: IntArray,
    grown: IntArray,
) -> int:
    """Move the component of waiting pair (i, j) to the start of ``grown``; its size."""
    width = cell_next.shape[0] + 1
    waiting[i * width + j] = False
    grown[0, 0], grown[0, 1] = i, j
    size, at = 1, 0
    while at < size:
        i, j = grown[at, 0], grown[at, 1]
        for step in range(query_next.shape[1]):
            next_i, next_j = query_next[i, step], cell_next[j, step]
            if waiting[next_i * width + next_j]:
                waiting[next_i * width + next_j] = False
                grown[size, 0], grown[size, 1] = next_i, next_j
                size += 1
        at += 1
    return size


@inlined
def _sum(similarity_qc: FloatArray, row_major: IntArray, grown: IntArray, size: int) -> float:
    total = 0.0
    for at in range(size):
        total += similarity_qc[row_major[grown[at, 0]], grown[at, 1]]
    return total


@inlined
def _copy(pairs: IntArray, count: int, to: IntArray, start: int) -> None:
    # A loop: assigned slices take numba longer to compile than all the rest.
    for at in range(count):
        to[start + at, 0], to[start + at, 1] = pairs[at, 0], pairs[at, 1]


@inlined
def _with_room(pairs: IntArray, used: int, more: int) -> IntArray:
    if used + more <= pairs.shape[0]:
        return pairs
    longer = np.empty((max(2 * pairs.shape[0], used + more), 2), dtype=pairs.dtype)
    _copy(pairs, used, longer, 0)
    return longer


@compiled
def best_components(
    similarity_mqc: FloatArray,
    tau_m: FloatArray,
    row_major: IntArray,
    query_next: IntArray,
    cell_next: IntArray,
) -> tuple[IntArray, IntArray, NDArray[np.float64]]:
    """Pairs of the best component of every candidate, and how surely it is the best.

    ``similarity_mqc`` float32 (m, q, c), ``tau_m`` float32 (m,), ``row_major`` int64 (q,) the query
    patches by (row, col). ``query_next`` and ``cell_next`` int64 (q, steps) and (c, steps): where
    each step leads, as positions in ``row_major`` (q outside) and cells (c outside).

    Returns int64 (n, 2) pairs (position in ``row_major``, cell) of all candidates in a row, in no
    order; int64 (m,) the end of each candidate's; float64 (m,) how far the best component's sum
    lies above the next one of its size, inf without one.
    """
    m, q, c = similarity_mqc.shape
    waiting = np.zeros((q + 1) * (c + 1), dtype=np.bool_)
    grown = np.empty((q * c, 2), dtype=np.int64)
    best = np.empty((q * c, 2), dtype=np.int64)
    pairs = np.empty((m * q, 2), dtype=np.int64)
    end_m = np.zeros(m, dtype=np.int64)
    lead_m = np.empty(m, dtype=np.float64)
    end = 0
    for n in range(m):
        left = _mark(similarity_mqc[n], tau_m[n], row_major, waiting)
        best_size, best_sum, next_sum = 0, -np.inf, -np.inf
        # In this order the first pair of a component is its seed, and lower seeds come first.
        for i in range(q):
            if left < best_size:
                break
            for j in range(c):
                if not waiting[i * (c + 1) + j]:
                    continue
                size = _grow(i, j, waiting, query_next, cell_next, grown)
                left -= size
                if size < best_size:
                    continue
                total = _sum(similarity_mqc[n], row_major, grown, size)
                if size > best_size:
                    best_size, best_sum, next_sum = size, total, -np.inf
                    grown, best = best, grown
                elif total > best_sum:
                    best_sum, next_sum = total, best_sum
                    grown, best = best, grown
                else:
                    next_sum = max(next_sum, total)
        lead_m[n] = best_sum - next_sum
        pairs = _with_room(pairs, end, best_size)
        _copy(best, best_size, pairs, end)
        end += best_size
        end_m[n] = end
    return pairs[:end], end_m, lead_m
