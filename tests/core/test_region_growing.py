import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.region_growing import (
    GrowthMode,
    Seed,
    best_region,
    coverage,
    grow_from_seed,
    grow_region,
    grow_rigid_seedless,
    grow_seedless,
    region_score,
    select_seeds,
)
from worker.core.similarity import cosine_matrix, l2_normalise
from worker.core.types import FloatArray, GridSize, IntArray, Region
from worker.errors import DescriptorInvalid, InputInvalid

TAU = 0.6


def f32(values: Any) -> FloatArray:
    return np.array(values, dtype=np.float32)


def pairs(region: Region | None) -> list[tuple[int, int]]:
    assert region is not None
    return list(zip(region.query_index.tolist(), region.cell_index.tolist(), strict=True))


def similarities(q: int, c: int, matching: dict[tuple[int, int], float]) -> FloatArray:
    """float32 (q, c): ``matching`` maps (query, cell) to a cosine, all others are 0."""
    similarity = np.zeros((q, c), dtype=np.float32)
    for pair, cosine in matching.items():
        similarity[pair] = cosine
    return similarity


# Query: a row of three cells (0, 0..2). Target: one row of four cells.
ROW_QUERY = np.array([[0, 0], [0, 1], [0, 2]])
ROW_GRID = GridSize(1, 4)


def test_rigid_region_by_hand():
    # (0,1), (1,2), (2,3) is the translation by one column; (2,2) lies on another translation.
    similarity = similarities(3, 4, {(0, 1): 0.9, (1, 2): 0.8, (2, 3): 0.7, (2, 2): 0.95})
    region = grow_from_seed(similarity, ROW_QUERY, ROW_GRID, TAU, Seed(1, 2), mode="rigid")
    assert pairs(region) == [(0, 1), (1, 2), (2, 3)]
    np.testing.assert_array_equal(region.similarity, f32([0.9, 0.8, 0.7]))
    best = grow_rigid_seedless(similarity, ROW_QUERY, ROW_GRID, TAU)
    assert pairs(best) == pairs(region)


def test_elastic_region_by_hand():
    # Target twice as wide: query patch 0 -> cells 0, 1; patch 1 -> cells 2, 3. Rigid steps only
    # join (0,1)-(1,2); elastic ones also let the cell step alone. (2,0) is two cells off.
    similarity = similarities(3, 4, dict.fromkeys([(0, 0), (0, 1), (1, 2), (1, 3), (2, 0)], 0.8))
    rigid = grow_from_seed(similarity, ROW_QUERY, ROW_GRID, TAU, Seed(0, 1), mode="rigid")
    elastic = grow_from_seed(similarity, ROW_QUERY, ROW_GRID, TAU, Seed(0, 1), mode="elastic")
    assert pairs(rigid) == [(0, 1), (1, 2)]
    assert pairs(elastic) == [(0, 0), (0, 1), (1, 2), (1, 3)]
    # Distinct query patches 2 of 3; literal 4 of 3.
    assert coverage(elastic, 3, "distinct") == pytest.approx(2 / 3)
    assert coverage(elastic, 3, "literal") == pytest.approx(4 / 3)


def test_growth_does_not_wrap_around_the_edge_of_the_grid():
    # Cell 1 = (0, 1) and cell 2 = (1, 0) of a 2x2 grid are neighbours by number only.
    similarity = similarities(2, 4, {(0, 1): 0.9, (1, 2): 0.9})
    query_cells = np.array([[0, 0], [0, 1]])
    for mode in ("rigid", "elastic"):
        region = grow_seedless(similarity, query_cells, GridSize(2, 2), TAU, mode)
        assert pairs(region) == [(0, 1)]


def test_growth_does_not_cross_a_hole_in_the_query():
    similarity = similarities(2, 3, {(0, 0): 0.9, (1, 2): 0.9})
    query_cells = np.array([[5, 0], [5, 2]])
    for mode in ("rigid", "elastic"):
        region = grow_seedless(similarity, query_cells, GridSize(1, 3), TAU, mode)
        assert region is not None and region.size == 1


def test_a_pair_at_exactly_tau_belongs_to_the_region():
    similarity = similarities(3, 4, {(0, 0): 0.9, (1, 1): 0.6, (2, 2): 0.5999})
    region = grow_rigid_seedless(similarity, ROW_QUERY, ROW_GRID, 0.6)
    assert pairs(region) == [(0, 0), (1, 1)]


