"""Cosines of one vector with directions stored as int8, without decoding them first."""

from __future__ import annotations

import numpy as np

from worker.core.types import FloatArray
from worker.kernels.jit import reordered


def direction_cosines(stored_nd: np.ndarray, query_d: FloatArray) -> FloatArray:
    """``decode(stored) . query``, float32 (n,): rows int8 (n, d) have unit length once decoded."""
    cosines_n = np.empty(len(stored_nd), dtype=np.float32)
    _cosines(stored_nd, np.ascontiguousarray(query_d, dtype=np.float32), cosines_n)
    return cosines_n


@reordered
def _cosines(stored_nd: np.ndarray, query_d: np.ndarray, cosines_n: np.ndarray) -> None:
    for row in range(stored_nd.shape[0]):
        shared = np.float32(0)
        square = np.float32(0)
        for at in range(stored_nd.shape[1]):
            number = np.float32(stored_nd[row, at])
            shared += number * query_d[at]
            square += number * number
        cosines_n[row] = shared / max(np.sqrt(square), np.float32(1))
