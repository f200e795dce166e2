"""Offloading: the patches of old sealed shards move to object storage.

Codes and global descriptors stay, so a search finds its candidates here; of those it then reads
some hundred frames, whose rows lie in parts of the object. A shard's ``patch.runs`` is uploaded,
read back, and recorded; only then is the local file removed. What says where it lies stays beside
the codes (``patch.map``).
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import structlog

from models.index import IndexGeneration, Shard
from models.repositories import index as index_record
from models.repositories import jobs as job_record
from models.repositories import offloading as offload_record
from models.repositories import sealing as sealing_record
from models.repositories import videos as video_record
from models.repositories.jobs import ClaimedJob
from worker.accepting.audit import record_act
from worker.accepting.desk import COMMAND_LINE, Actor
from worker.context import Context
from worker.errors import (
    IndexDamaged,
    LeaseLost,
    ObjectStoreUnavailable,
    RisError,
    ServiceUnavailable,
    StorageFailed,
    StorageFull,
)
from worker.index.layout import ShardLayout, fsync_folder, storage_errors
from worker.index.moved_file import MAP_NAME, part_crc32s
from worker.index.part_cache import StoredObject
from worker.index.runs_file import map_of, write_whole
from worker.index.shard import damaged_blocks, hold_derived
from worker.index.store import PinnedShard
from worker.jobs import Lease, Outcome
from worker.messages import INGEST_QUEUE
from worker.moved import remove_objects, restore_map
from worker.objects.store import ObjectStore
from worker.pinning import FMapCache, layout_of, pin_shard

log = structlog.get_logger()

MOST_ATTEMPTS = 2
"""Without progress; after that each shard is put off before it is tried."""
_PARTS_AT_ONCE = 64


def submit_due(
    context: Context, after_s: float | None = None, actor: Actor | None = None
) -> uuid.UUID | None:
    """Order the moving of sealed shards unchanged for ``after_s`` (None: ``RIS_S3_AFTER_S``);
    None when there are none, it is under way, or there is nowhere to move them to.
    ``actor``: who orders it, None where its time came."""
    if context.objects is None:
        return None
    wait_s = context.settings.s3_after_s if after_s is None else after_s
    with context.db.transaction() as session:
        before_utc = sealing_record.unchanged_before(session, wait_s)
        due = offload_record.due_shards(session, before_utc)
        if not due and not offload_record.moved_shards(session, local=True):
            return None
        if offload_record.is_open(session):
            return None
        payload = {"before": before_utc.isoformat()}
        job_id = job_record.submit(session, "offload", INGEST_QUEUE, payload)
        if actor is not None:
            record_act(session, actor, "offload.order", job_id=str(job_id), **payload)
    context.ring(job_id, "offload")
    return job_id


def run_offload(context: Context, job: ClaimedJob, lease: Lease) -> Outcome:
    """Move every shard that is due, those first that have been waiting longest."""
    objects = require_objects(context)
    remove_local_copies(context)
    before_utc = datetime.fromisoformat(job.payload["before"])
    with context.db.transaction() as session:
        due = offload_record.due_shards(session, before_utc)
        generations = {one.id: one for one in index_record.list_generations(session)}
    frames = 0
    for shard in due:
        if job.attempts > MOST_ATTEMPTS:  # one that kills its worker must not be the first again
            _put_off(context, shard)
        try:
            frames += _move(context, objects, lease, generations[shard.generation_id], shard.id)
        except (LeaseLost, StorageFull, ServiceUnavailable, ObjectStoreUnavailable):
            raise
        except RisError as error:  # what is damaged waits for a repair
            log.warning("shard_not_moved", shard_id=shard.id, detail=str(error))
            _put_off(context, shard)
        if lease.slice_over():
            return "yield"
    with context.db.transaction() as session:
        lease.finish(session, {"frames": frames})
    return "finished"


def require_objects(context: Context) -> ObjectStore:
    """The object storage. Raises :class:`ObjectStoreUnavailable` without one."""
    if context.objects is None:
        raise ObjectStoreUnavailable("RIS_S3_URL is not set: there is no object storage")
    return context.objects


def _put_off(context: Context, shard: Shard) -> None:
    with context.db.transaction() as session:
        sealing_record.put_off(session, shard.id)


def _move(
    context: Context, objects: ObjectStore, lease: Lease, generation: IndexGeneration, shard_id: int
) -> int:
    """Move one shard; the frames moved, 0 when it was erased or written anew meanwhile."""
    with context.db.snapshot() as session:
        shard = index_record.find_shard(session, shard_id)
        if shard is None:
            return 0
        pinned = pin_shard(session, context.index, FMapCache(), generation, shard)
    layout = pinned.layout
    _require_sound(pinned)
    stored = _upload(objects, layout, generation, shard)
    recorded = False
    try:
        with hold_derived(layout):  # nobody else writes a map there until this one is recorded
            if _is_still(context, shard):
                map_of(layout, stored)
                recorded = _record(context, objects, lease, shard, stored)
                if recorded:
                    _remove_local(context, layout, shard.id, stored.url)
    finally:
        if not recorded:
            _discard(context, shard, stored.url)
    if recorded:
        log.info("shard_moved", shard_id=shard_id, frames=shard.sealed_count, url=stored.url)
    return shard.sealed_count if recorded else 0


def _require_sound(pinned: PinnedShard) -> None:
    damaged = damaged_blocks(pinned.layout, pinned.sums_n2)
    if damaged:
        raise IndexDamaged(
            f"{pinned.layout.folder}: block {min(damaged)} is damaged; run `ris repair`"
        )


def _upload(
    objects: ObjectStore, layout: ShardLayout, generation: IndexGeneration, shard: Shard
) -> StoredObject:
    """Upload a shard's sealed patches under a name that was never used, and read them back.

    Raises :class:`StorageFailed` when what lies there is not what is here.
    """
    path = layout.path_of("patch", 0)
    name = f"g{generation.id}/s{shard.id}/{shard.revision}/{uuid.uuid4().hex}.runs"
    with storage_errors(path):
        byte_count = path.stat().st_size
    stored = StoredObject(f"{objects.ensure_index_url()}{name}", byte_count, part_crc32s(path))
    with storage_errors(path):
        objects.put(stored.url, path)
    for first in range(0, len(stored.crc32s), _PARTS_AT_ONCE):
        wanted = range(first, min(first + _PARTS_AT_ONCE, len(stored.crc32s)))
        bodies = objects.read(stored.url, [stored.span(part) for part in wanted])
        if not all(stored.is_part(*given) for given in zip(wanted, bodies, strict=True)):
            objects.remove([stored.url])
            raise StorageFailed(f"{stored.url} does not read back as it was written; try again")
    return stored


def _is_still(context: Context, seen: Shard) -> bool:
    """Whether the shard's files are those that were uploaded, and on no object storage yet."""
    with context.db.transaction() as session:
        now = index_record.find_shard(session, seen.id)
    return _same(now, seen)


