"""The two-stage search over pinned shards: global filter, local matching, ranking (paper, 3.4-3.5).

Composes the index adapter (reads, FAISS) with core (votes, growth, scores). No database, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from worker.core.ranking import rank
from worker.core.region_growing import (
    GrowthMode,
    coverage,
    grow_region,
    region_score,
)
from worker.core.rematch import HitTerms, Scoring, SearchTerms
from worker.core.search_params import SearchParams, Strategy
from worker.core.types import BoolArray, FloatArray, GridSize, IntArray, Region
from worker.core.voting import (
    NO_FRAME,
    Neighbours,
    VoteArray,
    majority_vote,
    unique_vote,
    weighted_unique_vote,
    weighted_vote,
)
from worker.core.zone import OUTSIDE, only_inside, zone_cells
from worker.fused_search import GROWTH_OF, FusedSearch, search_fused
from worker.index.backgrounds import BackgroundCache
from worker.index.candidates import (
    Candidates,
    TimeSpan,
    candidates_of_frames,
    global_candidates,
    patch_neighbours,
)
from worker.index.compact_cache import CompactCache
from worker.index.store import IndexStore, PinnedShard
from worker.kernels.directions import direction_cosines
from worker.kernels.region_growing import grow_seedless_chunk
from worker.patch_cosines import (
    ScoredChunk,
    candidate_similarities,
    max_similarities,
)
from worker.ranked_frame import QueryDescriptors, RankedFrame
from worker.scenes import CameraScenes
from worker.shard_scan import LocalScan, ShardScan
from worker.tracing import span


@dataclass(frozen=True, slots=True)
class _Matching:
    """One query against one list of candidates."""

    shards: Sequence[PinnedShard]
    candidates: Candidates
    query: QueryDescriptors
    params: SearchParams
    tau: float
    grid: GridSize
    threads: int
    neighbours: Neighbours | None = None

    def chunks(self) -> Iterator[ScoredChunk]:
        inside_c = zone_cells(self.params.zone, self.grid)
        for chunk in candidate_similarities(
            self.shards, self.candidates, self.query.patches_qd, threads=self.threads
        ):
            yield replace(chunk, similarity_mqc=only_inside(chunk.similarity_mqc, inside_c))


def search_shards(
    store: IndexStore,
    shards: Sequence[PinnedShard],
    query: QueryDescriptors,
    params: SearchParams,
    *,
    tau: float,
    grid: GridSize,
    exclude_frame_id: int | None = None,
    regions_for: int | None = None,
    backgrounds: BackgroundCache | None = None,
    compact: CompactCache | None = None,
    scan: ShardScan | None = None,
) -> list[RankedFrame]:
    """Every candidate of stage 1 in ranked order; ties by eq. 4, then by lower frame id.

    ``tau`` is the backbone's calibrated match level where ``params`` leaves it open. The first
    ``regions_for`` frames (default ``params.limit``) carry the region that proves the match.
    ``exclude_frame_id`` is the query's own frame, which is not an answer. ``backgrounds`` and
    ``compact`` keep what the default strategy learns between searches; its stage 1 is ``scan``'s,
    or this process's own. Of the other strategies nothing is scanned elsewhere.
    """
    resolved = params.resolved()
    times = TimeSpan(
        t_from_epoch_s=resolved.t_from_utc.timestamp() if resolved.t_from_utc else None,
        t_to_epoch_s=resolved.t_to_utc.timestamp() if resolved.t_to_utc else None,
    )
    codes = compact or CompactCache()
    if resolved.tau is None and resolved.strategy in GROWTH_OF:
        return search_fused(
            FusedSearch(
                store,
                scan or LocalScan(store, codes),
                CameraScenes(shards, backgrounds or BackgroundCache()),
                codes,
                query,
                resolved,
                grid,
                times,
            ),
            exclude_frame_id,
        )
    level = resolved.tau if resolved.tau is not None else tau
    zone_c = zone_cells(resolved.zone, grid)
    with span("search.stage1", shards=len(shards)):
        if resolved.strategy in _VOTES and resolved.vote_scope == "index":
            candidates, neighbours = _index_neighbours(
                store, shards, query, resolved.k, times, exclude_frame_id, zone_c
            )
        else:
            candidates, neighbours = (
                global_candidates(
                    store,
                    shards,
                    query.global_d,
                    resolved.top_n + (exclude_frame_id is not None),
                    int8_cosines=partial(direction_cosines, threads=codes.threads),
                    **times,
                ),
                None,
            )
            kept = np.flatnonzero(candidates.frame_id != exclude_frame_id)[: resolved.top_n]
            candidates = candidates.take(kept)
    matching = _Matching(
        shards, candidates, query, resolved, level, grid, codes.threads, neighbours
    )
    with span("search.stage2", candidates=candidates.count):
        score_n, regions = _scores(matching)
        order = rank(score_n, matching.candidates.score_n)
        wanted = order[: params.limit if regions_for is None else regions_for]
        regions |= _proofs(matching, [int(p) for p in wanted if int(p) not in regions])
    terms = _terms(matching)
    return [_ranked_frame(matching, score_n, regions, int(p), terms) for p in order]


def _index_neighbours(
    store: IndexStore,
    shards: Sequence[PinnedShard],
    query: QueryDescriptors,
    k: int,
    span: TimeSpan,
    exclude_frame_id: int | None,
    inside_c: BoolArray | None,
) -> tuple[Candidates, Neighbours]:
    """k nearest patches of the whole index; the frames they lie in are the candidates."""
    similarity_qk, frame_id_qk = patch_neighbours(
        shards, query.patches_qd, k, **span, exclude_frame_id=exclude_frame_id, inside_c=inside_c
    )
    found = np.unique(frame_id_qk[frame_id_qk >= 0])
    if found.size == 0:
        nothing = global_candidates(store, [], query.global_d, 1)
        return nothing, Neighbours(np.full_like(frame_id_qk, NO_FRAME), similarity_qk)
    candidates = candidates_of_frames(store, shards, query.global_d, found)
    position_qk = np.searchsorted(found, frame_id_qk)
    position_qk[frame_id_qk < 0] = NO_FRAME
    return candidates, Neighbours(position_qk.astype(np.int64), similarity_qk)


def _ranked_frame(
    matching: _Matching,
    score_n: VoteArray,
    regions: dict[int, Region | None],
    position: int,
    terms: HitTerms,
) -> RankedFrame:
    region = regions.get(position)
    shard = matching.shards[matching.candidates.shard_position[position]]
    query_count = len(matching.query.cells)
    return RankedFrame(
        frame_id=int(matching.candidates.frame_id[position]),
        camera_id=shard.camera_id,
        t_epoch_s=float(shard.t_epoch_s[matching.candidates.block[position]]),
        score=float(score_n[position]),
        global_score=float(matching.candidates.score_n[position]),
        stage1_score=float(matching.candidates.score_n[position]),
        similarity=0.0 if region is None else float(region.similarity.mean(dtype=np.float64)),
        coverage=0.0 if region is None else coverage(region, query_count, "distinct"),
        region=region,
        terms=terms,
    )


def _terms(matching: _Matching) -> HitTerms:
    """What it takes to match any of the candidates again: no frame is special here."""
    params, query = matching.params, matching.query
    ones_q = np.ones(len(query.cells), dtype=np.float32)
    search = SearchTerms(
        scoring=_scoring(params.strategy),
        growth=_growth_mode(params.strategy),
        grid=matching.grid,
        cells=query.cells,
        patches_qd=query.patches_qd,
        global_d=query.global_d,
        weight_q=ones_q,
        level_q=None,
        tau=matching.tau,
        alpha=params.alpha,
        coverage=params.coverage,
        k=params.k,
        k_s=params.k_s,
        global_weight=0.0,
        zone_c=zone_cells(params.zone, matching.grid),
    )
    return HitTerms(search, np.ones(matching.grid.cells, dtype=np.float32))


def _scoring(strategy: Strategy) -> Scoring:
    if strategy is Strategy.WHOLE_FRAME:
        return "whole-frame"
    if strategy is Strategy.MAX_SIM:
        return "max-sim"
    if strategy in _VOTES:
        return "votes"
    return "paper-growth" if strategy.is_paper else "growth"


def _growth_mode(strategy: Strategy) -> GrowthMode:
    return "elastic" if strategy in (Strategy.GROW_ELASTIC, Strategy.PAPER_ELASTIC) else "rigid"


def _scores(matching: _Matching) -> tuple[VoteArray, dict[int, Region | None]]:
    """Score per candidate, float64 (n,), and the regions that scoring grew on the way."""
    strategy, params = matching.params.strategy, matching.params
    candidates = matching.candidates
    if strategy is Strategy.WHOLE_FRAME:
        return candidates.score_n.astype(np.float64), {}
    if strategy in _VOTES:
        neighbours = matching.neighbours or _neighbours(matching)
        return _VOTES[strategy](neighbours, candidates.count, params.epsilon), {}
    if strategy is Strategy.MAX_SIM:
        inside_c = zone_cells(params.zone, matching.grid)
        patches_qd, threads = matching.query.patches_qd, matching.threads
        return max_similarities(matching.shards, candidates, patches_qd, inside_c, threads), {}
    score_n = np.zeros(candidates.count)
    regions: dict[int, Region | None] = {}
    for chunk in matching.chunks():
        grown = _grow(matching, chunk.similarity_mqc)
        for position, similarity_qc, region in zip(
            chunk.position, chunk.similarity_mqc, grown, strict=True
        ):
            regions[int(position)] = region
            if region is not None:
                score_n[position] = region_score(
                    similarity_qc, region, params.alpha, params.coverage
                )
    return score_n, regions


def _grow(matching: _Matching, similarity_mqc: FloatArray) -> list[Region | None]:
    params, cells = matching.params, matching.query.cells
    mode = _growth_mode(params.strategy)
    if params.strategy.is_paper:
        return [
            grow_region(
                similarity_qc, cells, matching.grid, matching.tau, mode, k=params.k, k_s=params.k_s
            )
            for similarity_qc in similarity_mqc
        ]
    return grow_seedless_chunk(similarity_mqc, cells, matching.grid, matching.tau, mode)


def _proofs(matching: _Matching, positions: Sequence[int]) -> dict[int, Region | None]:
    """The rigid region of some candidates, to show where a hit matched whatever ranked it."""
    if not positions:
        return {}
    part = replace(matching, candidates=matching.candidates.take(np.array(positions, dtype=int)))
    regions: dict[int, Region | None] = {}
    for chunk in part.chunks():
        grown = grow_seedless_chunk(
            chunk.similarity_mqc, matching.query.cells, matching.grid, matching.tau, "rigid"
        )
        regions |= {
            positions[local]: region for local, region in zip(chunk.position, grown, strict=True)
        }
    return regions


def _neighbours(matching: _Matching) -> Neighbours:
    """k nearest patches per query patch among all candidates, merged chunk by chunk.

    Equal similarities go to the better candidate, so that results do not depend on chunking.
    """
    q, k = matching.query.patches_qd.shape[0], matching.params.k
    best = np.full((q, k), -np.inf, dtype=np.float32)
    frame = np.full((q, k), NO_FRAME, dtype=np.int64)
    for chunk in matching.chunks():
        m, _, cells = chunk.similarity_mqc.shape
        flat = chunk.similarity_mqc.transpose(1, 0, 2).reshape(q, m * cells)
        top = _top_columns(flat, np.repeat(chunk.position, cells), k)
        similarity = np.concatenate([best, np.take_along_axis(flat, top, 1)], axis=1)
        position = np.concatenate([frame, chunk.position[top // cells]], axis=1)
        position[similarity <= OUTSIDE] = NO_FRAME  # cells outside the zone are nobody's neighbours
        order = np.lexsort((position, -similarity), axis=1)[:, :k]
        best = np.take_along_axis(similarity, order, 1)
        frame = np.take_along_axis(position, order, 1)
    return Neighbours(frame, best)


def _top_columns(similarity_qm: FloatArray, position_m: IntArray, k: int) -> IntArray:
    """The k most similar columns per row, in any order; of equal ones the lowest positions."""
    k = min(k, similarity_qm.shape[1])
    top_qk = np.argpartition(-similarity_qm, k - 1, axis=1)[:, :k].astype(np.int64)
    least_q1 = np.take_along_axis(similarity_qm, top_qk, 1).min(axis=1, keepdims=True)
    # argpartition may take any of the columns that tie with the last one: sort those rows in full.
    tied = np.flatnonzero((similarity_qm >= least_q1).sum(axis=1) > k)
    for row in tied:
        top_qk[row] = np.lexsort((position_m, -similarity_qm[row]))[:k]
    return top_qk


_Vote = Callable[[Neighbours, int, float], VoteArray]


def _unweighted(vote: Callable[[Neighbours, int], VoteArray]) -> _Vote:
    return lambda neighbours, frames, _epsilon: vote(neighbours, frames)


_VOTES: dict[Strategy, _Vote] = {
    Strategy.VOTE_MAJORITY: _unweighted(majority_vote),
    Strategy.VOTE_UNIQUE: _unweighted(unique_vote),
    Strategy.VOTE_WEIGHTED: weighted_vote,
    Strategy.VOTE_WEIGHTED_UNIQUE: weighted_unique_vote,
    Strategy.PAPER_MAJORITY: _unweighted(majority_vote),
    Strategy.PAPER_UNIQUE: _unweighted(unique_vote),
    Strategy.PAPER_WEIGHTED: weighted_vote,
    Strategy.PAPER_WEIGHTED_UNIQUE: weighted_unique_vote,
}


def exhaustive(params: SearchParams, frames: int) -> SearchParams:
    """The same search with every frame a candidate (up to the bound of ``top_n``)."""
    return replace(params, top_n=max(1, min(frames, 10_000)))