def test_seeds_by_hand():
    # Consistency: (0,0)-(1,1)-(2,2) chain: 1, 2, 1. (0,3) alone: 0, though its cosine is highest.
    similarity = similarities(3, 4, {(0, 0): 0.7, (1, 1): 0.7, (2, 2): 0.8, (0, 3): 0.99})
    seeds = select_seeds(similarity, ROW_QUERY, ROW_GRID, TAU, k=5, k_s=5)
    assert seeds == [(1, 1), (2, 2), (0, 0), (0, 3)]
    assert select_seeds(similarity, ROW_QUERY, ROW_GRID, TAU, k=5, k_s=2) == seeds[:2]
    # With k = 1 query patch 0 proposes only its nearest cell, 3.
    assert select_seeds(similarity, ROW_QUERY, ROW_GRID, TAU, k=1) == [(1, 1), (2, 2), (0, 3)]


def test_equal_seeds_are_ordered_by_query_cell_then_target_cell():
    similarity = similarities(2, 4, dict.fromkeys([(0, 2), (0, 0), (1, 0), (1, 2)], 0.9))
    # Query patch 1 lies above patch 0 and not beside it.
    query_cells = np.array([[4, 1], [1, 7]])
    seeds = select_seeds(similarity, query_cells, ROW_GRID, TAU)
    assert seeds == [(1, 0), (1, 2), (0, 0), (0, 2)]


def test_among_many_equal_cells_a_patch_proposes_the_lowest():
    # Long, mixed rows: sorting routines keep the order of equal values in easy ones by chance.
    similarity = np.where(np.arange(400) % 2, 0.9, 0.8).astype(np.float32)[None, :]
    seeds = select_seeds(similarity, ROW_QUERY[:1], GridSize(20, 20), TAU, k=3)
    assert seeds == [(0, 1), (0, 3), (0, 5)]


def test_the_paper_seeds_can_miss_the_largest_region():
    # With k = 1 every patch proposes a lone, brighter cell: the chain is never a seed.
    chain = {(0, 0): 0.7, (1, 1): 0.7}
    similarity = similarities(2, 8, chain | {(0, 7): 0.9, (1, 3): 0.9})
    query_cells, grid = ROW_QUERY[:2], GridSize(1, 8)
    seeded = grow_region(similarity, query_cells, grid, TAU, "rigid", k=1)
    seedless = grow_rigid_seedless(similarity, query_cells, grid, TAU)
    assert pairs(seeded) == [(0, 7)]
    assert pairs(seedless) == [(0, 0), (1, 1)]


def test_tie_rule_by_hand():
    query_cells, grid = ROW_QUERY, GridSize(1, 8)

    def best(matching: dict[tuple[int, int], float]) -> list[tuple[int, int]]:
        similarity = similarities(3, 8, matching)
        region = grow_rigid_seedless(similarity, query_cells, grid, TAU)
        seeded = grow_region(similarity, query_cells, grid, TAU, "rigid", k=8, k_s=64)
        assert pairs(seeded) == pairs(region)
        return pairs(region)

    # Larger wins even where the smaller one's similarities add up to more: 3 x 0.6 < 2 x 1.0.
    chain = {(0, 0): 0.6, (1, 1): 0.6, (2, 2): 0.6}
    assert best(chain | {(0, 5): 1.0, (1, 6): 1.0}) == list(chain)
    # Equal size: higher mean.
    even = {(0, 0): 0.7, (1, 1): 0.7, (1, 5): 0.8, (2, 6): 0.7}
    assert best(even) == [(1, 5), (2, 6)]
    # Equal size and mean: lowest query cell, then lowest target cell of the seed.
    assert best(dict.fromkeys(even, 0.7)) == [(0, 0), (1, 1)]
    assert best({(0, 4): 0.7, (0, 1): 0.7}) == [(0, 1)]


def test_equal_means_in_another_order_of_summation_are_a_tie():
    # Float addition forgets the two small terms after the 1, and keeps them before it.
    up, down = f32([2**-53, 2**-53, 1]), f32([1, 2**-53, 2**-53])
    assert sum(up.tolist()) != sum(down.tolist())
    regions = [
        Region(np.arange(3), np.arange(3) + shift, values) for shift, values in ((4, up), (0, down))
    ]
    assert best_region(regions, ROW_QUERY) is regions[1]


