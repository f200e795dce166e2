"""Region growing with levels taken from the searched frames, instead of one fixed tau.

A fixed tau is far too low inside one camera and too high across cameras (benchmarks/LOG.md). Here
each query cell has its own match level: what only a small share of all searched cells exceeds.
"""

from __future__ import annotations

import numpy as np

from worker.core.types import FloatArray, Region
from worker.errors import InputInvalid

LEVEL_QUANTILE = 0.99
"""Share of the searched cells that lie below a query cell's match level."""
OUTSIDE_SHARE = 0.8
"""What a query cell outside the region keeps of its best similarity."""
PIVOT = 0.5
"""Levels are subtracted and this is added, so that one tau, the pivot, fits all query cells."""


def match_levels(similarity_mqc: FloatArray) -> FloatArray:
    """Match level per query cell, float32 (q,): the ``LEVEL_QUANTILE`` of its similarities.

    ``similarity_mqc``: float32 (m, q, c), m >= 1 sampled frames. Raises ``InputInvalid`` if empty.
    """
    if similarity_mqc.ndim != 3 or similarity_mqc.size == 0:
        raise InputInvalid(f"levels need similarities (m, q, c), got {similarity_mqc.shape}")
    by_query = similarity_mqc.transpose(1, 0, 2).reshape(similarity_mqc.shape[1], -1)
    return np.quantile(by_query, LEVEL_QUANTILE, axis=1).astype(np.float32)


def pivoted(similarity_mqc: FloatArray, level_q: FloatArray) -> FloatArray:
    """Similarities for growth at tau ``PIVOT``: contiguous float32 (m, q, c)."""
    return np.ascontiguousarray(
        similarity_mqc - level_q[:, None] + np.float32(PIVOT), dtype=np.float32
    )


def coherent_similarity(
    similarity_qc: FloatArray, region: Region | None, weight_q: FloatArray
) -> float:
    """MaxSim that believes what hangs together: in full inside the region, ``OUTSIDE_SHARE``
    elsewhere.

    ``sum_i w_i max(max_(j: (i, j) in G*) s_ij, OUTSIDE_SHARE max_j s_ij) / sum_i w_i``. It is never
    above MaxSim with the same weights, and never below ``OUTSIDE_SHARE`` of it.
    """
    kept_q = OUTSIDE_SHARE * np.maximum(similarity_qc.max(axis=1), 0).astype(np.float64)
    if region is not None:
        values = similarity_qc[region.query_index, region.cell_index].astype(np.float64)
        np.maximum.at(kept_q, region.query_index, values)
    return float((kept_q * weight_q).sum() / weight_q.sum(dtype=np.float64))
