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
                session.drop_pending("stopped")
        if session is not None and session.video is not None:
            session.video.close()
            session.video = None