def _same(now: Shard | None, seen: Shard) -> bool:
    return now is not None and (now.revision, now.object_url) == (seen.revision, None)


def _record(
    context: Context, objects: ObjectStore, lease: Lease, seen: Shard, stored: StoredObject
) -> bool:
    """Record an object unless the shard was erased or written anew, or the sweep, to which an
    object that long was in nobody's name looks forsaken, has removed it."""
    crc32s = np.array(stored.crc32s, dtype="<u4").tobytes()
    with context.db.transaction() as session:
        lease.record_progress(session, {"shard": seen.id, "bytes": stored.byte_count})
        if not _same(index_record.find_shard(session, seen.id, lock=True), seen):
            return False
        if not objects.is_there(stored.url):
            return False
        offload_record.record_object(session, seen.id, stored.url, stored.byte_count, crc32s)
    return True


def _discard(context: Context, shard: Shard, url: str) -> None:
    """Remove an object that was not recorded. When the connection was lost at the commit it may
    have been all the same; where Postgres or the store cannot be asked, it is left to the sweep."""
    try:
        with context.db.transaction() as session:
            now = index_record.find_shard(session, shard.id, lock=True)
            if now is None or now.object_url != url:
                remove_objects(context, [url])
    except Exception as error:  # the one that led here says more
        log.warning("object_left_to_the_sweep", url=url, detail=str(error))


