"""The scan over codes of cell runs; its reference is ``worker.core.run_codes``.

A row's similarity holds for all frames of its runs, so each is computed once. The greatest per
frame is found with one table per power of two: a run is covered by two spans of that length, and at
the end the tables are folded into one another.
"""

from __future__ import annotations

import numpy as np

from worker.core.run_codes import RunCodes
from worker.core.types import BoolArray, FloatArray
from worker.kernels.coarse import FLOOR, FULL
from worker.kernels.jit import reordered
from worker.kernels.products import LEAST_ROWS, multiply
from worker.kernels.queries import rounded_query

_ROWS_AT_ONCE = 4096
"""Their products stay in a core's second-level cache."""
_TABLE_BYTES = 64 * 1024 * 1024
"""Of the tables of one shard; where they would be larger, query rows are taken part by part."""


def best_similarities_of_runs(
    run_codes: RunCodes,
    step: float,
    query_qk: FloatArray,
    background_ck: FloatArray | None,
    inside_c: BoolArray | None = None,
) -> FloatArray:
    """:func:`worker.core.run_codes.best_similarity_of_runs`, on one thread: float32 (frames, q).

    Query rows are rounded to 8 bits too; a cosine stays within 0.01.
    """
    q, levels = len(query_qk), max(1, run_codes.frames.bit_length())
    at_once = max(16, _TABLE_BYTES // (4 * levels * run_codes.frames))
    if q > at_once:
        parts = [
            best_similarities_of_runs(
                run_codes, step, query_qk[first : first + at_once], background_ck, inside_c
            )
            for first in range(0, q, at_once)
        ]
        return np.concatenate(parts, axis=1)
    query_kw, scale_q = rounded_query(query_qk, step)
    width = int(query_kw.shape[1])
    known = background_ck is not None
    background = np.ascontiguousarray(background_ck if known else np.empty((0, 0), np.float32))
    inside = np.ones(run_codes.cells, dtype=np.bool_) if inside_c is None else inside_c
    best_lnq = np.full((levels, run_codes.frames, q), -np.inf, dtype=np.float32)
    product = np.empty((_ROWS_AT_ONCE, width), dtype=np.int32)
    codes_rk, rows = run_codes.codes_rk, len(run_codes.codes_rk)
    for first in range(0, rows, _ROWS_AT_ONCE):
        end = min(first + _ROWS_AT_ONCE, rows)
        begin = max(0, min(first, end - LEAST_ROWS))  # the last few are taken with some before them
        out = product[: end - begin]
        multiply(codes_rk[begin:end], query_kw, out)
        _spread(
            codes_rk[first:end],
            run_codes.cell_r[first:end],
            run_codes.offset_r[first : end + 1],
            run_codes.span_m2,
            background,
            inside,
            out[first - begin :],
            best_lnq,
        )
    _fold(best_lnq)
    best_nq: FloatArray = best_lnq[0] * scale_q
    return best_nq


@reordered
def _spread(
    codes: np.ndarray,
    cell_r: np.ndarray,
    offset_r: np.ndarray,
    span_m2: np.ndarray,
    background: np.ndarray,
    inside: np.ndarray,
    product: np.ndarray,
    best_lnq: np.ndarray,
) -> None:
    """An empty background weighs every cell alike."""
    rows, k = codes.shape
    queries = best_lnq.shape[2]
    known = background.shape[0] > 0
    value = np.empty(queries, dtype=np.float32)
    for row in range(rows):
        if not inside[cell_r[row]]:
            continue
        weight = np.float32(1)
        if known:
            cell = cell_r[row]
            shared = np.float32(0)
            square = np.float32(0)
            for at in range(k):
                code = np.float32(codes[row, at])
                shared += code * background[cell, at]
                square += code * code
            norm = max(np.sqrt(square), np.float32(1e-6))
            novelty = (np.float32(1) - shared / norm) / FULL
            weight = np.sqrt(min(max(novelty, FLOOR), np.float32(1)))
        for query in range(queries):
            value[query] = np.float32(product[row, query]) * weight
        for run in range(offset_r[row], offset_r[row + 1]):
            first = np.int64(span_m2[run, 0])
            length = np.int64(span_m2[run, 1]) - first + 1
            level = 0
            while (np.int64(2) << level) <= length:
                level += 1
            second = first + length - (np.int64(1) << level)
            for query in range(queries):
                held = best_lnq[level, first, query]
                best_lnq[level, first, query] = value[query] if value[query] > held else held
            if second != first:
                for query in range(queries):
                    held = best_lnq[level, second, query]
                    best_lnq[level, second, query] = value[query] if value[query] > held else held


@reordered
def _fold(best_lnq: np.ndarray) -> None:
    levels, frames, queries = best_lnq.shape
    for level in range(levels - 1, 0, -1):
        half = 1 << (level - 1)
        for frame in range(frames - 2 * half + 1):
            for query in range(queries):
                value = best_lnq[level, frame, query]
                held = best_lnq[level - 1, frame, query]
                best_lnq[level - 1, frame, query] = value if value > held else held
                held = best_lnq[level - 1, frame + half, query]
                best_lnq[level - 1, frame + half, query] = value if value > held else held
