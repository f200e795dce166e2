"""The compiled step of a trail against its reference."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.core.similarity import l2_normalise
from worker.core.trail import carry as reference
from worker.core.types import GridSize
from worker.kernels.trail import carry


@settings(deadline=None)
@given(
    h=st.integers(2, 16),
    w=st.integers(2, 16),
    believed=st.integers(0, 12),
    before=st.tuples(st.integers(-2, 2), st.integers(-2, 2)),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_step_is_that_of_the_reference(
    h: int, w: int, believed: int, before: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    grid = GridSize(h, w)
    # Few numbers a cell: cosines above the link level are common.
    from_cd, to_cd = (
        l2_normalise(rng.standard_normal((grid.cells, 4)).astype(np.float32)) for _ in range(2)
    )
    belief_c = np.zeros(grid.cells, dtype=np.float32)
    belief_c[rng.integers(0, grid.cells, believed)] = rng.random(believed, dtype=np.float32)
    accept_c = rng.random(grid.cells, dtype=np.float32)
    expected = reference(belief_c, from_cd, to_cd, accept_c, grid, before)
    step = carry(belief_c, from_cd, to_cd, accept_c, grid, before)
    assert (step.d_row, step.d_col) == (expected.d_row, expected.d_col)
    np.testing.assert_allclose(step.belief_c, expected.belief_c, atol=1e-6)
