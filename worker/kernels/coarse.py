"""The scan over compact codes with 8-bit products; its reference is ``worker.core.coarse``."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import numpy as np

from worker.core.background import FULL_NOVELTY, TARGET_FLOOR
from worker.core.compact import Codes
from worker.core.types import BoolArray, FloatArray
from worker.kernels.jit import reordered
from worker.kernels.products import multiply
from worker.kernels.queries import rounded_query
from worker.kernels.threads import thread_pool

FRAMES_PER_CHUNK = 256
"""What one thread takes at a time."""
_FRAMES_AT_ONCE = 32
"""Their products stay in a core's second-level cache until their maximum is taken."""


def best_similarities(
    chunks: Iterable[tuple[int, Codes]],
    frames: int,
    step: float,
    query_qk: FloatArray,
    background_ck: FloatArray | None,
    threads: int,
    cells: int,
    inside_c: BoolArray | None = None,
) -> FloatArray:
    """:func:`worker.core.coarse.best_similarity` of ``frames`` frames given in chunks, each with
    the position of its first: float32 (frames, q).

    Chunks are int8 (n, at least ``cells``, k): rows behind the cells are not looked at. Query rows
    are rounded to 8 bits too, each with its own scale; a cosine stays within 0.01.
    """
    query_kw, scale_q = rounded_query(query_qk, step)
    width = int(query_kw.shape[1])
    best_nq = np.empty((frames, len(query_qk)), dtype=np.float32)
    known = background_ck is not None
    background = np.ascontiguousarray(background_ck if known else np.empty((0, 0), np.float32))
    inside = np.ones(cells, dtype=np.bool_) if inside_c is None else inside_c
    own = threading.local()

    def scan(part: tuple[int, Codes]) -> None:
        first, codes_npk = part
        for start in range(0, len(codes_npk), _FRAMES_AT_ONCE):
            codes = np.ascontiguousarray(codes_npk[start : start + _FRAMES_AT_ONCE])
            n, rows, k = codes.shape
            if getattr(own, "rows", 0) != n * rows:  # memory that is kept is in the cache
                own.rows = n * rows
                own.product = np.empty((n * rows, width), dtype=np.int32)
            multiply(codes.reshape(-1, k), query_kw, own.product)
            product = own.product.reshape(n, rows, width)
            best = best_nq[first + start : first + start + n]
            _weighted_maximum(codes, background, product, inside, best)

    if threads == 1 or frames <= _FRAMES_AT_ONCE:
        for part in chunks:
            scan(part)
    else:
        for done in [thread_pool(threads).submit(scan, part) for part in chunks]:
            done.result()
    best_nq *= scale_q
    return best_nq


FLOOR = np.float32(TARGET_FLOOR)
FULL = np.float32(FULL_NOVELTY)


@reordered
def _weighted_maximum(
    codes: np.ndarray,
    background: np.ndarray,
    product: np.ndarray,
    inside: np.ndarray,
    best_nq: np.ndarray,
) -> None:
    """An empty background weighs every cell alike."""
    n, _, k = codes.shape
    cells = inside.shape[0]
    queries = best_nq.shape[1]
    known = background.shape[0] > 0
    weight = np.ones(cells, dtype=np.float32)
    best = np.empty(queries, dtype=np.float32)
    for frame in range(n):
        if known:
            for cell in range(cells):
                if not inside[cell]:
                    continue
                shared = np.float32(0)
                square = np.float32(0)
                for at in range(k):
                    code = np.float32(codes[frame, cell, at])
                    shared += code * background[cell, at]
                    square += code * code
                norm = max(np.sqrt(square), np.float32(1e-6))
                novelty = (np.float32(1) - shared / norm) / FULL
                weight[cell] = np.sqrt(min(max(novelty, FLOOR), np.float32(1)))
        for query in range(queries):
            best[query] = -np.inf
        for cell in range(cells):
            if not inside[cell]:
                continue
            for query in range(queries):
                value = np.float32(product[frame, cell, query]) * weight[cell]
                best[query] = value if value > best[query] else best[query]
        for query in range(queries):
            best_nq[frame, query] = best[query]
