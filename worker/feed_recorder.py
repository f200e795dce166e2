"""One thread per process that embeds and records the frames of all its feeds, mixed in batches."""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import groupby

import structlog

from models.index import IndexGeneration
from models.repositories import erasures as erasure_record
from models.repositories import feeds as feed_record
from models.repositories import videos as video_record
from models.session import DatabaseUnavailable, Session
from models.video import VideoSegment
from worker.accepting.events import tell_feed
from worker.backbones.base import Backbone
from worker.context import Context
from worker.core.feed_clock import OWN_CLOCK_S
from worker.core.sampling import policy_key, policy_to_json
from worker.core.types import Descriptors, SizePx
from worker.errors import (
    ErasedMeanwhile,
    GenerationSwitched,
    LeaseLost,
    RisError,
    StorageFailed,
    StorageFull,
)
from worker.feed_session import FeedSession, LiveFrame, Missed, PlannedSegment, at_utc, taking
from worker.generations import backbone_of, ensure_live_generation
from worker.jobs import Lease
from worker.masks import camera_masks
from worker.recording import (
    PictureBatch,
    PreparedBatch,
    discard_pictures,
    not_erased,
    prepare_batch,
    record_batch,
)
from worker.tracing import entry, span

log = structlog.get_logger()

_TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class _Part:
    """Frames of one session that are being recorded under one lease."""

    session: FeedSession
    lease: Lease
    frames: Sequence[LiveFrame]


