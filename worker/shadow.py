"""Shadow comparison: a new generation answers what the live one answers, before it may replace it.

Everything goes through the product's own search and is thrown away but for ids and figures: no
query and no hit is recorded, and what is read is kept in caches of its own, which end with a slice.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace

import structlog

from models.index import IndexGeneration
from models.repositories import index as index_record
from models.repositories import search as search_record
from models.repositories import videos as video_record
from models.search import SearchQuery
from worker.canaries import canary_box, finds_itself
from worker.context import Context
from worker.core.comparison import (
    TOP_K,
    Canary,
    ComparedQuery,
    Comparison,
    ShadowOptions,
    agreement,
    comparison_from_json,
    overlap,
    refusals,
)
from worker.core.ranking import NEIGHBOUR_GAP_S
from worker.core.roi_json import roi_from_json
from worker.core.search_params import search_params_from_json
from worker.describe import describe_query
from worker.errors import RisError, ShadowMismatch
from worker.generations import backbone_of, require_live_generation
from worker.jobs import Lease
from worker.query_picture import frame_picture
from worker.search import MAX_PROOFS, proven, search_generation

log = structlog.get_logger()

CANARIES = 20


@dataclass(frozen=True, slots=True)
class _Shadow:
    """Both generations in one slice. ``live_embeds``: whether the live one's backbone is here and
    the same; where it is not, a reindex is the remedy, so that must not stop it."""

    context: Context
    live: IndexGeneration
    new: IndexGeneration
    live_embeds: bool


def compare_generations(
    context: Context,
    lease: Lease,
    generation: IndexGeneration,
    options: ShadowOptions,
    progress: dict[str, int],
) -> bool:
    """Put the planned questions to both generations; False when the slice is over first.

    What this job planned and asked before is kept, so a killed worker's successor goes on. Raises
    :class:`ShadowMismatch` when the gate refuses the new one.
    """
    comparison = _noted(context, lease, generation) or _plan(context, lease, options)
    shadow: _Shadow | None = None
    while comparison.planned:
        shadow = shadow or _shadow(context, generation)
        comparison = _ask_next(shadow, comparison)
        if not comparison.planned:
            comparison = replace(comparison, refused=refusals(comparison, options.gate))
        _note(context, lease, generation, comparison, progress)
        if comparison.planned and lease.slice_over():
            return False
    if comparison.refused:
        raise ShadowMismatch(
            f"generation {generation.id} is not switched to: {'; '.join(comparison.refused)}."
            " It is kept: `ris generations --json` has the figures,"
            f" `ris reindex --generation {generation.id} --no-compare` switches anyway"
        )
    return True


def _noted(context: Context, lease: Lease, generation: IndexGeneration) -> Comparison | None:
    """What this job has noted; an earlier job's comparison is of no use to it."""
    with context.db.transaction() as session:
        found = index_record.find_generation(session, generation.id)
    if found is None or found.comparison is None:
        return None
    noted = comparison_from_json(found.comparison)
    return noted if noted.job_id == str(lease.job.id) else None


def _plan(context: Context, lease: Lease, options: ShadowOptions) -> Comparison:
    live = require_live_generation(context)
    with context.db.transaction() as session:
        queries = search_record.recent_queries(session, options.queries)
        frames = video_record.frames_evenly(session, CANARIES)
    return Comparison(
        str(lease.job.id),
        live.id,
        tuple(ComparedQuery(str(query_id)) for query_id in queries),
        tuple(Canary(frame_id) for frame_id in frames),
    )


def _note(
    context: Context,
    lease: Lease,
    generation: IndexGeneration,
    comparison: Comparison,
    progress: dict[str, int],
) -> None:
    to_ask = len(comparison.queries) + len(comparison.canaries)
    asked = {"asked": to_ask - comparison.planned, "to_ask": to_ask}
    with context.db.transaction() as session:
        lease.record_progress(session, {**progress, **asked})
        index_record.set_comparison(session, generation.id, comparison.to_json())


def _shadow(context: Context, generation: IndexGeneration) -> _Shadow:
    live = require_live_generation(context)
    try:
        backbone_of(context, live)
        live_embeds = True
    except RisError as error:
        log.warning("live_backbone_missing", generation_id=live.id, detail=str(error))
        live_embeds = False
    return _Shadow(context.with_own_caches(), live, generation, live_embeds)


