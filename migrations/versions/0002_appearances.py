"""hits carry their box, their expected false matches and their appearance

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Hits of older versions have none of these: nullable, and no table is rewritten.
    for column in (
        sa.Column("box", postgresql.ARRAY(sa.Double()), nullable=True),
        sa.Column("on_trail", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("false_matches", sa.Double(), nullable=True),
        sa.Column("appearance_from_utc", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("appearance_to_utc", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("appearance_frames", sa.BigInteger(), server_default="1", nullable=False),
    ):
        op.add_column("search_hits", column)


def downgrade() -> None:
    for name in (
        "appearance_frames",
        "appearance_to_utc",
        "appearance_from_utc",
        "false_matches",
        "on_trail",
        "box",
    ):
        op.drop_column("search_hits", name)