def test_no_match_gives_no_region():
    similarity = similarities(3, 4, {})
    assert select_seeds(similarity, ROW_QUERY, ROW_GRID, TAU) == []
    assert grow_rigid_seedless(similarity, ROW_QUERY, ROW_GRID, TAU) is None
    assert grow_region(similarity, ROW_QUERY, ROW_GRID, TAU, "elastic") is None
    empty = np.empty((0, 4), dtype=np.float32)
    no_cells = np.empty((0, 2), dtype=np.int64)
    assert grow_rigid_seedless(empty, no_cells, ROW_GRID, TAU) is None
    assert grow_region(empty, no_cells, ROW_GRID, TAU, "rigid") is None


Case = tuple[FloatArray, IntArray, GridSize]


@st.composite
def cases(draw):
    """A query with holes in any order, a small grid and coarse cosines, so that ties abound."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    window = np.array(list(product(range(draw(st.integers(1, 3))), range(3))))
    count = draw(st.integers(1, len(window)))
    query_cells = rng.permutation(window)[:count] + rng.integers(0, 5, 2)
    grid = GridSize(draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    levels = f32([0.1, 0.59, 0.6, 0.61, 0.7, 1.0][: draw(st.integers(2, 6))])
    similarity = rng.choice(levels, size=(count, grid.cells)).astype(np.float32)
    return similarity, query_cells, grid


def all_regions(case: Case, mode: GrowthMode) -> list[Region]:
    similarity, query_cells, grid = case
    matching = np.argwhere(similarity >= np.float32(TAU))
    return [
        grow_from_seed(similarity, query_cells, grid, TAU, Seed(int(i), int(j)), mode=mode)
        for i, j in matching
    ]


modes = st.sampled_from(["rigid", "elastic"])


@given(cases(), modes)
def test_seedless_growth_equals_the_best_over_all_seeds(case, mode):
    similarity, query_cells, grid = case
    expected = best_region(all_regions(case, mode), query_cells)
    found = grow_seedless(similarity, query_cells, grid, TAU, mode)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert pairs(found) == pairs(expected) == sorted(pairs(found))
    np.testing.assert_array_equal(found.similarity, expected.similarity)


@given(cases(), modes)
def test_growth_from_all_seeds_of_the_paper_equals_seedless(case, mode):
    similarity, query_cells, grid = case
    everything = similarity.size
    seeded = grow_region(similarity, query_cells, grid, TAU, mode, k=everything, k_s=everything)
    seedless = grow_seedless(similarity, query_cells, grid, TAU, mode)
    assert (seeded is None) == (seedless is None)
    if seeded is not None and seedless is not None:
        assert pairs(seeded) == pairs(seedless)


@given(cases())
def test_a_rigid_region_lies_on_one_translation_and_inside_the_elastic_one(case):
    _, query_cells, grid = case
    rigid_regions, elastic_regions = all_regions(case, "rigid"), all_regions(case, "elastic")
    for rigid, elastic in zip(rigid_regions, elastic_regions, strict=True):
        assert set(pairs(rigid)) <= set(pairs(elastic))
        cells = np.stack(np.divmod(rigid.cell_index, grid.w), axis=1)
        assert len(np.unique(cells - query_cells[rigid.query_index], axis=0)) == 1
        assert coverage(rigid, len(query_cells), "literal") <= 1
        distinct = coverage(elastic, len(query_cells), "distinct")
        assert 0 < distinct <= min(1, coverage(elastic, len(query_cells), "literal"))


@given(cases(), modes)
def test_any_pair_of_a_region_grows_the_same_region(case, mode):
    similarity, query_cells, grid = case
    region = grow_seedless(similarity, query_cells, grid, TAU, mode)
    for pair in pairs(region) if region is not None else []:
        again = grow_from_seed(similarity, query_cells, grid, TAU, Seed(*pair), mode=mode)
        assert pairs(again) == pairs(region)


@given(cases(), modes, st.randoms())
def test_the_order_of_query_patches_does_not_matter(case, mode, random):
    similarity, query_cells, grid = case
    order = np.array(random.sample(range(len(query_cells)), len(query_cells)))

    def by_place(cells: IntArray, region: Region | None) -> set[tuple[int, ...]] | None:
        if region is None:
            return None
        return {(*cells[i].tolist(), j) for i, j in pairs(region)}

    for grow in (grow_region, grow_seedless):
        one = grow(similarity, query_cells, grid, TAU, mode)
        other = grow(similarity[order], query_cells[order], grid, TAU, mode)
        assert by_place(query_cells, one) == by_place(query_cells[order], other)
        if one is not None and other is not None:
            assert region_score(similarity, one, 1.0, "distinct") == pytest.approx(
                region_score(similarity[order], other, 1.0, "distinct")
            )


def test_score_by_hand():
    # Column means: cell 0: (0.8 + 0.4) / 2 = 0.6, cell 1: (0.2 + 1.0) / 2 = 0.6, cell 2: 0.3.
    similarity = f32([[0.8, 0.2, 0.6], [0.4, 1.0, 0.0]])
    one = Region(np.array([0]), np.array([2]), f32([0.6]))
    # 0.3 * (1/2) ** alpha.
    assert region_score(similarity, one, 1.0, "distinct") == pytest.approx(0.15)
    assert region_score(similarity, one, 0.0, "distinct") == pytest.approx(0.3)
    assert region_score(similarity, one, 2.0, "distinct") == pytest.approx(0.075)
    # Cell 0 twice, cell 2 once: (0.6 + 0.6 + 0.3) / 3 = 0.5; literal coverage 3/2, distinct 1.
    three = Region(np.array([0, 0, 1]), np.array([0, 2, 0]), f32([0.8, 0.6, 0.4]))
    assert region_score(similarity, three, 1.0, "literal") == pytest.approx(0.75)
    assert region_score(similarity, three, 1.0, "distinct") == pytest.approx(0.5)


@given(st.integers(0, 2**32), st.floats(0, 3))
def test_score_from_column_means_equals_eq_6_on_descriptors(seed, alpha):
    rng = np.random.default_rng(seed)
    q, c, size = 3, 6, 5
    query = l2_normalise(rng.normal(size=(q, 8)))
    patches = l2_normalise(rng.normal(size=(c, 8)))
    picked = rng.choice(q * c, size, replace=False)
    query_index, cell_index = np.divmod(np.sort(picked), c)
    similarity = cosine_matrix(query, patches)
    region = Region(query_index, cell_index, similarity[query_index, cell_index])
    pooled_query = sum(query[i].astype(float) for i in range(q)) / q
    pooled_region = sum(patches[j].astype(float) for j in cell_index) / size
    expected = float(pooled_query @ pooled_region) * (size / q) ** alpha
    assert region_score(similarity, region, alpha, "literal") == pytest.approx(expected, abs=1e-6)


def test_a_perfect_copy_scores_the_mean_similarity_and_full_coverage():
    rng = np.random.default_rng(5)
    patches = l2_normalise(rng.normal(size=(12, 40)))
    query_cells = np.array([[1, 1], [1, 2], [2, 1], [2, 2]])
    # The 2x2 query sits at rows 0..1, cols 2..3 of the 3x4 target.
    query = patches[[2, 3, 6, 7]]
    similarity = cosine_matrix(query, patches)
    region = grow_rigid_seedless(similarity, query_cells, GridSize(3, 4), 0.9)
    assert region is not None
    assert pairs(region) == [(0, 2), (1, 3), (2, 6), (3, 7)]
    assert coverage(region, 4, "distinct") == 1
    expected = np.linalg.norm(query.astype(float).mean(axis=0)) ** 2
    assert math.isclose(region_score(similarity, region, 1.0, "distinct"), expected, rel_tol=1e-5)


def test_bad_arrays_are_refused():
    similarity = similarities(3, 4, {(0, 0): 0.9})
    with pytest.raises(InputInvalid, match="do not fit a grid"):
        grow_rigid_seedless(similarity, ROW_QUERY, GridSize(2, 3), TAU)
    with pytest.raises(InputInvalid, match="query cells"):
        grow_rigid_seedless(similarity, ROW_QUERY[:2], ROW_GRID, TAU)
    with pytest.raises(InputInvalid, match="repeat"):
        select_seeds(similarity, ROW_QUERY * 0, ROW_GRID, TAU)
    with pytest.raises(InputInvalid, match="below tau"):
        grow_from_seed(similarity, ROW_QUERY, ROW_GRID, TAU, Seed(1, 1), mode="rigid")
    with pytest.raises(InputInvalid, match="at least one patch"):
        coverage(Region(np.array([0]), np.array([0]), f32([1])), 0, "distinct")
    similarity[2, 2] = np.nan
    with pytest.raises(DescriptorInvalid):
        grow_region(similarity, ROW_QUERY, ROW_GRID, TAU, "rigid")
