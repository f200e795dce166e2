"""continuous camera feeds: what is wanted, how they are, what was missed

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _allow_kinds("'ingest', 'query', 'reindex', 'erase', 'compact', 'seal', 'offload', 'feed'")
    op.create_table(
        "feeds",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("camera_id", sa.BigInteger(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("source_kind", sa.Text(), nullable=False),
        sa.Column("policy", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("desired_state", sa.Text(), server_default="running", nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        _time("created_at", now=True),
        sa.CheckConstraint(
            "source_kind in ('rtsp', 'http', 'file')", name=op.f("ck_feeds_source_kind_known")
        ),
        sa.CheckConstraint(
            "desired_state in ('running', 'paused', 'ended')",
            name=op.f("ck_feeds_desired_state_known"),
        ),
        _reference("feeds", "camera_id", "cameras"),
        _reference("feeds", "job_id", "jobs"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feeds")),
        sa.UniqueConstraint("camera_id", name=op.f("uq_feeds_camera_id")),
    )
    op.create_table(
        "feed_status",
        sa.Column("feed_id", sa.BigInteger(), nullable=False),
        sa.Column("phase", sa.Text(), server_default="waiting", nullable=False),
        _time("connected_since"),
        _time("last_seen_utc"),
        _time("last_frame_utc"),
        sa.Column("time_source", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_detail", sa.Text(), nullable=True),
        sa.Column("held_by", sa.Uuid(), nullable=True),
        _time("held_until"),
        sa.Column("segment_id", sa.BigInteger(), nullable=True),
        sa.Column("behind_frames", sa.BigInteger(), server_default="0", nullable=False),
        _time("updated_at", now=True),
        sa.CheckConstraint(
            "phase in ('waiting', 'connecting', 'live', 'idle')",
            name=op.f("ck_feed_status_phase_known"),
        ),
        _reference("feed_status", "feed_id", "feeds", ondelete="CASCADE"),
        _reference("feed_status", "segment_id", "video_segments", ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("feed_id", name=op.f("pk_feed_status")),
    )
    op.create_table(
        "feed_gaps",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("camera_id", sa.BigInteger(), nullable=False),
        sa.Column("from_utc", postgresql.TIMESTAMP(timezone=True), nullable=False),
        _time("to_utc"),
        sa.Column("reason", sa.Text(), nullable=False),
        _time("created_at", now=True),
        sa.CheckConstraint("from_utc <= to_utc", name=op.f("ck_feed_gaps_span_not_negative")),
        _reference("feed_gaps", "camera_id", "cameras"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feed_gaps")),
    )
    op.create_index(op.f("ix_feed_gaps_camera_id_from_utc"), "feed_gaps", ["camera_id", "from_utc"])
    op.create_index(
        "uq_feed_gaps_open",
        "feed_gaps",
        ["camera_id"],
        unique=True,
        postgresql_where=sa.text("to_utc is null"),
    )
    op.create_table(
        "feed_drops",
        sa.Column("camera_id", sa.BigInteger(), nullable=False),
        sa.Column("hour_utc", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("frames", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("frames > 0", name=op.f("ck_feed_drops_frames_positive")),
        _reference("feed_drops", "camera_id", "cameras"),
        sa.PrimaryKeyConstraint("camera_id", "hour_utc", "reason", name=op.f("pk_feed_drops")),
    )


def downgrade() -> None:
    for table in ("feed_drops", "feed_gaps", "feed_status", "feeds"):
        op.drop_table(table)
    op.execute("update video_segments set job_id = null where job_id in "
               "(select id from jobs where kind = 'feed')")  # fmt: skip
    op.execute("delete from jobs where kind = 'feed'")
    _allow_kinds("'ingest', 'query', 'reindex', 'erase', 'compact', 'seal', 'offload'")


def _time(name: str, *, now: bool = False) -> sa.Column[object]:
    default = sa.text("now()") if now else None
    kind = postgresql.TIMESTAMP(timezone=True)
    return sa.Column(name, kind, server_default=default, nullable=not now)


def _reference(
    table: str, column: str, other: str, ondelete: str | None = None
) -> sa.ForeignKeyConstraint:
    name = op.f(f"fk_{table}_{column}_{other}")
    return sa.ForeignKeyConstraint([column], [f"{other}.id"], name=name, ondelete=ondelete)


def _allow_kinds(kinds: str) -> None:
    op.drop_constraint(op.f("ck_jobs_kind_known"), "jobs")
    op.create_check_constraint(op.f("ck_jobs_kind_known"), "jobs", f"kind in ({kinds})")
