"""Compact codes of cell runs: each row has its code once, however many frames it stands in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.core.coarse import best_similarity
from worker.core.compact import Codes
from worker.core.types import BoolArray, FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class RunCodes:
    """Codes of rows and the runs that say where they stand. ``codes_rk``: int8 (rows, k).

    ``offset_r``: uint32 (rows + 1,), where a row's runs begin in ``span_m2``, uint16 (runs, 2),
    first and last frame. ``cell_r``: uint16 (rows,).
    """

    frames: int
    cells: int
    codes_rk: Codes
    offset_r: NDArray[np.uint32]
    cell_r: NDArray[np.uint16]
    span_m2: NDArray[np.uint16]

    def expand(self, first: int, end: int) -> Codes:
        """Codes of every cell of frames ``first`` to ``end``, int8 (n, cells, k)."""
        begin, last = (self.span_m2[:, at].astype(np.int64) for at in (0, 1))
        runs_r = np.diff(self.offset_r).astype(np.int64)
        row = np.repeat(np.arange(runs_r.size), runs_r)
        here = np.flatnonzero((begin < end) & (last >= first))
        begin, last = np.maximum(begin[here], first), np.minimum(last[here], end - 1)
        length = last - begin + 1
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        frame = np.repeat(begin, length) + within - first
        row = np.repeat(row[here], length)
        rows_nc = np.empty((end - first, self.cells), dtype=np.int64)
        rows_nc[frame, self.cell_r[row]] = row
        codes: Codes = self.codes_rk[rows_nc]
        return codes


def best_similarity_of_runs(
    run_codes: RunCodes,
    step: float,
    query_qk: FloatArray,
    background_ck: FloatArray | None,
    inside_c: BoolArray | None = None,
) -> FloatArray:
    """:func:`worker.core.coarse.best_similarity` of every frame, float32 (frames, q).

    The slow reference of :mod:`worker.kernels.run_codes`.
    """
    codes_nck = run_codes.expand(0, run_codes.frames)
    return best_similarity(codes_nck, step, query_qk, background_ck, inside_c)
