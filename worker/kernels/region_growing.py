"""Seedless region growing over a chunk of candidates at once, compiled.

Equal to ``worker.core.region_growing.grow_seedless``, which stays the reference and decides the
rare ties that float64 sums cannot.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worker.core.region_growing import (
    STEPS,
    GrowthMode,
    check_arrays,
    grow_seedless,
    stepped_cells,
    stepped_queries,
)
from worker.core.types import FloatArray, GridSize, IntArray, Region
from worker.errors import InputInvalid


def grow_seedless_chunk(
    similarity_mqc: FloatArray,
    query_cells: IntArray,
    grid: GridSize,
    tau: float | FloatArray,
    mode: GrowthMode,
) -> list[Region | None]:
    """G* of every candidate over all seeds, by the tie rule of the core; None without a match.

    ``similarity_mqc``: float32 (m, q, c) cosines. ``query_cells``: int64 (q, 2), distinct (row,
    col). ``c == grid.cells``. ``tau``: one level, or float32 (m,), one per candidate. Releases the
    GIL. The first call of a process loads the kernel; the first on a machine compiles it (seconds).

    Raises ``InputInvalid`` for arrays that do not fit and ``DescriptorInvalid`` for a NaN.
    """
    check_arrays(similarity_mqc, query_cells, grid, axes=3)
    if similarity_mqc.dtype != np.float32:
        raise InputInvalid(f"similarities are float32, got {similarity_mqc.dtype}")
    m, _, c = similarity_mqc.shape
    tau_m = tau_per_candidate(tau, m)
    if similarity_mqc.size == 0:
        return [None] * m

    # Late: loading numba takes half a second.
    from worker.kernels.components import best_components

    row_major = np.lexsort((query_cells[:, 1], query_cells[:, 0]))
    query_next, cell_next = _step_tables(query_cells[row_major], grid, mode)
    pairs, end_m, lead_m = best_components(
        np.ascontiguousarray(similarity_mqc), tau_m, row_major, query_next, cell_next
    )
    start_m = np.concatenate(([0], end_m[:-1]))
    flat = row_major[pairs[:, 0]] * c + pairs[:, 1]
    regions = [
        _region(similarity_mqc[n].ravel(), flat[start:end], c)
        for n, (start, end) in enumerate(zip(start_m, end_m, strict=True))
    ]
    for n in unsure(float(similarity_mqc.max()), tau_m, end_m - start_m, lead_m):
        regions[n] = grow_seedless(similarity_mqc[n], query_cells, grid, float(tau_m[n]), mode)
    return regions


def unsure(
    greatest: float, tau_m: FloatArray, size_m: IntArray, lead_m: NDArray[np.float64]
) -> IntArray:
    """Candidates whose tie the rounding of float64 sums may have decided. ``greatest``: of all
    similarities; ``lead_m``: how far the best sum lies above the next of its size.

    Sums are exact for up to 2**16 similarities of 2**-13 and more and below 2: multiples of 2**-36,
    whose sums stay below 2**17, fit 53 bits. Otherwise their error is far below 1e-6.
    """
    exact_m = (tau_m >= 2.0**-13) & (size_m <= 2**16) & (greatest < 2)
    # A lead that is NaN (of infinite sums) is not sure either.
    return np.flatnonzero((size_m > 0) & ~exact_m & ~(lead_m > 1e-6))


def tau_per_candidate(tau: float | FloatArray, m: int) -> FloatArray:
    """float32 (m,), contiguous."""
    if np.ndim(tau) == 0:
        return np.full(m, tau, dtype=np.float32)
    if np.shape(tau) != (m,):
        raise InputInvalid(f"{m} candidates need one tau or {m}, got shape {np.shape(tau)}")
    return np.ascontiguousarray(tau, dtype=np.float32)


def _step_tables(
    query_cells: IntArray, grid: GridSize, mode: GrowthMode
) -> tuple[IntArray, IntArray]:
    """Where every step of a mode leads: int64 (q, steps), q outside, and (c, steps), c outside."""
    steps = STEPS[mode]
    query_next = np.stack([stepped_queries(query_cells, step) for step, _ in steps], axis=1)
    cell_next = np.stack([stepped_cells(grid, step) for _, step in steps], axis=1)
    query_next[query_next < 0] = len(query_cells)
    cell_next[cell_next < 0] = grid.cells
    return query_next, cell_next


def _region(similarity: FloatArray, flat: IntArray, c: int) -> Region | None:
    if not flat.size:
        return None
    flat = np.sort(flat)
    query_index, cell_index = np.divmod(flat, c)
    return Region(query_index, cell_index, similarity[flat])


def warm_up() -> None:
    """Compile or load the kernel now, so that no query waits for it (seconds)."""
    one_mqc = np.ones((1, 1, 1), dtype=np.float32)
    cell = np.zeros((1, 2), dtype=np.int64)
    for mode in ("rigid", "elastic"):
        grow_seedless_chunk(one_mqc, cell, GridSize(1, 1), 0.5, mode)