def _remove_local(context: Context, layout: ShardLayout, shard_id: int, url: str) -> None:
    """Remove the local copy of a recorded object. Readers that have it open keep it."""
    with storage_errors(layout.folder):
        layout.path_of("patch", 0).unlink(missing_ok=True)
        fsync_folder(layout.folder)
    with context.db.transaction() as session:
        offload_record.record_local_gone(session, shard_id, url)


def remove_local_copies(context: Context) -> int:
    """Remove local copies that whoever moved them died before removing; returns how many."""
    with context.db.transaction() as session:
        shards = offload_record.moved_shards(session, local=True)
        generations = {one.id: one for one in index_record.list_generations(session)}
    removed = 0
    for seen in shards:
        layout = layout_of(context.index, generations[seen.generation_id], seen)
        if not layout.folder.exists():
            continue  # erased meanwhile
        with hold_derived(layout):
            with context.db.transaction() as session:
                shard = index_record.find_shard(session, seen.id)
            if shard is None or shard.object_url is None or shard.object_url != seen.object_url:
                continue
            try:
                restore_map(layout, shard)
            except IndexDamaged as error:  # the copy here is what a repair goes by
                log.error("local_copy_kept", shard_id=shard.id, detail=str(error))
                continue
            _remove_local(context, layout, shard.id, shard.object_url)
            removed += 1
    return removed


def bring_back(context: Context) -> int:
    """Bring everything back from object storage; returns how many shards.

    Raises :class:`StorageFull`, :class:`ObjectStoreUnavailable`, and :class:`IndexDamaged` for an
    object that is not sound; what was brought back until then is.
    """
    with context.db.transaction() as session:
        shards = offload_record.moved_shards(session)
        generations = {one.id: one for one in index_record.list_generations(session)}
        record_act(session, COMMAND_LINE, "offload.back", shards=len(shards))
    done = 0
    for seen in shards:
        layout = layout_of(context.index, generations[seen.generation_id], seen)
        context.index.require_free(context.settings.min_free_bytes + (seen.object_bytes or 0))
        if not layout.folder.exists():
            continue  # erased meanwhile
        with hold_derived(layout):
            with context.db.transaction() as session:
                shard = index_record.find_shard(session, seen.id)
            if shard is None or shard.object_url != seen.object_url:
                continue
            restore_map(layout, shard)
            if not layout.path_of("patch", 0).exists():
                write_whole(layout, layout.path_of("patch", 0))
            with context.db.transaction() as session:
                now = index_record.find_shard(session, shard.id, lock=True)
                if now is None or now.object_url != shard.object_url:
                    continue
                offload_record.forget_object(session, shard.id)
            (layout.folder / MAP_NAME).unlink(missing_ok=True)
        done += 1
        _discard(context, shard, str(seen.object_url))
    return done


@dataclass(frozen=True, slots=True)
class MovedCamera:
    """What of a camera lies on object storage."""

    camera: str
    shards: int
    frames: int
    object_bytes: int


def moved_cameras(context: Context) -> list[MovedCamera]:
    """Cameras with shards on object storage, by name."""
    with context.db.transaction() as session:
        shards = offload_record.moved_shards(session)
        names = video_record.camera_names(session)
    found: dict[str, list[Shard]] = {}
    for shard in shards:
        found.setdefault(names[shard.camera_id], []).append(shard)
    return [
        MovedCamera(
            name,
            len(own),
            sum(shard.sealed_count for shard in own),
            sum(shard.object_bytes or 0 for shard in own),
        )
        for name, own in sorted(found.items())
    ]
