import numpy as np
import pytest

from worker.core.similarity import l2_normalise
from worker.core.trail import (
    LOST_LEVEL,
    belief_support,
    carried_belief,
    first_belief,
    reachable,
    resemblance,
)
from worker.core.types import FloatArray, GridSize
from worker.errors import InputInvalid

GRID = GridSize(8, 8)


def scene(subject_cell: int | None) -> tuple[FloatArray, FloatArray]:
    """A frame of orthogonal background cells with the subject at one of them."""
    cells = np.zeros((64, 65), dtype=np.float32)
    cells[np.arange(64), np.arange(64)] = 1
    if subject_cell is not None:
        cells[subject_cell] = 0
        cells[subject_cell, 64] = 1
    new = np.zeros(64, dtype=np.float32)
    if subject_cell is not None:
        new[subject_cell] = 1
    return cells, new


def test_belief_follows_a_moving_subject():
    first, new = scene(9)
    belief = first_belief(np.array([9]), new)
    assert belief.argmax() == 9 and belief.sum() == 1
    moved, moved_new = scene(18)  # one row and one column on
    carried = carried_belief(belief, first, moved, moved_new, reachable(GRID))
    assert carried.argmax() == 18
    assert carried[18] == pytest.approx(1)
    assert belief_support(carried, 1) > LOST_LEVEL


def test_a_subject_that_left_is_lost():
    first, new = scene(9)
    belief = first_belief(np.array([9]), new)
    empty, empty_new = scene(None)
    carried = carried_belief(belief, first, empty, empty_new, reachable(GRID))
    assert belief_support(carried, 1) < LOST_LEVEL


def test_nothing_jumps_across_the_picture():
    first, new = scene(0)
    far, far_new = scene(63)
    carried = carried_belief(first_belief(np.array([0]), new), first, far, far_new, reachable(GRID))
    assert carried.max() == 0


def test_background_inside_the_box_carries_little():
    _, new = scene(9)
    belief = first_belief(np.array([9, 10]), new)
    assert belief[10] == pytest.approx(0.05)


def test_resemblance_prefers_what_is_new_in_the_query():
    cells, _ = scene(9)
    like = resemblance(cells[[9, 10]], np.array([1.0, 0.05], dtype=np.float32), cells)
    assert like[9] == pytest.approx(1) and like[10] == pytest.approx(0.05)
    assert like[30] == 0


def test_reach_is_symmetric_and_bounded():
    near = reachable(GRID)
    assert (near == near.T).all() and near.diagonal().all()
    assert near[0].sum() == 9  # two rows and columns beside the corner


def test_one_cell_and_none():
    assert belief_support(np.array([0.5], dtype=np.float32), 1) == pytest.approx(0.5)
    with pytest.raises(InputInvalid):
        first_belief(np.array([], dtype=np.int64), np.ones(4, dtype=np.float32))
    nothing = np.zeros(64, dtype=np.float32)
    cells = l2_normalise(np.random.default_rng(0).normal(size=(64, 8)))
    assert not carried_belief(
        nothing, cells, cells, np.ones(64, dtype=np.float32), reachable(GRID)
    ).any()