def _ask_next(shadow: _Shadow, comparison: Comparison) -> Comparison:
    for canary in comparison.canaries:
        if canary.outcome == "planned":
            return comparison.with_canary(_ask_canary(shadow, canary))
    planned = next(one for one in comparison.queries if one.outcome == "planned")
    return comparison.with_query(_ask_query(shadow, planned))


def _ask_query(shadow: _Shadow, planned: ComparedQuery) -> ComparedQuery:
    """One recorded query on both; skipped when the live one cannot be asked, whatever the reason,
    or when a frame it names is not in both, as one that was just ingested or erased."""
    with shadow.context.db.transaction() as session:
        query = search_record.find_query(session, uuid.UUID(planned.query_id))
    if query is None:
        return replace(planned, outcome="skipped", detail="it was erased")
    live_ids, error = _answered(shadow, shadow.live, query)
    if error is not None:
        unanswered = f"the live generation gives no answer: {error.code}"
        return replace(planned, outcome="skipped", detail=unanswered)
    new_ids, error = _answered(shadow, shadow.new, query)
    params = search_params_from_json(query.params)  # read before, or the live one had failed
    examples = {example.frame_id for example in (*params.more, *params.less)}
    named = examples | ({query.frame_id} if query.frame_id is not None else set())
    if named - _in_both(shadow, named):
        return replace(planned, outcome="skipped", detail="a frame of it is not in both")
    if error is not None:
        return replace(planned, outcome="failing", detail=f"{error.code}: {error}")
    both = _in_both(shadow, {*live_ids, *new_ids})
    live_ids, new_ids = ([one for one in ids if one in both] for ids in (live_ids, new_ids))
    found = replace(planned, live_hits=len(live_ids), new_hits=len(new_ids))
    if live_ids and not new_ids:
        told = f"no hits, {len(live_ids)} in the live one"
        at_level = "" if params.tau is None else f", at its tau of {params.tau:g}"
        return replace(found, outcome="failing", detail=told + at_level)
    depth = min(TOP_K, params.limit)
    top = (live_ids[:depth], new_ids[:depth])
    return replace(found, outcome="compared", overlap=overlap(*top), agreement=agreement(*top))


def _answered(
    shadow: _Shadow, generation: IndexGeneration, query: SearchQuery
) -> tuple[list[int], RisError | None]:
    """Frames that may be hits, best first, as :func:`worker.search.run_query` finds them; or the
    error, unless it lies in the surroundings and another try may help."""
    try:
        params = search_params_from_json(query.params)
        descriptors = describe_query(
            shadow.context,
            generation,
            roi_from_json(query.roi),
            params,
            frame_id=query.frame_id,
            picture_sha256=query.picture_sha256,
        )
        searched = search_generation(
            shadow.context,
            generation,
            descriptors,
            params,
            exclude_frame_id=query.frame_id,
            regions_for=MAX_PROOFS,
            allow_away=False,
        )
    except RisError as error:
        if error.retryable:
            raise
        return [], error
    return [hit.frame_id for hit in proven(searched.ranked)[:MAX_PROOFS]], None


def _in_both(shadow: _Shadow, frame_ids: set[int]) -> set[int]:
    with shadow.context.db.transaction() as session:
        return set.intersection(
            *(
                index_record.indexed_frames(session, generation.id, sorted(frame_ids))
                for generation in (shadow.live, shadow.new)
            )
        )


def _ask_canary(shadow: _Shadow, planned: Canary) -> Canary:
    """One frame searched for in both."""
    skipped = replace(planned, outcome="skipped")
    with shadow.context.db.transaction() as session:
        frame = video_record.find_frame(session, planned.frame_id)
        near = (
            []
            if frame is None
            else video_record.neighbours_in_time(session, frame, NEIGHBOUR_GAP_S)
        )
    if frame is None:
        return skipped
    try:
        frame_picture(shadow.context, frame.id)
    except RisError as error:
        if error.retryable:
            raise
        return skipped
    context = shadow.context
    box = canary_box(context, shadow.live, frame)  # both are asked for the same
    live = finds_itself(context, shadow.live, frame, near, box) if shadow.live_embeds else None
    new = finds_itself(context, shadow.new, frame, near, box)
    if frame.id not in _in_both(shadow, {frame.id}) or (shadow.live_embeds and live is None):
        return skipped
    return replace(
        planned,
        outcome="compared",
        neighbours=len(near),
        live_self=None if live is None else live[0],
        live_neighbours=0 if live is None else live[1],
        new_self=new is not None and new[0],
        new_neighbours=0 if new is None else new[1],
    )
