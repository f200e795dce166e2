"""Cosines with stored directions against decoding them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from worker.core.similarity import l2_normalise
from worker.index.codec import codec_named
from worker.kernels.directions import direction_cosines


@given(n=st.integers(0, 40), d=st.integers(1, 400), seed=st.integers(0, 2**32 - 1))
def test_cosines_are_those_of_decoded_rows(n: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codec = codec_named("int8")
    stored = codec.encode(l2_normalise(rng.standard_normal((n, d)).astype(np.float32)))
    query_d = l2_normalise(rng.standard_normal((1, d)).astype(np.float32))[0]
    expected = codec.decode(stored) @ query_d
    np.testing.assert_allclose(direction_cosines(stored, query_d), expected, atol=1e-5)
