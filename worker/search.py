"""Queries: run the search that was accepted, and record its hits."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import structlog

from models.index import IndexGeneration
from models.repositories import codes as codes_record
from models.repositories import erasures as erasure_record
from models.repositories import index as index_record
from models.repositories import search as search_record
from models.repositories import videos as video_record
from models.repositories.jobs import ClaimedJob
from models.repositories.scope import EVERYTHING, FootageScope
from models.session import Session
from worker.accepting.events import tell_query
from worker.accepting.scope import scope_of_asker
from worker.answers import Answer, Shown, grouped
from worker.closer_look import look_closer
from worker.compacting import learn_basis
from worker.context import Context
from worker.core.geometry import roi_box
from worker.core.roi_json import roi_from_json
from worker.core.search_params import SearchParams, search_params_from_json
from worker.describe import describe_query
from worker.device_scan import DeviceScan
from worker.errors import GenerationSwitched, IndexDamaged, NotFound, ObjectStoreUnavailable
from worker.fan_out import FannedScan
from worker.generations import require_live
from worker.index.store import PinnedShard
from worker.jobs import Lease, Outcome
from worker.near_footage import near_footage
from worker.pinning import pin_scene, pin_shards, spec_of, within_times
from worker.ranked_frame import QueryDescriptors, RankedFrame
from worker.shard_scan import LocalScan, ShardScan
from worker.tracing import note, span
from worker.two_stage import search_shards

log = structlog.get_logger()

MAX_PROOFS = 1000
"""Frames, from the top, that a proof is sought for; those without one are no hits."""


def run_query(context: Context, job: ClaimedJob, lease: Lease) -> Outcome:
    """Run one recorded query on the live generation and record its hits, the first of them before
    all footage was searched."""
    with context.db.transaction() as session:
        query = search_record.query_of_job(session, job.id)
        if query is None:
            raise NotFound(f"job {job.id} has no query")
        params = search_params_from_json(query.params)
        generation = require_live(session)
        scope = scope_of_asker(session, query.key_id)
        near = near_footage(session, generation, query, params, context.settings.early_over_frames)
    roi = roi_from_json(query.roi)
    note(query_id=query.id, generation_id=generation.id)
    started_s = time.perf_counter()
    with span("query.describe"):
        descriptors = describe_query(
            context,
            generation,
            roi,
            params,
            frame_id=query.frame_id,
            picture_sha256=query.picture_sha256,
        )
    described_s = time.perf_counter()
    query_patches = int(descriptors.patches_qd.shape[0])
    grid = spec_of(generation).grid
    answer = Answer(context, lease, query, generation, grid, query_patches, scope)
    if near is not None:
        _record_early_hits(answer, descriptors, near)
    early_s = time.perf_counter()
    searched, hits = _hits(answer, descriptors, params)
    searched_s = time.perf_counter()
    looks = 0 if params.strategy.is_paper else params.close_looks
    if looks and hits:
        answer.record_first("ranked", hits)
        with span("query.look_closer", hits=min(looks, len(hits))):
            hits = _looked_at(answer, hits, looks)
    stats = {
        "describe_ms": round(1000 * (described_s - started_s), 3),
        **({"early_ms": round(1000 * (early_s - described_s), 3)} if near else {}),
        "search_ms": round(1000 * (searched_s - early_s), 3),
        "look_ms": round(1000 * (time.perf_counter() - searched_s), 3),
        "frames_searched": searched.frames,
        "frames_lost": searched.frames_lost,
        "frames_away": searched.frames_away,
        "candidates": len(searched.ranked),
    }
    with span("query.record", hits=len(hits)):
        answer.record(hits, stats)
    return "finished"


def _record_early_hits(answer: Answer, descriptors: QueryDescriptors, near: SearchParams) -> None:
    """Where there is much footage, look through what lies nearest to the query's frame first."""
    _, hits = _hits(answer, descriptors, near, step="early")
    if hits:
        answer.record_first("early", hits)


def _hits(
    answer: Answer, descriptors: QueryDescriptors, params: SearchParams, *, step: str = "all"
) -> tuple[Searched, list[Shown]]:
    """Search, and what is shown of it: frames with a proof, best first, ``limit`` at most."""
    with span("query.search", step=step):
        searched = search_generation(
            answer.context,
            answer.generation,
            descriptors,
            params,
            exclude_frame_id=answer.query.frame_id,
            regions_for=MAX_PROOFS,
            scope=answer.scope,
        )
        note(frames=searched.frames, candidates=len(searched.ranked))
    return searched, grouped(proven(searched.ranked)[: params.limit], params)


def fail_query(session: Session, job: ClaimedJob, code: str) -> None:
    """Tell that a query was not answered."""
    query = search_record.query_of_job(session, job.id)
    if query is not None and search_record.lock_query(session, query.id):
        search_record.drop_hits(session, query.id)
        tell_query(session, "query.failed", query, code=code)


def proven(ranked: list[RankedFrame]) -> list[RankedFrame]:
    """Those that may be hits: one is shown with its proof, and without any match at tau there is
    nothing to show."""
    return [hit for hit in ranked if hit.region is not None]


def _looked_at(answer: Answer, hits: list[Shown], looks: int) -> list[Shown]:
    """The first ``looks`` hits with finer boxes, and the others as they are."""
    query = answer.query
    finer = look_closer(
        answer.context,
        answer.generation,
        [shown.hit for shown in hits[:looks]],
        roi_box(roi_from_json(query.roi)),
        frame_id=query.frame_id,
        picture_sha256=query.picture_sha256,
    )
    first = [replace(shown, hit=hit) for shown, hit in zip(hits[:looks], finer, strict=True)]
    return [*first, *hits[looks:]]