class FeedRecorder:
    """Takes what waits, each feed in its turn; used through :meth:`start` once."""

    def __init__(self, sessions: dict[int, FeedSession], changed: threading.Condition) -> None:
        self._sessions = sessions
        self._changed = changed
        self._generation: IndexGeneration | None = None
        self._not_before_s = 0.0

    def start(self, context: Context) -> None:
        """Run from now on, as long as the process."""
        threading.Thread(target=self._run, args=(context,), name="feeds", daemon=True).start()

    def _run(self, context: Context) -> None:
        while True:
            parts = self._take(context.settings.embed_batch)
            try:
                self._work(context, parts)
            except Exception:
                log.exception("feed_recorder_unexpected")
                time.sleep(_TICK_S)

    def _take(self, count: int) -> list[_Part]:
        """Up to ``count`` frames of feeds whose slice runs; waits until there are some."""
        with self._changed:
            while True:
                pause_s = self._not_before_s - time.monotonic()
                ready = [s for s in self._sessions.values() if s.lease is not None and s.pending]
                if ready and pause_s <= 0:
                    break
                self._changed.wait(pause_s if pause_s > 0 else _TICK_S)
            parts = []
            for session in sorted(ready, key=lambda s: (s.taken_at_s, s.pending[0].received_utc)):
                frames = [
                    session.pending.popleft() for _ in range(min(count, len(session.pending)))
                ]
                if not frames:
                    break
                count -= len(frames)
                session.in_flight += 1
                session.taken_at_s = time.monotonic()
                assert session.lease is not None
                parts.append(_Part(session, session.lease, frames))
            return parts

    def _work(self, context: Context, parts: Sequence[_Part]) -> None:
        counts = {"feeds": len(parts), "frames": sum(len(part.frames) for part in parts)}
        try:
            with entry("feed.batch", attributes=counts):  # of many slices: a trace of its own
                self._record_all(context, parts)
        finally:
            with self._changed:
                for part in parts:
                    part.session.in_flight -= 1
                self._changed.notify_all()

    def _record_all(self, context: Context, parts: Sequence[_Part]) -> None:
        kept = parts
        try:
            if self._generation is None:
                self._generation = ensure_live_generation(context)
            backbone = backbone_of(context, self._generation)
            kept = self._usable(context, parts, backbone.spec.input_size)
            prepared = self._prepare(context, backbone, kept)
        except Exception as error:
            if len(kept) > 1 and not _of_surroundings(error):
                for part in kept:  # one feed's picture must not cost another's
                    self._record_all(context, [part])
                return
            self._not_recorded(context, kept, error)
            return
        for part, batch in zip(kept, prepared, strict=True):
            self._record(context, part, batch)

    def _usable(self, context: Context, parts: Sequence[_Part], input_size: SizePx) -> list[_Part]:
        """Without frames that were erased meanwhile, or sampled for another backbone."""
        usable, left = [], []
        drops: list[tuple[FeedSession, Sequence[LiveFrame], str]] = []
        with context.db.transaction() as session:
            for part in parts:
                frames = _not_erased(session, part)
                if _leave_erased_segment(session, part, frames):
                    left.append(part.session)
                fitting = [f for f in frames if f.img_input_hwc.shape[:2] == tuple(input_size)]
                if len(fitting) < len(frames):
                    part.session.input_size = input_size
                if fitting:
                    usable.append(_Part(part.session, part.lease, fitting))
                erased = [f for f in part.frames if f not in frames]
                others = [f for f in frames if f not in fitting]
                drops += [(part.session, erased, "erased")]
                drops += [(part.session, others, "generation_switched")]
        with self._changed:
            for feed in left:
                feed.segment = feed.segment_stretch = feed.planned = None
            for feed, gone, reason in drops:
                for frame in gone:
                    feed.count_drop(frame.t_utc, reason)
        return usable

    def _prepare(
        self, context: Context, backbone: Backbone, parts: Sequence[_Part]
    ) -> list[PreparedBatch]:
        frames = [frame for part in parts for frame in part.frames]
        if not frames:
            return []
        with context.db.transaction() as session:
            masks = camera_masks(session, [part.session.camera_id for part in parts])
        batch = PictureBatch(
            t_utc=[frame.t_utc for frame in frames],
            pts=[0] * len(frames),
            imgs_input_hwc=[frame.img_input_hwc for frame in frames],
            imgs_picture_hwc=[frame.img_picture_hwc for frame in frames],
            masks=[masks.get(part.session.camera_id) for part in parts for _ in part.frames],
            codec=None if self._generation is None else self._generation.codec,
        )
        with span("feed.embed", frames=len(frames)):
            whole = prepare_batch(context, backbone, batch)
        batches, at = [], 0
        for part in parts:
            cut = slice(at, at + len(part.frames))
            batches.append(_cut(whole, cut))
            at = cut.stop
        return batches

    def _record(self, context: Context, part: _Part, batch: PreparedBatch) -> None:
        """Stretch by stretch; what an error leaves over waits again."""
        at = 0
        for _, group in groupby(part.frames, key=lambda frame: id(frame.stretch)):
            frames = list(group)
            try:
                self._record_stretch(
                    context, part, frames, _cut(batch, slice(at, at + len(frames)))
                )
            except Exception as error:
                if isinstance(error, ErasedMeanwhile | LeaseLost):
                    _discard(context, _cut(batch, slice(at, None)))
                left = _Part(part.session, part.lease, part.frames[at:])
                self._not_recorded(context, [left], error)
                return
            at += len(frames)

    def _record_stretch(
        self, context: Context, part: _Part, frames: Sequence[LiveFrame], batch: PreparedBatch
    ) -> None:
        """One transaction under the lease: segment, frames, status, and what was missed before."""
        feed, first, last = part.session, frames[0], frames[-1]
        assert self._generation is not None
        with (
            taking(feed, self._changed) as take,
            ExitStack() as held,
            context.db.transaction() as session,
        ):
            part.lease.record_progress(session, {"t_utc": last.t_utc.isoformat()})
            if feed.given_up:
                raise LeaseLost(f"{feed.label} was not waited for any longer")
            missed = take(first.number)
            segment = _segment_for(context, session, part, first)
            numbered = PreparedBatch(
                [_numbered(frame, segment) for frame in batch.frames], batch.descriptors
            )
            # Some are there when the answer of an earlier commit was lost.
            pts = [frame.pts for frame in numbered.frames]
            known = video_record.count_at(session, segment.id, pts)
            record_batch(context, session, segment, self._generation, numbered, held)
            video_record.add_to_segment(
                session,
                segment.id,
                frames=len(pts) - known,
                decoded=missed.decoded,
                decode_errors=missed.decode_errors,
                last_pts=pts[-1],
            )
            removed = feed_record.wanted(session, feed.feed_id) is None
            wrong_after_utc = at_utc(time.time() + OWN_CLOCK_S)
            record_missed(session, feed, missed, removed=removed)
            ended = feed_record.close_gap(session, feed.camera_id, first.t_utc, wrong_after_utc)
            if ended or feed.last_frame_utc is None:
                tell_feed(session, "feed.live", feed.camera_id, feed.name, since_utc=first.t_utc)
            feed_record.set_status(
                session,
                feed.feed_id,
                segment_id=segment.id,
                last_frame_utc=last.t_utc,
                last_seen_utc=max(last.t_utc, feed.last_seen_utc or last.t_utc),
                behind_frames=len(feed.pending),
            )
        with self._changed:
            feed.segment, feed.segment_stretch = segment, last.stretch
            feed.last_frame_utc = last.t_utc
            if feed.blocked == "storage":
                feed.blocked, feed.error = "busy", None

    def _not_recorded(self, context: Context, parts: Sequence[_Part], error: Exception) -> None:
        """Frames wait again where that can help; what cannot be mended ends the feed's slice."""
        with self._changed:
            for part in parts:
                feed = part.session
                frames = part.frames
                if isinstance(error, LeaseLost):
                    # Of the slice before, which did not wait to the end: the next one has the feed.
                    if feed.lease is part.lease:
                        feed.lease_lost = True
                    else:
                        feed.put_back(frames)
                elif isinstance(error, GenerationSwitched | ErasedMeanwhile):
                    self._generation, feed.planned = None, None
                    feed.put_back(frames)
                elif _of_surroundings(error):
                    if isinstance(error, StorageFull | StorageFailed):
                        feed.note_gap(error.code, feed.last_frame_utc, frames[0].number - 1)
                        feed.error = (error.code, str(error))
                        feed.blocked = "storage"
                    feed.put_back(frames)
                else:
                    self._generation = None
                    for frame in frames:
                        feed.count_drop(frame.t_utc, "internal")
                    feed.unexpected = error
            if _of_surroundings(error):
                pause_s = 2 * context.settings.job_retry_base_s
                self._not_before_s = time.monotonic() + pause_s
                log.warning("feeds_wait", detail=str(error))


