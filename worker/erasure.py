"""Erasure: frames of a camera and time span go for good, with everything made from them.

The order is committed first: from then on no worker records a frame inside it for a segment that
was accepted before. Then, window by window, the rows go in one transaction, of every generation,
whatever its state; that transaction notes which files have no row any more, and only after its
commit are they removed. A crash leaves the note, and the next try goes on from it. The order stays
as the receipt.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
import structlog

from models.erasure import Erasure
from models.index import IndexGeneration, Shard
from models.repositories import erasures as erasure_record
from models.repositories import index as index_record
from models.repositories import jobs as job_record
from models.repositories import recordings as recording_record
from models.repositories import videos as video_record
from models.repositories.erasures import SpanSummary
from models.repositories.index import NewRun
from models.repositories.jobs import ClaimedJob
from models.session import Session
from worker.accepting.audit import record_act
from worker.accepting.desk import COMMAND_LINE, Actor
from worker.accepting.events import tell_standing_ended
from worker.context import Context
from worker.errors import InputInvalid, NotFound, ObjectStoreUnavailable, StorageFailed
from worker.index.revision import RevisionWriter, stored_blocks
from worker.index.shard import NO_CHECKSUM, damaged_blocks, hold_shard
from worker.index.store import PinnedShard
from worker.jobs import Lease, Outcome
from worker.leftovers import remove_leftovers, remove_strays
from worker.messages import INGEST_QUEUE
from worker.moved import objects_of_shard
from worker.pinning import FMapCache, pin_shard
from worker.recording import bucket_of

log = structlog.get_logger()

BLOCKS_AT_ONCE = 64
"""Blocks copied at a time: what is held in memory."""

Reason = Literal["request", "retention", "again"]


@dataclass(frozen=True, slots=True)
class Span:
    """``[from_utc, to_utc)`` of one camera; None leaves a side open."""

    camera_id: int
    from_utc: datetime | None
    to_utc: datetime | None


def camera_span(
    context: Context, camera_name: str, from_utc: datetime | None, to_utc: datetime | None
) -> tuple[Span, SpanSummary]:
    """The span of a camera by name, and what lies in it.

    Raises :class:`NotFound`, or :class:`InputInvalid` for times without a zone or out of order.
    """
    from_utc, to_utc = _in_utc(from_utc), _in_utc(to_utc)
    if from_utc is not None and to_utc is not None and from_utc >= to_utc:
        raise InputInvalid(f"nothing lies between {from_utc} and {to_utc}: swap them")
    with context.db.transaction() as session:
        camera = video_record.camera_named(session, camera_name)
        if camera is None:
            raise NotFound(f"camera {camera_name!r} is not known; `ris cameras` lists them")
        found = erasure_record.summarise_span(session, camera.id, from_utc, to_utc)
    return Span(camera.id, from_utc, to_utc), found


def _in_utc(given: datetime | None) -> datetime | None:
    if given is None:
        return None
    if given.tzinfo is None:
        raise InputInvalid(f"time {given} has no time zone: add one, e.g. +00:00")
    try:
        return given.astimezone(UTC)
    except OverflowError as error:
        raise InputInvalid(f"time {given} is outside what a date can say") from error


def submit_erasure(
    context: Context,
    span: Span,
    reason: Reason = "request",
    note: str = "",
    actor: Actor = COMMAND_LINE,
) -> uuid.UUID:
    """Accept an erasure; returns its job's id. It cannot be taken back."""
    with context.db.transaction() as session:
        # Commits under way end first; later ones read the order before they record.
        index_record.lock_generations(session, exclusive=True)
        job_id = job_record.submit(session, "erase", INGEST_QUEUE, {})
        erasure_record.create(
            session,
            job_id=job_id,
            camera_id=span.camera_id,
            from_utc=span.from_utc,
            to_utc=span.to_utc,
            reason=reason,
            note=note,
        )
        record_act(
            session,
            actor,
            "erasure.order",
            job_id=str(job_id),
            camera_id=span.camera_id,
            from_utc=_text(span.from_utc),
            to_utc=_text(span.to_utc),
            reason=reason,
        )
    context.ring(job_id, "erase")
    return job_id


