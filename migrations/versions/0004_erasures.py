"""footage can be erased, on request and when its retention ends

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_COUNTS = ("frames", "pictures", "shards_removed", "shards_rewritten", "queries", "hits")


def upgrade() -> None:
    op.add_column("cameras", sa.Column("retention_days", sa.BigInteger(), nullable=True))
    op.create_check_constraint(
        op.f("ck_cameras_retention_days_valid"), "cameras", "retention_days >= 0"
    )
    _allow_kinds("'ingest', 'query', 'reindex', 'erase'")
    _allow_states("'building', 'live', 'retired', 'failed', 'removed'")
    op.create_table(
        "erasures",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("camera_id", sa.BigInteger(), nullable=False),
        sa.Column("from_utc", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("to_utc", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), server_default="", nullable=False),
        *(sa.Column(name, sa.BigInteger(), server_default="0", nullable=False) for name in _COUNTS),
        sa.Column(
            "leftovers",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default="{}",
            nullable=False,
        ),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("finished_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint(
            "reason in ('request', 'retention', 'again')", name=op.f("ck_erasures_reason_known")
        ),
        sa.CheckConstraint("from_utc < to_utc", name=op.f("ck_erasures_span_not_empty")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_erasures_job_id_jobs")),
        sa.ForeignKeyConstraint(
            ["camera_id"], ["cameras.id"], name=op.f("fk_erasures_camera_id_cameras")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_erasures")),
        sa.UniqueConstraint("job_id", name=op.f("uq_erasures_job_id")),
    )
    op.create_index(
        op.f("ix_erasures_camera_id_created_at"), "erasures", ["camera_id", "created_at"]
    )
    # Without these every erased frame would be looked for in a whole table.
    op.create_index(
        op.f("ix_frames_picture_sha256"), "frames", ["picture_sha256"], postgresql_using="hash"
    )
    op.create_index(op.f("ix_search_queries_frame_id"), "search_queries", ["frame_id"])


def downgrade() -> None:
    if op.get_bind().scalar(sa.text("select count(*) from erasures")):
        raise RuntimeError(
            "receipts of erasures would be lost: keep `ris erasures --json`, empty the table, then"
            " downgrade"
        )
    op.drop_index(op.f("ix_search_queries_frame_id"), "search_queries")
    op.drop_index(op.f("ix_frames_picture_sha256"), "frames")
    op.drop_table("erasures")
    op.execute("delete from jobs where kind = 'erase'")
    _allow_kinds("'ingest', 'query', 'reindex'")
    op.execute("update index_generations set state = 'failed' where state = 'removed'")
    _allow_states("'building', 'live', 'retired', 'failed'")
    op.drop_column("cameras", "retention_days")


def _allow_kinds(kinds: str) -> None:
    op.drop_constraint(op.f("ck_jobs_kind_known"), "jobs")
    op.create_check_constraint(op.f("ck_jobs_kind_known"), "jobs", f"kind in ({kinds})")


def _allow_states(states: str) -> None:
    name = op.f("ck_index_generations_state_known")
    op.drop_constraint(name, "index_generations")
    op.create_check_constraint(name, "index_generations", f"state in ({states})")
