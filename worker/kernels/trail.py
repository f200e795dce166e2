"""One step of a subject's trail; its reference is ``worker.core.trail``."""

from __future__ import annotations

from math import hypot

import numpy as np

from worker.core.trail import LINK_LEVEL, REACH_SHARE, SOURCE_LEVEL, TURN_PRICE, Step
from worker.core.types import FloatArray, GridSize
from worker.kernels.jit import compiled


def carry(
    belief_c: FloatArray,
    from_cd: FloatArray,
    to_cd: FloatArray,
    accept_c: FloatArray,
    grid: GridSize,
    before: tuple[int, int] = (0, 0),
) -> Step:
    """:func:`worker.core.trail.carry`; sums differ in their last bits."""
    sources = np.flatnonzero(belief_c > SOURCE_LEVEL)
    if sources.size == 0:
        return Step(np.zeros_like(belief_c), 0, 0)
    cosine_sc = from_cd[sources] @ to_cd.T
    carried_c = np.zeros(grid.cells, dtype=np.float32)
    d_row, d_col = _carried(
        belief_c[sources], sources, cosine_sc, accept_c, grid.h, grid.w, *before, carried_c
    )
    return Step(carried_c, int(d_row), int(d_col))


@compiled
def _carried(
    held_s: np.ndarray,
    sources: np.ndarray,
    cosine_sc: np.ndarray,
    accept_c: np.ndarray,
    h: int,
    w: int,
    before_row: int,
    before_col: int,
    carried_c: np.ndarray,
) -> tuple[int, int]:
    """Fills ``carried_c`` and returns the displacement."""
    scale = np.float32(1 - LINK_LEVEL)
    for source in range(cosine_sc.shape[0]):
        for cell in range(cosine_sc.shape[1]):
            strength = (cosine_sc[source, cell] - np.float32(LINK_LEVEL)) / scale
            strength = min(max(strength, np.float32(0)), np.float32(1))
            cosine_sc[source, cell] = strength * accept_c[cell]
    held = 0.0
    for source in range(held_s.shape[0]):
        held += np.float64(held_s[source])
    reach_row, reach_col = max(2, int(REACH_SHARE * h)), max(2, int(REACH_SHARE * w))
    best, best_row, best_col = -np.inf, 0, 0
    for d_row in range(-reach_row, reach_row + 1):
        for d_col in range(-reach_col, reach_col + 1):
            gain = 0.0
            for source in range(held_s.shape[0]):
                row, col = sources[source] // w + d_row, sources[source] % w + d_col
                if 0 <= row < h and 0 <= col < w:
                    gain += np.float64(held_s[source] * cosine_sc[source, row * w + col])
            gain = gain / held - TURN_PRICE * hypot(d_row - before_row, d_col - before_col)
            if gain > best:
                best, best_row, best_col = gain, d_row, d_col
    for source in range(held_s.shape[0]):
        row, col = sources[source] // w + best_row, sources[source] % w + best_col
        for near_row in range(max(0, row - 1), min(h, row + 2)):
            for near_col in range(max(0, col - 1), min(w, col + 2)):
                cell = near_row * w + near_col
                value = held_s[source] * cosine_sc[source, cell]
                carried_c[cell] = max(carried_c[cell], value)
    return best_row, best_col


def warm_up() -> None:
    """Compile or load the kernel now, so that no query waits for it (seconds)."""
    one_c = np.ones(1, dtype=np.float32)
    carry(one_c, one_c[None], one_c[None], one_c, GridSize(1, 1))