def run_erase(context: Context, job: ClaimedJob, lease: Lease) -> Outcome:
    """Carry an erasure out, one shard span of time after the other."""
    with context.db.transaction() as session:
        erasure = erasure_record.of_job(session, job.id)
        if erasure is None:
            raise NotFound(f"job {job.id} has no erasure")
        unfinished = erasure_record.with_leftovers(session, erasure.camera_id)
    for earlier in unfinished:
        _remove_what_can_be(context, earlier.id, earlier.leftovers)
    _remove_what_can_be(context, erasure.id, _let_go_recordings(context, lease, erasure))
    while True:
        with context.db.transaction() as session:
            first = erasure_record.first_frame_utc(
                session, erasure.camera_id, erasure.from_utc, erasure.to_utc
            )
        if first is None:
            break
        leftovers = _erase_window(context, lease, erasure, first)
        _remove_what_can_be(context, erasure.id, leftovers)
        if lease.slice_over():
            return "yield"
    with context.db.transaction() as session:
        noted = erasure_record.of_job(session, job.id)
    remove_leftovers(context, erasure.id, {} if noted is None else noted.leftovers)
    if erasure.reason != "retention":  # reads every folder of pictures: not every hour
        remove_strays(context)
    with context.db.transaction() as session:
        erasure_record.change(
            session, erasure.id, finished_at=erasure_record.database_time(session)
        )
        lease.finish(session, {"frames": _frames_so_far(session, job.id)})
    return "finished"


def _let_go_recordings(context: Context, lease: Lease, erasure: Erasure) -> dict[str, Any]:
    """Files of ended ingests that were kept and reach into the span: nobody can cut them. Those of
    ingests under way go with their end, which looks for erasures. Returns the files left over."""
    with context.db.transaction() as session:
        lease.record_progress(session, {"frames": erasure.frames})
        held = recording_record.let_go_in_span(
            session, erasure.camera_id, erasure.from_utc, erasure.to_utc
        )
        noted = erasure_record.of_job(session, erasure.job_id)
        before = {} if noted is None else noted.leftovers
        if not held:
            return before
        leftovers: dict[str, Any] = {"shards": [], "pictures": [], "uploads": [], **before}
        leftovers["recordings"] = sorted({*held, *before.get("recordings", [])})
        erasure_record.change(session, erasure.id, leftovers=leftovers)
    return leftovers


def _remove_what_can_be(context: Context, erasure_id: int, leftovers: dict[str, Any]) -> None:
    """What lies on object storage may wait until it can be reached; the next rows must not."""
    try:
        remove_leftovers(context, erasure_id, leftovers)
    except ObjectStoreUnavailable as error:
        log.warning("objects_not_removed_yet", erasure_id=erasure_id, detail=str(error))


def _frames_so_far(session: Session, job_id: uuid.UUID) -> int:
    erasure = erasure_record.of_job(session, job_id)
    return 0 if erasure is None else erasure.frames


def _erase_window(
    context: Context, lease: Lease, erasure: Erasure, first_utc: datetime
) -> dict[str, Any]:
    """Erase from ``first_utc`` to the end of its shard span; returns the files left over."""
    span_s = context.settings.shard_span_s
    end_utc = bucket_of(first_utc, span_s) + timedelta(seconds=span_s)
    if erasure.to_utc is not None:
        end_utc = min(end_utc, erasure.to_utc)
    window = Span(erasure.camera_id, first_utc, end_utc)
    with ExitStack() as held:
        rewrites = _copy_beside(context, window, held)
        with context.db.transaction() as session:
            lease.record_progress(session, {"frames": erasure.frames, "t_utc": end_utc.isoformat()})
            index_record.lock_generations(session, exclusive=True)
            pictures = _frames(session, window)
            done = _Done()
            for shard, inside in _shards(session, window):
                _erase_from_shard(context, session, shard, inside, pictures, rewrites, held, done)
            removed = erasure_record.remove_frames(
                session, list(pictures), sorted(set(pictures.values()))
            )
            for standing in removed.standing:
                tell_standing_ended(session, *standing, code="erased")
            leftovers: dict[str, Any] = {
                "shards": done.folders,
                "pictures": sorted(set(pictures.values())),
                "uploads": removed.uploads,
            }
            erasure = erasure_record.of_job(session, erasure.job_id) or erasure
            leftovers["objects"] = erasure.leftovers.get("objects", {}) | done.objects
            erasure_record.change(
                session,
                erasure.id,
                leftovers=leftovers,
                frames=erasure.frames + removed.frames,
                queries=erasure.queries + removed.queries,
                hits=erasure.hits + removed.hits,
                shards_removed=erasure.shards_removed + done.removed,
                shards_rewritten=erasure.shards_rewritten + done.rewritten,
            )
    log.info("erased", camera_id=window.camera_id, frames=removed.frames, to=str(end_utc))
    return leftovers


