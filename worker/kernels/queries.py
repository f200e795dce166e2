"""Query rows as bytes, made ready for 8-bit products on any device. Loads neither numba nor torch
before it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from worker.core.types import FloatArray

_WIDTH_STEP = 16
"""The product is fastest when its width is a multiple of this."""
_PEAK = 32_000
"""Of a query row in units of its low byte: both bytes fit in eight bits."""


def rounded_query(query_qk: FloatArray, step: float) -> tuple[Any, FloatArray]:
    """Query rows as 8-bit columns, a torch tensor (k, w) with w >= q, and what one unit of each
    row's products with codes is worth, float32 (q,)."""
    import torch  # here: commands that never search need not load it

    q, k = query_qk.shape
    peak_q = np.maximum(np.abs(query_qk).max(axis=1), 1e-9)
    query_wk = np.zeros((-(-q // _WIDTH_STEP) * _WIDTH_STEP, k), dtype=np.int8)
    query_wk[:q] = np.rint(query_qk * (127 / peak_q)[:, None])
    return torch.from_numpy(query_wk).T, (peak_q / 127 * step).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class ByteQuery:
    """Query rows float32 (q, d) as columns of bytes: int8 (d, w), first the q high ones, then the
    low ones; ``unit_q``: float32 (q,), what one unit of the low byte is worth."""

    columns_dw: Any
    unit_q: FloatArray

    @property
    def count(self) -> int:
        """q."""
        return len(self.unit_q)


def byte_query(query_qd: FloatArray) -> ByteQuery:
    """Query rows, made ready once for many products."""
    import torch  # here: commands that never search need not load it

    q, d = query_qd.shape
    unit_q = np.maximum(np.abs(query_qd).max(axis=1), 1e-9) / _PEAK
    number_qd = np.rint(query_qd / unit_q[:, None]).astype(np.int32)
    high_qd = (number_qd + 128) >> 8
    bytes_wd = np.zeros((-(-2 * q // _WIDTH_STEP) * _WIDTH_STEP, d), dtype=np.int8)
    bytes_wd[:q], bytes_wd[q : 2 * q] = high_qd, number_qd - 256 * high_qd
    return ByteQuery(torch.from_numpy(bytes_wd).T, unit_q.astype(np.float32))