@dataclass(frozen=True, slots=True)
class Searched:
    """A search's outcome: every candidate in order, how many frames were searched, and how many
    that the filters let in could not be: because their vectors are damaged, and because they lie on
    object storage that cannot be reached."""

    ranked: list[RankedFrame]
    frames: int
    frames_lost: int
    frames_away: int


def search_generation(
    context: Context,
    generation: IndexGeneration,
    descriptors: QueryDescriptors,
    params: SearchParams,
    *,
    exclude_frame_id: int | None = None,
    regions_for: int | None = None,
    allow_away: bool = True,
    scope: FootageScope = EVERYTHING,
) -> Searched:
    """Pin, search, rank. A shard in which damage turns up is examined, and searched again without
    its damaged frames: no hit is computed from one. When object storage cannot be reached, what
    lies there is left out; without ``allow_away`` :class:`ObjectStoreUnavailable` is raised.
    Frames outside the times of ``scope`` are neither searched nor counted nor learnt from. Raises
    what :func:`search_shards` raises.
    """
    spec = spec_of(generation)
    away = False
    while True:
        with context.db.snapshot() as session:
            context.let_go_since(erasure_record.last_finished(session))
            learn_basis(context, session, generation)
            scan = _scan(context, session, generation)
            pinned = _pinned(context, session, generation, params, exclude_frame_id, scope, away)
        shards = [shard for shard in pinned if shard.blocks]
        if not shards:
            _require_there(context, generation)
        try:
            try:
                ranked = search_shards(
                    context.index,
                    shards,
                    descriptors,
                    params,
                    tau=spec.tau,
                    grid=spec.grid,
                    exclude_frame_id=exclude_frame_id,
                    regions_for=regions_for,
                    backgrounds=context.backgrounds,
                    compact=context.compact,
                    scan=scan,
                )
            except IndexDamaged as error:
                if error.folder is None:
                    raise
                if _replaced(context, generation, params, exclude_frame_id, scope, error.folder):
                    _require_there(context, generation)
                    continue
                if _examine(context, shards, error):
                    continue
                raise
        except ObjectStoreUnavailable as error:
            if away or not allow_away:
                raise
            log.warning("searched_without_object_storage", detail=str(error))
            away = True
            continue
        return _searched(pinned, ranked, params)


def _examine(context: Context, shards: list[PinnedShard], error: IndexDamaged) -> bool:
    """Find the damage of a shard; whether another pin is without some frames of this one."""
    damaged = next(shard for shard in shards if str(shard.layout.folder) == error.folder)
    found = context.damage.examine(damaged, error.blocks)
    log.error("index_damaged", folder=error.folder, frames=found, detail=str(error))
    lost = context.damage.lost(damaged.layout.folder)
    return not lost.isdisjoint(damaged.stored_n.tolist())


def _searched(
    pinned: list[PinnedShard], ranked: list[RankedFrame], params: SearchParams
) -> Searched:
    asked = [shard for shard in pinned if shard.searched]
    lost = away = 0
    for shard in asked:
        for block, t_s in zip(shard.lost, shard.lost_t_epoch_s, strict=True):
            inside = _in_span(t_s, params)
            is_away = shard.away and block < shard.layout.sealed
            away += inside and is_away
            lost += inside and not is_away
    return Searched(ranked, sum(shard.blocks for shard in asked), lost, away)


def _scan(context: Context, session: Session, generation: IndexGeneration) -> ShardScan:
    """Stage 1 in this process, on its GPU where it has one, spread over scan workers where there
    are any."""
    own = LocalScan(context.index, context.compact)
    held = context.held_codes
    local: ShardScan = own if held is None else DeviceScan(own, held)
    if context.fan_out is None:
        return local
    recorded = codes_record.basis_name(session, generation.id)
    return FannedScan(context.fan_out, local, generation.id, recorded)


def _replaced(
    context: Context,
    generation: IndexGeneration,
    params: SearchParams,
    frame_id: int | None,
    scope: FootageScope,
    folder: str,
) -> bool:
    """Whether the files were erased or written anew since they were pinned."""
    with context.db.snapshot() as session:
        pinned = _pinned(context, session, generation, params, frame_id, scope)
    return all(str(shard.layout.folder) != folder for shard in pinned)


def _require_there(context: Context, generation: IndexGeneration) -> None:
    """Raise :class:`GenerationSwitched` where nothing is found because the generation is gone."""
    with context.db.transaction() as session:
        now = index_record.find_generation(session, generation.id)
    if now is None or now.state == "removed":
        raise GenerationSwitched(f"generation {generation.id} was removed; the search is redone")


def _in_span(t_epoch_s: float, params: SearchParams) -> bool:
    after = params.t_from_utc is None or t_epoch_s >= params.t_from_utc.timestamp()
    return after and (params.t_to_utc is None or t_epoch_s < params.t_to_utc.timestamp())


def _pinned(
    context: Context,
    session: Session,
    generation: IndexGeneration,
    params: SearchParams,
    frame_id: int | None,
    scope: FootageScope,
    local_only: bool = False,
) -> list[PinnedShard]:
    """What the filters let in, and beside it the scene of the query's own frame, as far as it lies
    in the scope's times."""
    given = (session, context.index, context.f_maps, generation)
    pinned = pin_shards(*given, params, context.damage, local_only=local_only)
    filtered = params.camera_ids or params.t_from_utc or params.t_to_utc
    frame = video_record.find_frame(session, frame_id) if frame_id and filtered else None
    if frame is not None:
        inside = {shard.shard_id for shard in pinned}
        scene = pin_scene(*given, frame, context.damage, local_only=local_only)
        pinned += [shard for shard in scene if shard.shard_id not in inside]
    return [within_times(shard, scope) for shard in pinned]
