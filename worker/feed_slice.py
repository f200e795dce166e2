"""One slice of a feed: connect, read, sample, hand on, and write how it is."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import structlog

from models.repositories import feeds as feed_record
from models.repositories import videos as video_record
from models.session import DatabaseUnavailable
from worker.accepting.feeds import rules_of
from worker.context import Context
from worker.core.backoff import retry_delay_s
from worker.errors import AddressRefused, FeedFailed, LeaseLost, VideoInvalid
from worker.feed_recorder import record_missed
from worker.feed_session import FeedSession, LiveFrame, Stretch, at_utc, reason_of, taking
from worker.held_feeds import HeldFeeds
from worker.jobs import Lease, Outcome
from worker.video.live_feed import open_live
from worker.video.live_values import LiveOptions, LivePicture

log = structlog.get_logger()

HOLD_S: Final = 5.0
"""How long another process leaves a feed alone whose slice has ended."""
_FIRST_RETRY_S: Final = 0.25
FLUSH_S: Final = 10.0
"""How long the end of a slice waits for the recorder."""
_STOP_FLUSH_S: Final = 4.0
_COMMIT_S: Final = 0.5
"""How long a transaction of the recorder that has begun takes to end."""
_TURN_S: Final = 120.0
"""The longest look-up, connecting and writing together; a slice that takes longer hangs."""
_spread = random.SystemRandom()


@dataclass(slots=True)
class FeedSlice:
    """One slice of one feed; runs in one thread."""

    held: HeldFeeds
    context: Context
    lease: Lease
    feed: FeedSession
    next_status_s: float = 0.0
    recorded_status: bool = True
    wanted: str = "running"
    pictures: int = 0
    sampled: int = 0

    def run(self) -> Outcome:
        """Until the slice is over, or the feed shall not run, or the process ends."""
        while True:
            self.lease.alive_for(_TURN_S + 2 * self.context.settings.feed_stall_s)
            if self.held.stopping.is_set():
                return self._stop()
            over = self.lease.slice_over() and self.recorded_status
            if over or time.monotonic() >= self.next_status_s:
                self._write_status()
            if self.wanted != "running":
                return self._end(self.wanted)
            if over and self.recorded_status:
                return "yield"
            self._raise_for_recorder()
            try:
                if not self._advance():
                    return self._end("ended")
            except (FeedFailed, VideoInvalid, AddressRefused) as error:
                self._failed(error)

    def _raise_for_recorder(self) -> None:
        feed = self.feed
        if feed.lease_lost:
            raise LeaseLost(f"job {self.lease.job.id} was taken over by another worker")
        if feed.unexpected is not None:
            error, feed.unexpected = feed.unexpected, None
            with self.held.changed:
                feed.drop_pending("internal")
                feed.note_gap(reason_of(error), feed.last_frame_utc or feed.last_seen_utc)
            self._write_status(last=True)
            self.held.forget(feed.feed_id)
            raise error

    def _advance(self) -> bool:
        """Connect, or wait to, or take a picture; False when a recording has ended."""
        feed = self.feed
        if feed.video is None:
            wait_s = feed.retry_at_s - time.monotonic()
            if wait_s > 0:
                until_status_s = max(0.01, self.next_status_s - time.monotonic())
                self.held.stopping.wait(min(wait_s, until_status_s))
                return True
            feed.stretch, feed.connected_since = None, None
            feed.clock.reconnected()
            feed.video = open_live(feed.url, self._options(), feed.label, again=feed.failures > 0)
        try:
            picture = feed.video.step()
        except FeedFailed as error:
            if error.reason == "ended" and feed.video.ends:
                return False
            raise
        if picture is not None:
            self._take(picture)
        return True

    def _options(self) -> LiveOptions:
        settings = self.context.settings
        return LiveOptions(
            policy=self.feed.policy,
            input_size=self.feed.input_size,
            picture_max_side_px=settings.picture_max_side_px,
            max_px=settings.video_max_px,
            stall_s=settings.feed_stall_s,
            rules=rules_of(settings),
        )

    def _take(self, live: LivePicture) -> None:
        """Give a picture its time, and hand it on if it is one to be indexed."""
        feed, video = self.feed, self.feed.video
        assert video is not None
        timed = feed.clock.at(live.stream_s, live.arrival_s, live.ntp_s)
        t_utc = at_utc(timed.t_s)
        if timed.skipped:
            with self.held.changed:
                feed.note_gap("clock", feed.last_seen_utc)  # no time between was ever shown
        if feed.stretch is None or feed.stretch.info is not live.info or timed.jumped:
            feed.stretch = Stretch(live.info, timed.source)
        if feed.connected_since is None:
            feed.connected_since, feed.failures, feed.error = t_utc, 0, None
            self.next_status_s = 0.0
            log.info("feed_live", camera=feed.name)
        feed.last_seen_utc, feed.time_source = t_utc, timed.source
        chosen = feed.sampler.keep(timed.sample_s, live.keyframe, live.gray_hw)
        self.pictures += 1
        self.sampled += chosen
        with self.held.changed:
            feed.decoded += 1
            feed.decode_errors += live.damaged + live.decode_errors
        if chosen:
            pictures = video.pixels(feed.input_size)
            number, received_utc = feed.sampled + 1, at_utc(live.arrival_s)
            frame = LiveFrame(number, t_utc, received_utc, feed.stretch, *pictures)
            self.held.offer(feed, frame)

    def _failed(self, error: FeedFailed | VideoInvalid | AddressRefused) -> None:
        feed, settings = self.feed, self.context.settings
        reason = reason_of(error)
        self._close()
        feed.failures += 1
        delay_s = retry_delay_s(
            feed.failures, _FIRST_RETRY_S, settings.feed_retry_max_s, _spread.random()
        )
        feed.retry_at_s = time.monotonic() + delay_s
        feed.error = (reason, str(error))
        with self.held.changed:
            feed.note_gap(reason, feed.last_seen_utc)
        if feed.failures == 1:
            log.warning("feed_lost", camera=feed.name, reason=reason, detail=str(error))
        self._write_status()

    def _close(self) -> None:
        if self.feed.video is not None:
            self.feed.video.close()
        self.feed.video, self.feed.connected_since = None, None

    def _status(self) -> dict[str, Any]:
        feed = self.feed
        code, detail = feed.error or (None, None)
        return {
            "phase": feed.phase(),
            "connected_since": feed.connected_since,
            "last_seen_utc": feed.last_seen_utc,
            "time_source": feed.time_source,
            "error_code": code,
            "error_detail": detail,
            "behind_frames": len(feed.pending),
        }

    def _write_status(self, *, last: bool = False, **changes: Any) -> None:
        """Write how the feed is, under the lease, and note what is wanted of it.

        ``last``: the session ends here, so that another process may go on at once.
        When Postgres is away the camera is read on, and what comes waits.
        """
        feed = self.feed
        self.next_status_s = time.monotonic() + self.context.settings.feed_status_every_s
        fields = self._status() | changes
        try:
            with (
                taking(feed, self.held.changed) as take,
                self.context.db.transaction() as session,
            ):
                self.lease.record_progress(session, {"seen_utc": _text(feed.last_seen_utc)})
                missed = take(feed.sampled + 1 if last else None)
                wanted = feed_record.wanted(session, feed.feed_id)
                record_missed(session, feed, missed, removed=wanted is None)
                if feed.segment is not None:
                    video_record.add_to_segment(
                        session,
                        feed.segment.id,
                        decoded=missed.decoded,
                        decode_errors=missed.decode_errors,
                    )
                feed_record.hold(session, feed.feed_id, self.held.id, -1.0 if last else HOLD_S)
                feed_record.set_status(session, feed.feed_id, **fields)
        except DatabaseUnavailable as error:
            log.warning("feed_status_not_written", camera=feed.name, detail=str(error))
            self.recorded_status = False
            return
        self.recorded_status, self.wanted = True, wanted or "removed"

    def _stop(self) -> Outcome:
        """The process ends: whoever comes next goes on at once."""
        feed = self.feed
        self._close()
        self._flush(_STOP_FLUSH_S, "stopped")
        self._finish_segment()
        self._write_status(last=True, phase="waiting", segment_id=None)
        self.held.forget(feed.feed_id)
        return "yield"

    def _end(self, wanted: str) -> Outcome:
        """It is paused, removed, or a recording that has ended."""
        feed = self.feed
        self._close()
        self._flush(FLUSH_S, "paused" if wanted == "paused" else None)
        self._finish_segment()
        self._write_status(last=True, phase="idle", segment_id=None)
        self.held.forget(feed.feed_id)
        with self.context.db.transaction() as session:
            # The job's row before the feed's, as all writers of a slice do.
            self.lease.record_progress(session, {"seen_utc": _text(feed.last_seen_utc)})
            locked = feed_record.lock(session, feed.feed_id)
            if locked is not None and wanted == "ended" and locked.desired_state == "running":
                locked.desired_state = "ended"
            elif locked is not None and locked.desired_state == "running":
                return "yield"  # wanted again meanwhile
            self.lease.finish(session, {"seen_utc": _text(feed.last_seen_utc)})
        log.info("feed_ended", camera=feed.name, why=wanted)
        return "finished"

    def _flush(self, limit_s: float, reason: str | None) -> None:
        """Wait for the recorder; what it does not record in time is given up, and is missing.

        ``reason``: of the gap that begins here; None: nothing more is expected of the camera.
        """
        feed = self.feed
        recorded = self.held.wait_recorded(feed, limit_s)
        if not recorded:
            with self.held.changed:
                feed.given_up = True
                feed.drop_pending("stopped")
            self.held.wait_recorded(feed, _COMMIT_S)
        with self.held.changed:
            if reason is not None:
                given_up_utc = None if recorded else feed.last_frame_utc
                feed.note_gap(reason, given_up_utc or feed.last_seen_utc)

    def _finish_segment(self) -> None:
        feed = self.feed
        if feed.segment is None:
            return
        try:
            with self.context.db.transaction() as session:
                self.lease.record_progress(session, {"seen_utc": _text(feed.last_seen_utc)})
                video_record.finish_live_segment(session, feed.segment.id)
        except DatabaseUnavailable as error:
            log.warning("segment_left_open", camera=feed.name, detail=str(error))
        else:
            feed.segment = feed.segment_stretch = feed.planned = None


def _text(t_utc: datetime | None) -> str | None:
    return None if t_utc is None else t_utc.isoformat()
