"""Cosines by 8-bit products against decoding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.core.background import novelty
from worker.core.similarity import l2_normalise
from worker.core.types import FloatArray
from worker.index.codec import codec_named
from worker.index.scorer import StoredPatches
from worker.kernels.cosines import best_cosines, cell_cosines
from worker.kernels.queries import byte_query
from worker.patch_cosines import (
    all_cosines,
    greatest_cosines,
    patch_novelty,
    query_rows,
)

CODEC = codec_named("int8")


def unit(rng: np.random.Generator, *shape: int) -> FloatArray:
    return l2_normalise(rng.standard_normal(shape).astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 70),
    c=st.sampled_from([1, 5, 49, 256]),
    d=st.sampled_from([3, 64, 192, 1280]),
    q=st.integers(1, 40),
    sparse=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_cosines_are_those_of_decoded_rows(
    n: int, c: int, d: int, q: int, sparse: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    patches_ncd, query_qd = unit(rng, min(n, 6) if d == 1280 else n, c, d), unit(rng, q, d)
    if sparse:  # one number holds it all: bytes and sums at their largest
        patches_ncd, query_qd = np.sign(patches_ncd), l2_normalise(np.sign(query_qd))
    stored = CODEC.encode(patches_ncd)
    expected = (CODEC.decode(stored) @ query_qd.T).transpose(0, 2, 1)
    query = byte_query(query_qd)
    np.testing.assert_allclose(cell_cosines(stored, query), expected, atol=5e-5)
    inside_c = rng.random(c) < 0.5
    inside_c[int(rng.integers(0, c))] = True
    best = best_cosines(stored, query, inside_c)
    np.testing.assert_allclose(best, expected[:, :, inside_c].max(axis=2), atol=5e-5)
    background_cd = unit(rng, c, d)
    seen = patch_novelty(StoredPatches(stored, CODEC), background_cd)
    np.testing.assert_allclose(seen, novelty(CODEC.decode(stored), background_cd), atol=5e-5)


@pytest.mark.parametrize("codec_name", ["fp32", "fp16", "int8"])
def test_every_codec_is_compared(codec_name: str) -> None:
    rng = np.random.default_rng(3)
    codec = codec_named(codec_name)
    stored, query_qd = codec.encode(unit(rng, 4, 9, 64)), unit(rng, 5, 64)
    expected = (codec.decode(stored) @ query_qd.T).transpose(0, 2, 1)
    patches = StoredPatches(stored, codec)
    query = query_rows(query_qd)
    np.testing.assert_allclose(all_cosines(patches, query), expected, atol=5e-5)
    best = greatest_cosines(patches, query, None)
    np.testing.assert_allclose(best, expected.max(axis=2), atol=5e-5)


def test_a_frame_scores_the_same_alone_and_among_others() -> None:
    rng = np.random.default_rng(4)
    stored, query = CODEC.encode(unit(rng, 80, 49, 192)), byte_query(unit(rng, 7, 192))
    together = cell_cosines(stored, query)
    alone = np.concatenate([cell_cosines(stored[i : i + 1], query) for i in range(len(stored))])
    np.testing.assert_array_equal(together, alone)
