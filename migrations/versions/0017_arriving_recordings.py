"""recordings that arrive: sent to the API and held in the data folder until they are ingested

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


def upgrade() -> None:
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
