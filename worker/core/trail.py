"""A subject's trail: which cells of the next frame of its camera hold what these cells held.

A belief is a float32 (c,) map over a grid, largest value 1: how surely a cell shows the subject. It
is carried from frame to frame of one camera along equal descriptors of nearby cells that are not
background. All cells of a belief move together, by whole cells and one cell of slack each, so that
a belief keeps its shape and does not leak to a neighbour. No pixels and no detector are needed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from worker.core.background import TARGET_FLOOR, novelty_weight
from worker.core.types import Box, FloatArray, GridSize, IntArray
from worker.errors import InputInvalid

LINK_LEVEL = 0.4
"""Cosine at and below which two cells are not the same thing."""
LOST_LEVEL = 0.2
"""Support below which the subject is lost and the trail ends."""
STEP_DECAY = 0.97
"""What each step takes from the certainty that it is still the same subject."""
REACH_SHARE = 0.125
"""How far a subject may move between two sampled frames, as a share of the picture's side."""
TURN_PRICE = 0.02
"""What a displacement loses per cell that it differs from the one before."""
SOURCE_LEVEL = 0.1
"""Cells of a belief at and below this carry nothing on."""


class Step(NamedTuple):
    """One step of a trail. ``belief_c``: float32 (c,), not rescaled. ``d_row``, ``d_col``: the
    displacement, in cells."""

    belief_c: FloatArray
    d_row: int
    d_col: int


def first_belief(patch_ids: IntArray, weight_q: FloatArray, cells: int) -> FloatArray:
    """Belief on the query's own frame: its cells' weights, 0 outside the ROI; maximum 1."""
    if patch_ids.size == 0:
        raise InputInvalid("a trail starts from at least one cell")
    belief_c = np.zeros(cells, dtype=np.float32)
    belief_c[patch_ids] = weight_q / weight_q.max()
    return belief_c


def link_strength(similarity_any: FloatArray) -> FloatArray:
    """Cosine above ``LINK_LEVEL``, scaled to 0..1: float32, same shape."""
    scaled: FloatArray = np.clip((similarity_any - LINK_LEVEL) / (1 - LINK_LEVEL), 0, 1)
    return scaled


def resemblance(cosine_qc: FloatArray, weight_q: FloatArray) -> FloatArray:
    """How much each cell still looks like some part of the query: float32 (c,), 0..1.

    The strongest link over the query's cells, each weighted by ``weight_q`` (q,), from their
    cosines with the cells.
    """
    linked_qc = link_strength(cosine_qc)
    best_c: FloatArray = (linked_qc * (weight_q / weight_q.max())[:, None]).max(axis=0)
    return best_c


def carry(
    belief_c: FloatArray,
    from_cd: FloatArray,
    to_cd: FloatArray,
    accept_c: FloatArray,
    grid: GridSize,
    before: tuple[int, int] = (0, 0),
) -> Step:
    """Carry a belief to the next frame.

    ``l_ij`` is the link of cell i to cell j times ``accept_c`` (c,), 0..1, which says what cell j
    can hold. The displacement maximises ``sum_i b_i l_(i, i + delta) / sum_i b_i`` less
    ``TURN_PRICE`` per cell of difference from ``before`` (d_row, d_col), the one of the last step;
    equal ones go to the lower (d_row, d_col). Then ``b'_j = max_i b_i l_ij`` over the i that the
    displacement brings to within one cell of j.
    """
    sources = np.flatnonzero(belief_c > SOURCE_LEVEL)
    if sources.size == 0:
        return Step(np.zeros_like(belief_c), 0, 0)
    held_s = belief_c[sources]
    link_sc = link_strength(from_cd[sources] @ to_cd.T) * accept_c
    rows, cols = np.divmod(np.arange(grid.cells), grid.w)
    d_row, d_col = _displacement(held_s, link_sc, rows[sources], cols[sources], grid, before)
    near_sc = (np.abs(rows - (rows[sources] + d_row)[:, None]) <= 1) & (
        np.abs(cols - (cols[sources] + d_col)[:, None]) <= 1
    )
    carried = (held_s[:, None] * link_sc * near_sc).max(axis=0)
    return Step(carried.astype(np.float32), d_row, d_col)


def _displacement(
    held_s: FloatArray,
    link_sc: FloatArray,
    row_s: IntArray,
    col_s: IntArray,
    grid: GridSize,
    before: tuple[int, int],
) -> tuple[int, int]:
    reach_row = max(2, int(REACH_SHARE * grid.h))
    reach_col = max(2, int(REACH_SHARE * grid.w))
    d_row, d_col = np.mgrid[-reach_row : reach_row + 1, -reach_col : reach_col + 1]
    d_row, d_col = d_row.ravel(), d_col.ravel()
    row, col = row_s + d_row[:, None], col_s + d_col[:, None]
    inside = (row >= 0) & (row < grid.h) & (col >= 0) & (col < grid.w)
    cell = np.where(inside, row * grid.w + col, 0)
    linked = np.where(inside, link_sc[np.arange(len(held_s)), cell], 0)
    gain = (linked * held_s).sum(axis=1, dtype=np.float64) / held_s.sum(dtype=np.float64)
    gain -= TURN_PRICE * np.hypot(d_row - before[0], d_col - before[1])
    best = int(gain.argmax())
    return int(d_row[best]), int(d_col[best])


def accepting(novelty_c: FloatArray, resemblance_c: FloatArray) -> FloatArray:
    """What a cell can hold: its novelty weight times the root of its resemblance, (c,), 0..1."""
    accept_c: FloatArray = novelty_weight(novelty_c, TARGET_FLOOR) * np.sqrt(resemblance_c)
    return accept_c


def belief_support(belief_c: FloatArray, query_cells: int) -> float:
    """Mean over the strongest cells, half as many as the query has: 0..1."""
    count = max(1, query_cells // 2)
    return float(np.partition(belief_c, -count)[-count:].mean(dtype=np.float64))


def moved_box(box: Box, first_c: FloatArray, belief_c: FloatArray, grid: GridSize) -> Box:
    """The query's box, moved as the centre of the belief moved; kept inside the picture.

    Centres are means of cell centres weighted by the fourth power of the belief, so finer than a
    cell. ``first_c``: the belief on the query's frame.
    """
    x_from, y_from = _centre(first_c, grid)
    x_to, y_to = _centre(belief_c, grid)
    return shifted_box(box, x_to - x_from, y_to - y_from)


def shifted_box(box: Box, d_x: float, d_y: float) -> Box:
    """``box`` moved by normalised offsets, pushed back inside the picture where it would leave."""
    x0 = min(max(box.x0 + d_x, 0.0), 1.0 - (box.x1 - box.x0))
    y0 = min(max(box.y0 + d_y, 0.0), 1.0 - (box.y1 - box.y0))
    return Box(x0, y0, x0 + (box.x1 - box.x0), y0 + (box.y1 - box.y0))


def _centre(belief_c: FloatArray, grid: GridSize) -> tuple[float, float]:
    rows, cols = np.divmod(np.arange(grid.cells), grid.w)
    weight = belief_c.astype(np.float64) ** 4
    total = weight.sum()
    x, y = ((cols + 0.5) * weight).sum() / total, ((rows + 0.5) * weight).sum() / total
    return float(x / grid.w), float(y / grid.h)
