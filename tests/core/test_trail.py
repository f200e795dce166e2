import numpy as np
import pytest

from worker.core.similarity import l2_normalise
from worker.core.trail import (
    LOST_LEVEL,
    accepting,
    belief_support,
    carry,
    first_belief,
    moved_box,
    resemblance,
    shifted_box,
)
from worker.core.types import Box, FloatArray, GridSize, IntArray
from worker.errors import InputInvalid

GRID = GridSize(16, 16)
CELLS = GRID.cells


def at(row: int, col: int) -> int:
    return row * GRID.w + col


def scene(*subject: int | None) -> tuple[FloatArray, FloatArray]:
    """A frame of orthogonal background cells with parts of a subject at some of them."""
    cells = np.zeros((CELLS, CELLS + 4), dtype=np.float32)
    cells[np.arange(CELLS), np.arange(CELLS)] = 1
    new = np.zeros(CELLS, dtype=np.float32)
    for part, cell in enumerate(subject):
        if cell is not None:
            cells[cell] = 0
            cells[cell, CELLS + part] = 1
            new[cell] = 1
    return cells, new


def belief_at(*cells: int) -> FloatArray:
    ids: IntArray = np.array(cells, dtype=np.int64)
    return first_belief(ids, np.ones(len(cells), dtype=np.float32), CELLS)


def test_belief_follows_a_moving_subject():
    first, _ = scene(at(4, 4), at(5, 4))
    moved, new = scene(at(5, 6), at(6, 6))
    step = carry(belief_at(at(4, 4), at(5, 4)), first, moved, new, GRID)
    assert (step.d_row, step.d_col) == (1, 2)
    assert np.flatnonzero(step.belief_c).tolist() == [at(5, 6), at(6, 6)]
    assert belief_support(step.belief_c, 2) == pytest.approx(1)


def test_a_subject_that_left_is_lost():
    first, _ = scene(at(4, 4))
    empty, new = scene()
    step = carry(belief_at(at(4, 4)), first, empty, new, GRID)
    assert belief_support(step.belief_c, 1) < LOST_LEVEL


def test_nothing_jumps_across_the_picture():
    first, _ = scene(at(0, 0))
    far, new = scene(at(15, 15))
    assert carry(belief_at(at(0, 0)), first, far, new, GRID).belief_c.max() == 0


def test_parts_that_move_apart_do_not_both_follow():
    first, _ = scene(at(8, 8), at(8, 9))
    apart, new = scene(at(8, 6), at(8, 11))  # the one two cells left, the other two right
    step = carry(belief_at(at(8, 8), at(8, 9)), first, apart, new, GRID)
    assert np.count_nonzero(step.belief_c) == 1


def test_of_two_equal_ways_the_one_that_goes_on_straight_is_taken():
    first, _ = scene(at(8, 8))
    cells, new = scene(at(8, 6))
    cells[at(8, 10)] = cells[at(8, 6)]
    new[at(8, 10)] = 1
    for before, expected in (((0, 2), at(8, 10)), ((0, -2), at(8, 6))):
        step = carry(belief_at(at(8, 8)), first, cells, new, GRID, before)
        assert step.belief_c.argmax() == expected


def test_a_subject_at_the_edge_does_not_wrap_around():
    first, _ = scene(at(3, 15))
    wrapped, new = scene(at(4, 0))  # the next cell in row-major order
    assert carry(belief_at(at(3, 15)), first, wrapped, new, GRID).belief_c.max() == 0


def test_background_inside_the_box_carries_little():
    weight = np.array([1.0, 0.05], dtype=np.float32)
    belief = first_belief(np.array([at(4, 4), at(4, 5)]), weight, CELLS)
    assert belief[at(4, 5)] == pytest.approx(0.05)
    assert belief.max() == 1


def test_resemblance_prefers_what_is_new_in_the_query():
    cells, _ = scene(at(4, 4))
    weight = np.array([1.0, 0.05], dtype=np.float32)
    like = resemblance(cells[[at(4, 4), at(4, 5)]] @ cells.T, weight)
    assert like[at(4, 4)] == pytest.approx(1) and like[at(4, 5)] == pytest.approx(0.05)
    assert like[at(9, 9)] == 0
    assert accepting(np.ones(CELLS, dtype=np.float32), like)[at(4, 5)] == pytest.approx(
        np.sqrt(0.05)
    )


def test_nothing_believed_carries_nothing():
    cells = l2_normalise(np.random.default_rng(0).normal(size=(CELLS, 8)))
    nothing = np.zeros(CELLS, dtype=np.float32)
    step = carry(nothing, cells, cells, np.ones(CELLS, dtype=np.float32), GRID)
    assert not step.belief_c.any()


def test_one_cell_and_none():
    assert belief_support(np.array([0.5], dtype=np.float32), 1) == pytest.approx(0.5)
    with pytest.raises(InputInvalid):
        first_belief(np.array([], dtype=np.int64), np.ones(0, dtype=np.float32), CELLS)


def test_the_box_moves_with_the_belief_and_stays_inside():
    box = Box(0.25, 0.25, 0.375, 0.5)
    moved = moved_box(box, belief_at(at(4, 4)), belief_at(at(6, 5)), GRID)
    assert (moved.x0, moved.y0) == pytest.approx((0.25 + 1 / 16, 0.25 + 2 / 16))
    assert (moved.x1 - moved.x0, moved.y1 - moved.y0) == pytest.approx((0.125, 0.25))
    out = shifted_box(box, 2.0, -2.0)
    assert (out.x0, out.y0, out.x1, out.y1) == pytest.approx((0.875, 0.0, 1.0, 0.25))
