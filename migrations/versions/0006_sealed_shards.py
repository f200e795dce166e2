"""sealed shards: what a camera goes on showing is stored once

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _allow_kinds("'ingest', 'query', 'reindex', 'erase', 'compact', 'seal'")
    op.drop_constraint(op.f("ck_shards_state_known"), "shards")
    op.drop_column("shards", "state")  # was always 'open'
    for name in ("sealed_count", "merged_count"):
        op.add_column(
            "shards", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)
        )
    op.add_column(
        "shards",
        sa.Column(
            "changed_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
    )
    op.create_check_constraint(
        op.f("ck_shards_sealed_count_valid"),
        "shards",
        "sealed_count between 0 and merged_count and merged_count <= frame_count",
    )


def downgrade() -> None:
    sealed = op.get_bind().scalar(sa.text("select count(*) from shards where sealed_count > 0"))
    if sealed:
        raise RuntimeError(
            f"{sealed} shards are sealed, which an older version cannot read: reindex with"
            " RIS_SEAL_AFTER_S=1e9 set, remove the other generations, then downgrade"
        )
    op.drop_constraint(op.f("ck_shards_sealed_count_valid"), "shards")
    for name in ("changed_at", "merged_count", "sealed_count"):
        op.drop_column("shards", name)
    state = sa.Column("state", sa.Text(), server_default="open", nullable=False)
    op.add_column("shards", state)
    op.create_check_constraint(
        op.f("ck_shards_state_known"), "shards", "state in ('open', 'sealed', 'retired')"
    )
    op.execute("delete from jobs where kind = 'seal'")
    _allow_kinds("'ingest', 'query', 'reindex', 'erase', 'compact'")


def _allow_kinds(kinds: str) -> None:
    op.drop_constraint(op.f("ck_jobs_kind_known"), "jobs")
    op.create_check_constraint(op.f("ck_jobs_kind_known"), "jobs", f"kind in ({kinds})")
