"""sealed shards on object storage

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _allow_kinds("'ingest', 'query', 'reindex', 'erase', 'compact', 'seal', 'offload'")
    op.add_column("shards", sa.Column("object_url", sa.Text(), nullable=True))
    op.add_column("shards", sa.Column("object_bytes", sa.BigInteger(), nullable=True))
    op.add_column("shards", sa.Column("object_crc32s", sa.LargeBinary(), nullable=True))
    op.add_column(
        "shards", sa.Column("object_only", sa.Boolean(), server_default="false", nullable=False)
    )
    op.create_check_constraint(
        op.f("ck_shards_object_whole"),
        "shards",
        "num_nulls(object_url, object_bytes, object_crc32s) in (0, 3)"
        " and (object_url is not null or not object_only)",
    )
    op.add_column(
        "erasures", sa.Column("objects", sa.BigInteger(), server_default="0", nullable=False)
    )


def downgrade() -> None:
    moved = op.get_bind().scalar(
        sa.text("select count(*) from shards where object_url is not null")
    )
    if moved:
        raise RuntimeError(
            f"{moved} shards lie on object storage, which an older version cannot read: set"
            " RIS_S3_AFTER_S=1e9, run `ris offload --back`, then downgrade"
        )
    op.drop_column("erasures", "objects")
    op.drop_constraint(op.f("ck_shards_object_whole"), "shards")
    for name in ("object_only", "object_crc32s", "object_bytes", "object_url"):
        op.drop_column("shards", name)
    op.execute("delete from jobs where kind = 'offload'")
    _allow_kinds("'ingest', 'query', 'reindex', 'erase', 'compact', 'seal'")


def _allow_kinds(kinds: str) -> None:
    op.drop_constraint(op.f("ck_jobs_kind_known"), "jobs")
    op.create_check_constraint(op.f("ck_jobs_kind_known"), "jobs", f"kind in ({kinds})")
