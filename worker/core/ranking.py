"""Ordering of candidates and hits, and the seedless MaxSim score."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.core.types import FloatArray, IntArray
from worker.errors import DescriptorInvalid, InputInvalid


def rank(score_n: NDArray[Any], tie_break_n: NDArray[Any]) -> IntArray:
    """Positions in ranked order, int64 (n,): score descending, then tie-break descending, then
    position ascending.

    Raises ``DescriptorInvalid`` for a NaN, which has no place in an order, and ``InputInvalid``
    when the arrays are not both (n,).
    """
    if score_n.ndim != 1 or score_n.shape != tie_break_n.shape:
        raise InputInvalid(
            f"scores {score_n.shape} and tie-breaks {tie_break_n.shape} must both be (n,)"
        )
    score, tie_break = score_n.astype(np.float64), tie_break_n.astype(np.float64)
    for name, values in (("score", score), ("tie-break", tie_break)):
        if np.isnan(values).any():
            raise DescriptorInvalid(
                f"the {name} at position {int(np.isnan(values).argmax())} is NaN: verify the index"
            )
    return np.lexsort((-tie_break, -score)).astype(np.int64)


def max_similarity_score(similarity_qc: FloatArray) -> float:
    """MaxSim: mean over query patches of the best cosine in the candidate.

    ``1/|Q| sum_i max_j q_i . p_j`` (late interaction, Khattab and Zaharia 2020, as a mean so that
    ROIs of different size compare). ``similarity_qc``: float32 (q, c), q and c >= 1. Raises
    ``InputInvalid`` when empty.
    """
    if similarity_qc.ndim != 2 or similarity_qc.size == 0:
        raise InputInvalid(f"MaxSim needs a filled (q, c) matrix, got {similarity_qc.shape}")
    return float(similarity_qc.max(axis=1).mean(dtype=np.float64))


def smooth_in_time(score_n: FloatArray, camera_n: IntArray, t_n: NDArray[Any]) -> FloatArray:
    """Half of each frame's score and a quarter of those just before and after: float32 (n,).

    Neighbours are the nearest given frames of the same camera (``camera_n`` int64, ``t_n`` seconds;
    equal times in the given order); a missing one is replaced by the frame itself. A subject seldom
    shows in one sampled frame only, chance similarities do.
    """
    smooth = score_n.astype(np.float32)
    for camera in np.unique(camera_n):
        members = np.flatnonzero(camera_n == camera)
        members = members[np.argsort(t_n[members], kind="stable")]
        padded = np.pad(score_n[members].astype(np.float64), 1, mode="edge")
        smooth[members] = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return smooth
