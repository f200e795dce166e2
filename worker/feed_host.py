"""Slices of feeds in one process: each reads its camera for a while, then gives way.

A slice is a job's attempt under its lease, so a feed has one reader at a time and a killed one is
taken over. The connection stays in the process between slices; what is read is embedded and
recorded by one thread for all feeds.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Final

from models.feed import Feed, FeedStatus
from models.repositories import feeds as feed_record
from models.repositories import videos as video_record
from models.repositories.jobs import ClaimedJob
from worker.accepting.feeds import address_of
from worker.context import Context
from worker.core.feed_clock import OWN_CLOCK_S, FeedClock
from worker.core.sampling import policy_from_json, sampler
from worker.errors import FeedFailed, LeaseLost, RisError
from worker.feed_recorder import FeedRecorder
from worker.feed_session import FeedSession, at_utc, reason_of
from worker.feed_slice import FLUSH_S, HOLD_S, FeedSlice
from worker.feeds import note_trouble
from worker.generations import backbone_of, ensure_live_generation
from worker.held_feeds import HeldFeeds
from worker.jobs import Lease, Outcome
from worker.secret_keys import secret_keys
from worker.tracing import note

_TRY_ELSEWHERE_S: Final = 0.05


class FeedHost:
    """The feeds of one process. Its :meth:`run` is the handler of feed jobs."""

    def __init__(self) -> None:
        self._held = HeldFeeds()
        self._recorder: FeedRecorder | None = None

    def run(self, context: Context, job: ClaimedJob, lease: Lease) -> Outcome:
        """One slice of a feed: from where it stands until the slice is over or it shall not run."""
        self._start(context)
        feed_id = int(job.payload["feed_id"])
        if not self._held.enter(feed_id, HOLD_S):
            with context.db.transaction() as session:
                lease.record_progress(session, {})
                trouble = ("stalled", f"feed {feed_id}: what read it before does not return")
                note_trouble(session, feed_id, trouble, "stalled")
            return "yield"
        try:
            return self._run(context, feed_id, lease)
        except RisError as error:
            if error.retryable or isinstance(error, LeaseLost):
                raise
            # The camera is not to blame: its job is kept, and tried again.
            with context.db.transaction() as session:
                lease.record_progress(session, {})
                trouble = (error.code, str(error))
                if not note_trouble(session, feed_id, trouble, reason_of(error)):
                    lease.finish(session, {})
                    return "finished"
            raise FeedFailed(str(error), reason=reason_of(error)) from error
        finally:
            self._held.leave(feed_id)

    def stop(self) -> None:
        """Let every slice end now: connections are closed, and what is read is recorded."""
        self._held.stopping.set()

    def goes_on(self) -> bool:
        """Whether slices go on here when no worker can be rung: cameras do not wait for Redis."""
        return not self._held.stopping.is_set()

    def _run(self, context: Context, feed_id: int, lease: Lease) -> Outcome:
        with context.db.transaction() as session:
            feed = feed_record.find(session, feed_id)
            mine = feed_record.is_free(session, feed_id, self._held.id)
            status = feed_record.status_of(session, feed_id)
        if feed is None or status is None:
            self._held.forget(feed_id)
            with context.db.transaction() as session:
                lease.finish(session, {})
            return "finished"
        stopping = self._held.stopping.is_set() and feed_id not in self._held.sessions
        if stopping or not mine:
            self._held.stopping.wait(_TRY_ELSEWHERE_S)  # its process is next
            return "yield"
        feed_session = self._session(context, feed, status)
        this_slice = FeedSlice(self._held, context, lease, feed_session)
        with self._held.changed:
            feed_session.lease, feed_session.lease_lost = lease, False
            self._held.changed.notify_all()
        try:
            return this_slice.run()
        except LeaseLost:
            self._held.forget(feed_id)
            raise
        finally:
            note(
                feed_id=feed_id,
                camera_id=feed.camera_id,
                pictures=this_slice.pictures,
                sampled=this_slice.sampled,
            )
            with self._held.changed:
                feed_session.lease = None
                feed_session.idle_since_s = time.monotonic()
            self._held.wait_recorded(feed_session, FLUSH_S, in_flight_only=True)

    def _start(self, context: Context) -> None:
        with self._held.changed:
            if self._recorder is None:
                self._recorder = FeedRecorder(self._held.sessions, self._held.changed)
                self._recorder.start(context)
        idle_s = max(HOLD_S, context.settings.job_lease_s)
        self._held.forget_idle(time.monotonic() - idle_s)

    def _session(self, context: Context, feed: Feed, status: FeedStatus) -> FeedSession:
        """The session kept from the slice before, if nobody else had the feed since."""
        kept = self._held.sessions.get(feed.id)
        if kept is not None and status.held_by == self._held.id:
            return kept
        self._held.forget(feed.id)
        generation = ensure_live_generation(context)
        policy = policy_from_json(feed.policy)
        # This machine's clock may have been ahead: what has such times says nothing of today.
        now_s = time.time()
        last_frame_utc = _believed(status.last_frame_utc, now_s)
        last = _later(_believed(status.last_seen_utc, now_s), last_frame_utc)
        resume_s = None if last_frame_utc is None else last_frame_utc.timestamp()
        made = FeedSession(
            feed_id=feed.id,
            camera_id=feed.camera_id,
            name=feed.camera.name,
            url=address_of(feed, secret_keys(context.settings)),
            policy=policy,
            queue_frames=context.settings.feed_queue_frames,
            clock=FeedClock(
                None if last is None else last.timestamp(), context.settings.feed_clock_tolerance_s
            ),
            sampler=sampler(policy, resume_s),
            input_size=backbone_of(context, generation).spec.input_size,
            idle_since_s=time.monotonic(),
            last_seen_utc=last,
            last_frame_utc=last_frame_utc,
        )
        if status.phase != "idle" and (status.last_seen_utc or status.last_frame_utc) is not None:
            # Unless one is open that says more. What waited to be recorded is lost as well.
            made.note_gap("worker_lost", last_frame_utc or last or at_utc(now_s))
        if status.segment_id is not None:
            with context.db.transaction() as session:
                video_record.finish_live_segment(session, status.segment_id)
        with self._held.changed:
            self._held.sessions[feed.id] = made
        return made


def _believed(t_utc: datetime | None, now_s: float) -> datetime | None:
    """None for a time that only a wrong clock of this machine can have made."""
    if t_utc is None or t_utc.timestamp() - now_s > OWN_CLOCK_S:
        return None
    return t_utc


def _later(first: datetime | None, second: datetime | None) -> datetime | None:
    return max((t for t in (first, second) if t is not None), default=None)
