import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.similarity import cosine_matrix, global_scores, l2_normalise, local_matches
from worker.errors import DescriptorInvalid


def test_normalising_by_hand():
    # |(3, 4)| = 5.
    unit = l2_normalise(np.array([[3.0, 4.0], [0.0, -2.0]], dtype=np.float32))
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0.0, -1.0]], rtol=1e-7)
    assert unit.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_float_type_and_shape_becomes_unit_float32(dtype):
    x = np.random.default_rng(3).normal(size=(2, 3, 50)).astype(dtype)
    unit = l2_normalise(x)
    assert unit.dtype == np.float32 and unit.shape == x.shape
    np.testing.assert_allclose(np.linalg.norm(unit, axis=-1), 1, atol=1e-6)


@given(st.floats(1e-30, 1e30), st.integers(0, 2**32))
def test_length_does_not_matter(scale, seed):
    x = np.random.default_rng(seed).normal(size=7).astype(np.float32)
    np.testing.assert_allclose(
        l2_normalise(x), l2_normalise((x * scale).astype(np.float32)), atol=1e-5
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_a_row_without_direction_is_refused_and_named(bad):
    x = np.ones((4, 3), dtype=np.float32)
    x[2] = bad
    with pytest.raises(DescriptorInvalid, match=r"1 of 4 .*index \(2,\)"):
        l2_normalise(x)


def test_a_single_nan_is_refused():
    with pytest.raises(DescriptorInvalid):
        l2_normalise(np.array([1.0, np.nan], dtype=np.float32))
    with pytest.raises(DescriptorInvalid):
        l2_normalise(np.empty((3, 0), dtype=np.float32))


def test_similarities_by_hand():
    # (0.6, 0.8) . (1, 0) = 0.6, . (0.6, 0.8) = 1, . (-0.8, 0.6) = 0.
    query = np.array([0.6, 0.8], dtype=np.float32)
    stored = np.array([[1, 0], [0.6, 0.8], [-0.8, 0.6]], dtype=np.float32)
    np.testing.assert_allclose(global_scores(query, stored), [0.6, 1, 0], atol=1e-7)
    similarity = cosine_matrix(np.stack([query, -query]), stored)
    np.testing.assert_allclose(similarity, [[0.6, 1, 0], [-0.6, -1, 0]], atol=1e-7)
    assert similarity.dtype == np.float32


def test_descriptors_of_other_widths_are_refused():
    with pytest.raises(DescriptorInvalid, match="one backbone spec"):
        global_scores(np.ones(3, dtype=np.float32), np.ones((2, 4), dtype=np.float32))
    with pytest.raises(DescriptorInvalid, match="one backbone spec"):
        cosine_matrix(np.ones((1, 3), dtype=np.float32), np.ones((2, 4), dtype=np.float32))


def test_a_match_at_exactly_tau_counts():
    similarity = np.array([[0.6, 0.59999, 0.61]], dtype=np.float32)
    assert local_matches(similarity, 0.6).tolist() == [[True, False, True]]
