"""The scan over codes of cell runs against its reference, and expanding them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.core.cell_runs import RunFinder
from worker.core.run_codes import RunCodes, best_similarity_of_runs
from worker.core.similarity import l2_normalise
from worker.kernels import run_codes as kernel
from worker.kernels.run_codes import best_similarities_of_runs

STEP = 1.5 / 127


def made(frames: int, cells: int, k: int, moving: float, seed: int) -> tuple[RunCodes, np.ndarray]:
    """Codes of runs, and the codes of every cell of every frame that they stand for."""
    rng = np.random.default_rng(seed)
    finder = RunFinder(cells, 0.0)
    shown = np.rint(l2_normalise(rng.standard_normal((cells, k))) / STEP)
    rows, whole = [], []
    for _ in range(frames):
        moves = rng.random(cells) < moving
        shown[moves] = np.rint(l2_normalise(rng.standard_normal((int(moves.sum()), k))) / STEP)
        codes_ck = shown.astype(np.int8)
        rows.append(codes_ck[finder.add(codes_ck, l2_normalise(shown), exact=True)])
        whole.append(codes_ck)
    runs = finder.runs()
    row, cell, first, end = runs.by_row()
    cell_r = np.zeros(runs.rows, dtype=np.uint16)
    cell_r[row] = cell
    run_codes = RunCodes(
        frames,
        cells,
        np.concatenate(rows),
        np.searchsorted(row, np.arange(runs.rows + 1)).astype(np.uint32),
        cell_r,
        np.stack((first, end - 1), axis=1).astype(np.uint16),
    )
    return run_codes, np.stack(whole)


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(1, 300),
    cells=st.integers(1, 20),
    queries=st.integers(1, 35),
    k=st.sampled_from([4, 16, 64]),
    moving=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    background=st.booleans(),
    zone=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_scan_of_runs_is_that_of_every_frame(
    frames: int,
    cells: int,
    queries: int,
    k: int,
    moving: float,
    background: bool,
    zone: bool,
    seed: int,
) -> None:
    run_codes, whole = made(frames, cells, k, moving, seed)
    rng = np.random.default_rng(seed + 1)
    first = int(rng.integers(0, frames))
    end = int(rng.integers(first + 1, frames + 1))
    assert np.array_equal(run_codes.expand(first, end), whole[first:end])
    query_qk = l2_normalise(rng.standard_normal((queries, k)))
    background_ck = l2_normalise(rng.standard_normal((cells, k))) if background else None
    inside_c = rng.random(cells) < 0.4 if zone else None
    if inside_c is not None:
        inside_c[rng.integers(0, cells)] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "_TABLE_BYTES", seed % 2 * 2**26)  # in parts of 16, or all at once
        fast = best_similarities_of_runs(run_codes, STEP, query_qk, background_ck, inside_c)
    slow = best_similarity_of_runs(run_codes, STEP, query_qk, background_ck, inside_c)
    assert fast.shape == slow.shape == (frames, queries)
    np.testing.assert_allclose(fast, slow, atol=0.01)
