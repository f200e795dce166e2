"""What answers about feeds hold. Addresses are told without user, password and query."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from api.told import Failure, failure
from models.repositories.feeds import CameraGap, FeedSummary
from worker.accepting.feeds import shown_url


class OpenGap(BaseModel):
    """Since when a camera has no frames, and why."""

    from_utc: datetime
    reason: str


class FeedTold(BaseModel):
    """A camera that is read all the time, what is wanted of it and how it is."""

    feed_id: int
    camera_id: int
    camera_name: str
    url: str = Field(description="Without user, password and query.")
    policy: dict[str, Any]
    desired_state: Literal["running", "paused", "ended"]
    phase: Literal["waiting", "connecting", "live", "idle"]
    connected_since: datetime | None
    last_seen_utc: datetime | None = Field(description="Newest picture received.")
    last_frame_utc: datetime | None = Field(description="Newest frame recorded.")
    time_source: str | None
    trouble: Failure | None = Field(description="Why it is not read, while it shall be.")
    open_gap: OpenGap | None
    gaps: int
    dropped_frames: int
    behind_frames: int = Field(description="Frames that wait to be recorded.")

    @classmethod
    def of(cls, feed: FeedSummary) -> FeedTold:
        """From a row."""
        gap = None
        if feed.open_gap_from_utc is not None and feed.open_gap_reason is not None:
            gap = OpenGap(from_utc=feed.open_gap_from_utc, reason=feed.open_gap_reason)
        running = feed.desired_state == "running"
        return cls(
            feed_id=feed.id,
            camera_id=feed.camera_id,
            camera_name=feed.camera,
            url=shown_url(feed.url),
            policy=feed.policy,
            desired_state=feed.desired_state,
            phase=feed.phase,
            connected_since=feed.connected_since,
            last_seen_utc=feed.last_seen_utc,
            last_frame_utc=feed.last_frame_utc,
            time_source=feed.time_source,
            trouble=failure(feed.error_code, feed.error_detail) if running else None,
            open_gap=gap,
            gaps=feed.gaps,
            dropped_frames=feed.dropped_frames,
            behind_frames=feed.behind_frames,
        )


class FeedGapTold(BaseModel):
    """A time of which a live camera has no frames, and why. `to_utc` null: it lasts."""

    from_utc: datetime
    to_utc: datetime | None
    reason: str = Field(description="See docs/operation.md, Gaps.")

    @classmethod
    def of(cls, gap: CameraGap) -> FeedGapTold:
        """From a row."""
        return cls(from_utc=gap.from_utc, to_utc=gap.to_utc, reason=gap.reason)
