import numpy as np
import pytest

from worker.core.calibration import MIN_FRAMES, expected_false_matches, rare_tail
from worker.errors import InputInvalid


def cameras(*sizes: int) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)


@pytest.mark.parametrize("stated", [0.3, 1.0, 3.0, 10.0])
def test_chance_alone_reaches_a_stated_level_as_often_as_stated(stated: float) -> None:
    """Two cameras with other means and spreads, 200 searches without the subject."""
    rng = np.random.default_rng(0)
    camera = cameras(300, 100)
    mean, spread = np.where(camera == 0, 0.3, 0.5), np.where(camera == 0, 0.05, 0.02)
    reached = []
    for _ in range(200):
        score = rng.normal(mean, spread)
        reached.append((expected_false_matches(score, score, camera) <= stated).sum())
    assert stated / 2 <= np.mean(reached) <= stated * 2


def test_a_subject_stands_out_and_a_better_score_is_never_more_of_chance():
    rng = np.random.default_rng(1)
    score = rng.normal(0.3, 0.05, 200)
    score[7] = 0.7
    expected = expected_false_matches(score, score, cameras(200))
    assert expected[7] < 1e-3
    order = np.argsort(score)
    assert (np.diff(expected[order]) <= 1e-12).all()
    assert expected.max() <= 200


def test_frames_on_the_trail_are_not_chance():
    rng = np.random.default_rng(2)
    score = rng.normal(0.3, 0.05, 100)
    score[:40] += 0.4  # the subject is there
    blind = expected_false_matches(score[:40], score, cameras(100))
    told = expected_false_matches(score[:40], score[40:], cameras(60))
    assert np.median(told) < 1e-3 < np.median(blind)


def test_a_camera_with_few_frames_borrows_the_tail_of_all():
    rng = np.random.default_rng(3)
    score = rng.normal(0.3, 0.05, 103)
    expected = expected_false_matches(score, score, cameras(100, 3))
    assert np.isfinite(expected).all()


def test_too_few_frames_say_nothing():
    few = MIN_FRAMES - 1
    score = np.linspace(0, 1, few)
    assert np.isnan(expected_false_matches(score, score, cameras(few))).all()
    nothing = np.empty(0)
    assert expected_false_matches(nothing, nothing, cameras()).size == 0


def test_equal_scores_do_not_divide_by_zero():
    score = np.full(50, 0.4)
    expected = expected_false_matches(score, score, cameras(50))
    np.testing.assert_allclose(expected, 50 * 0.25)
    with pytest.raises(InputInvalid):
        expected_false_matches(score, score, cameras(49))


def test_chance_is_that_of_everything_searched_not_of_the_best():
    """The best 50 of 10,000 frames without the subject: about one of them is one by chance."""
    rng = np.random.default_rng(4)
    reached = []
    for _ in range(60):
        score = np.sort(rng.normal(0.3, 0.05, 10_000))
        expected = expected_false_matches(score[-50:], score, cameras(10_000))
        reached.append((expected <= 1).sum())
    assert 0.5 <= np.mean(reached) <= 2


def test_a_rare_tail_is_that_of_an_exponential_and_never_rarer_than_the_sample():
    rng = np.random.default_rng(3)
    tail = rare_tail(rng.exponential(0.1, 20_000))
    scores = np.array([0.5, 0.8, 1.2])
    wanted = np.exp(-scores / 0.1)
    beyond = scores > tail.sample_m[-1]
    stated = tail.share_above(scores)
    assert beyond.tolist() == [False, False, True]
    assert np.allclose(stated[2], wanted[2], rtol=1.0)
    assert 0.5 < stated[0] / wanted[0] < 2
    every = tail.share_above(tail.sample_m)
    least = np.arange(20_000, 0, -1) / 20_000
    assert (every >= least).all()
    assert (np.diff(tail.share_above(np.linspace(-1, 3, 500))) <= 0).all()


def test_a_rare_tail_of_equal_scores_has_a_spread_all_the_same():
    tail = rare_tail(np.full(50, 0.4))
    assert tail.share_above(np.array([0.4, 0.41])).tolist()[0] == 1.0
    assert tail.share_above(np.array([0.41]))[0] < 1e-20
    with pytest.raises(InputInvalid):
        rare_tail(np.zeros(0))
