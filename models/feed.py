"""Feeds: live cameras, what is wanted of them, how they are, and what was missed."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base, created_at_column
from models.video import Camera


class Feed(Base):
    """A live source of one camera and what is wanted of it; a reconciler makes it so.

    ``url`` is as it may be shown where the address holds secrets: the whole one is ``sealed_url``
    then, encrypted with a key that is not in here.
    ``job_id``: the job whose slices read it, or did last.
    """

    __tablename__ = "feeds"
    __table_args__ = (
        CheckConstraint("source_kind in ('rtsp', 'http', 'file')", name="source_kind_known"),
        CheckConstraint(
            "desired_state in ('running', 'paused', 'ended')", name="desired_state_known"
        ),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    camera_id: Mapped[int] = mapped_column(ForeignKey("cameras.id"), unique=True)
    url: Mapped[str]
    sealed_url: Mapped[str | None]
    source_kind: Mapped[str]
    policy: Mapped[dict[str, Any]]
    desired_state: Mapped[str] = mapped_column(server_default="running")
    job_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[datetime] = created_at_column()

    camera: Mapped[Camera] = relationship(lazy="raise")


class FeedStatus(Base):
    """How a feed is, as its last slice saw it.

    ``last_seen_utc``: newest picture received; ``last_frame_utc``: newest frame recorded.
    ``held_by``: the process that has the connection; nobody else takes it before ``held_until``,
    unless that process is gone. ``segment_id``: the segment that frames are being added to.
    """

    __tablename__ = "feed_status"
    __table_args__ = (
        CheckConstraint("phase in ('waiting', 'connecting', 'live', 'idle')", name="phase_known"),
    )

    feed_id: Mapped[int] = mapped_column(
        ForeignKey("feeds.id", ondelete="CASCADE"), primary_key=True
    )
    phase: Mapped[str] = mapped_column(server_default="waiting")
    connected_since: Mapped[datetime | None]
    last_seen_utc: Mapped[datetime | None]
    last_frame_utc: Mapped[datetime | None]
    time_source: Mapped[str | None]
    error_code: Mapped[str | None]
    error_detail: Mapped[str | None]
    held_by: Mapped[uuid.UUID | None]
    held_until: Mapped[datetime | None]
    segment_id: Mapped[int | None] = mapped_column(
        ForeignKey("video_segments.id", ondelete="SET NULL")
    )
    behind_frames: Mapped[int] = mapped_column(server_default="0")
    updated_at: Mapped[datetime] = created_at_column()


class FeedGap(Base):
    """A time of which a live camera has no frames, and why. ``to_utc`` is null while it lasts.

    From the last picture before to the first frame after.
    """

    __tablename__ = "feed_gaps"
    __table_args__ = (
        CheckConstraint("from_utc <= to_utc", name="span_not_negative"),
        Index(
            "uq_feed_gaps_open", "camera_id", unique=True, postgresql_where=text("to_utc is null")
        ),
        Index(None, "camera_id", "from_utc"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    camera_id: Mapped[int] = mapped_column(ForeignKey("cameras.id"))
    from_utc: Mapped[datetime]
    to_utc: Mapped[datetime | None]
    reason: Mapped[str]
    created_at: Mapped[datetime] = created_at_column()


class FeedDrop(Base):
    """How many sampled frames of a camera were received and not recorded, per hour and reason."""

    __tablename__ = "feed_drops"
    __table_args__ = (CheckConstraint("frames > 0", name="frames_positive"),)

    camera_id: Mapped[int] = mapped_column(ForeignKey("cameras.id"), primary_key=True)
    hour_utc: Mapped[datetime] = mapped_column(primary_key=True)
    reason: Mapped[str] = mapped_column(primary_key=True)
    frames: Mapped[int]
