import numpy as np
import pytest

from worker.core.compact import CODE_DIM, fit_basis
from worker.core.similarity import l2_normalise
from worker.core.types import FloatArray
from worker.errors import DescriptorInvalid, InputInvalid


def correlated(n: int, dim: int, seed: int) -> FloatArray:
    """Unit rows whose energy lies in few directions, as that of real descriptors does."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(24, dim))
    return l2_normalise(rng.normal(size=(n, 24)) @ mixing + 0.05 * rng.normal(size=(n, dim)))


def test_codes_keep_cosines():
    basis = fit_basis(correlated(2000, 192, 1))
    assert basis.axes_dk.shape == (192, CODE_DIM)
    np.testing.assert_allclose(basis.axes_dk.T @ basis.axes_dk, np.eye(CODE_DIM), atol=1e-5)
    query, stored = correlated(20, 192, 2), correlated(500, 192, 3)
    exact = query @ stored.T
    coarse = basis.project(query) @ basis.decode(basis.encode(stored)).T
    assert np.abs(coarse - exact).max() < 0.05
    assert basis.encode(stored).dtype == np.int8


def test_narrow_descriptors_keep_every_direction():
    narrow = correlated(100, 16, 4)
    basis = fit_basis(narrow)
    assert basis.axes_dk.shape == (16, 16)
    back = basis.decode(basis.encode(narrow)) @ basis.axes_dk.T
    np.testing.assert_allclose(back, narrow, atol=2 * basis.step)


def test_what_lies_outside_the_range_is_clipped_not_wrapped():
    basis = fit_basis(correlated(100, 16, 5))
    assert np.abs(basis.encode(np.float32(1e3) * correlated(10, 16, 6)).astype(int)).max() == 127


@pytest.mark.parametrize("bad", [np.empty((0, 8)), np.full((3, 8), np.nan), np.ones(8)])
def test_no_basis_without_finite_descriptors(bad):
    with pytest.raises((InputInvalid, DescriptorInvalid)):
        fit_basis(bad.astype(np.float32))


def test_nan_is_no_code():
    basis = fit_basis(correlated(100, 16, 5))
    with pytest.raises(DescriptorInvalid):
        basis.encode(np.full((1, 16), np.nan, dtype=np.float32))