def _frames(session: Session, window: Span) -> dict[int, str]:
    return erasure_record.frames_in_span(session, window.camera_id, window.from_utc, window.to_utc)


def _shards(session: Session, window: Span) -> list[tuple[Shard, int]]:
    return erasure_record.shards_of_span(session, window.camera_id, window.from_utc, window.to_utc)


@dataclass(slots=True)
class _Done:
    """What one window did to shards. ``folders``, ``objects``: without rows now, relative to the
    index, and as :func:`objects_of_shard` gives them."""

    folders: list[str] = field(default_factory=list)
    objects: dict[str, int] = field(default_factory=dict)
    removed: int = 0
    rewritten: int = 0


@dataclass(slots=True)
class _Rewrite:
    """A shard's next revision with only what is kept. ``seen``: blocks of the old one decided."""

    revision: int
    writer: RevisionWriter
    seen: int = 0
    runs: list[NewRun] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    def kept_of(self, count: int) -> int:
        """How many of the first ``count`` blocks of the old revision are kept."""
        return int(np.searchsorted(self.kept, count))

    def go_on(self, old: PinnedShard, erased: Collection[int]) -> None:
        """Copy the blocks not yet seen whose frame is not erased, byte for byte, and sync.

        A block that cannot be read stays damaged: it keeps its place and the checksum of what was
        lost. Raises :class:`StorageFailed` when the copy does not read back as it was written.
        """
        gone = np.fromiter(erased, dtype=np.int64, count=len(erased))
        fresh = np.arange(self.seen, old.blocks)
        kept = fresh[~np.isin(old.f_map.frame_id[fresh], gone)]
        for at in np.array_split(kept, range(BLOCKS_AT_ONCE, kept.size, BLOCKS_AT_ONCE)):
            if at.size == 0:
                continue
            blocks_global, blocks_patch, sound = stored_blocks(old.layout, at, old.sums_n2[at])
            self.writer.write(len(self.runs), blocks_global, blocks_patch)
            sums_n2 = self.writer.sums[-1].copy()
            sums_n2[~sound, 0] = NO_CHECKSUM
            sums_n2[~sound, 1] = old.sums_n2[at][~sound, 1]
            cells = self.writer.layout.cells
            self.runs += [
                NewRun(
                    start_row=(len(self.runs) + i) * cells,
                    row_count=cells,
                    frame_id=int(old.f_map.frame_id[block]),
                    view=int(old.f_map.view[block]),
                    crc32=int(sums_n2[i, 1]),
                    global_crc32=int(sums_n2[i, 0]),
                )
                for i, block in enumerate(at.tolist())
            ]
        self.kept += old.stored_n[kept].tolist()
        self.seen = old.blocks
        if self.runs:
            self._check()

    def _check(self) -> None:
        self.writer.sync()
        sums_n2 = np.array([(run.global_crc32, run.crc32) for run in self.runs], dtype=np.int64)
        damaged = {int(i) for i in np.flatnonzero(sums_n2[:, 0] == NO_CHECKSUM)}
        if set(damaged_blocks(self.writer.layout, sums_n2)) != damaged:
            raise StorageFailed(f"{self.writer.layout.folder} was not written well; check the disk")


def _copy_beside(context: Context, window: Span, held: ExitStack) -> dict[int, _Rewrite]:
    """Before anything is locked: copies of the shards that keep some of their frames."""
    rewrites: dict[int, _Rewrite] = {}
    with context.db.snapshot() as session:
        erased = _frames(session, window)
        partly = [
            (shard, _pin(context, session, shard))
            for shard, inside in _shards(session, window)
            if inside < shard.frame_count
        ]
    for shard, old in partly:
        context.index.require_free(context.settings.min_free_bytes)
        rewrite = _open_rewrite(context, old, shard, held)
        with context.db.transaction() as session:
            now = index_record.find_shard(session, shard.id)
        if now is None or now.revision != shard.revision:
            continue  # that revision is in use by now: the copy is made under the lock instead
        rewrite.writer.clear()
        rewrite.go_on(old, erased)
        rewrites[shard.id] = rewrite
    return rewrites


