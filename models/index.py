"""Index generations, shards and f_map runs: what rows of which vector file are valid."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import ExcludeConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, created_at_column


class IndexGeneration(Base):
    """One consistent build of the index with one backbone spec; at most one is live.

    ``comparison``: how it compared with the one that was live while it was built; ids and figures.
    """

    __tablename__ = "index_generations"
    __table_args__ = (
        CheckConstraint(
            "state in ('building', 'live', 'retired', 'failed', 'removed')", name="state_known"
        ),
        Index("uq_index_generations_live", "state", unique=True, postgresql_where="state = 'live'"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    backbone: Mapped[str]
    spec_hash: Mapped[str]
    spec: Mapped[dict[str, Any]]
    codec: Mapped[str]
    state: Mapped[str]
    created_at: Mapped[datetime] = created_at_column()
    switched_at: Mapped[datetime | None]
    comparison: Mapped[dict[str, Any] | None]


class CompactBasis(Base):
    """The projection that a generation's compact codes are made with: recorded once, never changed.

    ``axes``: float32 little-endian (d, k), row-major; ``step``: value of one code unit.
    """

    __tablename__ = "compact_bases"

    generation_id: Mapped[int] = mapped_column(ForeignKey("index_generations.id"), primary_key=True)
    name: Mapped[str]
    axes: Mapped[bytes]
    code_dim: Mapped[int]
    step: Mapped[float]
    frame_count: Mapped[int]
    created_at: Mapped[datetime] = created_at_column()


class Shard(Base):
    """Vector files of one camera and time span in one generation.

    ``frame_count`` and ``row_count`` are the valid length of the global and the patch file; bytes
    behind them do not exist for anyone. ``revision`` names the files: a repair writes new ones.
    ``coded_count``: blocks that have compact codes in the files beside them. ``sealed_count``:
    leading blocks whose patches lie as runs; ``merged_count``: leading blocks made up from runs,
    now or before their files were written anew. ``last_utc``: time of its last frame, None without
    any. ``changed_at``: of its last append. ``verified_count``: leading blocks that a reindex has
    read back, in these files, while it built the generation.

    ``object_url``: where on object storage the sealed patches lie, ``object_bytes`` of them, with
    the CRC-32 of each part (``object_crc32s``, uint32 little-endian). ``object_only``: they lie
    nowhere else.
    """

    __tablename__ = "shards"
    __table_args__ = (
        UniqueConstraint("generation_id", "camera_id", "bucket_utc"),
        CheckConstraint("frame_count >= 0 and row_count >= 0", name="counts_not_negative"),
        CheckConstraint("coded_count between 0 and frame_count", name="coded_count_valid"),
        CheckConstraint("verified_count between 0 and frame_count", name="verified_count_valid"),
        CheckConstraint(
            "sealed_count between 0 and merged_count and merged_count <= frame_count",
            name="sealed_count_valid",
        ),
        CheckConstraint("(last_utc is null) = (frame_count = 0)", name="last_utc_known"),
        CheckConstraint(
            "num_nulls(object_url, object_bytes, object_crc32s) in (0, 3)"
            " and (object_url is not null or not object_only)",
            name="object_whole",
        ),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    generation_id: Mapped[int] = mapped_column(ForeignKey("index_generations.id"))
    camera_id: Mapped[int] = mapped_column(ForeignKey("cameras.id"))
    bucket_utc: Mapped[datetime]
    frame_count: Mapped[int] = mapped_column(server_default="0")
    row_count: Mapped[int] = mapped_column(server_default="0")
    revision: Mapped[int] = mapped_column(server_default="0")
    coded_count: Mapped[int] = mapped_column(server_default="0")
    sealed_count: Mapped[int] = mapped_column(server_default="0")
    merged_count: Mapped[int] = mapped_column(server_default="0")
    verified_count: Mapped[int] = mapped_column(server_default="0")
    last_utc: Mapped[datetime | None]
    changed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    object_url: Mapped[str | None]
    object_bytes: Mapped[int | None]
    object_crc32s: Mapped[bytes | None]
    object_only: Mapped[bool] = mapped_column(server_default="false")
    created_at: Mapped[datetime] = created_at_column()


class FMapRun(Base):
    """Patch rows ``[start_row, start_row + row_count)`` of a shard belong to one view of one frame.

    Paper eq. 3, stored as runs: one row per frame instead of one per patch. Overlap of two runs of
    a shard is impossible (exclusion constraint over range types, no extension needed).
    ``crc32`` covers the frame's stored global and patch bytes, ``global_crc32`` the global ones.
    """

    __tablename__ = "f_map_runs"
    __table_args__ = (
        UniqueConstraint("shard_id", "frame_id", "view"),
        Index(None, "frame_id"),
        CheckConstraint("start_row >= 0 and row_count > 0", name="rows_valid"),
        ExcludeConstraint(
            (text("int8range(shard_id, shard_id, '[]')"), "&&"),
            (text("int8range(start_row, start_row + row_count)"), "&&"),
            name="ex_f_map_runs_no_overlap",
            using="gist",
        ),
    )

    shard_id: Mapped[int] = mapped_column(ForeignKey("shards.id"), primary_key=True)
    start_row: Mapped[int] = mapped_column(primary_key=True)
    row_count: Mapped[int]
    frame_id: Mapped[int] = mapped_column(ForeignKey("frames.id"))
    view: Mapped[int] = mapped_column(server_default="0")
    crc32: Mapped[int]
    global_crc32: Mapped[int | None]


class CanaryCheck(Base):
    """Frames of a generation that were searched for in it, and how many found themselves."""

    __tablename__ = "canary_checks"
    __table_args__ = (
        CheckConstraint("asked >= 1", name="asked_some"),
        CheckConstraint("found between 0 and asked", name="found_of_asked"),
        Index(None, "generation_id", "id"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    generation_id: Mapped[int] = mapped_column(ForeignKey("index_generations.id"))
    asked: Mapped[int]
    found: Mapped[int]
    created_at: Mapped[datetime] = created_at_column()
