"""recordings that arrive: sent, or fetched, and held in the data folder until they are ingested

Revision ID: 0017
Revises: 0013
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0013"
branch_labels = None
depends_on = None


_KINDS = "'ingest', 'query', 'reindex', 'erase', 'compact', 'seal', 'offload', 'feed'"


def _allow_kinds(kinds: str) -> None:
    op.drop_constraint(op.f("ck_jobs_kind_known"), "jobs")
    op.create_check_constraint(op.f("ck_jobs_kind_known"), "jobs", f"kind in ({kinds})")


def upgrade() -> None:
    _allow_kinds(_KINDS.replace("'ingest'", "'ingest', 'fetch'"))
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


def downgrade() -> None:
    op.drop_index("ix_video_segments_held_sha256", "video_segments")
    op.drop_constraint(op.f("ck_video_segments_held_sha256_hex"), "video_segments")
    op.drop_column("video_segments", "held_sha256")
    op.drop_column("video_segments", "fetch_url")
    op.execute(
        "update video_segments set job_id = null from jobs j where j.id = job_id and kind = 'fetch'"
    )
    op.execute("delete from jobs where kind = 'fetch'")
    _allow_kinds(_KINDS)
