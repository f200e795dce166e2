"""the time of a shard's last frame, so that a time filter chooses shards without reading runs

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("shards", sa.Column("last_utc", postgresql.TIMESTAMP(timezone=True)))
    op.execute(
        "update shards s set last_utc = (select max(f.t_utc) from f_map_runs r"
        " join frames f on f.id = r.frame_id where r.shard_id = s.id)"
    )
    op.create_check_constraint(
        op.f("ck_shards_last_utc_known"), "shards", "(last_utc is null) = (frame_count = 0)"
    )


def downgrade() -> None:
    op.drop_constraint(op.f("ck_shards_last_utc_known"), "shards")
    op.drop_column("shards", "last_utc")
