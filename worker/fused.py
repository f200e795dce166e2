"""The default search's evidence: novel similarity, the subject's trail, and time.

Composes core (background, trail) with the index adapter. Every piece has its price: the background
is made once per camera, the similarity costs what MaxSim costs, the trail reads the frames before
and after the query's own until the subject is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from worker.core.background import (
    QUERY_FLOOR,
    novel_similarity,
    novelty,
    novelty_weight,
)
from worker.core.ranking import smooth_in_time
from worker.core.trail import (
    LOST_LEVEL,
    STEP_DECAY,
    belief_support,
    carried_belief,
    first_belief,
    reachable,
    resemblance,
)
from worker.core.types import FloatArray, GridSize, IntArray
from worker.index.backgrounds import BackgroundCache
from worker.index.candidates import Candidates
from worker.index.scorer import candidate_patches
from worker.index.shard import read_patches
from worker.index.store import PinnedShard

TRAIL_WEIGHT = 1.0
GLOBAL_WEIGHT = 0.1
MAX_STEPS = 200


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the query's own frame lies in the pinned shards."""

    shard_position: int
    block: int


def find_origin(shards: Sequence[PinnedShard], frame_id: int | None) -> Origin | None:
    """The query's frame among the pinned shards; None for a picture, or outside the filters."""
    for position, shard in enumerate(shards):
        found = np.flatnonzero(shard.f_map.frame_id[: shard.blocks] == frame_id)
        if found.size:
            return Origin(position, int(found[0]))
    return None


@dataclass(frozen=True, slots=True)
class CameraScenes:
    """Shards grouped by camera, with the backgrounds of those cameras."""

    shards: Sequence[PinnedShard]
    cache: BackgroundCache

    def of_camera(self, camera_id: int) -> list[PinnedShard]:
        """The camera's shards in pinned order."""
        return [shard for shard in self.shards if shard.camera_id == camera_id]

    def background(self, camera_id: int) -> FloatArray | None:
        """float32 (c, d), or None with too few frames."""
        return self.cache.background(self.of_camera(camera_id))


def trail_support(
    scenes: CameraScenes, origin: Origin, query_qd: FloatArray, patch_ids: IntArray, grid: GridSize
) -> dict[tuple[int, int], float]:
    """How surely each frame on the subject's trail shows it: (shard id, block) -> 0..1.

    Follows the ROI of the query's own frame backwards and forwards through the frames of its
    camera until the subject is lost. Frames not named were not reached.
    """
    own = scenes.shards[origin.shard_position]
    background_cd = scenes.background(own.camera_id)
    if background_cd is None:
        return {}
    start_cd = read_patches(own.layout, [origin.block])[0]
    novelty_c = novelty(start_cd[None], background_cd)[0]
    belief_c = first_belief(patch_ids, novelty_c)
    weight_q = novelty_weight(novelty_c[patch_ids], QUERY_FLOOR)
    near_cc = reachable(grid)
    support: dict[tuple[int, int], float] = {}
    for forward in (True, False):
        belief, from_cd = belief_c, start_cd
        steps = _frames_in_time(scenes.of_camera(own.camera_id), own, origin.block, forward)
        for number, (shard, block) in enumerate(steps, start=1):
            to_cd = read_patches(shard.layout, [block])[0]
            to_novelty_c = novelty(to_cd[None], background_cd)[0]
            carried = carried_belief(belief, from_cd, to_cd, to_novelty_c, near_cc)
            carried *= np.sqrt(resemblance(query_qd, weight_q, to_cd))
            held = belief_support(carried, patch_ids.size)
            if held < LOST_LEVEL:
                break
            support[shard.shard_id, block] = held * STEP_DECAY**number
            belief, from_cd = carried / carried.max(), to_cd
    return support


def _frames_in_time(
    shards: Sequence[PinnedShard], own: PinnedShard, block: int, forward: bool
) -> Iterator[tuple[PinnedShard, int]]:
    """(shard, block) after or before the given one, nearest first, at most ``MAX_STEPS``."""
    time = np.concatenate([shard.t_epoch_s[: shard.blocks] for shard in shards])
    shard_of = np.concatenate([np.full(s.blocks, i) for i, s in enumerate(shards)])
    block_of = np.concatenate([np.arange(shard.blocks) for shard in shards])
    in_time = np.lexsort((block_of, time))
    own_position = [shard.shard_id for shard in shards].index(own.shard_id)
    here = int(
        np.flatnonzero((shard_of[in_time] == own_position) & (block_of[in_time] == block))[0]
    )
    following = in_time[here + 1 :] if forward else in_time[:here][::-1]
    for at in following[:MAX_STEPS]:
        yield shards[shard_of[at]], int(block_of[at])


def fused_scores(
    scenes: CameraScenes,
    candidates: Candidates,
    query_qd: FloatArray,
    patch_ids: IntArray,
    origin: Origin | None,
    trail: dict[tuple[int, int], float],
) -> FloatArray:
    """Score per candidate, float32 (n,): novel similarity, smoothed in time, + trail + global."""
    query_novelty_q = np.ones(len(query_qd), dtype=np.float32)
    if origin is not None:
        own = scenes.shards[origin.shard_position]
        background_cd = scenes.background(own.camera_id)
        if background_cd is not None:
            query_novelty_q = novelty(query_qd[None], background_cd[patch_ids])[0]
    appearance_n = np.zeros(candidates.count, dtype=np.float32)
    for shard_position, part, patches_ncd in candidate_patches(scenes.shards, candidates):
        background_cd = scenes.background(scenes.shards[shard_position].camera_id)
        flat = query_qd @ patches_ncd.reshape(-1, patches_ncd.shape[2]).T
        similarity_mqc = flat.reshape(len(query_qd), part.size, -1).transpose(1, 0, 2)
        appearance_n[part] = novel_similarity(
            similarity_mqc, novelty(patches_ncd, background_cd), query_novelty_q
        )
    shard_ids = np.array([shard.shard_id for shard in scenes.shards])
    camera_ids = np.array([shard.camera_id for shard in scenes.shards])
    times = [
        scenes.shards[s].t_epoch_s[b]
        for s, b in zip(candidates.shard_position, candidates.block, strict=True)
    ]
    smooth_n = smooth_in_time(
        appearance_n, camera_ids[candidates.shard_position], np.array(times, dtype=np.float64)
    )
    trail_n = np.array(
        [
            trail.get((int(shard_ids[s]), int(b)), 0.0)
            for s, b in zip(candidates.shard_position, candidates.block, strict=True)
        ],
        dtype=np.float32,
    )
    fused: FloatArray = smooth_n + TRAIL_WEIGHT * trail_n + GLOBAL_WEIGHT * candidates.score_n
    return fused.astype(np.float32)
