"""Following the query's subject through the frames of its own camera."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np

from worker.core.trail import (
    LOST_LEVEL,
    STEP_DECAY,
    accepting,
    belief_support,
    first_belief,
    resemblance,
)
from worker.core.types import Box, FloatArray, GridSize, IntArray
from worker.index.scorer import patches_of
from worker.index.store import PinnedShard
from worker.kernels.threads import thread_pool
from worker.kernels.trail import carry
from worker.patch_cosines import QueryRows, all_cosines, patch_novelty, query_rows
from worker.scenes import CameraScenes, Place

MAX_STEPS = 200
"""Frames looked at most in each direction."""
MOST_AT_ONCE = 16
"""Frames read at a time."""


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
    subject = _Followed(query_rows(query_qd), weight_q, background_cd)
    (start,) = _frames(scenes, iter([origin]), subject)
    for forward in (True, False):
        belief_c, from_cd, moved = start_c, start.patches_cd, (0, 0)
        places = scenes.frames_from(origin, forward=forward, at_most=MAX_STEPS)
        for number, frame in enumerate(_frames(scenes, places, subject), start=1):
            step = carry(belief_c, from_cd, frame.patches_cd, frame.accept_c, grid, moved)
            held = belief_support(step.belief_c, patch_ids.size)
            if held < LOST_LEVEL:
                break
            belief_c, from_cd = step.belief_c / step.belief_c.max(), frame.patches_cd
            moved = (step.d_row, step.d_col)
            points[frame.place] = TrailPoint(held * STEP_DECAY**number, belief_c)
    return Trail(start_c, points)


@dataclass(frozen=True, slots=True, eq=False)
class _Followed:
    """What is followed: its rows with their weights, float32 (q,), before a background (c, d)."""

    query: QueryRows
    weight_q: FloatArray
    background_cd: FloatArray


class _Frame(NamedTuple):
    """A frame that the subject may have moved on to: its patches, float32 (c, d), and what each of
    its cells can hold, float32 (c,)."""

    place: Place
    patches_cd: FloatArray
    accept_c: FloatArray


def _frames(scenes: CameraScenes, places: Iterator[Place], subject: _Followed) -> Iterator[_Frame]:
    """The places' frames, read several at a time: more with every step that is not the last."""
    at_once = 1
    while together := list(islice(places, at_once)):
        at_once = min(2 * at_once, MOST_AT_ONCE)
        for shard_position, own in groupby(together, lambda place: place.shard_position):
            members = list(own)
            shard, blocks = scenes.shards[shard_position], [place.block for place in members]
            # By a thread whose products do not wait for others'.
            looked = thread_pool(1).submit(_looked_at, shard, blocks, subject).result()
            for place, patches_cd, accept_c in zip(members, *looked, strict=True):
                yield _Frame(place, patches_cd, accept_c)


def _looked_at(
    shard: PinnedShard, blocks: Sequence[int], subject: _Followed
) -> tuple[FloatArray, list[FloatArray]]:
    """Patches of some blocks, float32 (n, c, d), and what each of their cells can hold."""
    patches = patches_of(shard, np.array(blocks))
    novelty_nc = patch_novelty(patches, subject.background_cd)
    cosine_nqc = all_cosines(patches, subject.query)
    accept_nc = [
        accepting(novelty_c, resemblance(cosine_qc, subject.weight_q))
        for novelty_c, cosine_qc in zip(novelty_nc, cosine_nqc, strict=True)
    ]
    return patches.codec.decode(patches.stored_mcd), accept_nc
