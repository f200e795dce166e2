"""What a fixed camera always shows, and how far a cell differs from it.

A camera's background is taken per cell from its own indexed frames, without labels. A cell that the
background explains says little about a subject: it is in every frame of that camera. All
descriptors are unit rows of one backbone spec; nothing here is tuned per camera.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worker.core.similarity import l2_normalise
from worker.core.types import Box, FloatArray, GridSize
from worker.errors import InputInvalid

MIN_BACKGROUND_FRAMES = 8
"""Below this the median is no background: somebody who stands there would be part of it."""
FULL_NOVELTY = 0.2
"""Cosine distance to the background from which a cell counts in full. Larger values let a subject
that stays a while fade out (benchmarks/LOG.md)."""
NOVEL_BOX_SIDE = 0.25
"""Side of :func:`novel_box`, as a share of the picture's."""
QUERY_FLOOR = 0.05
TARGET_FLOOR = 0.1


def background_descriptors(patches_ncd: FloatArray) -> FloatArray | None:
    """The usual descriptor of every cell, float32 (c, d), unit rows: the median over n frames.

    ``patches_ncd``: float32 (n, c, d). None with fewer than ``MIN_BACKGROUND_FRAMES`` frames. A
    cell whose median has no direction (all zero) keeps the first frame's descriptor. Raises
    ``DescriptorInvalid`` for NaN.
    """
    if patches_ncd.ndim != 3:
        raise InputInvalid(f"a background needs patches (n, c, d), got {patches_ncd.shape}")
    if patches_ncd.shape[0] < MIN_BACKGROUND_FRAMES:
        return None
    median_cd = _median(patches_ncd)
    lost = np.linalg.norm(median_cd, axis=1) < 1e-6
    median_cd[lost] = patches_ncd[0, lost]
    return l2_normalise(median_cd)


def _median(patches_ncd: FloatArray) -> FloatArray:
    """``np.median`` over the frames, float32 (c, d): numbers that lie beside each other are sorted
    in a fifth of the time. Of a row with a NaN it is NaN."""
    n, c, d = patches_ncd.shape
    sorted_mn = np.ascontiguousarray(patches_ncd.reshape(n, c * d).T)
    sorted_mn.sort(axis=1)  # NaN comes last
    middle_m = (sorted_mn[:, (n - 1) // 2] + sorted_mn[:, n // 2]) * np.float32(0.5)
    middle_m[np.isnan(sorted_mn[:, -1])] = np.nan
    median_cd: FloatArray = middle_m.reshape(c, d)
    return median_cd


def novelty(patches_ncd: FloatArray, background_cd: FloatArray | None) -> FloatArray:
    """``1 - cos(cell, background of that cell)``: float32 (n, c), 0 for background, up to 2.

    Without a background every cell is new: ones.
    """
    if background_cd is None:
        return np.ones(patches_ncd.shape[:2], dtype=np.float32)
    # Summed along the last axis, so that a frame's value does not depend on its batch.
    cosine_nc = (patches_ncd * background_cd).sum(axis=-1)
    return np.asarray(1.0 - cosine_nc, dtype=np.float32)


def novelty_weight(novelty_any: FloatArray, floor: float) -> FloatArray:
    """``clip(novelty / FULL_NOVELTY, floor, 1)``: float32, same shape."""
    weight: FloatArray = np.clip(novelty_any / np.float32(FULL_NOVELTY), floor, 1.0)
    return weight


def novel_box(novelty_c: FloatArray, grid: GridSize) -> Box:
    """The box where a frame differs most from its background, as a subject would.

    ``novelty_c``: float32 (cells,). A quarter of the picture each way, 2 cells at least; of equal
    boxes the uppermost, then the leftmost.
    """
    h, w = (min(side, max(2, round(NOVEL_BOX_SIDE * side))) for side in grid)
    windows = np.lib.stride_tricks.sliding_window_view(novelty_c.reshape(grid), (h, w))
    sum_hw = windows.sum(axis=(2, 3), dtype=np.float64)
    row, col = divmod(int(sum_hw.argmax()), sum_hw.shape[1])
    return Box(col / grid.w, row / grid.h, (col + w) / grid.w, (row + h) / grid.h)


def novel_similarity(similarity_mqc: FloatArray, novelty_mc: FloatArray) -> FloatArray:
    """Similarities in which background counts little, float32 (m, q, c): ``s_ij sqrt(v_j)``.

    ``v`` is the novelty weight of a target cell (``novelty_mc``: (m, c)). Unchanged where all is
    new.
    """
    target_mc = np.sqrt(novelty_weight(novelty_mc, TARGET_FLOOR))
    novel: FloatArray = similarity_mqc * target_mc[:, None, :]
    return novel


def weighted_max_similarity(similarity_mqc: FloatArray, weight_q: FloatArray) -> FloatArray:
    """MaxSim with weights, float32 (m,): ``sum_i w_i max_j s_ij / sum_i w_i``.

    ``similarity_mqc``: float32 (m, q, c); ``weight_q``: (q,), not all zero. Raises ``InputInvalid``
    without query cells.
    """
    if similarity_mqc.ndim != 3 or similarity_mqc.shape[1] == 0:
        raise InputInvalid(f"MaxSim needs similarities (m, q, c), got {similarity_mqc.shape}")
    best_mq = similarity_mqc.max(axis=2)
    weighted_m = (best_mq * weight_q).sum(axis=1, dtype=np.float64)
    mean_m: FloatArray = (weighted_m / weight_q.sum(dtype=np.float64)).astype(np.float32)
    return mean_m


AGAINST_WEIGHT = 0.3
"""What likeness to the wrong thing takes from likeness to the subject."""


def strongest(likeness_kn: Sequence[FloatArray], count: int) -> FloatArray:
    """Per frame, the greatest of several likenesses: float32 (count,); zero without any."""
    if not likeness_kn:
        return np.zeros(count, dtype=np.float32)
    greatest: FloatArray = np.maximum.reduce(likeness_kn)
    return greatest


def joint_likeness(
    seen_n: FloatArray,
    exemplar_kn: Sequence[FloatArray],
    shares: Sequence[float],
    against_kn: Sequence[FloatArray],
) -> FloatArray:
    """Likeness to the query, float32 (n,), averaged with that to the exemplars by their shares,
    less the greatest likeness to what speaks against the subject."""
    for share, likeness_n in zip(shares, exemplar_kn, strict=True):
        seen_n = seen_n + share * likeness_n
    seen_n = seen_n / (1 + sum(shares))
    whole: FloatArray = seen_n - AGAINST_WEIGHT * strongest(against_kn, len(seen_n))
    return whole
