"""Scan and stage 2 on a torch device against the core and the compiled kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from worker.core.coarse import best_similarity, target_weights
from worker.core.similarity import l2_normalise
from worker.core.types import FloatArray
from worker.index.codec import codec_named
from worker.kernels.coarse import best_similarities
from worker.kernels.cosines import cell_cosines
from worker.kernels.device_codes import (
    DeviceCodes,
    best_similarities_on_device,
    fused_is_right,
    weighted,
)
from worker.kernels.device_patches import cosines_on_device, with_lengths
from worker.kernels.held_codes import HeldCodes
from worker.kernels.queries import byte_query

CODEC = codec_named("int8")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
        ],
    ),
]
STEP = 0.01


def unit(rng: np.random.Generator, *shape: int) -> FloatArray:
    return l2_normalise(rng.standard_normal(shape, dtype=np.float32))


def made(cells: int, frames: int = 37) -> tuple[Any, FloatArray, FloatArray, Any]:
    """Codes, query rows, unit background rows and a zone."""
    rng = np.random.default_rng(cells)
    codes = rng.integers(-100, 101, (frames, cells, 64), dtype=np.int8)
    background_ck = unit(rng, cells, 64)
    # Some cells show their background, some nearly.
    codes[::3] = np.rint(100 * background_ck + rng.normal(0, 3, background_ck.shape))
    return codes, unit(rng, 21, 64), background_ck, rng.random(cells) < 0.7


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cells", [20, 256])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("zoned", [False, True])
def test_a_scan_says_what_the_core_does(device, cells, known, zoned):
    codes, query_qk, background_ck, inside_c = made(cells)
    background = background_ck if known else None
    inside = inside_c if zoned else None
    on_device = weighted(torch.from_numpy(codes).to(device), background)
    found = best_similarities_on_device(on_device, STEP, query_qk, inside).cpu().numpy()
    expected = best_similarity(codes, STEP, query_qk, background, inside)
    assert found.dtype == np.float32
    # As for the compiled kernel: queries are rounded to 8 bits.
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=0.01 * largest)
    compiled = best_similarities(
        iter([(0, codes)]), len(codes), STEP, query_qk, background, 1, cells, inside
    )
    np.testing.assert_allclose(found, compiled, atol=1e-3 * largest)


def test_a_scan_in_blocks_is_the_same(monkeypatch):
    codes, query_qk, background_ck, _ = made(20)
    whole = best_similarities_on_device(
        weighted(torch.from_numpy(codes), background_ck), STEP, query_qk
    )
    monkeypatch.setattr("worker.kernels.device_codes._PRODUCT_BYTES", 20 * 4 * 64 * 5)
    again = weighted(torch.from_numpy(codes), background_ck)
    assert torch.equal(best_similarities_on_device(again, STEP, query_qk), whole)
    expected = target_weights(codes, background_ck)
    assert again.weight_nc is not None
    np.testing.assert_allclose(again.weight_nc.float().numpy(), expected, atol=5e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("queries", [3, 25, 150])
def test_the_fused_scan_says_what_the_blocked_one_does(queries):
    """The kernel is refused where it does not; here it has to be right."""
    assert fused_is_right(196, 64) and fused_is_right(256, 64)
    rng = np.random.default_rng(0)
    codes, _, background_ck, inside_c = made(256, frames=1000)
    on_device = weighted(torch.from_numpy(codes).cuda(), background_ck)
    given: Any = (on_device, STEP, unit(rng, queries, 64), inside_c)
    torch.testing.assert_close(
        best_similarities_on_device(*given), best_similarities_on_device(*given, fused=False)
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("d", "queries"), [(64, 1), (192, 25), (1280, 48)])
def test_cosines_of_patches_are_those_of_the_compiled_kernel(device, d, queries):
    rng = np.random.default_rng(d)
    stored, query_qd = CODEC.encode(unit(rng, 5, 49, d)), unit(rng, queries, d)
    patches = with_lengths(torch.from_numpy(stored).to(device))
    found = cosines_on_device(patches, query_qd).cpu().numpy()
    assert found.shape == (5, queries, 49) and found.dtype == np.float32
    decoded = (CODEC.decode(stored) @ query_qd.T).transpose(0, 2, 1)
    np.testing.assert_allclose(found, decoded, atol=5e-5)
    compiled = cell_cosines(stored, byte_query(query_qd))
    np.testing.assert_allclose(found, compiled, atol=1e-6)


def test_codes_say_how_many_they_are():
    assert DeviceCodes(torch.zeros((3, 4, 64), dtype=torch.int8)).frames == 3


def test_what_fits_a_device_is_held_and_stays():
    held = HeldCodes(lambda: ("cpu", 66 * 100))
    assert held.fitting([(2, 16), (5, 16), (0, 16), (1, 16), (3, 16)]) == [
        True, False, False, True, True,
    ]  # fmt: skip
    codes = np.ones((4, 17, 8), dtype=np.int8)
    read: list[int] = []

    def of(first: int) -> Iterator[tuple[int, Any]]:
        read.append(first)
        yield first, codes[first:]

    assert held.codes("a", 4, 16, None, of).frames == 4
    assert held.codes("a", 3, 16, None, of).frames == 3
    codes = np.ones((6, 17, 8), dtype=np.int8)
    grown = held.codes("a", 6, 16, np.ones((16, 8), np.float32), of)
    assert (grown.frames, grown.codes_nck.shape[1], read) == (6, 16, [0, 4])
    assert grown.weight_nc is not None and grown.weight_nc.shape == (6, 16)
    held.codes("b", 4, 16, None, lambda first: of(2))
    assert list(held._held) == ["b"]
    held.shrink()
    assert not held._held and held.fitting([(4, 16)]) == [False]
