"""Products of bytes, exact on every machine: by 8-bit instructions where the processor has them, by
float32 where torch's own way without them is tens of times slower or loses bits."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.kernels.threads import keep_own_products_single

Product = Callable[[np.ndarray, Any, NDArray[np.int32]], None]

LEAST_ROWS = 32
"""The 8-bit product wants more than 16."""
_SUMMED_AT_ONCE = 1024
"""Of so many products of two bytes every sum is a whole number that float32 holds."""
_NUMBERS_AT_ONCE = 1 << 18
"""Rows as float32 that stay in a core's second-level cache."""
# Files are mapped to be read, and nothing here writes to them.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def multiply(rows_rk: np.ndarray, columns_kw: Any, out_rw: NDArray[np.int32]) -> None:
    """Products of int8 rows, at least 32, with int8 columns (a torch tensor), into ``out_rw``."""
    _fastest()(rows_rk, columns_kw, out_rw)


def byte_products(rows_rk: np.ndarray, columns_kw: Any, out_rw: NDArray[np.int32]) -> None:
    """:func:`multiply` by the processor's 8-bit instructions, or whatever torch does without."""
    import torch  # here: commands that never search need not load it

    torch._int_mm(torch.from_numpy(rows_rk), columns_kw, out=torch.from_numpy(out_rw))


def float_products(rows_rk: np.ndarray, columns_kw: Any, out_rw: NDArray[np.int32]) -> None:
    """:func:`multiply` in float32, whose sums of up to 1,024 such products are exact."""
    import torch

    rows, out = torch.from_numpy(rows_rk), torch.from_numpy(out_rw)
    (r, k), width = rows.shape, columns_kw.shape[1]
    for first in range(0, k, _SUMMED_AT_ONCE):
        some = rows[:, first : first + _SUMMED_AT_ONCE]
        columns = columns_kw[first : first + _SUMMED_AT_ONCE].float().contiguous()
        step = max(LEAST_ROWS, _NUMBERS_AT_ONCE // some.shape[1])
        for start in range(0, r, step):
            n = min(step, r - start)
            as_float = _own_scratch("rows", n * some.shape[1]).view(n, -1)
            product = _own_scratch("product", n * width).view(n, -1)
            as_float.copy_(some[start : start + n])
            torch.mm(as_float, columns, out=product)
            if first == 0:
                out[start : start + n].copy_(product)
            else:
                out[start : start + n] += product.int()


_own = threading.local()


def _own_scratch(name: str, numbers: int) -> Any:
    """So many float32 of this thread, kept from call to call: such memory is in its cache."""
    import torch

    held = getattr(_own, name, None)
    if held is None or len(held) < numbers:
        held = torch.empty(numbers, dtype=torch.float32)
        setattr(_own, name, held)
    return held[:numbers]


@cache
def _fastest() -> Product:
    """What this machine multiplies with: measured once, by what a scan does, in a tenth of a
    second. By processor time, of one thread: a busy machine must not decide for good."""
    with ThreadPoolExecutor(1, "products", keep_own_products_single) as alone:
        took_s = {
            product: least_s
            for product in (byte_products, float_products)
            if (least_s := alone.submit(_seconds, product).result()) is not None
        }
    return min(took_s, key=lambda product: took_s[product])


def _seconds(product: Product) -> float | None:
    """The least of some tries; None where torch refuses, or sums the largest bytes in too few
    bits."""
    import torch

    rows_rk = np.full((2048, 64), 127, dtype=np.int8)
    rows_rk[1::2] = -127
    pairs = np.array([[127, 127], [-128, -128], [127, -128], [-128, 127]], dtype=np.int8)
    columns_wk = np.tile(pairs, (8, 32))
    columns_kw = torch.from_numpy(columns_wk).T
    out_rw = np.empty((len(rows_rk), len(columns_wk)), dtype=np.int32)
    times_s = []
    try:
        for _ in range(5):
            began_s = time.thread_time()
            product(rows_rk, columns_kw, out_rw)
            times_s.append(time.thread_time() - began_s)
    except (RuntimeError, AttributeError):
        return None
    exact_rw = rows_rk.astype(np.int64) @ columns_wk.T.astype(np.int64)
    return min(times_s) if (out_rw == exact_rw).all() else None
