"""Stage 1 of the default search: every frame's appearance from compact codes, best frames on.

The whole-frame descriptor hardly knows small subjects: of 956 frames its best 200 held half of the
positives (benchmarks/LOG.md). This looks at every cell of every frame instead, coarsely.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from worker.core.background import AGAINST_WEIGHT
from worker.core.coarse import CoarseQuery
from worker.core.compact import CompactBasis
from worker.core.ranking import best_positions
from worker.core.types import BoolArray, FloatArray, IntArray
from worker.errors import IndexDamaged
from worker.fused import TRAIL_WEIGHT, Coarse, Subject
from worker.index.candidates import Candidates
from worker.index.compact_cache import CompactCache
from worker.scenes import Place
from worker.shard_scan import ScanQuery, ShardScan


@dataclass(frozen=True, slots=True)
class Shortlist:
    """Candidates by frame id, and what they were chosen by, float32 (n,).

    ``chance_m``, ``camera_m``: coarse likeness of *every* frame that the filters let in, and its
    camera, without the trail; None where only the chosen ones were looked at.
    """

    candidates: Candidates
    coarse_n: FloatArray
    chance_m: FloatArray | None = None
    camera_m: IntArray | None = None
    coarse: Coarse | None = None


def shortlist(
    scan: ShardScan,
    compact: CompactCache,
    subject: Subject,
    global_d: FloatArray,
    inside: Sequence[BoolArray],
    top_n: int,
) -> Shortlist:
    """The ``top_n`` frames by coarse fused score, and every frame on the subject's trail.

    ``scan`` looks at the frames, here or elsewhere. ``inside``: per pinned shard, bool (blocks,),
    the frames that the time filter lets in. Scores are those of
    :func:`worker.fused.gather_evidence` without growth, from compact codes; ties by lower frame id.
    """
    shards = subject.scenes.shards
    basis = compact.basis(shards)
    wanted = [position for position, kept in enumerate(inside) if kept.any()]
    nothing = np.zeros(0, dtype=np.float32)
    query = _scan_query(
        subject, basis, {shards[position].camera_id for position in wanted}, global_d
    )
    scanned = dict(zip(wanted, scan(query, [shards[p] for p in wanted]), strict=True))
    parts = [
        _Part(
            np.full(int(kept.sum()), position, dtype=np.int64),
            np.flatnonzero(kept).astype(np.int64),
            scanned[position].appearance_n[kept] if position in scanned else nothing,
            scanned[position].global_n[kept] if position in scanned else nothing,
        )
        for position, kept in enumerate(inside)
    ]
    shard_position = np.concatenate([part.shard_position for part in parts])
    block = np.concatenate([part.block for part in parts])
    global_n = np.concatenate([part.global_n for part in parts])
    frame_id = np.concatenate(
        [shards[p].f_map.frame_id[part.block] for p, part in enumerate(parts)]
    )
    camera_n = np.array([shard.camera_id for shard in shards], dtype=np.int64)[shard_position]
    points = {} if subject.trail is None else subject.trail.points
    trail_n = np.zeros(block.size, dtype=np.float32)
    first = np.cumsum([0, *(part.block.size for part in parts)])
    reached = {place: point.support for place, point in points.items()}
    for place, support in _with_origin(reached, subject.origin).items():
        own = parts[place.shard_position].block
        at = int(np.searchsorted(own, place.block))
        if at < own.size and own[at] == place.block:
            trail_n[first[place.shard_position] + at] = support
    appearance_n = np.concatenate([part.appearance_n for part in parts])
    smooth_n = subject.in_time(appearance_n, shard_position, block).smooth_n
    coarse_n = smooth_n + TRAIL_WEIGHT * trail_n + subject.global_weight * global_n
    if np.isnan(coarse_n).any():
        raise IndexDamaged("a stored descriptor is NaN; run `ris verify`")
    chosen = np.union1d(best_positions(coarse_n, frame_id, top_n), np.flatnonzero(trail_n > 0))
    chosen = chosen[np.argsort(frame_id[chosen], kind="stable")]
    candidates = Candidates(
        shard_position[chosen], block[chosen], frame_id[chosen], global_n[chosen]
    )
    off_trail = trail_n == 0
    return Shortlist(
        candidates,
        coarse_n[chosen].astype(np.float32),
        smooth_n[off_trail],
        camera_n[off_trail],
        Coarse(shard_position, block, appearance_n, chosen),
    )


@dataclass(frozen=True, slots=True)
class _Part:
    shard_position: IntArray
    block: IntArray
    appearance_n: FloatArray
    global_n: FloatArray


def _with_origin(reached: dict[Place, float], origin: Place | None) -> dict[Place, float]:
    """The query's own frame is kept too: it is its neighbours' neighbour in time."""
    return reached if origin is None else {**reached, origin: 1.0}


def _scan_query(
    subject: Subject, basis: CompactBasis, camera_ids: Iterable[int], global_d: FloatArray
) -> ScanQuery:
    backgrounds = {
        camera_id: None if known is None else _unit(basis.project(known))
        for camera_id in camera_ids
        for known in [subject.background(camera_id)]
    }
    return ScanQuery(coarse_query(subject, basis), basis, backgrounds, global_d, subject.zone_c)


def coarse_query(subject: Subject, basis: CompactBasis) -> CoarseQuery:
    """The query and its exemplars, what speaks for the subject first, in compact codes."""
    exemplars = [subject.query, *subject.exemplars, *subject.against]
    return CoarseQuery(
        query_qk=basis.project(np.concatenate([exemplar.patches_qd for exemplar in exemplars])),
        weight_q=np.concatenate([exemplar.weight_q for exemplar in exemplars]),
        lengths=[len(exemplar.weight_q) for exemplar in exemplars],
        shares=[1.0, *(exemplar.share for exemplar in subject.exemplars)],
        against_weight=AGAINST_WEIGHT,
    )


def _unit(projected: FloatArray) -> FloatArray:
    """Rows of unit length again: the projection drops a little of each."""
    norm = np.maximum(np.linalg.norm(projected, axis=-1, keepdims=True), 1e-6)
    unit: FloatArray = projected / norm
    return unit
