"""The feeds that one process has, and the lock that their slices and the recorder share."""

from __future__ import annotations

import threading
import uuid

from worker.feed_session import FeedSession, LiveFrame


class HeldFeeds:
    """Sessions by feed id. ``changed`` guards them, and what slices and the recorder share."""

    def __init__(self) -> None:
        self.id = uuid.uuid4()
        self.stopping = threading.Event()
        self.changed = threading.Condition()
        self.sessions: dict[int, FeedSession] = {}
        self._entered: set[int] = set()

    def enter(self, feed_id: int, limit_s: float) -> bool:
        """Be the one thread that runs this feed, until :meth:`leave`.

        A thread that still runs it has lost its lease, for the caller has it: it is asked to end.
        False when it does not in time.
        """
        with self.changed:
            session = self.sessions.get(feed_id)
            if session is not None and feed_id in self._entered:
                session.lease_lost = True
            if not self.changed.wait_for(lambda: feed_id not in self._entered, limit_s):
                return False
            self._entered.add(feed_id)
            return True

    def leave(self, feed_id: int) -> None:
        """Let another thread run this feed."""
        with self.changed:
            self._entered.discard(feed_id)
            self.changed.notify_all()

    def wait_recorded(
        self, session: FeedSession, limit_s: float, *, in_flight_only: bool = False
    ) -> bool:
        """Wait until the recorder is done with a feed's frames; False when it was not in time."""
        with self.changed:
            return self.changed.wait_for(
                lambda: session.in_flight == 0 and (in_flight_only or not session.pending),
                timeout=limit_s,
            )

    def offer(self, session: FeedSession, frame: LiveFrame) -> None:
        """Hand a sampled frame to the recorder."""
        with self.changed:
            session.offer(frame)
            self.changed.notify_all()

    def forget(self, feed_id: int) -> None:
        """Close a feed's connection and know nothing of it any more."""
        with self.changed:
            session = self.sessions.pop(feed_id, None)
        if session is not None:
            self._end(session)

    def forget_idle(self, since_s: float) -> None:
        """Forget feeds that no thread has run since then: their next slice is elsewhere, or never.

        ``since_s``: by the monotonic clock.
        """
        with self.changed:
            idle = [
                session
                for session in self.sessions.values()
                if session.feed_id not in self._entered and session.idle_since_s < since_s
            ]
            for session in idle:
                del self.sessions[session.feed_id]
        for session in idle:
            self._end(session)

    def _end(self, session: FeedSession) -> None:
        with self.changed:
            session.drop_pending("stopped")
        if session.video is not None:
            session.video.close()
            session.video = None