def _open_rewrite(context: Context, old: PinnedShard, shard: Shard, held: ExitStack) -> _Rewrite:
    layout = context.index.at_revision(old.layout, shard.id, shard.revision + 1)
    held.enter_context(hold_shard(layout))
    return _Rewrite(shard.revision, RevisionWriter(layout))


def _erase_from_shard(
    context: Context,
    session: Session,
    shard: Shard,
    inside: int,
    erased: Collection[int],
    rewrites: dict[int, _Rewrite],
    held: ExitStack,
    done: _Done,
) -> None:
    """Under the generation lock: a shard goes whole, or is what its copy beside holds."""
    shard = index_record.lock_shard_by_id(session, shard.id)
    old = _pin(context, session, shard)
    done.objects |= objects_of_shard(context, shard)
    kept_folder = None
    if inside == shard.frame_count:
        index_record.remove_shard(session, shard.id)
        done.removed += 1
    else:
        rewrite = rewrites.get(shard.id)
        if rewrite is None or rewrite.revision != shard.revision:
            rewrite = _open_rewrite(context, old, shard, held)
            rewrite.writer.clear()
        rewrite.go_on(old, erased)  # what was appended since
        index_record.rewrite_runs(session, shard, rewrite.runs, rewrite.kept_of(shard.merged_count))
        kept_folder = rewrite.writer.layout.folder
        done.rewritten += 1
    for folder in context.index.folders_of(old.layout.folder.parent, shard.id):
        if folder != kept_folder:
            done.folders.append(str(folder.relative_to(context.index.root)))


def _pin(context: Context, session: Session, shard: Shard) -> PinnedShard:
    generation = index_record.find_generation(session, shard.generation_id)
    assert isinstance(generation, IndexGeneration)
    return pin_shard(session, context.index, FMapCache(), generation, shard)


def receipt(erasure: Erasure, state: str) -> dict[str, Any]:
    """An erasure as a plain object, which :func:`order_again` understands."""
    return {
        "id": erasure.id,
        "job": str(erasure.job_id),
        "camera": erasure.camera.name,
        "from": _text(erasure.from_utc),
        "to": _text(erasure.to_utc),
        "reason": erasure.reason,
        "note": erasure.note,
        "ordered": _text(erasure.created_at),
        "finished": _text(erasure.finished_at),
        "state": state,
        "frames": erasure.frames,
        "pictures": erasure.pictures,
        "shards_removed": erasure.shards_removed,
        "shards_rewritten": erasure.shards_rewritten,
        "objects": erasure.objects,
        "queries": erasure.queries,
        "hits": erasure.hits,
    }


def _text(t_utc: datetime | None) -> str | None:
    return None if t_utc is None else t_utc.astimezone(UTC).isoformat()


def receipts(context: Context) -> list[dict[str, Any]]:
    """Every erasure, oldest first."""
    with context.db.transaction() as session:
        return [receipt(erasure, job.state) for erasure, job in erasure_record.list_all(session)]


def order_again(context: Context, orders: Sequence[dict[str, Any]]) -> list[uuid.UUID]:
    """Order erasures again from their receipts: a restored backup may hold what was erased since.

    Orders of unknown cameras, and those that this database has already, are left out. Raises
    :class:`InputInvalid` when something is no receipt; then none is ordered.
    """
    wanted = ordered_spans(orders)
    known = {(r["camera"], r["from"], r["to"], r["ordered"]) for r in receipts(context)}
    spans = []
    for camera, from_utc, to_utc, ordered in wanted:
        try:
            span, _ = camera_span(context, camera, from_utc, to_utc)
        except NotFound:
            continue
        if (camera, _text(span.from_utc), _text(span.to_utc), ordered) in known:
            continue
        spans.append((span, f"ordered first {ordered}"))
    return [submit_erasure(context, span, "again", note) for span, note in spans]


def ordered_spans(
    orders: Sequence[dict[str, Any]],
) -> list[tuple[str, datetime | None, datetime | None, str]]:
    """Camera, from, to and time of order of receipts. Raises :class:`InputInvalid`."""
    try:
        return [
            (str(order["camera"]), _time(order["from"]), _time(order["to"]), str(order["ordered"]))
            for order in orders
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InputInvalid(
            f"not a list of receipts as `ris erasures --json` prints them: {error!r}"
        ) from error


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
