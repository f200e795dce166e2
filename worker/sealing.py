"""Sealing: a shard that nothing is added to any more is written anew, in cell runs.

What a fixed camera goes on showing is stored once (:mod:`worker.core.cell_runs`). The new files are
written beside, read back, and then switched to; a search that has the old ones pinned looks again.
Frames that come late are appended behind, and sealed with the next time.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import structlog

from models.index import IndexGeneration, Shard
from models.repositories import codes as codes_record
from models.repositories import index as index_record
from models.repositories import jobs as job_record
from models.repositories import sealing as sealing_record
from models.repositories import videos as video_record
from models.repositories.jobs import ClaimedJob
from models.session import Session
from worker.accepting.audit import record_act
from worker.accepting.desk import Actor
from worker.backbones.registry import seal_distance
from worker.compacting import code_rows
from worker.context import Context
from worker.core.compact import CODE_DIM
from worker.core.types import IntArray
from worker.errors import (
    IndexDamaged,
    LeaseLost,
    ObjectStoreUnavailable,
    RisError,
    ServiceUnavailable,
    StorageFull,
)
from worker.generations import basis_of
from worker.index.layout import ShardLayout
from worker.index.revision import RevisionWriter, stored_blocks
from worker.index.run_codes_file import MAX_FRAMES
from worker.index.runs_file import RunsWriter, open_runs, runs_bytes
from worker.index.shard import checksums, hold_shard, read_stored
from worker.index.store import PinnedShard
from worker.jobs import Lease, Outcome
from worker.leftovers import discard_former, discard_revision, is_current, remove_former_files
from worker.messages import INGEST_QUEUE
from worker.pinning import FMapCache, layout_of, pin_shard
from worker.tracing import note, span

log = structlog.get_logger()

MIN_FRAMES = 16
"""A shard of fewer frames takes as much room either way."""
MOST_ATTEMPTS = 2
"""Without progress; after that each shard is put off before it is tried."""
BLOCKS_AT_ONCE = 64
_ROUNDING = 1e-4
"""What a cosine of stored numbers may be off by, computed twice."""


def submit_due(
    context: Context, after_s: float | None = None, actor: Actor | None = None
) -> uuid.UUID | None:
    """Order the sealing of shards unchanged for ``after_s`` (None: ``RIS_SEAL_AFTER_S``); None
    when there are none, or it is under way. ``actor``: who orders it, None where its time came."""
    wait_s = context.settings.seal_after_s if after_s is None else after_s
    with context.db.transaction() as session:
        before_utc = sealing_record.unchanged_before(session, wait_s)
        if not sealing_record.due_shards(session, before_utc, MIN_FRAMES, MAX_FRAMES):
            return None
        if sealing_record.is_open(session):
            return None
        # A moment, not a wait: what is appended meanwhile is not this job's.
        payload = {"before": before_utc.isoformat()}
        job_id = job_record.submit(session, "seal", INGEST_QUEUE, payload)
        if actor is not None:
            record_act(session, actor, "seal.order", job_id=str(job_id), **payload)
    context.ring(job_id, "seal")
    return job_id


@dataclass(frozen=True, slots=True)
class SealedCamera:
    """What sealing did to a camera: cells of its sealed frames, and the rows that stand for them.

    ``patch_bytes``: of their files.
    """

    camera: str
    frames: int
    cells: int
    rows: int
    patch_bytes: int


def sealed_cameras(context: Context, generation: IndexGeneration) -> list[SealedCamera]:
    """Cameras with sealed frames in a generation, by name. Raises :class:`IndexDamaged`."""
    with context.db.transaction() as session:
        shards = index_record.select_shards(session, generation.id)
        names = video_record.camera_names(session)
    found: dict[str, SealedCamera] = {}
    for shard in shards:
        if shard.sealed_count == 0:
            continue
        layout = layout_of(context.index, generation, shard)
        known = found.get(names[shard.camera_id])
        own = SealedCamera(
            names[shard.camera_id],
            shard.sealed_count,
            shard.sealed_count * layout.cells,
            open_runs(layout).rows,
            runs_bytes(layout),
        )
        found[own.camera] = own if known is None else _added(known, own)
    return [found[name] for name in sorted(found)]


def _added(a: SealedCamera, b: SealedCamera) -> SealedCamera:
    return SealedCamera(
        a.camera,
        a.frames + b.frames,
        a.cells + b.cells,
        a.rows + b.rows,
        a.patch_bytes + b.patch_bytes,
    )


def run_seal(context: Context, job: ClaimedJob, lease: Lease) -> Outcome:
    """Seal every shard that is due, those first that have been waiting longest."""
    remove_former_files(context)
    before_utc = datetime.fromisoformat(job.payload["before"])
    with context.db.transaction() as session:
        due = sealing_record.due_shards(session, before_utc, MIN_FRAMES, MAX_FRAMES)
        generations = {
            generation.id: generation for generation in index_record.list_generations(session)
        }
    frames = 0
    for shard in due:
        if job.attempts > MOST_ATTEMPTS:  # one that kills its worker must not be the first again
            _put_off(context, shard)
        try:
            with span("seal.shard", shard_id=shard.id):
                sealed = _seal_shard(context, lease, generations[shard.generation_id], shard.id)
                note(frames=sealed)
            frames += sealed
        except (LeaseLost, StorageFull, ServiceUnavailable, ObjectStoreUnavailable):
            raise
        except RisError as error:  # what is damaged waits for a repair
            log.warning("shard_not_sealed", shard_id=shard.id, detail=str(error))
            _put_off(context, shard)
        if lease.slice_over():
            return "yield"
    with context.db.transaction() as session:
        lease.finish(session, {"frames": frames})
    return "finished"


def _put_off(context: Context, shard: Shard) -> None:
    with context.db.transaction() as session:
        sealing_record.put_off(session, shard.id)


@dataclass(frozen=True, slots=True)
class _Sealed:
    """A shard's next revision, written. ``crc32s``: of its sealed blocks as they are made up."""

    writer: RevisionWriter
    crc32s: IntArray
    rows: int
    coded: int