def record_missed(
    session: Session, feed: FeedSession, missed: Missed, *, removed: bool = False
) -> None:
    """Write the first gap that began, and drops. A gap of a feed that was ``removed`` would never
    end; one behind the first is part of it, for the frames between were dropped.
    """
    if missed.gaps and not removed:
        gap = missed.gaps[0]
        if feed_record.open_gap(session, feed.camera_id, gap.from_utc, gap.reason):
            since_utc, reason, of = gap.from_utc, gap.reason, (feed.camera_id, feed.name)
            tell_feed(session, "feed.down", *of, since_utc=since_utc, reason=reason)
    feed_record.add_drops(session, feed.camera_id, missed.drops)


def _of_surroundings(error: Exception) -> bool:
    """Whether it will go on by itself: a full disk, a database that is away."""
    return isinstance(error, DatabaseUnavailable) or (
        isinstance(error, RisError)
        and error.retryable
        and not isinstance(error, GenerationSwitched | ErasedMeanwhile)
    )


def _not_erased(session: Session, part: _Part) -> list[LiveFrame]:
    """Frames that no erasure covers which was ordered after they came."""
    oldest_utc = min(frame.received_utc for frame in part.frames)
    spans = erasure_record.spans_since(session, part.session.camera_id, oldest_utc)
    return [
        frame
        for frame in part.frames
        if not any(
            (from_utc is None or frame.t_utc >= from_utc)
            and (to_utc is None or frame.t_utc < to_utc)
            for from_utc, to_utc in spans
        )
    ]


def _leave_erased_segment(session: Session, part: _Part, frames: Sequence[LiveFrame]) -> bool:
    """End the segment after an erasure, for a new one: what is recorded for it counts as erased."""
    feed = part.session
    if feed.segment is None or not frames:
        return False
    if len(not_erased(session, feed.segment, [frame.t_utc for frame in frames])) == len(frames):
        return False
    part.lease.record_progress(session, {"t_utc": frames[-1].t_utc.isoformat()})
    video_record.finish_live_segment(session, feed.segment.id)
    return True


def _discard(context: Context, batch: PreparedBatch) -> None:
    try:
        discard_pictures(context, [frame.picture_sha256 for frame in batch.frames])
    except (DatabaseUnavailable, RisError) as error:
        log.warning("pictures_left_over", detail=str(error))  # `ris verify` finds them


def _cut(batch: PreparedBatch, cut: slice) -> PreparedBatch:
    descriptors = Descriptors(batch.descriptors.global_nd[cut], batch.descriptors.patches_ncd[cut])
    return PreparedBatch(batch.frames[cut], descriptors)


def _numbered(frame: video_record.NewFrame, segment: VideoSegment) -> video_record.NewFrame:
    """With its pts: microseconds since the segment's start. A camera's own ticks start anew."""
    pts = (frame.t_utc - segment.start_utc) // timedelta(microseconds=1)
    return replace(frame, pts=pts)


def _segment_for(context: Context, session: Session, part: _Part, first: LiveFrame) -> VideoSegment:
    """The segment these frames go to: the one before, or a new one that begins with them."""
    feed = part.session
    span = timedelta(seconds=context.settings.shard_span_s)
    if (
        feed.segment is not None
        and feed.segment_stretch is first.stretch
        and first.t_utc - feed.segment.start_utc < span
    ):
        return feed.segment
    if feed.segment is not None:
        video_record.finish_live_segment(session, feed.segment.id)
    planned = feed.planned
    if (
        planned is None
        or planned.stretch is not first.stretch
        or not timedelta(0) <= first.t_utc - planned.start_utc < span
    ):
        # A live stretch has no content yet: its name is one of a kind instead.
        name = hashlib.sha256(uuid.uuid4().bytes).hexdigest()
        planned = feed.planned = PlannedSegment(first.stretch, first.t_utc, name)
    info = first.stretch.info
    segment, _ = video_record.ensure_segment(
        session,
        {
            "camera_id": feed.camera_id,
            "job_id": part.lease.job.id,
            "source_path": f"feed:{feed.name}",
            "content_sha256": planned.content_sha256,
            "start_utc": planned.start_utc,
            "start_source": first.stretch.time_source,
            "policy": policy_to_json(feed.policy),
            "policy_key": policy_key(feed.policy),
            "container": info.container,
            "codec": info.codec,
            "h_px": info.display_size.h_px,
            "w_px": info.display_size.w_px,
        },
    )
    return segment
