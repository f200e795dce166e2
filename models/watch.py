"""Folders that recorders write to, and every file that was seen in them."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, created_at_column


class WatchedFolder(Base):
    """A folder whose recordings are ingested as they are finished.

    ``camera``: whose they are; null: as ``name_pattern``, or else the first folder below, says.
    ``time_zone``: of the times in names. ``job_id``: the job that looks, or did last.
    ``error_code``, ``error_detail``: why it could not look.
    """

    __tablename__ = "watched_folders"
    __table_args__ = (CheckConstraint("folder like '/%'", name="folder_absolute"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    folder: Mapped[str] = mapped_column(unique=True)
    camera: Mapped[str | None]
    name_pattern: Mapped[str | None]
    time_zone: Mapped[str]
    policy: Mapped[dict[str, Any]]
    job_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id"))
    error_code: Mapped[str | None]
    error_detail: Mapped[str | None]
    looked_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = created_at_column()


class WatchedFile(Base):
    """A file below a watched folder. Kept when the file is gone: it must not be taken twice.

    ``changed_at``: when it was first seen with this size and modification time. ``state``: ``seen``
    until it has stopped growing, then ``taken`` as ``segment_id``, or ``failed``.
    """

    __tablename__ = "watched_files"
    __table_args__ = (
        CheckConstraint("state in ('seen', 'taken', 'failed')", name="state_known"),
        CheckConstraint("(state = 'failed') = (error_code is not null)", name="error_failed"),
        Index(
            "ix_watched_files_seen",
            "watch_id",
            "mtime_ns",
            postgresql_where=text("state = 'seen'"),
        ),
    )

    watch_id: Mapped[int] = mapped_column(
        ForeignKey("watched_folders.id", ondelete="CASCADE"), primary_key=True
    )
    path: Mapped[str] = mapped_column(primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    mtime_ns: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(server_default="seen")
    segment_id: Mapped[int | None] = mapped_column(
        ForeignKey("video_segments.id", ondelete="SET NULL"), index=True
    )
    error_code: Mapped[str | None]
    error_detail: Mapped[str | None]
    changed_at: Mapped[datetime] = mapped_column(server_default=func.now())
