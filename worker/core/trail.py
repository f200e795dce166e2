"""A subject's trail: which cells of the next frame of its camera hold what these cells held.

A belief is a float32 (c,) map over a grid, largest value 1: how surely a cell shows the subject. It
is carried from frame to frame of one camera along equal descriptors of nearby cells that are not
background (a max-product step). Pixels are not needed, and no detector.
"""

from __future__ import annotations

import numpy as np

from worker.core.background import QUERY_FLOOR, TARGET_FLOOR, novelty_weight
from worker.core.types import BoolArray, FloatArray, GridSize, IntArray
from worker.errors import InputInvalid

LINK_LEVEL = 0.4
"""Cosine at and below which two cells are not the same thing."""
LOST_LEVEL = 0.2
"""Support below which the subject is lost and the trail ends."""
STEP_DECAY = 0.97
"""What each step takes from the certainty that it is still the same subject."""
REACH_SHARE = 0.125
"""How far a subject may move between two sampled frames, as a share of the picture's side."""


def first_belief(patch_ids: IntArray, novelty_c: FloatArray) -> FloatArray:
    """Belief on the query's own frame: novelty weight inside the ROI, 0 outside; maximum 1."""
    if patch_ids.size == 0:
        raise InputInvalid("a trail starts from at least one cell")
    belief_c = np.zeros(novelty_c.shape, dtype=np.float32)
    belief_c[patch_ids] = novelty_weight(novelty_c[patch_ids], QUERY_FLOOR)
    belief_c /= belief_c.max()
    return belief_c


def reachable(grid: GridSize) -> BoolArray:
    """Which cells lie within one step's reach of each other: bool (c, c), square windows."""
    rows, cols = np.divmod(np.arange(grid.cells), grid.w)
    row_reach = max(2, round(REACH_SHARE * grid.h))
    col_reach = max(2, round(REACH_SHARE * grid.w))
    near: BoolArray = (np.abs(rows[:, None] - rows) <= row_reach) & (
        np.abs(cols[:, None] - cols) <= col_reach
    )
    return near


def carried_belief(
    belief_c: FloatArray,
    from_cd: FloatArray,
    to_cd: FloatArray,
    to_novelty_c: FloatArray,
    near_cc: BoolArray,
) -> FloatArray:
    """Belief on the next frame, not rescaled: float32 (c,).

    ``b'_j = v_j max_i b_i l(cos(p_i, p'_j)) near_ij`` with ``l`` the cosine above ``LINK_LEVEL``
    scaled to 0..1 and ``v`` the novelty weight. Cells of a tenth of the belief and less carry
    nothing.
    """
    sources = np.flatnonzero(belief_c > 0.1)
    if sources.size == 0:
        return np.zeros_like(belief_c)
    link_sc = np.clip((from_cd[sources] @ to_cd.T - LINK_LEVEL) / (1 - LINK_LEVEL), 0, 1)
    link_sc *= near_cc[sources]
    best_c = (belief_c[sources, None] * link_sc).max(axis=0)
    carried: FloatArray = best_c * novelty_weight(to_novelty_c, TARGET_FLOOR)
    return carried


def resemblance(query_qd: FloatArray, weight_q: FloatArray, to_cd: FloatArray) -> FloatArray:
    """How much each cell still looks like some part of the query: float32 (c,), 0..1.

    The best cosine above ``LINK_LEVEL`` over the query's cells, weighted by ``weight_q`` (q,).
    """
    above_qc = np.clip((query_qd @ to_cd.T - LINK_LEVEL) / (1 - LINK_LEVEL), 0, 1)
    best_c: FloatArray = (above_qc * (weight_q / weight_q.max())[:, None]).max(axis=0)
    return best_c


def belief_support(belief_c: FloatArray, query_cells: int) -> float:
    """Mean over the strongest cells, half as many as the query has: 0..1."""
    count = max(1, query_cells // 2)
    return float(np.partition(belief_c, -count)[-count:].mean(dtype=np.float64))
