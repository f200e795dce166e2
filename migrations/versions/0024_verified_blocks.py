"""how far a reindex has read a shard back

Revision ID: 0024
Revises: 0023
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "shards", sa.Column("verified_count", sa.BigInteger(), server_default="0", nullable=False)
    )
    op.create_check_constraint(
        op.f("ck_shards_verified_count_valid"),
        "shards",
        "verified_count between 0 and frame_count",
    )


def downgrade() -> None:
    op.drop_constraint(op.f("ck_shards_verified_count_valid"), "shards", type_="check")
    op.drop_column("shards", "verified_count")
