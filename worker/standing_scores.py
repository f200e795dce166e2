"""How a standing query judges a new frame: by the likeness of the default search, against what
chance brings to it on that camera.

A search calibrates itself by all frames that it looks at. New frames are too few for that, so each
camera has a sample of its frames from before, and a standing query knows how like that sample is.
A frame's likeness does not take its neighbours in time into account: the next one is not there yet.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from worker.core.calibration import RareTail, rare_tail
from worker.core.region_growing import GrowthMode, coverage
from worker.core.types import Box, FloatArray, Region
from worker.fused import Subject, box_by_region, look_at, match_levels_of
from worker.index.backgrounds import BackgroundCache
from worker.index.candidates import Candidates
from worker.index.scorer import StoredPatches, candidate_chunks, read_chunk
from worker.index.store import PinnedShard
from worker.kernels.threads import thread_pool
from worker.patch_cosines import patch_novelty
from worker.scenes import CameraScenes

REFERENCE_FRAMES = 256
"""Frames of a camera that say what chance brings."""
MIN_REFERENCE_FRAMES = 48
"""A camera with fewer is judged by those of all cameras together, or not at all."""
_DAY_S = 86_400.0
_SHORTEST_GAP_S = 0.01
_UNKNOWN_GAP_S = 1.0
"""Between the frames of a camera of which there is one: often, so that it is judged strictly."""


@dataclass(frozen=True, slots=True, eq=False)
class CameraReference:
    """What is known of a camera before its new frames are looked at.

    ``sample``: up to ``REFERENCE_FRAMES`` of its frames, evenly in time, in ``shards``.
    ``background_cd``: float32 (c, d), None with too few frames. ``frames_per_day``: while it
    records.
    """

    camera_id: int
    shards: Sequence[PinnedShard]
    sample: Candidates
    background_cd: FloatArray | None
    frames_per_day: float

    @property
    def scenes(self) -> CameraScenes:
        """Its shards, with the background that is known."""
        return CameraScenes(self.shards, BackgroundCache(), {self.camera_id: self.background_cd})


def camera_reference(
    shards: Sequence[PinnedShard],
    cache: BackgroundCache,
    from_epoch_s: float = -np.inf,
    to_epoch_s: float = np.inf,
    leave_out: Collection[int] = (),
) -> CameraReference | None:
    """The reference of one camera from its frames in ``[from, to)``; None without any. Those with
    the ids ``leave_out`` are not in its sample, which may be empty then. ``shards``: of that
    camera, the whole of its background."""
    position, block, t_s, frame_id = _frames(shards)
    inside = (t_s >= from_epoch_s) & (t_s < to_epoch_s)
    order = np.flatnonzero(inside)[np.argsort(t_s[inside], kind="stable")]
    if not order.size:
        return None
    gaps_s = np.diff(t_s[order])
    gap_s = max(float(np.median(gaps_s)), _SHORTEST_GAP_S) if gaps_s.size else _UNKNOWN_GAP_S
    left_out = np.fromiter(leave_out, dtype=np.int64, count=len(leave_out))
    order = order[~np.isin(frame_id[order], left_out)]
    steps = np.linspace(0, max(0, order.size - 1), min(REFERENCE_FRAMES, order.size)).round()
    chosen = order[steps.astype(np.int64)]
    sample = Candidates(
        position[chosen],
        block[chosen],
        frame_id[chosen],
        np.zeros(chosen.size, dtype=np.float32),
    )
    background_cd = cache.background(shards)
    return CameraReference(shards[0].camera_id, shards, sample, background_cd, _DAY_S / gap_s)


def _frames(shards: Sequence[PinnedShard]) -> tuple[NDArray[np.int64], ...]:
    """Shard position, block, time and frame id of every frame, (n,) each."""
    position = np.concatenate([np.full(shard.blocks, at) for at, shard in enumerate(shards)])
    block = np.concatenate([np.arange(shard.blocks) for shard in shards])
    t_s = np.concatenate([shard.t_epoch_s for shard in shards])
    frame_id = np.concatenate([shard.f_map.frame_id[: shard.blocks] for shard in shards])
    return position.astype(np.int64), block.astype(np.int64), t_s, frame_id.astype(np.int64)


def frames_near(
    reference: CameraReference, t_epoch_s: Sequence[float], within_s: float
) -> set[int]:
    """Ids of sampled frames no further than so from any of these times."""
    sample = reference.sample
    own_s = np.array(
        [
            reference.shards[position].t_epoch_s[block]
            for position, block in zip(sample.shard_position, sample.block, strict=True)
        ]
    )
    near = np.zeros(sample.count, dtype=np.bool_)
    for t_s in t_epoch_s:
        near |= np.abs(own_s - t_s) <= within_s
    return set(sample.frame_id[near].tolist())


@dataclass(frozen=True, slots=True, eq=False)
class ChanceRule:
    """What chance brings a subject on some cameras: match levels float32 (q,), the tail of its
    likeness, and of how many frames."""

    level_q: FloatArray
    tail: RareTail
    frames: int


def chance_rule(
    subject: Subject,
    references: Sequence[CameraReference],
    growth: GrowthMode | None,
    known: Collection[int] = (),
) -> ChanceRule | None:
    """How alike the subject finds the references' frames, less those ``known`` to show it; None
    with fewer than ``MIN_REFERENCE_FRAMES``."""
    found = []
    level_q: FloatArray | None = None
    filled = [reference for reference in references if reference.sample.count]
    for reference in sorted(filled, key=lambda reference: -reference.sample.count):
        own = replace(subject, scenes=reference.scenes, origin=None, trail=None)
        if level_q is None:
            level_q = match_levels_of(own, reference.sample)
        shown = np.isin(reference.sample.frame_id, np.fromiter(known, np.int64, len(known)))
        likeness_n = np.zeros(reference.sample.count, dtype=np.float32)
        for chunk in candidate_chunks(reference.sample):
            patches = read_chunk(reference.shards, chunk)
            seen_n, _ = _looked_at(own, patches, reference, level_q, growth)
            likeness_n[chunk.position] = seen_n
        found.append(likeness_n[~shown])
    likeness_m = np.concatenate(found) if found else np.zeros(0, dtype=np.float32)
    if level_q is None or likeness_m.size < MIN_REFERENCE_FRAMES:
        return None
    return ChanceRule(level_q, rare_tail(likeness_m), int(likeness_m.size))


def _looked_at(
    own: Subject,
    patches: StoredPatches,
    reference: CameraReference,
    level_q: FloatArray,
    growth: GrowthMode | None,
) -> tuple[FloatArray, list[Region | None]]:
    background_cd = None if "background" in own.without else reference.background_cd

    def look() -> tuple[FloatArray, list[Region | None]]:
        return look_at(own, patches, patch_novelty(patches, background_cd), level_q, growth)

    return thread_pool(1).submit(look).result()


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A new frame as a standing query sees it. ``false_per_day``: how many frames of the camera's
    day reach this likeness by chance."""

    likeness: float
    false_per_day: float
    region: Region | None
    box: Box | None
    similarity: float = field(default=0.0)
    coverage: float = field(default=0.0)


def judge(
    subject: Subject,
    rule: ChanceRule,
    reference: CameraReference,
    patches: StoredPatches,
    growth: GrowthMode | None,
) -> list[Judged]:
    """New frames of the reference's camera, one by one."""
    own = replace(subject, scenes=reference.scenes, origin=None, trail=None)
    likeness_n, regions = _looked_at(own, patches, reference, rule.level_q, growth)
    share_n = rule.tail.share_above(likeness_n.astype(np.float64))
    return [
        Judged(
            float(likeness),
            float(share * reference.frames_per_day),
            region,
            box_by_region(own, region),
            0.0 if region is None else float(region.similarity.mean(dtype=np.float64)),
            0.0 if region is None else coverage(region, len(subject.cells), "distinct"),
        )
        for likeness, share, region in zip(likeness_n, share_n, regions, strict=True)
    ]
