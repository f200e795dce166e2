"""recordings that arrive: sent, fetched, or written to a watched folder

Revision ID: 0017
Revises: 0016
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


_KINDS = "'ingest', 'query', 'reindex', 'erase', 'compact', 'seal', 'offload', 'feed', 'evidence'"


def _allow_kinds(kinds: str) -> None:
    op.drop_constraint(op.f("ck_jobs_kind_known"), "jobs")
    op.create_check_constraint(op.f("ck_jobs_kind_known"), "jobs", f"kind in ({kinds})")


def upgrade() -> None:
    _allow_kinds(_KINDS.replace("'ingest'", "'ingest', 'backfill', 'fetch', 'watch'"))
    op.add_column("video_segments", sa.Column("fetch_url", sa.Text(), nullable=True))
    op.add_column("video_segments", sa.Column("held_sha256", sa.Text(), nullable=True))
    op.create_check_constraint(
        op.f("ck_video_segments_held_sha256_hex"), "video_segments", "length(held_sha256) = 64"
    )
    op.create_index(
        "ix_video_segments_held_sha256",
        "video_segments",
        ["held_sha256"],
        postgresql_where=sa.text("held_sha256 is not null"),
    )
    _add_watches()
    op.create_table(
        "message_counts",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("messages", sa.BigInteger(), nullable=False),
        sa.Column("last_detail", sa.Text(), nullable=True),
        _time("last_at"),
        sa.CheckConstraint(
            "outcome in ('accepted', 'malformed', 'refused')",
            name=op.f("ck_message_counts_outcome_known"),
        ),
        sa.PrimaryKeyConstraint("source", "outcome", name=op.f("pk_message_counts")),
    )
    op.create_index(
        "ix_video_segments_source_path", "video_segments", ["source_path"], postgresql_using="hash"
    )


def _add_watches() -> None:
    op.create_table(
        "watched_folders",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("camera", sa.Text(), nullable=True),
        sa.Column("name_pattern", sa.Text(), nullable=True),
        sa.Column("time_zone", sa.Text(), nullable=False),
        sa.Column("policy", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_detail", sa.Text(), nullable=True),
        sa.Column("looked_at", sa.DateTime(timezone=True), nullable=True),
        _time("created_at"),
        sa.CheckConstraint("folder like '/%'", name=op.f("ck_watched_folders_folder_absolute")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_watched_folders_job_id_jobs")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_watched_folders")),
        sa.UniqueConstraint("folder", name=op.f("uq_watched_folders_folder")),
    )
    op.create_table(
        "watched_files",
        sa.Column("watch_id", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), server_default="seen", nullable=False),
        sa.Column("segment_id", sa.BigInteger(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_detail", sa.Text(), nullable=True),
        _time("changed_at"),
        sa.CheckConstraint(
            "state in ('seen', 'taken', 'failed')", name=op.f("ck_watched_files_state_known")
        ),
        sa.CheckConstraint(
            "(state = 'failed') = (error_code is not null)",
            name=op.f("ck_watched_files_error_failed"),
        ),
        sa.ForeignKeyConstraint(
            ["watch_id"],
            ["watched_folders.id"],
            name=op.f("fk_watched_files_watch_id_watched_folders"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["segment_id"],
            ["video_segments.id"],
            name=op.f("fk_watched_files_segment_id_video_segments"),
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("watch_id", "path", name=op.f("pk_watched_files")),
    )
    op.create_index(op.f("ix_watched_files_segment_id"), "watched_files", ["segment_id"])
    op.create_index(
        "ix_watched_files_seen",
        "watched_files",
        ["watch_id", "mtime_ns"],
        postgresql_where=sa.text("state = 'seen'"),
    )


def _time(name: str) -> sa.Column[datetime]:
    return sa.Column(
        name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
    )


def downgrade() -> None:
    op.drop_index("ix_video_segments_source_path", "video_segments")
    op.drop_table("message_counts")
    op.drop_table("watched_files")
    op.drop_table("watched_folders")
    op.drop_index("ix_video_segments_held_sha256", "video_segments")
    op.drop_constraint(op.f("ck_video_segments_held_sha256_hex"), "video_segments")
    op.drop_column("video_segments", "held_sha256")
    op.drop_column("video_segments", "fetch_url")
    op.execute(
        "update video_segments set job_id = null from jobs j"
        " where j.id = job_id and kind in ('backfill', 'fetch', 'watch')"
    )
    op.execute("delete from jobs where kind in ('backfill', 'fetch', 'watch')")
    _allow_kinds(_KINDS)
