"""Reindex: build a generation with another backbone beside the live one, then switch.

Frames are embedded anew from their kept pictures. Search and ingest go on with the live
generation; frames that arrive meanwhile are found by the same query for missing frames. The switch
is one transaction that first makes sure that none is missing.
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
from worker.backbones.base import Backbone
from worker.backbones.embedder import embed_batched
from worker.context import Context
from worker.errors import IndexDamaged, InputInvalid, NotFound
from worker.generations import backbone_of
from worker.jobs import Lease, Outcome
from worker.messages import INGEST_QUEUE
from worker.recording import IndexedFrames, append_frames
from worker.verify import verify_generation


@dataclass(frozen=True, slots=True)
class ReindexSubmission:
    """What was accepted."""

    generation_id: int
    job_id: uuid.UUID


def submit_reindex(context: Context, backbone_name: str) -> ReindexSubmission:
    """Accept a reindex with another backbone, or with the same one to rebuild every row.

    Loads the backbone once to learn its spec, so missing weights are refused here. Raises
    :class:`NotFound`, :class:`WeightsMissing`, or :class:`InputInvalid` when one is under way.
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
        job_id = job_record.submit(
            session, "reindex", INGEST_QUEUE, {"generation_id": generation.id}
        )
    context.ring(job_id, "reindex")
    return ReindexSubmission(generation.id, job_id)


def submit_return(context: Context, generation_id: int) -> ReindexSubmission:
    """Accept a return to a generation that was live before, or was given up while being built.

    Frames that it lacks are embedded, it is verified, then it is switched to. Raises
    :class:`NotFound`, :class:`BackboneMismatch`, or :class:`InputInvalid`.
    """
    with context.db.transaction() as session:
        generation = index_record.find_generation(session, generation_id)
    if generation is None:
        raise NotFound(f"index generation {generation_id} is not known; see `ris generations`")
    backbone_of(context, generation)
    with context.db.transaction() as session:
        index_record.lock_generations(session, exclusive=True)
        _require_idle(session)
        _require_unused(index_record.find_generation(session, generation_id))
        index_record.set_generation_state(session, generation_id, "building")
        job_id = job_record.submit(
            session, "reindex", INGEST_QUEUE, {"generation_id": generation_id}
        )
    context.ring(job_id, "reindex")
    return ReindexSubmission(generation_id, job_id)


def remove_generation(context: Context, generation_id: int) -> int:
    """Remove the vectors of a generation that is not in use; returns how many shards.

    Its row stays, as ``removed``: queries say what answered them. Repeat it after a crash. Raises
    :class:`NotFound` or :class:`InputInvalid`.
    """
    with context.db.transaction() as session:
        index_record.lock_generations(session, exclusive=True)
        generation = index_record.find_generation(session, generation_id)
        if generation is None:
            raise NotFound(f"index generation {generation_id} is not known; see `ris generations`")
        if generation.state != "removed":
            _require_unused(generation)
            index_record.set_generation_state(session, generation_id, "removed")
    with context.db.transaction() as session:
        shards = index_record.select_shards(session, generation_id)
    for shard in shards:
        with context.db.transaction() as session:
            index_record.remove_shard(session, shard.id)
    shutil.rmtree(context.index.generation_folder(generation_id), ignore_errors=True)
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


def _require_unused(generation: IndexGeneration | None) -> None:
    if generation is None or generation.state not in ("retired", "failed"):
        state = "gone" if generation is None else generation.state
        raise InputInvalid(
            f"that generation is {state}: only retired or failed ones; see `ris generations`"
        )


def run_reindex(context: Context, job: ClaimedJob, lease: Lease) -> Outcome:
    """Embed missing frames batch by batch; when none is missing, verify and switch."""
    generation = _generation(context, job)
    if generation.state != "building":
        raise InputInvalid(f"generation {generation.id} is {generation.state}, not building")
    backbone = backbone_of(context, generation)
    while True:
        with context.db.transaction() as session:
            missing = index_record.missing_frames(
                session, generation.id, context.settings.commit_batch
            )
        if missing:
            _embed_batch(context, lease, generation, backbone, missing)
            if lease.slice_over():
                return "yield"
            continue
        report = verify_generation(context, generation, codes=False)
        if report.problems:  # a read that failed once would cost the whole build
            report = verify_generation(context, generation, codes=False)
        if report.problems:
            raise IndexDamaged(f"generation {generation.id}: {report.problems[0]}; not switched")
        if _switch(context, lease, generation, report.frames):
            return "finished"


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
    backbone: Backbone,
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
        descriptors = embed_batched(backbone, imgs_hwc, context.settings.embed_batch)
        with ExitStack() as held, context.db.transaction() as session:
            done = index_record.count_indexed(session, generation.id) + len(members)
            total = index_record.count_frames(session)
            lease.record_progress(session, {"frames": done, "of": total})
            index_record.lock_generations(session, exclusive=False)
            frame_ids = [frame.id for frame in members]
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
