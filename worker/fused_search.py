"""The default search, from query to ranking: shortlist, evidence, order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from worker.core.calibration import expected_false_matches
from worker.core.coherence import PIVOT
from worker.core.ranking import rank
from worker.core.region_growing import GrowthMode, coverage
from worker.core.rematch import ExemplarTerms, HitTerms, SearchTerms
from worker.core.search_params import SearchParams, Strategy
from worker.core.types import BoolArray, GridSize
from worker.core.zone import zone_cells
from worker.feedback import with_examples
from worker.fused import Evidence, Subject, describe_subject, gather_evidence, limited_to
from worker.index.candidates import (
    TimeSpan,
    candidates_of_frames,
    global_candidates,
    in_time,
)
from worker.index.compact_cache import CompactCache
from worker.index.store import IndexStore
from worker.kernels.directions import direction_cosines
from worker.ranked_frame import QueryDescriptors, RankedFrame
from worker.scenes import CameraScenes, Place
from worker.shard_scan import ShardScan
from worker.shortlist import Shortlist, shortlist
from worker.tracing import span

GROWTH_OF: dict[Strategy, GrowthMode | None] = {
    Strategy.FUSED: None,
    Strategy.GROW_RIGID: "rigid",
    Strategy.GROW_ELASTIC: "elastic",
}
"""Strategies that fuse evidence, and how each grows regions while tau is left open."""


@dataclass(frozen=True, slots=True)
class FusedSearch:
    """One search: what it asks, where it looks, who scans the shards, and the caches it may use."""

    store: IndexStore
    scan: ShardScan
    scenes: CameraScenes
    compact: CompactCache
    query: QueryDescriptors
    params: SearchParams
    grid: GridSize
    span: TimeSpan


def search_fused(search: FusedSearch, exclude_frame_id: int | None) -> list[RankedFrame]:
    """Rank by fused evidence; stage 1 looks at the cells of every frame where memory allows."""
    query, scenes = search.query, search.scenes
    origin = scenes.find(exclude_frame_id)
    with span("search.follow"):
        subject = _subject(search, origin)
    inside = [in_time(shard, **search.span) for shard in scenes.shards]
    # The query's own frame takes part as a neighbour in time, and is no answer.
    own_inside = origin is not None and bool(inside[origin.shard_position][origin.block])
    top_n = search.params.top_n + own_inside
    frames = sum(int(kept.sum()) for kept in inside)
    with span("search.stage1", shards=len(scenes.shards), frames=frames):
        if frames > top_n and search.compact.fits(scenes.shards):
            chosen = shortlist(search.scan, search.compact, subject, query.global_d, inside, top_n)
        else:
            chosen = _by_global_descriptor(search, subject, inside)
    if chosen.candidates.count == 0:
        return []
    with span("search.stage2", candidates=chosen.candidates.count):
        evidence = gather_evidence(
            subject,
            chosen.candidates,
            GROWTH_OF[search.params.strategy],
            chosen.coarse,
            search.compact.threads,
        )
    false_matches_n = _false_matches(search, chosen, evidence, inside)
    order = rank(evidence.score_n, chosen.candidates.score_n)
    terms = _terms(search, subject, evidence)
    return [
        _fused_frame(search, chosen, evidence, int(p), float(false_matches_n[p]), terms)
        for p in order
        if chosen.candidates.frame_id[p] != exclude_frame_id
    ]


def _subject(search: FusedSearch, origin: Place | None) -> Subject:
    """What is searched for, followed from the query's own frame if that is indexed."""
    query = search.query
    subject = describe_subject(
        search.scenes,
        query.patches_qd,
        query.cells,
        search.grid,
        query.box,
        origin,
        search.params.without,
    )
    subject = with_examples(subject, query.more, query.less)
    return limited_to(subject, zone_cells(search.params.zone, search.grid))


