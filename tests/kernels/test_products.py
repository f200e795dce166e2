"""Products of bytes, whichever way this machine takes them, against whole numbers."""

from __future__ import annotations

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels import products
from worker.kernels.threads import keep_own_products_single


def exact(rows_rk: np.ndarray, columns_wk: np.ndarray) -> np.ndarray:
    return rows_rk.astype(np.int64) @ columns_wk.T.astype(np.int64)


@settings(max_examples=60, deadline=None)
@given(
    r=st.sampled_from([32, 33, 257, 5000]),
    k=st.sampled_from([3, 64, 192, 1024, 1281, 2499]),
    w=st.sampled_from([16, 48]),
    extreme=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_float_products_are_exact(r: int, k: int, w: int, extreme: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    low = 127 if extreme else -128
    rows_rk = rng.integers(low, 128, (min(r, 257) if k > 192 else r, k), dtype=np.int8)
    columns_wk = rng.integers(low, 128, (w, k), dtype=np.int8)
    if extreme:  # sums as large as they get, of either sign; odd beyond 2**24 where k is odd
        rows_rk[::3], columns_wk[::2] = -128, -128
    columns_kw = torch.from_numpy(columns_wk).T
    for product in (products.float_products, products.multiply):
        out_rw = np.full((len(rows_rk), w), 7, dtype=np.int32)
        product(rows_rk, columns_kw, out_rw)
        np.testing.assert_array_equal(out_rw, exact(rows_rk, columns_wk))


def test_a_thread_of_the_search_multiplies_floats_alone() -> None:
    mkl = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    if not hasattr(mkl, "MKL_Get_Max_Threads"):
        pytest.skip("this torch has no MKL")

    def threads() -> int:
        out_rw = np.empty((32, 16), dtype=np.int32)
        columns_kw = torch.zeros((16, 64), dtype=torch.int8).T
        products.float_products(np.zeros((32, 64), dtype=np.int8), columns_kw, out_rw)
        return int(mkl.MKL_Get_Max_Threads())

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(1, initializer=keep_own_products_single) as pool:
            assert pool.submit(threads).result() == 1
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(threads).result() == 2
    finally:
        torch.set_num_threads(before)


def refuses(_rows: np.ndarray, _columns: object, _out: np.ndarray) -> None:
    raise RuntimeError("not on this machine")


def loses_bits(rows_rk: np.ndarray, columns_kw: torch.Tensor, out_rw: np.ndarray) -> None:
    whole = exact(rows_rk, columns_kw.numpy().T)
    out_rw[:] = np.clip(whole, -(1 << 15), (1 << 15) - 1)


@pytest.mark.parametrize("byte_products", [refuses, loses_bits])
def test_a_machine_whose_byte_products_are_no_use_takes_floats(
    monkeypatch: pytest.MonkeyPatch, byte_products: products.Product
) -> None:
    monkeypatch.setattr(products, "byte_products", byte_products)
    products._fastest.cache_clear()
    try:
        assert products._fastest() is products.float_products
    finally:
        products._fastest.cache_clear()


@pytest.mark.parametrize("slow", ["byte_products", "float_products"])
def test_a_way_that_takes_far_longer_is_left(monkeypatch: pytest.MonkeyPatch, slow: str) -> None:
    plain = getattr(products, slow)

    def slowly(rows_rk: np.ndarray, columns_kw: torch.Tensor, out_rw: np.ndarray) -> None:
        until_s = time.thread_time() + 0.2
        while time.thread_time() < until_s:
            pass
        plain(rows_rk, columns_kw, out_rw)

    monkeypatch.setattr(products, slow, slowly)
    if products._seconds(products.byte_products) is None:
        pytest.skip("8-bit products lose bits on this machine")
    products._fastest.cache_clear()
    try:
        assert products._fastest().__name__ != slowly.__name__
    finally:
        products._fastest.cache_clear()
