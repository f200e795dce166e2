"""The compiled kernel, and rigid growth on a device, equal the core's reference, pair by pair."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.core.region_growing import grow_seedless
from worker.core.types import FloatArray, GridSize, IntArray, Region
from worker.errors import DescriptorInvalid, InputInvalid
from worker.kernels.device_growth import grow_rigid_on_device
from worker.kernels.region_growing import grow_seedless_chunk

TAU = 0.6
MODES = ("rigid", "elastic")
Case = tuple[FloatArray, IntArray, GridSize]


def f32(values: Any) -> FloatArray:
    return np.array(values, dtype=np.float32)


def assert_same(found: list[Region | None], expected: list[Region | None]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        for name in ("query_index", "cell_index", "similarity") if theirs is not None else ():
            a, b = getattr(ours, name), getattr(theirs, name)
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def check_against_core(case: Case, tau: Any, mode: Any) -> list[Region | None]:
    similarity, query_cells, grid = case
    found = grow_seedless_chunk(similarity, query_cells, grid, tau, mode)
    levels = np.broadcast_to(tau, len(similarity))
    expected = [
        grow_seedless(similarity_qc, query_cells, grid, float(level), mode)
        for similarity_qc, level in zip(similarity, levels, strict=True)
    ]
    assert_same(found, expected)
    if mode == "rigid":
        on_device = torch.from_numpy(np.require(similarity, requirements=["W"]))
        assert_same(grow_rigid_on_device(on_device, query_cells, grid, tau), expected)
    return found


@st.composite
def cases(draw, levels=(0.1, 0.59, 0.6, 0.61, 0.7, 1.0)):
    """Candidates of a query with holes in any order; coarse cosines, so that ties abound."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    window = np.array(list(product(range(draw(st.integers(1, 3))), range(4))))
    count = draw(st.integers(1, len(window)))
    query_cells = rng.permutation(window)[:count] + rng.integers(0, 5, 2)
    grid = GridSize(draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    chosen = f32(levels[: draw(st.integers(2, len(levels)))])
    shape = (draw(st.integers(0, 5)), count, grid.cells)
    return rng.choice(chosen, size=shape).astype(np.float32), query_cells, grid


modes = st.sampled_from(MODES)


@given(cases(), modes)
def test_equals_the_core_where_ties_abound(case, mode):
    check_against_core(case, TAU, mode)


@given(cases(), modes, st.integers(0, 2**32))
def test_equals_the_core_with_a_tau_per_candidate(case, mode, seed):
    levels = f32([0.05, 0.1, 0.6, 0.7, 1.0, 1.1, np.nan])
    tau = np.random.default_rng(seed).choice(levels, size=len(case[0]))
    check_against_core(case, tau, mode)


@given(cases(levels=(1.0, 2.0**-53, -(2.0**-53), 0.0, -1.0, 2.0**-30)), modes)
def test_equals_the_core_where_float_sums_depend_on_their_order(case, mode):
    for tau in (-1.0, 0.0, 2.0**-53):
        check_against_core(case, tau, mode)


@given(cases(levels=(0.7, np.inf, 0.6, 3.0, 1e30)), modes)
def test_equals_the_core_beyond_cosines(case, mode):
    check_against_core(case, TAU, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tau", [-0.1, 0.5, 0.9])
def test_equals_the_core_on_smooth_fields_of_full_size(mode, tau):
    rng = np.random.default_rng(7)
    field = rng.random((6, 24, 18, 18), dtype=np.float32)
    smooth = field[..., :-2, :-2] + field[..., 1:-1, 1:-1] + field[..., 2:, 2:]
    query_cells = np.array(list(product(range(4, 8), range(3, 9))))
    case = (f32(smooth / 3).reshape(6, 24, 256), query_cells, GridSize(16, 16))
    assert any(region is not None for region in check_against_core(case, tau, mode))


@pytest.mark.parametrize("mode", MODES)
def test_equal_candidates_of_one_colour_tie_on_many_translations(mode):
    query_cells = np.array(list(product(range(3), range(3))))
    case = (np.full((2, 9, 64), 0.9, dtype=np.float32), query_cells, GridSize(8, 8))
    first, second = check_against_core(case, TAU, mode)
    assert first is not None and second is not None
    assert (first.query_index[0], first.cell_index[0]) == (0, 0)


@pytest.mark.parametrize("mode", MODES)
def test_the_exact_sum_decides_where_float64_sums_tie(mode):
    # Added from the left in float64 both sums are 1; exactly rounded only the first one is.
    low, high = [1.0, 2.0**-54, 2.0**-54], [1.0, 2.0**-53, 2.0**-53]
    similarity = np.full((1, 3, 8), -1, dtype=np.float32)
    for at in range(3):
        similarity[0, at, at] = low[at]
        similarity[0, at, 5 + at] = high[at]
    query_cells = np.array([[0, 0], [0, 1], [0, 2]])
    (region,) = check_against_core((similarity, query_cells, GridSize(1, 8)), 0.0, mode)
    assert region is not None
    np.testing.assert_array_equal(region.cell_index, [5, 6, 7])


@pytest.mark.parametrize("mode", MODES)
def test_edges_of_the_shapes(mode):
    one_cell, one_patch = GridSize(1, 1), np.array([[4, 7]])
    (region,) = check_against_core((f32([[[0.6]]]), one_patch, one_cell), TAU, mode)
    assert region is not None and region.size == 1
    wide = (f32([[[0.7, 0.1, 0.9, 0.9]], [[0.1, 0.2, 0.3, 0.4]]]), one_patch, GridSize(2, 2))
    assert [r is None for r in check_against_core(wide, TAU, mode)] == [False, True]
    assert (
        check_against_core((np.empty((0, 1, 4), np.float32), one_patch, GridSize(2, 2)), 0, mode)
        == []
    )
    no_cells = np.empty((0, 2), dtype=np.int64)
    empty = (np.empty((2, 0, 4), dtype=np.float32), no_cells, GridSize(2, 2))
    assert check_against_core(empty, TAU, mode) == [None, None]


@pytest.mark.parametrize("mode", MODES)
def test_strided_and_read_only_arrays_are_taken(mode):
    rng = np.random.default_rng(1)
    query_cells = np.array([[0, 0], [0, 1], [1, 0]])
    strided = rng.random((3, 16, 4), dtype=np.float32).transpose(2, 0, 1)
    check_against_core((strided, query_cells, GridSize(4, 4)), TAU, mode)
    read_only = rng.random((4, 3, 16), dtype=np.float32)
    read_only.flags.writeable = False
    check_against_core((read_only, query_cells, GridSize(4, 4)), TAU, mode)
    taus = np.repeat(f32([0.2, 0.5, 0.8]), 4)[::3]
    check_against_core((read_only, query_cells, GridSize(4, 4)), taus, mode)


def test_regions_do_not_keep_the_chunk_in_memory():
    similarity = np.ones((3, 1, 4), dtype=np.float32)
    for region in grow_seedless_chunk(similarity, np.array([[0, 0]]), GridSize(2, 2), TAU, "rigid"):
        assert region is not None
        for array in (region.query_index, region.cell_index, region.similarity):
            assert array.base is None


def test_bad_arrays_are_refused_as_by_the_core():
    similarity = np.full((2, 3, 4), 0.7, dtype=np.float32)
    query_cells, grid = np.array([[0, 0], [0, 1], [0, 2]]), GridSize(1, 4)
    with pytest.raises(InputInvalid, match="do not fit a grid"):
        grow_seedless_chunk(similarity, query_cells, GridSize(2, 3), TAU, "rigid")
    with pytest.raises(InputInvalid, match="do not fit a grid"):
        grow_seedless_chunk(similarity[0], query_cells, grid, TAU, "rigid")
    with pytest.raises(InputInvalid, match="query cells"):
        grow_seedless_chunk(similarity, query_cells[:2], grid, TAU, "rigid")
    with pytest.raises(InputInvalid, match="repeat"):
        grow_seedless_chunk(similarity, query_cells * 0, grid, TAU, "rigid")
    with pytest.raises(InputInvalid, match="query cells"):
        grow_rigid_on_device(torch.from_numpy(similarity), query_cells[:2], grid, TAU)
    with pytest.raises(InputInvalid, match="float32"):
        grow_seedless_chunk(similarity.astype(np.float64), query_cells, grid, TAU, "rigid")
    with pytest.raises(InputInvalid, match="one tau or 2"):
        grow_seedless_chunk(similarity, query_cells, grid, f32([0.5, 0.5, 0.5]), "rigid")
    similarity[1, 2, 2] = np.nan
    with pytest.raises(DescriptorInvalid):
        grow_seedless_chunk(similarity, query_cells, grid, TAU, "rigid")
    with pytest.raises(DescriptorInvalid):
        grow_rigid_on_device(torch.from_numpy(similarity), query_cells, grid, TAU)


def test_parts_of_many_candidates_and_late_translations_on_a_device(monkeypatch):
    """Candidates are taken a few at a time; what has fewest matches is labelled last, if at all."""
    monkeypatch.setattr("worker.kernels.device_growth._MATCHES_AT_ONCE", 1)
    monkeypatch.setattr("worker.kernels.device_growth._FIRST", 1)
    rng = np.random.default_rng(3)
    similarity = rng.random((7, 12, 36), dtype=np.float32)
    query_cells = np.array(list(product(range(3), range(4))))
    check_against_core((similarity, query_cells, GridSize(6, 6)), 0.5, "rigid")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("tau", [-0.1, 0.4, 0.5, 0.9])
def test_a_gpu_grows_what_the_core_grows(tau):
    rng = np.random.default_rng(7)
    similarity = np.round(rng.random((40, 24, 256), dtype=np.float32), 2)  # ties abound
    query_cells = np.array(list(product(range(4, 8), range(3, 9))))
    grid = GridSize(16, 16)
    found = grow_rigid_on_device(torch.from_numpy(similarity).cuda(), query_cells, grid, tau)
    assert_same(found, grow_seedless_chunk(similarity, query_cells, grid, tau, "rigid"))
