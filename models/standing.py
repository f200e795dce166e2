"""Standing queries, the new frames they are still to see, and the alerts they raised."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Identity,
    Index,
    SmallInteger,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base, created_at_column
from models.video import Frame


class StandingQuery(Base):
    """A query that new frames are compared with as they come, until it ends.

    ``key_id``: the API key that asked; null: the command line. ``max_false_per_day``: it raises an
    alert where chance brings at most so many frames of a camera's day to the same likeness.
    ``cool_down_s``: of one camera alerts are at least so far apart, by the times of their frames.
    ``ended_code``: why it ended. ``judged_frames``, ``unjudged_frames``: of the frames that came.
    """

    __tablename__ = "standing_queries"
    __table_args__ = (
        CheckConstraint("length(name) between 1 and 200", name="name_length"),
        CheckConstraint("num_nonnulls(frame_id, picture_sha256) = 1", name="one_source"),
        CheckConstraint("state in ('running', 'paused', 'ended')", name="state_known"),
        CheckConstraint(
            "(state = 'ended') = (ended_code is not null)"
            " and (state = 'ended') = (ended_at is not null)",
            name="ended_with_reason",
        ),
        CheckConstraint("max_false_per_day > 0 and cool_down_s >= 0", name="rule_valid"),
        Index(None, "frame_id"),
        Index(None, "key_id"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str]
    key_id: Mapped[int | None] = mapped_column(ForeignKey("api_keys.id"))
    frame_id: Mapped[int | None] = mapped_column(ForeignKey("frames.id"))
    picture_sha256: Mapped[str | None]
    roi: Mapped[dict[str, Any]]
    params: Mapped[dict[str, Any]]
    max_false_per_day: Mapped[float]
    cool_down_s: Mapped[float]
    state: Mapped[str] = mapped_column(server_default="running")
    expires_at: Mapped[datetime | None]
    judged_frames: Mapped[int] = mapped_column(server_default="0")
    unjudged_frames: Mapped[int] = mapped_column(server_default="0")
    ended_code: Mapped[str | None]
    ended_detail: Mapped[str | None]
    ended_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = created_at_column()


class NewFrames(Base):
    """A batch of frames that standing queries are still to see, recorded in the batch's own
    transaction: what is read here is committed, in whatever order ids were given.

    ``held_until``: a worker looks at them until then.
    """

    __tablename__ = "new_frames"
    __table_args__ = (CheckConstraint("cardinality(frame_ids) > 0", name="frames_given"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    camera_id: Mapped[int] = mapped_column(ForeignKey("cameras.id"))
    frame_ids: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    attempts: Mapped[int] = mapped_column(server_default="0")
    held_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = created_at_column()


class Alert(Base):
    """A new frame that a standing query fired on. ``box``: x0, y0, x1, y1 of the subject, 0..1."""

    __tablename__ = "alerts"
    __table_args__ = (
        UniqueConstraint("standing_query_id", "frame_id"),
        Index(None, "frame_id"),
        Index(None, "standing_query_id", "camera_id", "t_utc"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    standing_query_id: Mapped[int] = mapped_column(
        ForeignKey("standing_queries.id", ondelete="CASCADE")
    )
    frame_id: Mapped[int] = mapped_column(ForeignKey("frames.id"))
    camera_id: Mapped[int] = mapped_column(ForeignKey("cameras.id"))
    t_utc: Mapped[datetime]
    generation_id: Mapped[int] = mapped_column(ForeignKey("index_generations.id"))
    likeness: Mapped[float]
    false_per_day: Mapped[float]
    similarity: Mapped[float]
    coverage: Mapped[float]
    grid_h: Mapped[int] = mapped_column(SmallInteger)
    grid_w: Mapped[int] = mapped_column(SmallInteger)
    region_query_index: Mapped[list[int]] = mapped_column(ARRAY(SmallInteger))
    region_cell_index: Mapped[list[int]] = mapped_column(ARRAY(SmallInteger))
    box: Mapped[list[float] | None] = mapped_column(ARRAY(Double))
    created_at: Mapped[datetime] = created_at_column()

    frame: Mapped[Frame] = relationship(lazy="raise")
    standing_query: Mapped[StandingQuery] = relationship(lazy="raise")
