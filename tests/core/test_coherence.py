import numpy as np
import pytest

from worker.core.background import weighted_max_similarity
from worker.core.coherence import (
    LEVEL_QUANTILE,
    OUTSIDE_SHARE,
    PIVOT,
    coherent_similarity,
    match_levels,
    pivoted,
)
from worker.core.types import Region
from worker.errors import InputInvalid


def region_of(pairs: list[tuple[int, int]], similarity_qc: np.ndarray) -> Region:
    query, cell = (np.array(side, dtype=np.int64) for side in zip(*pairs, strict=True))
    return Region(query, cell, similarity_qc[query, cell])


def test_a_level_is_exceeded_by_one_in_a_hundred():
    similarity = np.random.default_rng(0).uniform(-1, 1, (40, 3, 64)).astype(np.float32)
    level = match_levels(similarity)
    over = (similarity > level[:, None]).mean(axis=(0, 2))
    np.testing.assert_allclose(over, 1 - LEVEL_QUANTILE, atol=2e-3)
    matches = pivoted(similarity, level) >= PIVOT
    np.testing.assert_allclose(matches.mean(axis=(0, 2)), 1 - LEVEL_QUANTILE, atol=2e-3)


def test_no_frames_have_no_levels():
    with pytest.raises(InputInvalid):
        match_levels(np.empty((0, 3, 64), dtype=np.float32))


def test_coherent_similarity_by_hand():
    similarity = np.array([[0.9, 0.5], [0.4, 0.8]], dtype=np.float32)
    weight = np.array([1, 3], dtype=np.float32)
    assert coherent_similarity(similarity, None, weight) == pytest.approx(
        OUTSIDE_SHARE * (0.9 + 3 * 0.8) / 4
    )
    # The first cell's pair in the region is not its best one: still more than the outside share?
    region = region_of([(0, 1), (1, 1)], similarity)
    expected = (max(0.5, OUTSIDE_SHARE * 0.9) + 3 * 0.8) / 4
    assert coherent_similarity(similarity, region, weight) == pytest.approx(expected)


def test_it_lies_between_the_outside_share_and_max_sim():
    rng = np.random.default_rng(1)
    for _ in range(50):
        similarity = rng.uniform(0, 1, (4, 9)).astype(np.float32)
        weight = rng.uniform(0.05, 1, 4).astype(np.float32)
        pairs = sorted({(int(rng.integers(4)), int(rng.integers(9))) for _ in range(5)})
        score = coherent_similarity(similarity, region_of(pairs, similarity), weight)
        best = float(weighted_max_similarity(similarity[None], weight)[0])
        assert OUTSIDE_SHARE * best - 1e-6 <= score <= best + 1e-6
