"""Cameras, video segments and frames."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base, created_at_column


class Camera(Base):
    """A VMS source. Frames are grouped, filtered and sharded by camera.

    ``retention_days``: how long its footage is kept; 0 for ever, null as the settings say.
    ``mask_id``: the privacy mask that new frames are painted with; null: none.
    """

    __tablename__ = "cameras"
    __table_args__ = (
        CheckConstraint("length(name) between 1 and 200", name="name_length"),
        CheckConstraint("retention_days >= 0", name="retention_days_valid"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    retention_days: Mapped[int | None]
    mask_id: Mapped[int | None] = mapped_column(ForeignKey("privacy_masks.id", use_alter=True))
    created_at: Mapped[datetime] = created_at_column()


class PrivacyMask(Base):
    """Areas of a camera's picture that are painted black. Never changed: others are a new mask."""

    __tablename__ = "privacy_masks"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    camera_id: Mapped[int] = mapped_column(ForeignKey("cameras.id"), index=True)
    areas: Mapped[list[dict[str, Any]]]
    created_at: Mapped[datetime] = created_at_column()


class VideoSegment(Base):
    """A contiguous stretch of one camera, unit of ingest.

    The natural key (camera, content, start, policy) makes a repeated submission the same segment.
    ``resume_pts`` is the pts of the last committed frame: a restarted ingest goes on behind it.
    ``outcome`` is null until the ingest ended. ``held_sha256``: the recording that lies in the data
    folder for it, by its content; null: none does. ``fetch_url``: where it is to be fetched from,
    encrypted where it holds secrets, and null once it is fetched; its ``content_sha256`` then is
    that of the address.
    """

    __tablename__ = "video_segments"
    __table_args__ = (
        UniqueConstraint("camera_id", "content_sha256", "start_utc", "policy_key"),
        CheckConstraint("outcome in ('complete', 'partial', 'failed')", name="outcome_known"),
        CheckConstraint("length(content_sha256) = 64", name="content_sha256_hex"),
        CheckConstraint("length(held_sha256) = 64", name="held_sha256_hex"),
        Index(
            "ix_video_segments_held_sha256",
            "held_sha256",
            postgresql_where=text("held_sha256 is not null"),
        ),
        Index("ix_video_segments_source_path", "source_path", postgresql_using="hash"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    camera_id: Mapped[int] = mapped_column(ForeignKey("cameras.id"))
    job_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    source_path: Mapped[str]
    held_sha256: Mapped[str | None]
    fetch_url: Mapped[str | None]
    content_sha256: Mapped[str]
    start_utc: Mapped[datetime]
    start_source: Mapped[str]
    policy: Mapped[dict[str, Any]]
    policy_key: Mapped[str]
    container: Mapped[str | None]
    codec: Mapped[str | None]
    h_px: Mapped[int | None]
    w_px: Mapped[int | None]
    duration_s: Mapped[float | None]
    frames_expected: Mapped[int | None]
    frames_decoded: Mapped[int] = mapped_column(server_default="0")
    decode_errors: Mapped[int] = mapped_column(server_default="0")
    frame_count: Mapped[int] = mapped_column(server_default="0")
    resume_pts: Mapped[int | None]
    outcome: Mapped[str | None]
    created_at: Mapped[datetime] = created_at_column()
    finished_at: Mapped[datetime | None]


class Frame(Base):
    """A sampled picture that is indexed. Its kept picture is found by content hash.

    ``mask_id``: the privacy mask it was painted with before anything was made of it; null: none.
    """

    __tablename__ = "frames"
    __table_args__ = (
        UniqueConstraint("segment_id", "pts"),
        Index(None, "camera_id", "t_utc"),
        Index(None, "picture_sha256", postgresql_using="hash"),
        CheckConstraint("h_px > 0 and w_px > 0", name="size_positive"),
        CheckConstraint("length(picture_sha256) = 64", name="picture_sha256_hex"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    segment_id: Mapped[int] = mapped_column(ForeignKey("video_segments.id"))
    camera_id: Mapped[int] = mapped_column(ForeignKey("cameras.id"))
    t_utc: Mapped[datetime]
    pts: Mapped[int]
    h_px: Mapped[int]
    w_px: Mapped[int]
    picture_sha256: Mapped[str]
    mask_id: Mapped[int | None] = mapped_column(ForeignKey("privacy_masks.id"))

    camera: Mapped[Camera] = relationship(lazy="raise")
