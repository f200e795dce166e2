"""Cosines with stored directions against decoding them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.similarity import l2_normalise
from worker.core.types import Descriptors
from worker.errors import DescriptorInvalid
from worker.index.codec import codec_named
from worker.kernels import directions
from worker.kernels.directions import direction_cosines, stored_directions


@given(n=st.integers(0, 40), d=st.integers(1, 400), seed=st.integers(0, 2**32 - 1))
def test_cosines_are_those_of_decoded_rows(n: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codec = codec_named("int8")
    stored = codec.encode(l2_normalise(rng.standard_normal((n, d)).astype(np.float32)))
    query_d = l2_normalise(rng.standard_normal((1, d)).astype(np.float32))[0]
    expected = codec.decode(stored) @ query_d
    np.testing.assert_allclose(direction_cosines([stored], query_d), expected, atol=1e-5)


@given(
    n=st.integers(0, 9),
    d=st.integers(1, 400),
    seed=st.integers(0, 2**32 - 1),
    log_size=st.floats(-30, 30),
)
def test_directions_are_stored_as_the_codec_does(
    n: int, d: int, seed: int, log_size: float
) -> None:
    rng = np.random.default_rng(seed)
    rows_nd = (rng.standard_normal((n, d)) * 10.0**log_size).astype(np.float32)
    rows_nd[rng.random((n, d)) < 0.1] = 0
    rows_nd[:, 0] += np.float32(10.0**log_size)  # no row of zeros only
    made = Descriptors(rows_nd, np.stack([rows_nd, -rows_nd], axis=1))
    codec, stored = codec_named("int8"), stored_directions(made)
    np.testing.assert_array_equal(stored.global_nd, codec.encode(made.global_nd))
    np.testing.assert_array_equal(stored.patches_ncd, codec.encode(made.patches_ncd))
    assert stored_directions(stored).patches_ncd is stored.patches_ncd


@pytest.mark.parametrize("wrong", [np.nan, -np.nan, np.inf, -np.inf, 0.0])
def test_what_has_no_direction_is_refused(wrong: float) -> None:
    rows_nd = np.ones((3, 40), dtype=np.float32)
    rows_nd[1] = 0
    rows_nd[1, 7] = wrong
    with pytest.raises(DescriptorInvalid, match="no direction"):
        stored_directions(Descriptors(rows_nd, rows_nd[:, None]))


@pytest.mark.parametrize("threads", [1, 2])
def test_parts_are_those_of_each_whatever_threads_share_them(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directions, "_WORTH_A_THREAD_BYTES", 1 << 20)
    rng = np.random.default_rng(1)
    sizes = (0, 3_000, 1, 2_000)
    parts = [rng.integers(-127, 128, (n, 1280), dtype=np.int8) for n in sizes]
    query_d = rng.standard_normal(1280).astype(np.float32)
    expected = np.concatenate([direction_cosines([part], query_d) for part in parts])
    np.testing.assert_array_equal(direction_cosines(parts, query_d, threads), expected)
    assert direction_cosines([], query_d, threads).size == 0
