"""Voting-based ranking: independent patch evidence, four strategies (paper, 3.5.1, table 1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.core.types import FloatArray, IntArray
from worker.errors import DescriptorInvalid, InputInvalid

VoteArray = NDArray[np.float64]
"""Votes per candidate frame, float64 (frames,)."""

DEFAULT_EPSILON = 1e-3
"""Keeps 1 / (d + epsilon) finite for exact copies (d = 0), which then weigh 1000 against about 1
for an ordinary neighbour. Smaller would let one static background patch outvote the whole ROI, and
would weigh noise: a cosine that is 1e-7 off (float32) already moves d by 4.5e-4 near zero."""

NO_FRAME = -1
"""Marks an empty slot of :class:`Neighbours`."""


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """The k nearest stored patches of every query patch, best first.

    ``frame_qk``: int64 (q, k), position of the neighbour's frame in the candidate list, -1 for an
    empty slot (fewer than k patches exist). ``similarity_qk``: float32 (q, k), cosine; ignored in
    empty slots. Raises ``InputInvalid`` for other shapes and ``DescriptorInvalid`` for NaN.
    """

    frame_qk: IntArray
    similarity_qk: FloatArray

    def __post_init__(self) -> None:
        if self.frame_qk.ndim != 2 or self.frame_qk.shape != self.similarity_qk.shape:
            raise InputInvalid(
                f"neighbours need two arrays of one shape (q, k), got {self.frame_qk.shape} and "
                f"{self.similarity_qk.shape}"
            )
        if np.isnan(self.similarity_qk[self.frame_qk != NO_FRAME]).any():
            raise DescriptorInvalid("a neighbour's similarity is NaN: verify the index")


def majority_vote(neighbours: Neighbours, frames: int) -> VoteArray:
    """``V(j) = sum_p sum_t 1{gamma(i_pt) = j}``: each neighbour is one vote (table 1, row 1).

    Returns float64 (frames,). Raises ``InputInvalid`` for a frame position outside ``frames``.
    """
    _, frame, _ = _filled(neighbours, frames)
    return np.bincount(frame, minlength=frames).astype(np.float64)


def unique_vote(neighbours: Neighbours, frames: int) -> VoteArray:
    """``V(j) = sum_p 1{exists t: gamma(i_pt) = j}``: a query patch votes once per frame (row 2).

    Returns float64 (frames,). Raises as :func:`majority_vote`.
    """
    query, frame, _ = _filled(neighbours, frames)
    pair = np.unique(query * frames + frame)
    return np.bincount(pair % frames, minlength=frames).astype(np.float64)


def weighted_vote(
    neighbours: Neighbours, frames: int, epsilon: float = DEFAULT_EPSILON
) -> VoteArray:
    """``W(j) = sum_(p,t: gamma(i_pt) = j) 1 / (d_pt + epsilon)`` (table 1, row 3).

    ``d`` is the Euclidean distance of unit vectors, ``sqrt(max(0, 2 - 2 cos))``. Returns float64
    (frames,). Raises as :func:`majority_vote`.
    """
    _, frame, similarity = _filled(neighbours, frames)
    votes = np.bincount(frame, weights=_weight(similarity, epsilon), minlength=frames)
    return votes.astype(np.float64)


def weighted_unique_vote(
    neighbours: Neighbours, frames: int, epsilon: float = DEFAULT_EPSILON
) -> VoteArray:
    """``W(j) = sum_p max_(t: gamma(i_pt) = j) 1 / (d_pt + epsilon)`` (table 1, row 4).

    Distance as in :func:`weighted_vote`. Returns float64 (frames,). Raises as
    :func:`majority_vote`.
    """
    query, frame, similarity = _filled(neighbours, frames)
    pair, slot = np.unique(query * frames + frame, return_inverse=True)
    best = np.zeros(pair.size)
    np.maximum.at(best, slot, _weight(similarity, epsilon))
    return np.bincount(pair % frames, weights=best, minlength=frames).astype(np.float64)


def nearest_neighbours(
    similarity_qm: FloatArray, frame_of_column_m: IntArray, k: int
) -> Neighbours:
    """Exact k nearest columns per query patch: the slow reference for index searches.

    ``similarity_qm``: float32 (q, m), cosine with the m patches of all candidates.
    ``frame_of_column_m``: int64 (m,), candidate position of each column. Equal similarities are
    ordered by column, lower first. With m < k the last slots are empty. Raises ``InputInvalid``
    for k < 1 or arrays that do not fit, ``DescriptorInvalid`` for NaN.
    """
    if k < 1:
        raise InputInvalid(f"k must be at least 1, got {k}")
    if similarity_qm.ndim != 2 or frame_of_column_m.shape != similarity_qm.shape[1:]:
        raise InputInvalid(
            f"{similarity_qm.shape} similarities need one frame per column, got "
            f"{frame_of_column_m.shape}"
        )
    if np.isnan(similarity_qm).any():
        raise DescriptorInvalid("a similarity is NaN: verify the index")
    column_qk = np.argsort(-similarity_qm, axis=1, kind="stable")[:, :k]
    empty = ((0, 0), (0, k - column_qk.shape[1]))
    similarity_qk = np.take_along_axis(similarity_qm, column_qk, axis=1)
    return Neighbours(
        np.pad(frame_of_column_m[column_qk], empty, constant_values=NO_FRAME),
        np.pad(similarity_qk, empty, constant_values=-1.0),
    )


def _filled(neighbours: Neighbours, frames: int) -> tuple[IntArray, IntArray, FloatArray]:
    """Query index, frame position and similarity of every slot that is not empty, each (n,)."""
    filled_qk = neighbours.frame_qk != NO_FRAME
    frame = neighbours.frame_qk[filled_qk]
    if frame.size and (frame.min() < 0 or frame.max() >= frames):
        raise InputInvalid(
            f"neighbours name frames {frame.min()}..{frame.max()}, the candidate list has {frames}"
        )
    query = np.nonzero(filled_qk)[0].astype(np.int64)
    return query, frame, neighbours.similarity_qk[filled_qk]


def _weight(similarity: FloatArray, epsilon: float) -> NDArray[np.float64]:
    """``1 / (d + epsilon)`` with ``d = sqrt(max(0, 2 - 2 cos))``, in float64."""
    cosine = similarity.astype(np.float64)
    weight: NDArray[np.float64] = 1.0 / (np.sqrt(np.maximum(0.0, 2.0 - 2.0 * cosine)) + epsilon)
    return weight
