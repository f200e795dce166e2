import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.changes import MAX_LEVEL, MIN_LEVEL, box_history, change_level
from worker.core.similarity import l2_normalise
from worker.core.types import FloatArray
from worker.errors import InputInvalid

CELLS, DIM = 4, 32


def looks(seed: int) -> FloatArray:
    """What a box looks like: unit rows (r, d)."""
    return l2_normalise(np.random.default_rng(seed).standard_normal((CELLS, DIM)))


def filmed(states: list[tuple[int, int]], noise: float = 0.02) -> FloatArray:
    """A box that looks like seed s for n frames, and so on: (n, r, d)."""
    rng = np.random.default_rng(0)
    frames = [looks(seed) for seed, count in states for _ in range(count)]
    return l2_normalise(np.stack(frames) + noise * rng.standard_normal((len(frames), CELLS, DIM)))


def found(cells_nrd: FloatArray, hold: int = 3) -> list[tuple[int, int, int]]:
    return [(s.first, s.last, s.like) for s in box_history(cells_nrd, hold).states]


def test_a_thing_that_comes_and_goes():
    history = box_history(filmed([(1, 10), (2, 6), (1, 9)]))
    assert [(s.first, s.last, s.like) for s in history.states] == [
        (0, 9, 0),
        (10, 15, 1),
        (16, 24, 0),
    ]
    assert history.states[0].difference == 0
    assert history.states[1].difference > 0.5


def test_what_passes_is_no_state_unless_it_holds():
    passing = filmed([(1, 10), (2, 2), (1, 9)])
    assert found(passing) == [(0, 20, 0)]
    assert found(passing, hold=2) == [(0, 9, 0), (10, 11, 1), (12, 20, 0)]
    several = filmed([(1, 10), (2, 1), (3, 1), (4, 1), (5, 1), (1, 9)])  # a crowd, never alike
    assert found(several) == [(0, 22, 0)]


def test_a_change_behind_something_that_passes_begins_when_it_is_seen():
    """Somebody puts a thing down: the new state begins with the thing alone."""
    assert found(filmed([(1, 10), (7, 1), (8, 1), (2, 8)])) == [(0, 9, 0), (12, 19, 1)]


def test_slow_light_is_no_change():
    start, end = looks(1), looks(2)
    share = np.linspace(0, 1, 2000)[:, None, None]
    drift = l2_normalise((1 - share) * start + share * end)
    assert found(drift) == [(0, 1999, 0)]
    assert found(drift[[0] * 5 + [-1] * 5]) == [(0, 4, 0), (5, 9, 1)]


def test_a_restless_box_needs_a_greater_change():
    calm, restless = filmed([(1, 20)], noise=0.01), filmed([(1, 20)], noise=0.1)
    assert change_level(calm) == MIN_LEVEL < change_level(restless) <= MAX_LEVEL
    assert len(found(restless)) == 1
    assert change_level(filmed([(1, 1)])) == MIN_LEVEL


def test_the_first_state_is_that_of_the_first_stretch_that_holds():
    """Somebody stands there when it begins."""
    assert found(filmed([(9, 1), (1, 12)])) == [(0, 12, 0)]


@given(
    lengths=st.lists(st.integers(3, 12), min_size=1, max_size=6),
    noise=st.sampled_from([0.0, 0.02, 0.04]),
)
def test_states_that_hold_are_found_at_their_frames(lengths: list[int], noise: float):
    states = [(seed, length) for seed, length in enumerate(lengths, start=1)]
    ends = np.cumsum(lengths)
    expected = [
        (int(end - length), int(end - 1), at)
        for at, (end, length) in enumerate(zip(ends, lengths, strict=True))
    ]
    assert found(filmed(states, noise)) == expected


@pytest.mark.parametrize("shape", [(0, 4, 8), (3, 0, 8), (3, 8)])
def test_nothing_has_no_history(shape: tuple[int, ...]):
    with pytest.raises(InputInvalid):
        box_history(np.zeros(shape, np.float32))
    with pytest.raises(InputInvalid):
        box_history(filmed([(1, 3)]), hold=0)
