"""Reindex: build a generation with another backbone beside the live one, then switch.

Frames are embedded anew from their kept pictures. Search and ingest go on with the live
generation; frames that arrive meanwhile are found by the same query for missing frames. Before the
switch both generations are asked the same (:mod:`worker.shadow`). The switch is one transaction
that first makes sure that no frame is missing.
"""

from __future__ import annotations

import shutil
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby

from models.index import IndexGeneration
from models.repositories import index as index_record
from models.repositories import jobs as job_record
from models.repositories.jobs import ClaimedJob
from models.session import Session
from models.video import Frame
from worker.accepting.audit import record_act
from worker.accepting.desk import COMMAND_LINE
from worker.context import Context
from worker.core.comparison import DEFAULT_GATE, Gate, ShadowOptions, options_from_json
from worker.errors import IndexDamaged, InputInvalid, NotFound, ObjectStoreUnavailable
from worker.generations import backbone_of
from worker.jobs import Lease, Outcome
from worker.messages import INGEST_QUEUE
from worker.moved import remove_objects
from worker.query_picture import embed_frames
from worker.recording import IndexedFrames, append_frames
from worker.shadow import compare_generations
from worker.verify import verify_generation


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
    payload = {"generation_id": generation_id, "compare": wanted}
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


def run_reindex(context: Context, job: ClaimedJob, lease: Lease) -> Outcome:
    """Embed missing frames batch by batch; when none is missing, verify, compare and switch."""
    wanted = options_from_json(job.payload.get("compare"))
    generation = _generation(context, job)
    if generation.state != "building":
        raise InputInvalid(f"generation {generation.id} is {generation.state}, not building")
    backbone_of(context, generation)
    while True:
        with context.db.transaction() as session:
            missing = index_record.missing_frames(
                session, generation.id, context.settings.commit_batch
            )
        if missing:
            _embed_batch(context, lease, generation, missing)
            if lease.slice_over():
                return "yield"
            continue
        frames = _verified(context, lease, generation)
        if wanted is not None:
            progress = _verified_progress(frames)
            if not compare_generations(context, lease, generation, wanted, progress):
                return "yield"
        if _switch(context, lease, generation, frames):
            return "finished"


def _verified(context: Context, lease: Lease, generation: IndexGeneration) -> int:
    """Frames of the generation, all of them verified: by this call, or by an earlier slice of the
    job if nothing was embedded (which overwrites the progress) or erased since."""
    with context.db.transaction() as session:
        job = job_record.find(session, lease.job.id)
        indexed = index_record.count_indexed(session, generation.id)
    if job is not None and job.progress.get("verified") == indexed:
        return indexed
    report = verify_generation(context, generation, codes=False)
    if report.problems:  # a read that failed once would cost the whole build
        report = verify_generation(context, generation, codes=False)
    if report.problems:
        raise IndexDamaged(f"generation {generation.id}: {report.problems[0]}; not switched")
    with context.db.transaction() as session:
        lease.record_progress(session, _verified_progress(report.frames))
    return report.frames


def _verified_progress(frames: int) -> dict[str, int]:
    return {"frames": frames, "of": frames, "verified": frames}


def fail_reindex(session: Session, job: ClaimedJob, _code: str) -> None:
    """Give the generation up; the live one was never touched."""
    index_record.set_generation_state(session, int(job.payload["generation_id"]), "failed")


def _generation(context: Context, job: ClaimedJob) -> IndexGeneration:
    generation_id = int(job.payload["generation_id"])
    with context.db.transaction() as session:
        generation = index_record.find_generation(session, generation_id)
    if generation is None:
        raise NotFound(f"index generation {generation_id} is not known")
    return generation


def _embed_batch(
    context: Context,
    lease: Lease,
    generation: IndexGeneration,
    frames: list[Frame],
) -> None:
    context.index.require_free(context.settings.min_free_bytes)
    for camera_id, group in groupby(frames, key=lambda frame: frame.camera_id):
        members = list(group)
        try:
            imgs_hwc = [context.pictures.load(frame.picture_sha256) for frame in members]
        except NotFound:
            if _known(context, members) == members:
                raise
            return  # erased meanwhile: ask anew what is missing
        frame_ids = [frame.id for frame in members]
        descriptors = embed_frames(context, generation, frame_ids, imgs_hwc)
        with ExitStack() as held, context.db.transaction() as session:
            done = index_record.count_indexed(session, generation.id) + len(members)
            total = index_record.count_frames(session)
            lease.record_progress(session, {"frames": done, "of": total})
            index_record.lock_generations(session, exclusive=False)
            if index_record.known_frames(session, frame_ids) != set(frame_ids):
                return
            times = [frame.t_utc for frame in members]
            embedded = IndexedFrames(camera_id, frame_ids, times, descriptors)
            append_frames(context, session, generation, embedded, held)


def _known(context: Context, frames: list[Frame]) -> list[Frame]:
    with context.db.transaction() as session:
        known = index_record.known_frames(session, [frame.id for frame in frames])
    return [frame for frame in frames if frame.id in known]


def _switch(
    context: Context, lease: Lease, generation: IndexGeneration, verified_frames: int
) -> bool:
    """Make the generation live; False when frames arrived since the verification."""
    with context.db.transaction() as session:
        index_record.lock_generations(session, exclusive=True)
        if index_record.count_frames(session) != verified_frames:
            return False
        if index_record.missing_frames(session, generation.id, 1):
            return False  # as many were erased as came
        live = index_record.live_generation(session)
        if live is not None:
            index_record.set_generation_state(session, live.id, "retired")
        index_record.set_generation_state(session, generation.id, "live")
        lease.finish(session, {"frames": verified_frames, "of": verified_frames})
    return True
