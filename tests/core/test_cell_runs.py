"""Runs of cells that hardly move: every frame can be made up again, within the angle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.cell_runs import REMEMBERED_ROWS, CellRuns, RunFinder
from worker.core.similarity import l2_normalise
from worker.core.types import FloatArray
from worker.errors import IndexDamaged, InputInvalid


def found(
    patches_ncd: FloatArray, distance: float, exact_before: int = 0
) -> tuple[CellRuns, FloatArray]:
    """(runs, rows) of frames stored as they are."""
    finder = RunFinder(patches_ncd.shape[1], distance)
    rows = [
        patch_cd[finder.add(patch_cd, patch_cd, exact=i < exact_before)]
        for i, patch_cd in enumerate(patches_ncd)
    ]
    return finder.runs(), np.concatenate(rows)


@given(
    seed=st.integers(0, 2**32 - 1),
    frames=st.integers(1, 40),
    cells=st.integers(1, 6),
    step=st.sampled_from([0.0, 0.05, 0.2, 1.0]),
    distance=st.sampled_from([0.0, 0.02, 0.1]),
)
def test_every_frame_is_made_up_again_within_the_angle(
    seed: int, frames: int, cells: int, step: float, distance: float
) -> None:
    rng = np.random.default_rng(seed)
    walk = rng.normal(size=(cells, 8)) + step * rng.normal(size=(frames, cells, 8)).cumsum(axis=0)
    patches_ncd = l2_normalise(walk.astype(np.float32))
    runs, rows = found(patches_ncd, distance)
    made = rows[runs.rows_of(np.arange(frames))]
    assert ((made * patches_ncd).sum(axis=2) >= 1 - distance - 1e-5).all()
    assert runs.rows == len(rows)
    row, cell, first, end = runs.by_row()
    assert (np.diff(row) >= 0).all() and set(row) == set(range(len(rows)))
    again = np.full((frames, cells), -1)
    for i in range(row.size):
        assert (again[first[i] : end[i], cell[i]] == -1).all(), "runs do not overlap"
        again[first[i] : end[i], cell[i]] = row[i]
    assert np.array_equal(again, runs.rows_of(np.arange(frames)))


def test_a_background_that_comes_back_needs_no_new_row() -> None:
    rng = np.random.default_rng(1)
    wall, *passers = l2_normalise(rng.normal(size=(4, 1, 16)).astype(np.float32))
    shown = np.stack([wall, wall, passers[0], wall, passers[1], passers[2], wall])
    runs, rows = found(shown, 0.05)
    assert len(rows) == 4
    assert runs.rows_of(np.arange(7))[:, 0].tolist() == [0, 0, 1, 0, 2, 3, 0]


def test_what_is_seen_too_long_ago_is_stored_again() -> None:
    rng = np.random.default_rng(2)
    wall, *passers = l2_normalise(rng.normal(size=(1 + REMEMBERED_ROWS, 1, 64)).astype(np.float32))
    runs, _ = found(np.stack([wall, *passers, wall]), 0.05)
    assert runs.rows == 2 + REMEMBERED_ROWS


def test_frames_that_were_made_up_already_do_not_move_again() -> None:
    """Merged twice within an angle would be twice the angle."""
    turn = np.array([0.0, 0.25, 0.5])  # cosines of neighbours 0.969
    shown = np.stack([np.cos(turn), np.sin(turn)], axis=1).astype(np.float32)[:, None]
    again, _ = found(shown[[0, 2, 1]], 0.05)
    assert again.rows == 2
    exact, rows = found(shown[[0, 2, 1]], 0.05, exact_before=3)
    assert exact.rows == 3
    assert np.array_equal(rows[exact.rows_of(np.arange(3))], shown[[0, 2, 1]])


def test_runs_that_do_not_hold_together_are_refused() -> None:
    def runs(start: list[int], row: list[int], rows: int = 2) -> CellRuns:
        return CellRuns(3, 2, rows, np.array(start, np.uint32), np.array(row, np.uint32))

    assert runs([0, 2, 3], [0, 1, 1]).rows_of(np.array([1, 2])).tolist() == [[0, 1], [1, 1]]
    for start, row in (
        ([0, 2], [0, 1]),
        ([1, 3], [0, 1]),
        ([0, 3, 3], [0, 1, 1]),
        ([0, 3, 6], [0, 1, 1]),
        ([0, 3], [0, 2]),
        ([0], [0]),
        ([0, 3], [0]),
    ):
        with pytest.raises(IndexDamaged):
            runs(start, row)
    with pytest.raises(InputInvalid):
        RunFinder(2, 0.1).runs()
