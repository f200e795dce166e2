import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.ranking import best_positions, max_similarity_score, rank, smooth_in_time
from worker.errors import DescriptorInvalid, InputInvalid


def test_rank_by_hand():
    # 0.9 first; of the three 0.5 the one with tie-break 2, then positions 1 and 3.
    score = np.array([0.1, 0.5, 0.9, 0.5, 0.5])
    tie_break = np.array([9, 1, 0, 1, 2])
    assert rank(score, tie_break).tolist() == [2, 4, 1, 3, 0]
    assert rank(score, tie_break).dtype == np.int64


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2))))
def test_rank_equals_python_sorting(rows):
    expected = sorted(range(len(rows)), key=lambda at: (-rows[at][0], -rows[at][1], at))
    score, tie_break = np.array(rows, dtype=np.float32).reshape(-1, 2).T
    assert rank(score, tie_break).tolist() == expected


def test_a_frame_without_a_region_can_be_ranked_last():
    assert rank(np.array([-np.inf, -0.3]), np.zeros(2)).tolist() == [1, 0]


def test_unsigned_scores_are_not_wrapped():
    assert rank(np.array([0, 3], dtype=np.uint8), np.zeros(2, dtype=np.uint8)).tolist() == [1, 0]


def test_nan_and_unlike_shapes_are_refused():
    with pytest.raises(DescriptorInvalid, match="score at position 1"):
        rank(np.array([0.1, np.nan]), np.zeros(2))
    with pytest.raises(DescriptorInvalid, match="tie-break at position 0"):
        rank(np.zeros(2), np.array([np.nan, 0]))
    with pytest.raises(InputInvalid):
        rank(np.zeros(2), np.zeros(3))


def test_max_similarity_by_hand():
    # Row maxima 0.5 and 1.0: mean 0.75.
    similarity = np.array([[0.5, 0.25, -1.0], [0.0, 1.0, 0.5]], dtype=np.float32)
    assert max_similarity_score(similarity) == 0.75
    with pytest.raises(InputInvalid):
        max_similarity_score(np.empty((2, 0), dtype=np.float32))


@given(st.integers(0, 2**32))
def test_max_similarity_does_not_depend_on_the_order_of_patches_or_cells(seed):
    rng = np.random.default_rng(seed)
    similarity = rng.uniform(-1, 1, (4, 6)).astype(np.float32)
    shuffled = similarity[rng.permutation(4)][:, rng.permutation(6)]
    assert max_similarity_score(shuffled) == pytest.approx(max_similarity_score(similarity))


@given(
    st.lists(st.integers(-3, 3), max_size=40),
    st.integers(0, 45),
    st.integers(0, 2**32 - 1),
)
def test_best_positions_are_the_first_of_the_whole_order(scores, count, seed):
    score_n = np.array(scores, dtype=np.float32)
    tie_break_n = np.random.default_rng(seed).permutation(len(scores))
    whole = np.lexsort((tie_break_n, -score_n))[:count]
    assert set(best_positions(score_n, tie_break_n, count)) == set(whole)


def test_smoothing_does_not_depend_on_the_order_of_frames():
    rng = np.random.default_rng(3)
    camera_n, place_n = np.repeat([1, 2, 5], 20), np.tile(np.arange(20), 3)
    t_n, score_n = place_n * 10.0, rng.random(60).astype(np.float32)
    sorted_already = smooth_in_time(score_n, camera_n, t_n, place_n)
    mixed = rng.permutation(60)
    shuffled = smooth_in_time(score_n[mixed], camera_n[mixed], t_n[mixed], place_n[mixed])
    np.testing.assert_array_equal(shuffled, sorted_already[mixed])
