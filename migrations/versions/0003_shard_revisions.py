"""shards can be repaired, and every block has a checksum of its own

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "shards",
        sa.Column("revision", sa.BigInteger(), server_default="0", nullable=False),
    )
    # Null where an older version wrote the block: such rows are not checked when they are read.
    op.add_column("f_map_runs", sa.Column("global_crc32", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    if op.get_bind().scalar(sa.text("select coalesce(max(revision), 0) from shards")):
        raise RuntimeError("repaired shards cannot be read by the older version: reindex first")
    op.drop_column("f_map_runs", "global_crc32")
    op.drop_column("shards", "revision")
