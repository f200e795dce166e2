"""jobs that ended long ago are found, and removed without reading all segments

Revision ID: 0025
Revises: 0024
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_jobs_ended",
        "jobs",
        ["finished_at"],
        postgresql_where=sa.text("state in ('done', 'failed')"),
    )
    op.create_index(op.f("ix_video_segments_job_id"), "video_segments", ["job_id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_video_segments_job_id"), "video_segments")
    op.drop_index("ix_jobs_ended", "jobs")
