import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.appearances import MAX_SPAN_S, duplicate_share, join_appearances
from worker.errors import InputInvalid


def test_by_hand():
    camera = np.array([1, 2, 1, 1, 1])
    t = np.array([10.0, 11.0, 12.0, 30.0, 7.0])
    found = join_appearances(camera, t, 5.0)
    assert [a.members for a in found] == [(0, 2, 4), (1,), (3,)]
    assert (found[0].best, found[0].from_epoch_s, found[0].to_epoch_s) == (0, 7.0, 12.0)
    assert [a.members for a in join_appearances(camera, t, 0.0)] == [(0,), (1,), (2,), (3,), (4,)]


def test_a_busy_day_is_not_one_appearance():
    t = np.arange(0, 5 * MAX_SPAN_S, 1.0)
    found = join_appearances(np.ones(t.size, dtype=np.int64), t, 2.0)
    assert len(found) >= 4
    for appearance in found:
        best = t[appearance.best]
        assert best - appearance.from_epoch_s <= MAX_SPAN_S
        assert appearance.to_epoch_s - best <= MAX_SPAN_S


hits = st.lists(st.tuples(st.integers(1, 3), st.floats(0, 2000)), max_size=40)


@given(hits, st.floats(0, 100))
def test_every_hit_is_in_one_appearance_and_the_best_come_first(listed, gap_s):
    camera = np.array([c for c, _ in listed], dtype=np.int64)
    t = np.array([at for _, at in listed], dtype=np.float64)
    found = join_appearances(camera, t, gap_s)
    members = [m for a in found for m in a.members]
    assert sorted(members) == list(range(len(listed)))
    assert [a.best for a in found] == sorted(a.best for a in found)
    for a in found:
        assert len({camera[m] for m in a.members}) == 1
        assert a.members == tuple(sorted(a.members))
        times = np.sort(t[list(a.members)])
        assert (np.diff(times) <= gap_s).all()


def test_duplicates():
    camera, t = np.array([1, 1, 2, 1]), np.array([0.0, 1.0, 1.0, 50.0])
    assert duplicate_share(camera, t, 5.0) == 0.25
    assert duplicate_share(camera[:0], t[:0], 5.0) == 0.0


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(InputInvalid):
        join_appearances(np.array([1]), np.array([1.0, 2.0]), 5.0)
    with pytest.raises(InputInvalid):
        join_appearances(np.array([1]), np.array([1.0]), -1.0)