def _seal_shard(context: Context, lease: Lease, generation: IndexGeneration, shard_id: int) -> int:
    """Seal one shard; the frames sealed, 0 when it was erased or written anew meanwhile."""
    with context.db.snapshot() as session:
        shard = index_record.find_shard(session, shard_id)
        if shard is None:
            return 0
        pinned = pin_shard(session, context.index, FMapCache(), generation, shard)
    if pinned.blocks > MAX_FRAMES:
        return 0  # late frames came
    layout = pinned.layout
    a_frame = layout.block_bytes("global") + layout.block_bytes("patch") + layout.cells * CODE_DIM
    context.index.require_free(context.settings.min_free_bytes + pinned.blocks * a_frame)
    new = context.index.at_revision(pinned.layout, shard_id, shard.revision + 1, pinned.blocks)
    switched = False
    with hold_shard(new):
        if not is_current(context, shard):
            return 0
        try:
            sealed = _write(context, generation, pinned, new, shard.merged_count)
            switched = _switch(context, lease, generation, pinned, sealed)
        finally:
            if not switched:
                discard_revision(context, shard_id, shard.revision + 1, new.folder)
    if not switched:
        return 0
    discard_former(context, shard, pinned.layout.folder)
    log.info("shard_sealed", shard_id=shard_id, frames=pinned.blocks, rows=sealed.rows)
    return pinned.blocks


def _write(
    context: Context,
    generation: IndexGeneration,
    pinned: PinnedShard,
    new: ShardLayout,
    merged: int,
) -> _Sealed:
    """The sealed files of all pinned blocks, read back. Raises :class:`IndexDamaged` when a block
    is not sound: it can still be made anew from its picture, and a row would hide that."""
    distance = seal_distance(generation.backbone)
    writer, runs_writer = RevisionWriter(new), RunsWriter(new, distance)
    writer.clear()
    for at in _steps(pinned.blocks):
        stored_global, stored_patches = _sound_blocks(pinned, at)
        writer.put("global", int(at[0]), stored_global)
        runs_writer.add(stored_patches, at < merged)
    writer.put("patch", 0, np.empty((0, *new.block_shape("patch")), dtype=new.codec.dtype))
    runs = runs_writer.finish()
    crc32s = [_crc32s_as_made_up(pinned, new, at, distance) for at in _steps(pinned.blocks)]
    with context.db.transaction() as session:
        basis = codes_record.find_basis(session, generation.id)
    if basis is not None:  # with the vectors: no search has to do without them meanwhile
        code_rows(new, basis_of(basis))
    coded = 0 if basis is None else pinned.blocks
    return _Sealed(writer, np.concatenate(crc32s), runs.rows, coded)


def _steps(count: int) -> list[IntArray]:
    return [
        np.arange(start, min(start + BLOCKS_AT_ONCE, count))
        for start in range(0, count, BLOCKS_AT_ONCE)
    ]


def _sound_blocks(pinned: PinnedShard, at: IntArray) -> tuple[np.ndarray, np.ndarray]:
    stored_global, stored_patches, sound = stored_blocks(pinned.layout, at, pinned.sums_n2[at])
    if not sound.all():
        raise IndexDamaged(
            f"{pinned.layout.folder}: block {at[~sound][0]} is damaged; run `ris repair`"
        )
    return stored_global, stored_patches


def _crc32s_as_made_up(
    pinned: PinnedShard, new: ShardLayout, at: IntArray, distance: float
) -> IntArray:
    """Checksums of sealed blocks as they are read, each cell within the angle of what it was."""
    stored_global, stored_patches = _sound_blocks(pinned, at)
    made_global, sound_global = read_stored(new, "global", at)
    made_patches, sound = read_stored(new, "patch", at)
    decode = new.codec.decode
    cosine_nc = np.einsum("ncd,ncd->nc", decode(stored_patches), decode(made_patches))
    near = bool((cosine_nc >= 1 - distance - _ROUNDING).all())
    same = np.array_equal(stored_global, made_global)
    if not (near and same and sound.all() and sound_global.all()):
        raise IndexDamaged(f"{new.folder} was not written well; check the disk")
    crc32s: IntArray = checksums(made_global, made_patches)[:, 1]
    return crc32s


def _switch(
    context: Context, lease: Lease, generation: IndexGeneration, old: PinnedShard, sealed: _Sealed
) -> bool:
    """Under the shard's row lock: add what was appended meanwhile, and make it the shard's; False
    when the shard was erased or written anew."""
    with context.db.transaction() as session:
        lease.record_progress(session, {"shard": old.shard_id, "rows": sealed.rows})
        shard = index_record.find_shard(session, old.shard_id, lock=True)
        if shard is None:
            return False
        now = pin_shard(session, context.index, FMapCache(), generation, shard)
        if now.layout.folder != old.layout.folder:
            return False
        for at in _steps(now.blocks):
            late = at[at >= old.blocks]
            if late.size:
                stored_global, stored_patches = _sound_blocks(now, late)
                sealed.writer.write(int(late[0]), stored_global, stored_patches)
        sealed.writer.sync()
        _record(session, shard, old, sealed)
    return True


def _record(session: Session, shard: Shard, old: PinnedShard, sealed: _Sealed) -> None:
    rows = old.f_map.start_row.tolist()
    sealing_record.record_seal(session, shard, sealed.crc32s.tolist(), rows, sealed.coded)
