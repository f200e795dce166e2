"""compact codes lie in files beside the vectors

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _allow_kinds("'ingest', 'query', 'reindex', 'erase', 'compact'")
    op.create_table(
        "compact_bases",
        sa.Column("generation_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("axes", sa.LargeBinary(), nullable=False),
        sa.Column("code_dim", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.Double(), nullable=False),
        sa.Column("frame_count", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["generation_id"],
            ["index_generations.id"],
            name=op.f("fk_compact_bases_generation_id_index_generations"),
        ),
        sa.PrimaryKeyConstraint("generation_id", name=op.f("pk_compact_bases")),
    )
    op.add_column(
        "shards", sa.Column("coded_count", sa.BigInteger(), server_default="0", nullable=False)
    )
    op.create_check_constraint(
        op.f("ck_shards_coded_count_valid"), "shards", "coded_count between 0 and frame_count"
    )


def downgrade() -> None:
    # The files stay: an older version does not read them, a newer one makes them again.
    op.drop_column("shards", "coded_count")
    op.drop_table("compact_bases")
    op.execute("delete from jobs where kind = 'compact'")
    _allow_kinds("'ingest', 'query', 'reindex', 'erase'")


def _allow_kinds(kinds: str) -> None:
    op.drop_constraint(op.f("ck_jobs_kind_known"), "jobs")
    op.create_check_constraint(op.f("ck_jobs_kind_known"), "jobs", f"kind in ({kinds})")
