import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.f_map import FMapRuns
from worker.errors import IndexDamaged, NotFound


def runs(*rows: tuple[int, int, int, int]) -> FMapRuns:
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T.copy()
    return FMapRuns(*columns)


# Rows 0..3 frame 7, rows 4..5 are nobody's, rows 6..9 and 10..13 two views of frame 3.
BY_HAND = runs((0, 4, 7, 0), (6, 4, 3, 0), (10, 4, 3, 1))


def test_resolve_by_hand():
    frame_id, view, patch_id = BY_HAND.resolve(np.array([13, 0, 3, 6]))
    assert frame_id.tolist() == [3, 7, 7, 3]
    assert view.tolist() == [1, 0, 0, 0]
    assert patch_id.tolist() == [3, 0, 3, 0]
    assert BY_HAND.rows == 12


def test_the_shape_of_a_neighbour_table_is_kept():
    frame_id, view, patch_id = BY_HAND.resolve(np.array([[0, 1, 2], [7, 8, 9]]))
    assert frame_id.tolist() == [[7, 7, 7], [3, 3, 3]]
    assert view.shape == patch_id.shape == (2, 3)
    assert all(column.size == 0 for column in BY_HAND.resolve(np.empty(0, dtype=np.int64)))


@pytest.mark.parametrize("row", [-1, 4, 5, 14, 10**9])
def test_a_row_of_no_run_is_refused_and_named(row):
    with pytest.raises(IndexDamaged, match=f"row {row}"):
        BY_HAND.resolve(np.array([0, row]))
    with pytest.raises(IndexDamaged):
        runs().resolve(np.array([row]))


def test_rows_of_a_view():
    assert BY_HAND.rows_of(3, 1) == range(10, 14)
    assert BY_HAND.rows_of(7) == range(0, 4)
    with pytest.raises(NotFound, match="view 1 of frame 7"):
        BY_HAND.rows_of(7, 1)


@pytest.mark.parametrize(
    "rows",
    [
        [(0, 4, 1, 0), (3, 4, 2, 0)],  # overlap by one row
        [(4, 4, 1, 0), (0, 4, 2, 0)],  # unsorted
        [(0, 0, 1, 0)],  # empty run
        [(-4, 4, 1, 0)],  # negative row
        [(0, 4, 1, 0), (4, 4, 1, 0)],  # a view twice
    ],
)
def test_damaged_runs_are_refused(rows):
    with pytest.raises(IndexDamaged):
        runs(*rows)


def test_columns_that_do_not_fit_are_refused():
    one, two = np.ones(1, dtype=np.int64), np.ones(2, dtype=np.int64)
    with pytest.raises(IndexDamaged, match="lengths"):
        FMapRuns(one, two, one, one)
    with pytest.raises(IndexDamaged, match="int64"):
        FMapRuns(one.astype(np.int32), one, one, one)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=8))
def test_every_covered_row_resolves_to_its_frame_and_back(gaps_and_counts):
    owner: dict[int, tuple[int, int]] = {}
    made, start = [], 0
    for frame_id, (gap, count) in enumerate(gaps_and_counts):
        start += gap
        made.append((start, count, frame_id, 0))
        owner |= {start + patch: (frame_id, patch) for patch in range(count)}
        start += count
    f_map = runs(*made)
    assert f_map.rows == len(owner)
    frame_id_n, _, patch_id_n = f_map.resolve(np.array(list(owner), dtype=np.int64))
    assert list(zip(frame_id_n, patch_id_n, strict=True)) == list(owner.values())
    for begin, count, frame_id, view in made:
        assert f_map.rows_of(frame_id, view) == range(begin, begin + count)
    for row in set(range(start + 2)) - set(owner):
        with pytest.raises(IndexDamaged):
            f_map.resolve(np.array([row]))
