"""Erasures: what was removed for good, of which camera and time, when and why."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base, created_at_column
from models.video import Camera


class Erasure(Base):
    """The order to erase ``[from_utc, to_utc)`` of a camera, and, once finished, its receipt.

    Null bounds are open. From its commit on, no frame inside it is recorded for a segment that was
    accepted before. The counts grow while it is carried out. ``leftovers`` names the files whose
    rows are gone and that are still to be removed: ``shards``, ``pictures``, ``uploads``,
    ``recordings``, ``objects``.
    """

    __tablename__ = "erasures"
    __table_args__ = (
        CheckConstraint("reason in ('request', 'retention', 'again')", name="reason_known"),
        CheckConstraint("from_utc < to_utc", name="span_not_empty"),
        Index(None, "camera_id", "created_at"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id"), unique=True)
    camera_id: Mapped[int] = mapped_column(ForeignKey("cameras.id"))
    from_utc: Mapped[datetime | None]
    to_utc: Mapped[datetime | None]
    reason: Mapped[str]
    note: Mapped[str] = mapped_column(server_default="")
    frames: Mapped[int] = mapped_column(server_default="0")
    pictures: Mapped[int] = mapped_column(server_default="0")
    shards_removed: Mapped[int] = mapped_column(server_default="0")
    shards_rewritten: Mapped[int] = mapped_column(server_default="0")
    objects: Mapped[int] = mapped_column(server_default="0")
    queries: Mapped[int] = mapped_column(server_default="0")
    hits: Mapped[int] = mapped_column(server_default="0")
    leftovers: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    created_at: Mapped[datetime] = created_at_column()
    finished_at: Mapped[datetime | None]

    camera: Mapped[Camera] = relationship(lazy="raise")
