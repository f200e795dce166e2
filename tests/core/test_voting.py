import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.voting import (
    Neighbours,
    VoteArray,
    majority_vote,
    nearest_neighbours,
    unique_vote,
    weighted_unique_vote,
    weighted_vote,
)
from worker.errors import DescriptorInvalid, InputInvalid

VOTES: list[Callable[..., VoteArray]] = [
    majority_vote,
    unique_vote,
    weighted_vote,
    weighted_unique_vote,
]


def neighbours(frame_qk: Any, similarity_qk: Any) -> Neighbours:
    return Neighbours(np.array(frame_qk, dtype=np.int64), np.array(similarity_qk, dtype=np.float32))


# cos 0.5 -> d = sqrt(2 - 1) = 1; cos 1 -> d = 0; cos -1 -> d = 2.
BY_HAND = neighbours([[0, 0, 1], [1, 2, -1]], [[1.0, 0.5, 0.5], [0.5, -1.0, 0.9]])


def test_votes_by_hand():
    # Patch 0 has frames 0, 0, 1; patch 1 has 1, 2 and an empty slot.
    assert majority_vote(BY_HAND, 4).tolist() == [2, 2, 1, 0]
    assert unique_vote(BY_HAND, 4).tolist() == [1, 2, 1, 0]
    # With epsilon 0.5: weights 1/0.5 = 2, 1/1.5 = 2/3, 1/2.5 = 0.4.
    np.testing.assert_allclose(
        weighted_vote(BY_HAND, 4, epsilon=0.5), [2 + 2 / 3, 2 / 3 + 2 / 3, 0.4, 0]
    )
    np.testing.assert_allclose(weighted_unique_vote(BY_HAND, 4, epsilon=0.5), [2, 4 / 3, 0.4, 0])


def test_an_exact_copy_weighs_one_over_epsilon_even_if_its_cosine_rounds_above_one():
    copy = neighbours([[0]], [[1.0000001]])
    assert weighted_vote(copy, 1)[0] == pytest.approx(1000)


def loop_votes(
    given_neighbours: Neighbours, frames: int, epsilon: float
) -> tuple[list[float], ...]:
    """Table 1 as written, one slot at a time."""
    majority, unique = [0.0] * frames, [0.0] * frames
    weighted, weighted_unique = [0.0] * frames, [0.0] * frames
    for row, cosines in zip(
        given_neighbours.frame_qk.tolist(), given_neighbours.similarity_qk.tolist(), strict=True
    ):
        for frame in range(frames):
            weights = [
                1 / (math.sqrt(max(0, 2 - 2 * cosine)) + epsilon)
                for name, cosine in zip(row, cosines, strict=True)
                if name == frame
            ]
            majority[frame] += len(weights)
            unique[frame] += bool(weights)
            weighted[frame] += sum(weights)
            weighted_unique[frame] += max(weights, default=0)
    return majority, unique, weighted, weighted_unique


@st.composite
def any_neighbours(draw):
    q, k, frames = draw(st.integers(0, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    frame_qk = rng.integers(-1, frames, (q, k))
    return neighbours(frame_qk, rng.uniform(-1, 1, (q, k))), frames


@given(any_neighbours(), st.floats(1e-6, 1))
def test_votes_equal_the_naive_loop(case, epsilon):
    given_neighbours, frames = case
    expected = loop_votes(given_neighbours, frames, epsilon)
    for vote, wanted in zip(VOTES[:2], expected[:2], strict=True):
        assert vote(given_neighbours, frames).tolist() == wanted
    for vote, wanted in zip(VOTES[2:], expected[2:], strict=True):
        np.testing.assert_allclose(vote(given_neighbours, frames, epsilon), wanted, rtol=1e-9)


@given(any_neighbours(), st.randoms())
def test_the_order_of_query_patches_and_slots_does_not_matter(case, random):
    given_neighbours, frames = case
    q, k = given_neighbours.frame_qk.shape
    rows, slots = random.sample(range(q), q), random.sample(range(k), k)
    shuffled = neighbours(
        given_neighbours.frame_qk[rows][:, slots], given_neighbours.similarity_qk[rows][:, slots]
    )
    for vote in VOTES:
        np.testing.assert_allclose(
            vote(given_neighbours, frames), vote(shuffled, frames), rtol=1e-12
        )


def test_nearest_neighbours_by_hand():
    similarity = np.array([[0.5, 0.9, 0.5, 0.9], [0.1, 0.2, 0.3, 0.4]], dtype=np.float32)
    found = nearest_neighbours(similarity, np.array([7, 7, 8, 9]), 3)
    # Ties: column 1 before 3, column 0 before 2.
    assert found.frame_qk.tolist() == [[7, 9, 7], [9, 8, 7]]
    np.testing.assert_allclose(found.similarity_qk, [[0.9, 0.9, 0.5], [0.4, 0.3, 0.2]])


def test_among_many_equal_columns_the_lowest_are_nearest():
    # Long, mixed rows: sorting routines keep the order of equal values in easy ones by chance.
    similarity = np.where(np.arange(500) % 2, 0.5, 0.25).astype(np.float32)[None, :]
    found = nearest_neighbours(similarity, np.arange(500), 3)
    assert found.frame_qk.tolist() == [[1, 3, 5]]


def test_fewer_columns_than_k_leave_empty_slots_that_do_not_vote():
    found = nearest_neighbours(np.array([[0.5]], dtype=np.float32), np.array([0]), 3)
    assert found.frame_qk.tolist() == [[0, -1, -1]]
    assert majority_vote(found, 2).tolist() == [1, 0]
    none = nearest_neighbours(np.empty((2, 0), np.float32), np.empty(0, np.int64), 2)
    assert weighted_unique_vote(none, 2).tolist() == [0, 0]


def test_bad_neighbours_are_refused():
    with pytest.raises(InputInvalid, match="one shape"):
        neighbours([[0, 1]], [[0.5]])
    with pytest.raises(DescriptorInvalid):
        neighbours([[0]], [[np.nan]])
    for frame in (-2, 3):
        for vote in VOTES:
            with pytest.raises(InputInvalid, match="candidate list has 3"):
                vote(neighbours([[frame]], [[0.5]]), 3)
    similarity = np.zeros((1, 2), dtype=np.float32)
    with pytest.raises(InputInvalid, match="k must"):
        nearest_neighbours(similarity, np.array([0, 1]), 0)
    with pytest.raises(InputInvalid, match="per column"):
        nearest_neighbours(similarity, np.array([0]), 1)
    with pytest.raises(DescriptorInvalid):
        nearest_neighbours(similarity * np.nan, np.array([0, 1]), 1)
