"""Reindex: order another generation beside the live one, or its removal.

:mod:`worker.rebuilding` builds it.
"""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass

from models.index import IndexGeneration
from models.repositories import index as index_record
from models.repositories import jobs as job_record
from models.repositories import rebuilds as rebuild_record
from models.session import Session
from worker.accepting.audit import record_act
from worker.accepting.desk import COMMAND_LINE
from worker.context import Context
from worker.core.comparison import DEFAULT_GATE, Gate, ShadowOptions
from worker.errors import InputInvalid, NotFound, ObjectStoreUnavailable
from worker.generations import backbone_of
from worker.messages import INGEST_QUEUE
from worker.moved import remove_objects
from worker.tracing import carried


@dataclass(frozen=True, slots=True)
class ReindexSubmission:
    """What was accepted."""

    generation_id: int
    job_id: uuid.UUID


def submit_reindex(
    context: Context, backbone_name: str, *, compare: bool = True, gate: Gate = DEFAULT_GATE
) -> ReindexSubmission:
    """Accept a reindex with another backbone, or with the same one to rebuild every row.

    ``compare``: with the live generation before the switch, which ``gate`` may refuse. Loads the
    backbone once to learn its spec, so missing weights are refused here. Raises :class:`NotFound`,
    :class:`WeightsMissing`, or :class:`InputInvalid` when one is under way.
    """
    spec = context.backbone(backbone_name).spec
    with context.db.transaction() as session:
        index_record.lock_generations(session, exclusive=True)
        _require_idle(session)
        generation = index_record.create_generation(
            session,
            backbone=backbone_name,
            spec_hash=spec.spec_hash,
            spec=spec.to_json(),
            codec=context.settings.codec,
            state="building",
        )
        job_id = _submit_job(context, session, generation.id, gate if compare else None)
    context.ring(job_id, "reindex")
    return ReindexSubmission(generation.id, job_id)


def _submit_job(
    context: Context, session: Session, generation_id: int, gate: Gate | None
) -> uuid.UUID:
    queries = context.settings.shadow_queries
    wanted = None if gate is None or queries == 0 else ShadowOptions(queries, gate).to_json()
    payload = {"generation_id": generation_id, "compare": wanted, **carried()}
    job_id = job_record.submit(session, "reindex", INGEST_QUEUE, payload)
    record_act(
        session, COMMAND_LINE, "reindex.order", job_id=str(job_id), generation_id=generation_id
    )
    return job_id


def submit_return(
    context: Context,
    generation_id: int,
    *,
    compare: bool | None = None,
    gate: Gate = DEFAULT_GATE,
) -> ReindexSubmission:
    """Accept a return to a generation that was live before, or was given up while being built.

    Frames that it lacks are embedded, it is verified, compared, then it is switched to. ``compare``
    None: unless it was live before, since a way back must not hang on what it leads away from.
    Raises :class:`NotFound`, :class:`BackboneMismatch`, or :class:`InputInvalid`.
    """
    with context.db.transaction() as session:
        generation = index_record.find_generation(session, generation_id)
    if generation is None:
        raise NotFound(f"index generation {generation_id} is not known; see `ris generations`")
    backbone_of(context, generation)
    with context.db.transaction() as session:
        index_record.lock_generations(session, exclusive=True)
        _require_idle(session)
        found = _require_unused(index_record.find_generation(session, generation_id))
        rebuild_record.forget_verified(session, generation_id)
        wanted = found.state != "retired" if compare is None else compare
        index_record.set_generation_state(session, generation_id, "building")
        job_id = _submit_job(context, session, generation_id, gate if wanted else None)
    context.ring(job_id, "reindex")
    return ReindexSubmission(generation_id, job_id)


def remove_generation(context: Context, generation_id: int) -> int:
    """Remove the vectors of a generation that is not in use; returns how many shards.

    Its row stays, as ``removed``: queries say what answered them. Repeat it after a crash. Raises
    :class:`NotFound`, :class:`InputInvalid`, or :class:`ObjectStoreUnavailable`: then repeat it.
    """
    with context.db.transaction() as session:
        index_record.lock_generations(session, exclusive=True)
        generation = index_record.find_generation(session, generation_id)
        if generation is None:
            raise NotFound(f"index generation {generation_id} is not known; see `ris generations`")
        if generation.state != "removed":
            _require_unused(generation)
            index_record.set_generation_state(session, generation_id, "removed")
            record_act(session, COMMAND_LINE, "generation.remove", generation_id=generation_id)
    with context.db.transaction() as session:
        shards = index_record.select_shards(session, generation_id)
    if context.objects is None and any(shard.object_url for shard in shards):
        raise ObjectStoreUnavailable(
            f"shards of generation {generation_id} lie on object storage: set RIS_S3_URL"
        )
    for shard in shards:
        with context.db.transaction() as session:
            index_record.remove_shard(session, shard.id)
    shutil.rmtree(context.index.generation_folder(generation_id), ignore_errors=True)
    index_url = None if context.objects is None else context.objects.index_url()
    if context.objects is not None and index_url is not None:
        for entries in context.objects.below(f"{index_url}g{generation_id}/"):
            remove_objects(context, [entry.url for entry in entries])
    return len(shards)


@dataclass(frozen=True, slots=True)
class HowFar:
    """A reindex under way: ``frames`` of ``of`` have rows, ``verified`` of them were read back;
    ``left_s``: for how long more frames are going to be embedded, None where that is not known."""

    frames: int
    of: int
    verified: int
    left_s: float | None


def how_far(context: Context) -> dict[int, HowFar]:
    """Of each generation that is being built, by id."""
    with context.db.transaction() as session:
        jobs = rebuild_record.jobs_under_way(session)
    return {generation_id: _how_far(*told) for generation_id, told in jobs.items()}


def _how_far(progress: dict[str, int], age_s: float | None) -> HowFar:
    frames, of = progress.get("frames", 0), progress.get("of", 0)
    embedded = frames - progress.get("from", 0)
    left_s = None
    if age_s is not None and embedded > 0:
        left_s = age_s / embedded * (of - frames)
    return HowFar(frames, of, progress.get("verified", 0), left_s)


def _require_idle(session: Session) -> None:
    building = [g for g in index_record.list_generations(session) if g.state == "building"]
    if building:
        raise InputInvalid(
            f"generation {building[0].id} ({building[0].backbone}) is being built already;"
            " wait for it to end"
        )
    if index_record.live_generation(session) is None:
        raise NotFound("the index is empty: there is nothing to reindex")


def _require_unused(generation: IndexGeneration | None) -> IndexGeneration:
    if generation is None or generation.state not in ("retired", "failed"):
        state = "gone" if generation is None else generation.state
        raise InputInvalid(
            f"that generation is {state}: only retired or failed ones; see `ris generations`"
        )
    return generation
