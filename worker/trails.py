"""Following the query's subject through the frames of its own camera."""

from __future__ import annotations

from dataclasses import dataclass

from worker.core.background import novelty
from worker.core.trail import (
    LOST_LEVEL,
    STEP_DECAY,
    accepting,
    belief_support,
    carry,
    first_belief,
    resemblance,
)
from worker.core.types import Box, FloatArray, GridSize, IntArray
from worker.scenes import CameraScenes, Place

MAX_STEPS = 200
"""Frames read at most in each direction."""


@dataclass(frozen=True, slots=True)
class TrailPoint:
    """One frame on a trail. ``support``: 0..1, how surely it shows the subject. ``belief_c``:
    float32 (c,), maximum 1, where. ``box``: None where the query's box moves with the belief."""

    support: float
    belief_c: FloatArray
    box: Box | None = None


@dataclass(frozen=True, slots=True)
class Trail:
    """What was reached from the query's own frame. ``start_c``: float32 (c,), the belief there."""

    start_c: FloatArray
    points: dict[Place, TrailPoint]


def follow(
    scenes: CameraScenes,
    origin: Place,
    query_qd: FloatArray,
    patch_ids: IntArray,
    weight_q: FloatArray,
    grid: GridSize,
) -> Trail:
    """Follow the ROI backwards and forwards in time until the subject is lost.

    Nothing is followed on a camera whose background is not known: a picture that stays the same
    would be its own trail.
    """
    start_c = first_belief(patch_ids, weight_q, grid.cells)
    background_cd = scenes.background(scenes.camera_of(origin))
    points: dict[Place, TrailPoint] = {}
    if background_cd is None:
        return Trail(start_c, points)
    for forward in (True, False):
        belief_c, from_cd, moved = start_c, _patches(scenes, origin), (0, 0)
        steps = scenes.frames_from(origin, forward=forward, at_most=MAX_STEPS)
        for number, place in enumerate(steps, start=1):
            to_cd = _patches(scenes, place)
            accept_c = accepting(
                novelty(to_cd[None], background_cd)[0], resemblance(query_qd, weight_q, to_cd)
            )
            step = carry(belief_c, from_cd, to_cd, accept_c, grid, moved)
            held = belief_support(step.belief_c, patch_ids.size)
            if held < LOST_LEVEL:
                break
            belief_c, from_cd = step.belief_c / step.belief_c.max(), to_cd
            moved = (step.d_row, step.d_col)
            points[place] = TrailPoint(held * STEP_DECAY**number, belief_c)
    return Trail(start_c, points)


def _patches(scenes: CameraScenes, place: Place) -> FloatArray:
    patches_cd: FloatArray = scenes.shards[place.shard_position].read("patch", [place.block])[0]
    return patches_cd
