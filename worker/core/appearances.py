"""Appearances: hits of one camera joined in time, each shown by its best frame."""

from __future__ import annotations

from collections.abc import Sequence
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
    order = np.lexsort((t_epoch_s_n, camera_n))
    camera, times = camera_n[order].tolist(), t_epoch_s_n[order].tolist()
    taken = [False] * len(times)
    found = []
    for place in np.argsort(order):  # best hit first
        if taken[place]:
            continue
        first, last = _reached(camera, times, taken, int(place), gap_s)
        taken[first : last + 1] = [True] * (last + 1 - first)
        members = np.sort(order[first : last + 1])
        found.append(Appearance(tuple(members.tolist()), times[first], times[last]))
    return found


def _reached(
    camera: list[int], times: list[float], taken: list[bool], start: int, gap_s: float
) -> tuple[int, int]:
    """First and last place that ``start`` reaches in hits sorted by camera and time.

    A taken hit ends the walk. Behind it nothing is left to reach: an earlier appearance took all
    hits within the gap of its own, save those further than the span from its best frame, and no
    frame has such hits on both sides of that appearance within its own span.
    """

    def joins(place: int, inner: int) -> bool:
        return (
            not taken[place]
            and camera[place] == camera[start]
            and abs(times[place] - times[inner]) <= gap_s
            and abs(times[place] - times[start]) <= MAX_SPAN_S
        )

    first = last = start
    while first > 0 and joins(first - 1, first):
        first -= 1
    while last + 1 < len(times) and joins(last + 1, last):
        last += 1
    return first, last


def repeated_share(
    shown: Sequence[Sequence[int]], camera_n: IntArray, t_epoch_s_n: NDArray[Any], gap_s: float
) -> float:
    """Share of shown results that repeat a better one, 0..1; 0 when nothing is shown.

    ``shown``: the hits that each result stands for, as positions in the ranking, the one that shows
    it first; best result first. A result repeats a better one if the hit that shows it lies within
    ``gap_s`` seconds of any hit of that one, of the same camera. ``camera_n``: int64 (n,);
    ``t_epoch_s_n``: float64 (n,).
    """
    repeated = 0
    better: list[int] = []
    for members in shown:
        own = members[0]
        near = np.abs(t_epoch_s_n[better] - t_epoch_s_n[own]) <= gap_s
        repeated += bool((near & (camera_n[better] == camera_n[own])).any())
        better.extend(members)
    return repeated / len(shown) if shown else 0.0
