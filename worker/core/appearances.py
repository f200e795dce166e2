"""Appearances: hits of one camera joined in time, each shown by its best frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.core.types import IntArray
from worker.errors import InputInvalid

MAX_SPAN_S = 600.0
"""No member lies further than this from its appearance's best frame, so that the hits of a busy
camera do not become one appearance of a whole day."""


@dataclass(frozen=True, slots=True)
class Appearance:
    """``members``: positions of its hits in the ranking, best first. ``from_epoch_s``,
    ``to_epoch_s``: times of its first and last hit."""

    members: tuple[int, ...]
    from_epoch_s: float
    to_epoch_s: float

    @property
    def best(self) -> int:
        """Position of the hit that shows it."""
        return self.members[0]


def join_appearances(
    camera_n: IntArray, t_epoch_s_n: NDArray[Any], gap_s: float
) -> list[Appearance]:
    """Join n ranked hits (position 0 is best) into appearances, in order of their best hits.

    The best hit that belongs to none yet begins an appearance. It takes the hits of its camera that
    are reached from it, forwards and backwards in time, by steps of at most ``gap_s`` seconds
    between hits, up to ``MAX_SPAN_S`` away. ``camera_n``: int64 (n,); ``t_epoch_s_n``: float64
    (n,). Raises ``InputInvalid`` for arrays that do not fit or a negative gap.
    """
    if camera_n.ndim != 1 or camera_n.shape != t_epoch_s_n.shape or gap_s < 0:
        raise InputInvalid(
            f"cameras {camera_n.shape} and times {t_epoch_s_n.shape} must both be (n,), the gap not"
            f" negative, got {gap_s}"
        )
    taken = np.zeros(camera_n.size, dtype=np.bool_)
    found = []
    for best in range(camera_n.size):
        if taken[best]:
            continue
        free = np.flatnonzero(~taken & (camera_n == camera_n[best]))
        free = free[np.argsort(t_epoch_s_n[free], kind="stable")]
        members = free[_reached(t_epoch_s_n[free], int(np.flatnonzero(free == best)[0]), gap_s)]
        taken[members] = True
        times = t_epoch_s_n[members]
        found.append(
            Appearance(
                tuple(int(m) for m in np.sort(members)), float(times.min()), float(times.max())
            )
        )
    return found


def _reached(times: NDArray[Any], start: int, gap_s: float) -> slice:
    """Neighbours of ``start`` in sorted ``times`` without a step above the gap."""
    first = last = start
    while first > 0 and times[first] - times[first - 1] <= gap_s:
        if times[start] - times[first - 1] > MAX_SPAN_S:
            break
        first -= 1
    while last + 1 < times.size and times[last + 1] - times[last] <= gap_s:
        if times[last + 1] - times[start] > MAX_SPAN_S:
            break
        last += 1
    return slice(first, last + 1)


def duplicate_share(camera_n: IntArray, t_epoch_s_n: NDArray[Any], gap_s: float) -> float:
    """Share of n ranked results within ``gap_s`` of a better one of the same camera, 0..1."""
    near = np.abs(t_epoch_s_n[:, None] - t_epoch_s_n) <= gap_s
    better = np.tri(camera_n.size, k=-1, dtype=np.bool_)
    repeated = (near & better & (camera_n[:, None] == camera_n)).any(axis=1)
    return float(repeated.mean()) if camera_n.size else 0.0