def _false_matches(
    search: FusedSearch, chosen: Shortlist, evidence: Evidence, inside: Sequence[BoolArray]
) -> NDArray[np.float64]:
    """Expected false matches per candidate, float64 (n,); NaN where chance was not looked at."""
    if chosen.chance_m is not None and chosen.camera_m is not None:
        return expected_false_matches(evidence.appearance_n, chosen.chance_m, chosen.camera_m)
    if chosen.candidates.count < sum(int(kept.sum()) for kept in inside):
        return np.full(chosen.candidates.count, np.nan)  # chosen for being alike: no chance sample
    camera_ids = np.array([shard.camera_id for shard in search.scenes.shards], dtype=np.int64)
    chance = ~evidence.on_trail_n
    return expected_false_matches(
        evidence.appearance_n,
        evidence.appearance_n[chance],
        camera_ids[chosen.candidates.shard_position][chance],
    )


def _by_global_descriptor(
    search: FusedSearch, subject: Subject, inside: Sequence[BoolArray]
) -> Shortlist:
    """The paper's stage 1 (eq. 4), and the frames on the subject's trail."""
    shards, global_d = search.scenes.shards, search.query.global_d
    top_n = search.params.top_n + (subject.origin is not None)
    cosines = partial(direction_cosines, threads=search.compact.threads)
    passed = global_candidates(
        search.store, shards, global_d, top_n, int8_cosines=cosines, **search.span
    )
    known = passed.frame_id
    if subject.trail is not None:
        places = [*subject.trail.points, *([] if subject.origin is None else [subject.origin])]
        reached = [search.scenes.frame_id(p) for p in places if inside[p.shard_position][p.block]]
        known = np.union1d(known, np.array(reached, dtype=np.int64))
    if known.size == 0:
        return Shortlist(passed, passed.score_n)
    everything = candidates_of_frames(search.store, shards, global_d, known)
    return Shortlist(everything, everything.score_n)


def _fused_frame(
    search: FusedSearch,
    chosen: Shortlist,
    evidence: Evidence,
    position: int,
    expected: float,
    terms: SearchTerms,
) -> RankedFrame:
    candidates = chosen.candidates
    query_count = len(search.query.cells)
    shard = search.scenes.shards[candidates.shard_position[position]]
    region = evidence.regions[position]
    return RankedFrame(
        frame_id=int(candidates.frame_id[position]),
        camera_id=shard.camera_id,
        t_epoch_s=float(shard.t_epoch_s[candidates.block[position]]),
        score=float(evidence.score_n[position]),
        global_score=float(candidates.score_n[position]),
        stage1_score=float(chosen.coarse_n[position]),
        similarity=0.0 if region is None else float(region.similarity.mean(dtype=np.float64)),
        coverage=0.0 if region is None else coverage(region, query_count, "distinct"),
        region=region,
        box=evidence.boxes[position],
        on_trail=bool(evidence.on_trail_n[position]),
        appearance=float(evidence.appearance_n[position]),
        false_matches=None if np.isnan(expected) else expected,
        terms=HitTerms(
            terms,
            evidence.novelty_nc[position],
            float(evidence.in_time.before_n[position]),
            float(evidence.in_time.after_n[position]),
            float(evidence.trail_n[position]),
        ),
    )


def _terms(search: FusedSearch, subject: Subject, evidence: Evidence) -> SearchTerms:
    """What the search knew beside the frames."""
    params, growth = search.params, GROWTH_OF[search.params.strategy]
    return SearchTerms(
        scoring="fused" if growth is None else "fused-growth",
        growth=growth or "rigid",
        grid=search.grid,
        cells=subject.cells,
        patches_qd=subject.query.patches_qd,
        global_d=search.query.global_d,
        weight_q=subject.query.weight_q,
        level_q=evidence.level_q,
        tau=PIVOT,
        alpha=params.alpha,
        coverage=params.coverage,
        k=params.k,
        k_s=params.k_s,
        global_weight=subject.global_weight,
        zone_c=subject.zone_c,
        exemplars=tuple(
            ExemplarTerms(one.frame_id, one.patches_qd, one.weight_q, one.share, against)
            for against, exemplars in ((False, subject.exemplars), (True, subject.against))
            for one in exemplars
        ),
    )
