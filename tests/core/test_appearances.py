import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from worker.core.appearances import MAX_SPAN_S, join_appearances, repeated_share
from worker.core.types import IntArray
from worker.errors import InputInvalid


def arrays(listed: list[tuple[int, float]]) -> tuple[IntArray, NDArray[np.float64]]:
    camera = np.array([c for c, _ in listed], dtype=np.int64)
    return camera, np.array([at for _, at in listed], dtype=np.float64)


def test_by_hand():
    camera = np.array([1, 2, 1, 1, 1])
    t = np.array([10.0, 11.0, 12.0, 30.0, 7.0])
    found = join_appearances(camera, t, 5.0)
    assert [a.members for a in found] == [(0, 2, 4), (1,), (3,)]
    assert (found[0].best, found[0].from_epoch_s, found[0].to_epoch_s) == (0, 7.0, 12.0)
    assert [a.members for a in join_appearances(camera, t, 0.0)] == [(0,), (1,), (2,), (3,), (4,)]


def test_a_step_of_exactly_the_gap_joins_and_hits_at_once_are_one():
    camera, t = arrays([(1, 100.0), (1, 105.0), (1, 110.1), (1, 100.0)])
    assert [a.members for a in join_appearances(camera, t, 5.0)] == [(0, 1, 3), (2,)]
    assert [a.members for a in join_appearances(camera, t, 0.0)] == [(0, 3), (1,), (2,)]


def test_what_the_span_cuts_off_begins_anew_at_its_best_hit():
    """Best hit at 0; of what lies beyond the span, 1002 ranks before 601."""
    times = [0.0, 600.0, 1002.0, 601.0, *np.arange(1.0, 600.0), *np.arange(602.0, 1002.0)]
    camera, t = arrays([(1, at) for at in times])
    first, second = join_appearances(camera, t, 1.0)
    assert (first.best, first.from_epoch_s, first.to_epoch_s) == (0, 0.0, 600.0)
    assert (second.best, second.from_epoch_s, second.to_epoch_s) == (2, 601.0, 1002.0)


def test_a_busy_day_is_not_one_appearance():
    t = np.arange(0, 5 * MAX_SPAN_S, 1.0)
    found = join_appearances(np.ones(t.size, dtype=np.int64), t, 2.0)
    assert len(found) >= 4
    for appearance in found:
        best = t[appearance.best]
        assert best - appearance.from_epoch_s <= MAX_SPAN_S
        assert appearance.to_epoch_s - best <= MAX_SPAN_S


def test_no_hits_are_no_appearances():
    assert join_appearances(*arrays([]), 5.0) == []


at_s = st.floats(0, 4000) | st.integers(0, 40).map(lambda n: 100.0 * n)
hits = st.lists(st.tuples(st.integers(1, 3), at_s), max_size=40)
gaps = st.floats(0, 100) | st.sampled_from([0.0, 100.0, 600.0, 3600.0])


@given(hits, gaps)
def test_every_hit_is_in_one_appearance_and_the_best_come_first(listed, gap_s):
    camera, t = arrays(listed)
    found = join_appearances(camera, t, gap_s)
    members = [m for a in found for m in a.members]
    assert sorted(members) == list(range(len(listed)))
    assert [a.best for a in found] == sorted(a.best for a in found)
    for a in found:
        assert len({camera[m] for m in a.members}) == 1
        assert a.members == tuple(sorted(a.members))
        times = np.sort(t[list(a.members)])
        assert (a.from_epoch_s, a.to_epoch_s) == (times[0], times[-1])
        assert (np.diff(times) <= gap_s).all()
        assert (np.abs(times - t[a.best]) <= MAX_SPAN_S).all()


def taken_one_by_one(
    camera: IntArray, t: NDArray[np.float64], gap_s: float
) -> list[tuple[int, ...]]:
    """The definition, without order or cleverness: grow each appearance until nothing joins."""
    free = set(range(len(t)))
    found = []
    while free:
        best = min(free)
        members = {best}
        in_span = {h for h in free if camera[h] == camera[best] and abs(t[h] - t[best]) <= 600}
        while more := {
            h for h in in_span - members if any(abs(t[h] - t[m]) <= gap_s for m in members)
        }:
            members |= more
        free -= members
        found.append(tuple(sorted(members)))
    return found


@given(hits, gaps)
def test_it_is_the_definition(listed, gap_s):
    camera, t = arrays(listed)
    found = [a.members for a in join_appearances(camera, t, gap_s)]
    assert found == taken_one_by_one(camera, t, gap_s)


def test_repeated_results_by_hand():
    camera, t = arrays([(1, 0.0), (1, 1.0), (2, 1.0), (1, 50.0)])
    assert repeated_share([(0,), (1,), (2,), (3,)], camera, t, 5.0) == 0.25
    assert repeated_share([(0, 1), (2,), (3,)], camera, t, 5.0) == 0.0
    assert repeated_share([], camera, t, 5.0) == 0.0


def test_an_appearance_that_goes_on_with_another_repeats_it():
    """Not its best frame, but a member is near the frame that shows the second one."""
    camera, t = arrays([(1, 0.0), (1, 601.0), (1, 600.0), *((1, float(s)) for s in range(1, 600))])
    joined = [a.members for a in join_appearances(camera, t, 5.0)]
    assert [members[0] for members in joined] == [0, 1]
    assert repeated_share(joined, camera, t, 5.0) == 0.5


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(InputInvalid):
        join_appearances(np.array([1]), np.array([1.0, 2.0]), 5.0)
    with pytest.raises(InputInvalid):
        join_appearances(np.array([1]), np.array([1.0]), -1.0)
