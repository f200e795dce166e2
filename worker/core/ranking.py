"""Ordering of candidates and hits, and the seedless MaxSim score."""

from __future__ import annotations

from typing import Any, NamedTuple

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


def best_positions(score_n: NDArray[Any], tie_break_n: IntArray, count: int) -> IntArray:
    """Positions of the ``count`` greatest scores, int64, in no order; ties by lower tie-break.

    As the first of a whole ordering, without making one. No score is NaN.
    """
    if count <= 0 or count >= score_n.size:
        return np.arange(score_n.size if count > 0 else 0, dtype=np.int64)
    level = np.partition(score_n, score_n.size - count)[score_n.size - count]
    above, level_at = np.flatnonzero(score_n > level), np.flatnonzero(score_n == level)
    tied = level_at[np.argsort(tie_break_n[level_at], kind="stable")[: count - above.size]]
    return np.concatenate([above, tied]).astype(np.int64)


def max_similarity_score(similarity_qc: FloatArray) -> float:
    """MaxSim: mean over query patches of the best cosine in the candidate.

    ``1/|Q| sum_i max_j q_i . p_j`` (late interaction, Khattab and Zaharia 2020, as a mean so that
    ROIs of different size compare). ``similarity_qc``: float32 (q, c), q and c >= 1. Raises
    ``InputInvalid`` when empty.
    """
    if similarity_qc.ndim != 2 or similarity_qc.size == 0:
        raise InputInvalid(f"MaxSim needs a filled (q, c) matrix, got {similarity_qc.shape}")
    return float(similarity_qc.max(axis=1).mean(dtype=np.float64))


NEIGHBOUR_GAP_S = 30.0
"""Frames further apart in time are no neighbours: the camera did not record in between."""


class InTime(NamedTuple):
    """Scores, and those of their neighbours in time, each (n,): ``smooth_n`` float32; ``before_n``,
    ``after_n`` float64, NaN where there is no neighbour."""

    smooth_n: FloatArray
    before_n: NDArray[np.float64]
    after_n: NDArray[np.float64]


def beside_in_time(
    score_n: FloatArray, camera_n: IntArray, t_n: NDArray[Any], place_n: IntArray
) -> InTime:
    """Half of each frame's score and a quarter of those just before and after.

    ``camera_n`` int64, ``t_n`` seconds; ``place_n`` int64: the frame's place in its camera's order
    of time, so that a frame beside one that is not given is not taken for its neighbour. A
    neighbour that is missing, or further than ``NEIGHBOUR_GAP_S``, is replaced by the frame itself.
    A subject seldom shows in one sampled frame only, chance similarities do.
    """
    steps = np.diff(camera_n)
    if ((steps > 0) | ((steps == 0) & (np.diff(place_n) > 0))).all():
        order = np.arange(score_n.size)  # as archives are searched: sorting would cost more
    else:
        order = np.lexsort((place_n, camera_n))
    score, t = score_n[order].astype(np.float64), t_n[order]
    follows = (
        (np.diff(camera_n[order]) == 0)
        & (np.diff(place_n[order]) == 1)
        & (np.diff(t) <= NEIGHBOUR_GAP_S)
    )
    before, after = np.full_like(score, np.nan), np.full_like(score, np.nan)
    before[1:][follows] = score[:-1][follows]
    after[:-1][follows] = score[1:][follows]
    before_n, after_n = np.empty_like(score), np.empty_like(score)
    before_n[order], after_n[order] = before, after
    return InTime(smoothed(score_n, before_n, after_n), before_n, after_n)


def smooth_in_time(
    score_n: FloatArray, camera_n: IntArray, t_n: NDArray[Any], place_n: IntArray
) -> FloatArray:
    """The smooth scores of :func:`beside_in_time` alone, float32 (n,)."""
    return beside_in_time(score_n, camera_n, t_n, place_n).smooth_n


def smoothed(
    score_n: FloatArray, before_n: NDArray[np.float64], after_n: NDArray[np.float64]
) -> FloatArray:
    """The mean of :func:`beside_in_time`, float32 (n,), from known neighbours; NaN is none."""
    own = score_n.astype(np.float64)
    before = np.where(np.isnan(before_n), own, before_n)
    after = np.where(np.isnan(after_n), own, after_n)
    smooth: FloatArray = ((before + 2 * own + after) / 4).astype(np.float32)
    return smooth
