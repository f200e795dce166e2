"""Region growing: the largest spatially coherent set of matches (paper, 3.5.2 and 4.1; eq. 6).

A *pair* joins query patch i with target cell j where cosine(i, j) >= tau (eq. 5, ``>=``). Two pairs
are neighbours when one step leads from the one to the other:

- ``rigid``: query cell and target cell make the same 4-connected step, so that a region lives on
  one translation;
- ``elastic``: each makes a 4-connected step or stays, not both stay, so a region may bend or scale.

The step is symmetric, hence the region grown from a seed is the connected component of its pair,
whichever of its pairs the seed is. The *seed of a region* is therefore defined as its lowest pair
by (query row, query col, cell row, cell col).

Tie rule (part of the definition: at tau 0.6 a third of the candidates have several equally large
regions): larger |G|, then higher mean similarity, then lowest seed. Means of equally large regions
are compared by their exactly rounded sums, so no order of summation can decide. (A float64 sum in
any order is exact already for up to 2**16 float32 similarities of 2**-13 and more.)

Shapes everywhere: ``similarity_qc`` float32 (q, c); ``query_cells`` int64 (q, 2), distinct (row,
col) of the query patches in the query's grid; ``grid`` the target's, ``c == grid.cells``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np

from worker.core.similarity import local_matches
from worker.core.types import FloatArray, GridSize, IntArray, Region
from worker.errors import DescriptorInvalid, InputInvalid

GrowthMode = Literal["rigid", "elastic"]
CoverageKind = Literal["distinct", "literal"]

_N4 = ((-1, 0), (0, -1), (0, 1), (1, 0))
_STAY_OR_N4 = ((0, 0), *_N4)

_Step = tuple[tuple[int, int], tuple[int, int]]
"""(d_row, d_col) of the query cell and of the target cell."""

STEPS: dict[GrowthMode, tuple[_Step, ...]] = {
    "rigid": tuple((step, step) for step in _N4),
    "elastic": tuple(
        (query_step, cell_step)
        for query_step in _STAY_OR_N4
        for cell_step in _STAY_OR_N4
        if query_step != (0, 0) or cell_step != (0, 0)
    ),
}
"""One step from a pair to a neighbour, by mode; the opposite of every step is a step too."""


class Seed(NamedTuple):
    """A matching pair from which a region grows."""

    query_index: int
    cell_index: int


def select_seeds(
    similarity_qc: FloatArray,
    query_cells: IntArray,
    grid: GridSize,
    tau: float,
    *,
    k: int = 5,
    k_s: int = 5,
) -> list[Seed]:
    """The top ``k_s`` seeds, best first; empty without matches (paper, 3.5.2 and 4.1).

    Each query patch proposes its ``k`` nearest target cells (lower cell first if equal) with
    cosine >= tau. A proposal's spatial consistency is the number (0..4) of 4-connected steps that
    lead query and target cell together to another match. Order: consistency descending, cosine
    descending, then (query row, query col, cell row, cell col). Raises ``InputInvalid`` or
    ``DescriptorInvalid`` for arrays that do not fit or hold NaN.
    """
    check_arrays(similarity_qc, query_cells, grid)
    nearest_qk = np.argsort(-similarity_qc, axis=1, kind="stable")[:, :k]
    query_index = np.repeat(np.arange(nearest_qk.shape[0]), nearest_qk.shape[1])
    cell_index = nearest_qk.ravel()
    matching = local_matches(similarity_qc, tau)[query_index, cell_index]
    query_index, cell_index = query_index[matching], cell_index[matching]
    consistency = _consistency(similarity_qc, query_cells, grid, tau)[query_index, cell_index]
    order = np.lexsort(
        (
            cell_index,
            query_cells[query_index, 1],
            query_cells[query_index, 0],
            -similarity_qc[query_index, cell_index],
            -consistency,
        )
    )[:k_s]
    return [Seed(int(query_index[at]), int(cell_index[at])) for at in order]


def grow_from_seed(
    similarity_qc: FloatArray,
    query_cells: IntArray,
    grid: GridSize,
    tau: float,
    seed: Seed,
    *,
    mode: GrowthMode,
) -> Region:
    """The region around one seed by breadth-first search: the slow reference (paper, 3.5.2).

    Raises ``InputInvalid`` when the seed is not a match, and as :func:`select_seeds`.
    """
    check_arrays(similarity_qc, query_cells, grid)
    matches = local_matches(similarity_qc, tau)
    if not matches[seed]:
        raise InputInvalid(f"{seed} has cosine {similarity_qc[seed]}, below tau {tau}")
    index_at = {(int(row), int(col)): index for index, (row, col) in enumerate(query_cells)}
    grown = {seed}
    waiting = deque([seed])
    while waiting:
        for pair in _neighbours(waiting.popleft(), query_cells, index_at, grid, mode):
            if pair not in grown and matches[pair]:
                grown.add(pair)
                waiting.append(pair)
    pairs = np.array(sorted(grown), dtype=np.int64)
    return _region(similarity_qc, pairs[:, 0], pairs[:, 1])


def grow_region(
    similarity_qc: FloatArray,
    query_cells: IntArray,
    grid: GridSize,
    tau: float,
    mode: GrowthMode,
    *,
    k: int = 5,
    k_s: int = 5,
) -> Region | None:
    """G*: the best region grown from the top ``k_s`` seeds, by the tie rule; None without a match.

    This is the paper's growth (3.5.2). Raises as :func:`select_seeds`.
    """
    seeds = select_seeds(similarity_qc, query_cells, grid, tau, k=k, k_s=k_s)
    regions = (
        grow_from_seed(similarity_qc, query_cells, grid, tau, seed, mode=mode) for seed in seeds
    )
    return best_region(regions, query_cells)


def best_region(regions: Iterable[Region], query_cells: IntArray) -> Region | None:
    """The first region by the tie rule of this module; None when there is none."""

    def order(region: Region) -> tuple[int, float, tuple[int, int, int]]:
        # Row-major cell ids sort as (cell row, cell col) do.
        rows, cols = query_cells[region.query_index].T
        lowest = np.lexsort((region.cell_index, cols, rows))[0]
        seed = (int(rows[lowest]), int(cols[lowest]), int(region.cell_index[lowest]))
        return -region.size, -math.fsum(region.similarity.tolist()), seed

    return min(regions, key=order, default=None)


def grow_seedless(
    similarity_qc: FloatArray,
    query_cells: IntArray,
    grid: GridSize,
    tau: float,
    mode: GrowthMode,
) -> Region | None:
    """G* over *all* seeds at once: the best connected component of matching pairs by the tie rule.

    Equal to the best of :func:`grow_from_seed` over every matching pair, without choosing seeds
    (design, section 4.4). None without a match. Raises as :func:`select_seeds`.
    """
    check_arrays(similarity_qc, query_cells, grid)
    # In row-major order of the query cells, np.nonzero lists pairs by (row, col, cell): the lowest
    # pair of a component, its seed, is then the one with the lowest number.
    row_major = np.lexsort((query_cells[:, 1], query_cells[:, 0]))
    query_index, cell_index = np.nonzero(local_matches(similarity_qc[row_major], tau))
    if not query_index.size:
        return None
    edges = _edges(query_index, cell_index, query_cells[row_major], grid, mode)
    seed_of_pair = _lowest_connected(query_index.size, edges)
    similarity = similarity_qc[row_major[query_index], cell_index]
    chosen = np.flatnonzero(seed_of_pair == _best_component(seed_of_pair, similarity))
    query_index, cell_index = row_major[query_index[chosen]], cell_index[chosen]
    order = np.lexsort((cell_index, query_index))
    return _region(similarity_qc, query_index[order], cell_index[order])


def grow_rigid_seedless(
    similarity_qc: FloatArray, query_cells: IntArray, grid: GridSize, tau: float
) -> Region | None:
    """:func:`grow_seedless` in rigid mode: the connected components of every translation."""
    return grow_seedless(similarity_qc, query_cells, grid, tau, "rigid")


def coverage(region: Region, query_count: int, kind: CoverageKind) -> float:
    """Share of the query that the region supports.

    ``distinct``: distinct query patches in G* over |Q|, at most 1. ``literal``: |G*| / |Q| as eq. 6
    writes it, which elastic growth can push above 1 by matching one patch to many cells.
    """
    if query_count < 1:
        raise InputInvalid(f"a query has at least one patch, got {query_count}")
    pairs = region.size if kind == "literal" else np.unique(region.query_index).size
    return float(pairs / query_count)


def region_score(
    similarity_qc: FloatArray, region: Region, alpha: float, coverage_kind: CoverageKind
) -> float:
    """``S(I_Q, I_c)`` of eq. 6: similarity of the pooled descriptors times coverage ** alpha.

    By linearity the first factor needs no descriptors, only column means of the similarities:
    ``(1/|Q| sum_i q_i) . (1/|G*| sum_(i,j) p_j) = 1/|G*| sum_(i,j) (1/|Q| sum_i' q_i' . p_j)``,
    where a cell counts once per pair it is in. Computed in float64. ``region`` is not empty.
    """
    cells, uses = np.unique(region.cell_index, return_counts=True)
    column_mean = similarity_qc[:, cells].mean(axis=0, dtype=np.float64)
    pooled = float(column_mean @ uses) / region.size
    return float(pooled * coverage(region, similarity_qc.shape[0], coverage_kind) ** alpha)


def check_arrays(
    similarity: FloatArray, query_cells: IntArray, grid: GridSize, *, axes: int = 2
) -> None:
    """Raise where growth has no answer: float32 (..., q, c) of ``axes`` axes, int64 (q, 2).

    ``InputInvalid`` for shapes that do not fit or repeated query cells, ``DescriptorInvalid`` for a
    NaN.
    """
    if similarity.ndim != axes:
        raise _unfit(similarity.shape, grid)
    check_cells(similarity.shape, query_cells, grid)
    if np.isnan(similarity).any():
        raise DescriptorInvalid("a similarity is NaN: verify the index")


def check_cells(shape: tuple[int, ...], query_cells: IntArray, grid: GridSize) -> None:
    """The part of it that looks at no similarity: ``shape`` is theirs, (..., q, c)."""
    if shape[-1] != grid.cells:
        raise _unfit(shape, grid)
    if query_cells.shape != (shape[-2], 2):
        raise InputInvalid(
            f"similarities {shape} need query cells ({shape[-2]}, 2), got {query_cells.shape}"
        )
    if len(np.unique(query_cells, axis=0)) != len(query_cells):
        raise InputInvalid("query cells repeat: give every cell of the ROI once")


def _unfit(shape: tuple[int, ...], grid: GridSize) -> InputInvalid:
    return InputInvalid(f"similarities {shape} do not fit a grid of {grid.h}x{grid.w} cells")


def _neighbours(
    pair: Seed,
    query_cells: IntArray,
    index_at: dict[tuple[int, int], int],
    grid: GridSize,
    mode: GrowthMode,
) -> Iterator[Seed]:
    """Pairs one step away that exist: i' in Q and j' inside the grid; not yet tested for tau."""
    query_row, query_col = (int(value) for value in query_cells[pair.query_index])
    cell_row, cell_col = divmod(pair.cell_index, grid.w)
    for query_step, cell_step in STEPS[mode]:
        query_index = index_at.get((query_row + query_step[0], query_col + query_step[1]))
        row, col = cell_row + cell_step[0], cell_col + cell_step[1]
        if query_index is not None and 0 <= row < grid.h and 0 <= col < grid.w:
            yield Seed(query_index, row * grid.w + col)


def stepped_queries(query_cells: IntArray, step: tuple[int, int]) -> IntArray:
    """Index of the query patch one step from each, -1 where that cell is not in Q: int64 (q,)."""
    if not query_cells.size:
        return np.empty(0, dtype=np.int64)
    from_corner = query_cells - query_cells.min(axis=0) + 1
    index_hw = np.full(from_corner.max(axis=0) + 2, -1, dtype=np.int64)
    index_hw[from_corner[:, 0], from_corner[:, 1]] = np.arange(len(query_cells))
    stepped: IntArray = index_hw[from_corner[:, 0] + step[0], from_corner[:, 1] + step[1]]
    return stepped


def stepped_cells(grid: GridSize, step: tuple[int, int]) -> IntArray:
    """Patch id one step from each cell of the grid, -1 outside: int64 (cells,)."""
    row, col = np.divmod(np.arange(grid.cells, dtype=np.int64), grid.w)
    row, col = row + step[0], col + step[1]
    inside = (row >= 0) & (row < grid.h) & (col >= 0) & (col < grid.w)
    return np.where(inside, row * grid.w + col, -1)


def _consistency(
    similarity_qc: FloatArray, query_cells: IntArray, grid: GridSize, tau: float
) -> IntArray:
    """Matching pairs one rigid step from every pair: int64 (q, c), 0..4."""
    # One row and column of False at the end: index -1 then means "no such pair".
    padded = np.pad(local_matches(similarity_qc, tau), ((0, 1), (0, 1)))
    support_qc = np.zeros(similarity_qc.shape, dtype=np.int64)
    for step in _N4:
        query_index, cell_index = stepped_queries(query_cells, step), stepped_cells(grid, step)
        support_qc += padded[np.ix_(query_index, cell_index)]
    return support_qc


def _edges(
    query_index: IntArray,
    cell_index: IntArray,
    query_cells: IntArray,
    grid: GridSize,
    mode: GrowthMode,
) -> IntArray:
    """Neighbouring matching pairs as int64 (e, 2) of pair numbers, each edge once."""
    number_qc = np.full((len(query_cells) + 1, grid.cells + 1), -1, dtype=np.int64)
    number_qc[query_index, cell_index] = np.arange(query_index.size)
    edges = []
    for query_step, cell_step in STEPS[mode]:
        if (query_step, cell_step) < ((0, 0), (0, 0)):
            continue  # the opposite step finds the same edge
        stepped = number_qc[
            stepped_queries(query_cells, query_step)[query_index],
            stepped_cells(grid, cell_step)[cell_index],
        ]
        met = np.flatnonzero(stepped >= 0)
        edges.append(np.stack((met, stepped[met]), axis=1))
    return np.concatenate(edges)


def _lowest_connected(count: int, edges: IntArray) -> IntArray:
    """Lowest number each of ``count`` nodes is connected with: int64 (count,).

    Label propagation with pointer jumping: the number of rounds grows with the logarithm of the
    longest path in practice, not with the path.
    """
    label = np.arange(count, dtype=np.int64)
    while True:
        left, right = label[edges[:, 0]], label[edges[:, 1]]
        if np.array_equal(left, right):
            return label
        lower = np.minimum(left, right)
        np.minimum.at(label, np.maximum(left, right), lower)
        jumped = label[label]
        while not np.array_equal(jumped, label):
            label, jumped = jumped, jumped[jumped]


def _best_component(seed_of_pair: IntArray, similarity: FloatArray) -> int:
    """Seed number of the best component by the tie rule; pairs are sorted, seeds are labels."""
    seeds, component, sizes = np.unique(seed_of_pair, return_inverse=True, return_counts=True)
    sums = np.bincount(component, weights=similarity.astype(np.float64)).astype(np.float64)
    sums[sizes < sizes.max()] = -np.inf
    # Rounding of these sums is far below 1e-6: only the contenders need the exact sum.
    contenders = np.flatnonzero(sums >= sums.max() - 1e-6)
    if contenders.size == 1:
        return int(seeds[contenders[0]])
    exact = [math.fsum(similarity[component == at].tolist()) for at in contenders]
    return int(seeds[contenders[int(np.argmax(exact))]])


def _region(similarity_qc: FloatArray, query_index: IntArray, cell_index: IntArray) -> Region:
    return Region(
        query_index.astype(np.int64),
        cell_index.astype(np.int64),
        similarity_qc[query_index, cell_index].astype(np.float32),
    )
