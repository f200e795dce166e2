import numpy as np
import pytest

from worker.core.background import (
    MIN_BACKGROUND_FRAMES,
    background_descriptors,
    novel_box,
    novel_similarity,
    novelty,
    novelty_weight,
    weighted_max_similarity,
)
from worker.core.ranking import max_similarity_score, smooth_in_time
from worker.core.similarity import l2_normalise
from worker.core.types import Box, FloatArray, GridSize
from worker.errors import DescriptorInvalid, InputInvalid


def unit(seed: int, *shape: int) -> FloatArray:
    return l2_normalise(np.random.default_rng(seed).normal(size=shape))


def test_a_passer_by_is_no_background_and_is_new():
    still = unit(0, 4, 8)
    frames = np.repeat(still[None], 20, axis=0)
    passer = unit(1, 8)
    for at in range(4):
        frames[at, at] = passer  # in one frame of twenty at each place
    background = background_descriptors(frames)
    assert background is not None
    np.testing.assert_allclose(background, still, atol=1e-6)
    new = novelty(frames, background)
    assert new[10].max() < 1e-6
    assert new[2, 2] == pytest.approx(1 - float(passer @ still[2]), abs=1e-6)


def test_too_few_frames_have_no_background_and_everything_is_new():
    few = unit(2, MIN_BACKGROUND_FRAMES - 1, 4, 8)
    assert background_descriptors(few) is None
    assert (novelty(few, None) == 1).all()


def test_a_cell_without_a_median_keeps_a_direction():
    frames = np.zeros((8, 1, 8), dtype=np.float32)
    frames[np.arange(8), 0, np.arange(8)] = 1  # each frame another axis: the median is zero
    background = background_descriptors(frames)
    assert background is not None
    np.testing.assert_array_equal(background[0], frames[0, 0])


def test_nan_is_refused():
    frames = unit(3, 9, 2, 4)
    frames[:, 1] = np.nan
    with pytest.raises(DescriptorInvalid):
        background_descriptors(frames)
    with pytest.raises(InputInvalid):
        background_descriptors(frames[0])


def test_weights_are_clipped():
    weight = novelty_weight(np.array([0.0, 0.1, 0.2, 2.0], dtype=np.float32), 0.05)
    np.testing.assert_allclose(weight, [0.05, 0.5, 1, 1])


def test_without_background_it_is_max_sim():
    similarity = np.random.default_rng(4).uniform(-1, 1, (3, 5, 7)).astype(np.float32)
    novel = novel_similarity(similarity, np.ones((3, 7), dtype=np.float32))
    np.testing.assert_array_equal(novel, similarity)
    score = weighted_max_similarity(novel, np.ones(5, dtype=np.float32))
    np.testing.assert_allclose(score, [max_similarity_score(s) for s in similarity], rtol=1e-5)


def test_a_match_on_background_counts_less_than_one_on_something_new():
    similarity = np.full((2, 1, 2), 0.1, dtype=np.float32)
    similarity[:, 0, 0] = 0.8
    new = np.array([[0.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    novel = novel_similarity(similarity, new)
    score = weighted_max_similarity(novel, np.ones(1, dtype=np.float32))
    assert score[1] == pytest.approx(0.8)
    assert score[0] == pytest.approx(0.8 * np.sqrt(0.1))
    with pytest.raises(InputInvalid):
        weighted_max_similarity(similarity[:, :0], np.ones(0, dtype=np.float32))


def test_a_query_cell_without_weight_does_not_count():
    similarity = np.array([[[0.9], [0.1]]], dtype=np.float32)
    weight = np.array([1, 0], dtype=np.float32)
    assert weighted_max_similarity(similarity, weight)[0] == pytest.approx(0.9)


def test_smoothing_stays_inside_a_camera_and_in_time_order():
    score = np.array([0.0, 9.0, 3.0, 6.0], dtype=np.float32)
    camera = np.array([1, 2, 1, 1], dtype=np.int64)
    t = np.array([2.0, 0.0, 1.0, 3.0])
    smooth = smooth_in_time(score, camera, t, np.array([1, 0, 0, 2], dtype=np.int64))
    # camera 1 in time: 3, 0, 6; camera 2 alone
    np.testing.assert_allclose(smooth, [2.25, 9.0, 2.25, 4.5])
    nothing = np.empty(0, dtype=np.int64)
    assert smooth_in_time(score[:0], nothing, t[:0], nothing).size == 0


def test_a_frame_beside_a_missing_one_or_a_gap_stands_alone():
    score = np.array([1.0, 0.0, 0.0], dtype=np.float32)
    camera = np.ones(3, dtype=np.int64)
    missing = smooth_in_time(score, camera, np.array([0.0, 2.0, 3.0]), np.array([0, 2, 3]))
    np.testing.assert_allclose(missing, [1.0, 0.0, 0.0])
    gap = smooth_in_time(score, camera, np.array([0.0, 3600.0, 3601.0]), np.array([0, 1, 2]))
    np.testing.assert_allclose(gap, [1.0, 0.0, 0.0])


def test_the_novel_box_lies_on_what_is_new():
    grid = GridSize(8, 12)
    novelty_hw = np.zeros(grid, dtype=np.float32)
    novelty_hw[5:7, 8:11] = 1.0  # boxes are 2 x 3 cells
    assert novel_box(novelty_hw.ravel(), grid) == Box(8 / 12, 5 / 8, 11 / 12, 7 / 8)
    nothing = np.zeros(grid.cells, dtype=np.float32)
    assert novel_box(nothing, grid) == Box(0.0, 0.0, 3 / 12, 2 / 8)
    assert novel_box(nothing[:1], GridSize(1, 1)) == Box(0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize("frames", [8, 9, 64])
def test_the_background_is_the_median(frames: int) -> None:
    patches = np.random.default_rng(frames).standard_normal((frames, 5, 7)).astype(np.float32)
    found = background_descriptors(patches)
    assert found is not None
    assert np.array_equal(found, l2_normalise(np.median(patches, axis=0)))
