"""When a box changed: its descriptors in time, cut into the states that it stayed in.

A state is a stretch in which the box stays within ``level`` of its anchor; the anchor follows
slowly, so that the light may change over hours. What passes through the box is no state of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worker.core.similarity import l2_normalise
from worker.core.types import FloatArray
from worker.errors import InputInvalid

MIN_LEVEL = 0.08
"""The least mean cosine distance that counts, however calm the box; set by hand, not tuned."""
MAX_LEVEL = 0.5
NOISE_FACTOR = 4.0
"""How many times the usual step from frame to frame a change must exceed."""
FOLLOW = 0.05
"""Share of each frame in the anchor of its state."""


@dataclass(frozen=True, slots=True)
class BoxState:
    """A stretch of frames, ``first`` to ``last`` inclusive, in which the box looked the same.

    ``like``: position of the first state that looked like it, its own where it is new.
    ``difference``: mean cosine distance to the state before, 0 for the first.
    """

    first: int
    last: int
    like: int
    difference: float


@dataclass(frozen=True, slots=True)
class BoxHistory:
    """The states of a box in order, and the level that told them apart."""

    states: tuple[BoxState, ...]
    level: float


def change_level(cells_nrd: FloatArray) -> float:
    """The mean cosine distance that counts as a change in this box: above what it does by itself.

    ``cells_nrd``: float32 (n, r, d), unit rows: the r cells of the box in n frames, in
    order of time.
    """
    if len(cells_nrd) < 2:
        return MIN_LEVEL
    step_n = 1 - (cells_nrd[1:] * cells_nrd[:-1]).sum(axis=2).mean(axis=1)
    return min(max(NOISE_FACTOR * float(np.median(step_n)), MIN_LEVEL), MAX_LEVEL)


def box_history(cells_nrd: FloatArray, hold: int = 3, level: float | None = None) -> BoxHistory:
    """The states of a box. Shapes as in :func:`change_level`.

    A new state begins where the box has left the old one and then stays alike for ``hold`` frames;
    fewer are something that passes. Raises ``InputInvalid`` without frames or cells, or for
    ``hold`` below 1.
    """
    if cells_nrd.ndim != 3 or 0 in cells_nrd.shape:
        raise InputInvalid(f"a history needs cells (n, r, d), got {cells_nrd.shape}")
    if hold < 1:
        raise InputInvalid(f"a state holds for at least 1 frame, not {hold}")
    if level is None:
        level = change_level(cells_nrd)
    anchor_rd = _first_anchor(cells_nrd, hold, level)
    anchors, states = [anchor_rd], [BoxState(0, 0, 0, 0.0)]
    away: list[int] = []
    for at in range(1, len(cells_nrd)):
        if _distance(cells_nrd[at], anchors[-1]) <= level:
            away.clear()
            anchors[-1] = l2_normalise((1 - FOLLOW) * anchors[-1] + FOLLOW * cells_nrd[at])
            states[-1] = _until(states[-1], at)
            continue
        away.append(at)
        recent = away[-hold:]
        if len(recent) == hold and _alike(cells_nrd[recent], level):
            anchor_rd = l2_normalise(cells_nrd[recent].mean(axis=0))
            like = _first_like(anchors, anchor_rd, level, len(states))
            states.append(BoxState(recent[0], at, like, _distance(anchor_rd, anchors[-1])))
            anchors.append(anchor_rd)
            away.clear()
    return BoxHistory(tuple(states), level)


def _first_anchor(cells_nrd: FloatArray, hold: int, level: float) -> FloatArray:
    """Of the first stretch that holds, else the first frame."""
    for start in range(len(cells_nrd) - hold + 1):
        part = cells_nrd[start : start + hold]
        if _alike(part, level):
            return l2_normalise(part.mean(axis=0))
    return np.asarray(cells_nrd[0], dtype=np.float32)


def _distance(a_rd: FloatArray, b_rd: FloatArray) -> float:
    """Mean over the cells of one minus cosine."""
    return float(1 - (a_rd * b_rd).sum(axis=1).mean())


def _alike(part_nrd: FloatArray, level: float) -> bool:
    mean_rd = l2_normalise(part_nrd.mean(axis=0))
    return all(_distance(cells_rd, mean_rd) <= level for cells_rd in part_nrd)


def _first_like(anchors: list[FloatArray], anchor_rd: FloatArray, level: float, own: int) -> int:
    for at, known_rd in enumerate(anchors):
        if _distance(known_rd, anchor_rd) <= level:
            return at
    return own


def _until(state: BoxState, last: int) -> BoxState:
    return BoxState(state.first, last, state.like, state.difference)
