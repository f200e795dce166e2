"""Stage 1 of the default search: every frame's appearance from compact codes, best frames on.

The whole-frame descriptor hardly knows small subjects: of 956 frames its best 200 held half of the
positives (benchmarks/LOG.md). This looks at every cell of every frame instead, coarsely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worker.core.background import TARGET_FLOOR, novelty_weight, weighted_max_similarity
from worker.core.compact import CompactBasis
from worker.core.types import BoolArray, FloatArray, IntArray
from worker.errors import IndexDamaged
from worker.fused import AGAINST_WEIGHT, TRAIL_WEIGHT, Coarse, Subject, strongest
from worker.index.candidates import Candidates
from worker.index.compact_cache import CompactCache
from worker.index.store import IndexStore
from worker.scenes import Place

_FRAMES_PER_CHUNK = 64


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
    store: IndexStore,
    compact: CompactCache,
    subject: Subject,
    global_d: FloatArray,
    inside: Sequence[BoolArray],
    top_n: int,
) -> Shortlist:
    """The ``top_n`` frames by coarse fused score, and every frame on the subject's trail.

    ``inside``: per pinned shard, bool (blocks,), the frames that the time filter lets in. Scores
    are those of :func:`worker.fused.gather_evidence` without growth, from compact codes; ties by
    lower frame id.
    """
    shards = subject.scenes.shards
    basis = compact.basis(shards)
    parts = [
        _Part(
            np.full(int(kept.sum()), position, dtype=np.int64),
            np.flatnonzero(kept).astype(np.int64),
            _coarse_appearance(subject, compact, basis, position)[kept]
            if kept.any()
            else np.empty(0, dtype=np.float32),
            (store.global_descriptors(shards[position]) @ global_d)[kept],
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
    if points or subject.origin is not None:
        row = {
            (int(s), int(b)): at
            for at, (s, b) in enumerate(zip(shard_position, block, strict=True))
        }
        reached = {place: point.support for place, point in points.items()}
        for place, support in _with_origin(reached, subject.origin).items():
            at = row.get((place.shard_position, place.block))
            if at is not None:
                trail_n[at] = support
    appearance_n = np.concatenate([part.appearance_n for part in parts])
    smooth_n = subject.in_time(appearance_n, shard_position, block)
    coarse_n = smooth_n + TRAIL_WEIGHT * trail_n + subject.global_weight * global_n
    if np.isnan(coarse_n).any():
        raise IndexDamaged("a stored descriptor is NaN; run `ris verify`")
    order = np.lexsort((frame_id, -coarse_n))
    chosen = np.concatenate([order[:top_n], [at for at in order[top_n:] if trail_n[at] > 0]])
    chosen = chosen.astype(np.int64)[np.argsort(frame_id[chosen.astype(np.int64)], kind="stable")]
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


def _coarse_appearance(
    subject: Subject, compact: CompactCache, basis: CompactBasis, position: int
) -> FloatArray:
    """Appearance of every frame of one shard, float32 (blocks,)."""
    shard = subject.scenes.shards[position]
    codes_nck = compact.codes(shard, basis)
    background_cd = subject.background(shard.camera_id)
    background_ck = None if background_cd is None else _unit(basis.project(background_cd))
    # What speaks for the subject, each with its weight, and then what speaks against it.
    shares = [1.0, *(exemplar.share for exemplar in subject.exemplars)]
    exemplars = [subject.query, *subject.exemplars, *subject.against]
    query_qk = basis.project(np.concatenate([exemplar.patches_qd for exemplar in exemplars]))
    scores = np.zeros(shard.blocks, dtype=np.float32)
    for start in range(0, shard.blocks, _FRAMES_PER_CHUNK):
        decoded_nck = basis.decode(codes_nck[start : start + _FRAMES_PER_CHUNK])
        n, c, k = decoded_nck.shape
        similarity_nqc = (query_qk @ decoded_nck.reshape(-1, k).T).reshape(-1, n, c)
        similarity_nqc = similarity_nqc.transpose(1, 0, 2)
        if background_ck is not None:
            novelty_nc = 1 - (_unit(decoded_nck) * background_ck).sum(axis=-1)
            target_nc = np.sqrt(novelty_weight(novelty_nc, TARGET_FLOOR))
            similarity_nqc = similarity_nqc * target_nc[:, None, :]
        first, seen_en = 0, []
        for exemplar in exemplars:
            last = first + len(exemplar.weight_q)
            seen_en.append(
                weighted_max_similarity(similarity_nqc[:, first:last], exemplar.weight_q)
            )
            first = last
        seen_n = np.average(seen_en[: len(shares)], axis=0, weights=shares)
        seen_n -= AGAINST_WEIGHT * strongest(seen_en[len(shares) :], n)
        scores[start : start + n] = seen_n
    return scores


def _unit(projected: FloatArray) -> FloatArray:
    """Rows of unit length again: the projection drops a little of each."""
    norm = np.maximum(np.linalg.norm(projected, axis=-1, keepdims=True), 1e-6)
    unit: FloatArray = projected / norm
    return unit
