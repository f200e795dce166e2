"""Search queries and their hits."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Double, ForeignKey, Index, SmallInteger
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base, created_at_column
from models.video import Frame

QUERY_CHANNEL = "ris_queries"
"""Where Postgres notifies, with the job's id, that a query changed."""


class SearchQuery(Base):
    """An ROI query: on an uploaded picture (by content hash) or on an indexed frame.

    Its state is its job's state; there is no second copy. ``key_id``: the API key that asked; null
    where the command line did. ``terms_sha256``: of the file among the uploads that says what the
    search knew beside the frames it compared, with descriptors of the frames ``terms_frame_ids``;
    null before it is done, of older versions, and once one of these frames was erased.
    ``answer_step``: what its hits are: ``none`` yet; those of the footage nearest to the query
    (``early``); those of all footage, whose boxes may become finer (``ranked``); the ``final``
    ones.
    """

    __tablename__ = "search_queries"
    __table_args__ = (
        CheckConstraint("num_nonnulls(frame_id, picture_sha256) = 1", name="one_source"),
        CheckConstraint(
            "answer_step in ('none', 'early', 'ranked', 'final')", name="answer_step_known"
        ),
        Index(None, "frame_id"),
        Index(None, "key_id", "created_at", "id"),
        Index(None, "terms_frame_ids", postgresql_using="gin"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id"), unique=True)
    frame_id: Mapped[int | None] = mapped_column(ForeignKey("frames.id"))
    picture_sha256: Mapped[str | None]
    roi: Mapped[dict[str, Any]]
    params: Mapped[dict[str, Any]]
    key_id: Mapped[int | None] = mapped_column(ForeignKey("api_keys.id"))
    generation_id: Mapped[int | None] = mapped_column(ForeignKey("index_generations.id"))
    stats: Mapped[dict[str, Any] | None]
    answer_step: Mapped[str] = mapped_column(server_default="none")
    terms_sha256: Mapped[str | None]
    terms_frame_ids: Mapped[list[int] | None] = mapped_column(ARRAY(BigInteger))
    created_at: Mapped[datetime] = created_at_column()


class SearchHit(Base):
    """One ranked hit: frame, score and the matched region G* as pairs of cell ids.

    ``box``: x0, y0, x1, y1 of the subject, 0..1. ``false_matches``: frames that chance brings to
    this likeness; null where the strategy does not say. ``appearance_*``: span and number of the
    hits that this one stands for. All are null in hits recorded before version 0.2. ``terms``: what
    the search knew of this frame beside its descriptors.
    """

    __tablename__ = "search_hits"
    __table_args__ = (
        Index(None, "frame_id"),
        CheckConstraint("rank >= 1", name="rank_from_one"),
    )

    query_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("search_queries.id"), primary_key=True)
    rank: Mapped[int] = mapped_column(primary_key=True)
    frame_id: Mapped[int] = mapped_column(ForeignKey("frames.id"))
    score: Mapped[float]
    similarity: Mapped[float]
    coverage: Mapped[float]
    grid_h: Mapped[int] = mapped_column(SmallInteger)
    grid_w: Mapped[int] = mapped_column(SmallInteger)
    region_query_index: Mapped[list[int]] = mapped_column(ARRAY(SmallInteger))
    region_cell_index: Mapped[list[int]] = mapped_column(ARRAY(SmallInteger))
    box: Mapped[list[float] | None] = mapped_column(ARRAY(Double))
    on_trail: Mapped[bool] = mapped_column(server_default="false")
    false_matches: Mapped[float | None]
    appearance_from_utc: Mapped[datetime | None]
    appearance_to_utc: Mapped[datetime | None]
    appearance_frames: Mapped[int] = mapped_column(server_default="1")
    terms: Mapped[bytes | None] = mapped_column(deferred=True)

    frame: Mapped[Frame] = relationship(lazy="raise")


class EvidenceExport(Base):
    """Some hits of a query, exported: its state is its job's. ``content_sha256``: of the bundle,
    once it is made, a file among the uploads.

    ``frame_ids``: whose pictures or descriptors are in it; it goes with the first of them.
    ``key_id``: the API key that exports; null where the command line does.
    """

    __tablename__ = "evidence_exports"
    __table_args__ = (
        Index(None, "query_id"),
        Index(None, "frame_ids", postgresql_using="gin"),
        CheckConstraint("cardinality(ranks) > 0", name="ranks_given"),
        CheckConstraint(
            "num_nulls(content_sha256, content_bytes, signed_by) in (0, 3)", name="content_whole"
        ),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id"), unique=True)
    query_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("search_queries.id", ondelete="CASCADE"))
    key_id: Mapped[int | None] = mapped_column(ForeignKey("api_keys.id"))
    ranks: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    frame_ids: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    content_sha256: Mapped[str | None]
    content_bytes: Mapped[int | None]
    signed_by: Mapped[str | None]
    created_at: Mapped[datetime] = created_at_column()


class ChangeQuery(Base):
    """The question when a box of a camera changed: its state is its job's.

    ``from_utc``, ``to_utc``: the span asked about, null where it is open. ``frames``: how many were
    looked at, null until it is answered; ``first_utc``, ``last_utc``: the first and last of their
    times, null where there were none. ``level``: the difference that counts. It goes with the first
    frame of the camera between them. ``key_id``: the API key that asks.
    """

    __tablename__ = "change_queries"
    __table_args__ = (
        Index(None, "camera_id"),
        Index(None, "key_id", "created_at", "id"),
        CheckConstraint("hold >= 1", name="hold_from_one"),
        CheckConstraint("from_utc < to_utc", name="span_has_length"),
        CheckConstraint("(frames is null) = (states is null)", name="answered_whole"),
        CheckConstraint("num_nulls(first_utc, last_utc, level) in (0, 3)", name="looked_whole"),
        CheckConstraint(
            "(coalesce(frames, 0) > 0) = (first_utc is not null)", name="frames_have_times"
        ),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id"), unique=True)
    key_id: Mapped[int | None] = mapped_column(ForeignKey("api_keys.id"))
    camera_id: Mapped[int] = mapped_column(ForeignKey("cameras.id"))
    roi: Mapped[dict[str, Any]]
    from_utc: Mapped[datetime | None]
    to_utc: Mapped[datetime | None]
    hold: Mapped[int]
    frames: Mapped[int | None]
    first_utc: Mapped[datetime | None]
    last_utc: Mapped[datetime | None]
    level: Mapped[float | None]
    states: Mapped[list[dict[str, Any]] | None]
    created_at: Mapped[datetime] = created_at_column()
