"""Cosines of query rows with directions stored as int8, by 8-bit products, without decoding them.

The reference is ``codec.decode(stored) @ query.T``. A query row is written as two bytes a number,
so that a cosine stays within 2e-5 of the reference; the products themselves are exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from worker.core.types import BoolArray, FloatArray
from worker.kernels.jit import reordered
from worker.kernels.products import LEAST_ROWS, multiply
from worker.kernels.queries import ByteQuery, byte_query

_ROWS_AT_ONCE = 4096


def cell_cosines(stored_ncd: np.ndarray, query: ByteQuery) -> FloatArray:
    """Of every cell of n frames, int8 (n, c, d), with every query row: float32 (n, q, c)."""
    n, c, _ = stored_ncd.shape
    cosine_nqc = np.empty((n, query.count, c), dtype=np.float32)
    for part, products in _products(stored_ncd, query):
        _spread(stored_ncd[part], products, query.unit_q, cosine_nqc[part])
    return cosine_nqc


def best_cosines(
    stored_ncd: np.ndarray, query: ByteQuery, inside_c: BoolArray | None = None
) -> FloatArray:
    """The greatest of :func:`cell_cosines` over the cells that are looked at, float32 (n, q)."""
    n, c, _ = stored_ncd.shape
    inside = np.ones(c, dtype=np.bool_) if inside_c is None else inside_c
    best_nq = np.empty((n, query.count), dtype=np.float32)
    for part, products in _products(stored_ncd, query):
        _best(stored_ncd[part], products, query.unit_q, inside, best_nq[part])
    return best_nq


def _products(stored_ncd: np.ndarray, query: ByteQuery) -> Any:
    """Frames a few at a time, as a slice, and their products, int32 (m, c, w)."""
    n, c, d = stored_ncd.shape
    width = int(query.columns_dw.shape[1])
    step = max(1, min(n, _ROWS_AT_ONCE // c))
    out = np.empty((max(step * c, LEAST_ROWS), width), dtype=np.int32)
    for start in range(0, n, step):
        part = slice(start, min(start + step, n))
        rows = np.ascontiguousarray(stored_ncd[part]).reshape(-1, d)
        if len(rows) < LEAST_ROWS:
            padded = np.zeros((LEAST_ROWS, d), dtype=np.int8)
            padded[: len(rows)] = rows
            multiply(padded, query.columns_dw, out[:LEAST_ROWS])
        else:
            multiply(rows, query.columns_dw, out[: len(rows)])
        yield part, out[: len(rows)].reshape(part.stop - start, c, width)


def cosines_of_cells(stored_ncd: np.ndarray, other_cd: FloatArray) -> FloatArray:
    """Of every cell of n frames, int8 (n, c, d), with that cell's row, float32 (n, c). A frame's
    do not depend on the others."""
    cosine_nc = np.empty(stored_ncd.shape[:2], dtype=np.float32)
    _of_cells(stored_ncd, np.ascontiguousarray(other_cd, dtype=np.float32), cosine_nc)
    return cosine_nc


def warm_up() -> None:
    """Compile or load the kernels now, so that no query waits for them (seconds)."""
    stored_ncd = np.ones((1, LEAST_ROWS, 64), dtype=np.int8)
    rows_qd = np.ones((1, 64), dtype=np.float32)
    cosines_of_cells(stored_ncd, np.ones((LEAST_ROWS, 64), dtype=np.float32))
    cell_cosines(stored_ncd, byte_query(rows_qd))
    best_cosines(stored_ncd, byte_query(rows_qd))


@reordered
def _spread(
    stored: np.ndarray, products: np.ndarray, unit_q: np.ndarray, cosine_nqc: np.ndarray
) -> None:
    n, cells, d = stored.shape
    queries = unit_q.shape[0]
    for frame in range(n):
        for cell in range(cells):
            square = np.int32(0)
            for at in range(d):
                number = np.int32(stored[frame, cell, at])
                square += number * number
            scale = np.float32(1) / np.sqrt(np.float32(max(square, np.int32(1))))
            for query in range(queries):
                whole = np.float32(256) * np.float32(products[frame, cell, query])
                whole += np.float32(products[frame, cell, queries + query])
                cosine_nqc[frame, query, cell] = whole * unit_q[query] * scale


@reordered
def _best(
    stored: np.ndarray,
    products: np.ndarray,
    unit_q: np.ndarray,
    inside: np.ndarray,
    best_nq: np.ndarray,
) -> None:
    n, cells, d = stored.shape
    queries = unit_q.shape[0]
    best = np.empty(queries, dtype=np.float32)
    for frame in range(n):
        for query in range(queries):
            best[query] = -np.inf
        for cell in range(cells):
            if not inside[cell]:
                continue
            square = np.int32(0)
            for at in range(d):
                number = np.int32(stored[frame, cell, at])
                square += number * number
            scale = np.float32(1) / np.sqrt(np.float32(max(square, np.int32(1))))
            for query in range(queries):
                whole = np.float32(256) * np.float32(products[frame, cell, query])
                whole += np.float32(products[frame, cell, queries + query])
                value = whole * scale
                best[query] = value if value > best[query] else best[query]
        for query in range(queries):
            best_nq[frame, query] = best[query] * unit_q[query]


@reordered
def _of_cells(stored: np.ndarray, other: np.ndarray, cosine_nc: np.ndarray) -> None:
    n, cells, d = stored.shape
    for frame in range(n):
        for cell in range(cells):
            shared = np.float32(0)
            square = np.float32(0)
            for at in range(d):
                number = np.float32(stored[frame, cell, at])
                shared += number * other[cell, at]
                square += number * number
            cosine_nc[frame, cell] = shared / max(np.sqrt(square), np.float32(1))
