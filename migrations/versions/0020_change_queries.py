"""questions when a box of a camera changed

Revision ID: 0020
Revises: 0019
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

_KINDS = (
    "'ingest', 'backfill', 'fetch', 'watch', 'query', 'reindex', 'erase', 'compact', 'seal',"
    " 'offload', 'feed', 'evidence'"
)
_TIME = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    _allow_kinds(f"{_KINDS}, 'changes'")
    op.create_table(
        "change_queries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.BigInteger(), nullable=True),
        sa.Column("camera_id", sa.BigInteger(), nullable=False),
        sa.Column("roi", postgresql.JSONB(), nullable=False),
        sa.Column("from_utc", _TIME, nullable=True),
        sa.Column("to_utc", _TIME, nullable=True),
        sa.Column("hold", sa.BigInteger(), nullable=False),
        sa.Column("frames", sa.BigInteger(), nullable=True),
        sa.Column("first_utc", _TIME, nullable=True),
        sa.Column("last_utc", _TIME, nullable=True),
        sa.Column("level", sa.Float(), nullable=True),
        sa.Column("states", postgresql.JSONB(), nullable=True),
        sa.Column("created_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("hold >= 1", name=op.f("ck_change_queries_hold_from_one")),
        sa.CheckConstraint("from_utc < to_utc", name=op.f("ck_change_queries_span_has_length")),
        sa.CheckConstraint(
            "(frames is null) = (states is null)", name=op.f("ck_change_queries_answered_whole")
        ),
        sa.CheckConstraint(
            "num_nulls(first_utc, last_utc, level) in (0, 3)",
            name=op.f("ck_change_queries_looked_whole"),
        ),
        sa.CheckConstraint(
            "(coalesce(frames, 0) > 0) = (first_utc is not null)",
            name=op.f("ck_change_queries_frames_have_times"),
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_change_queries_job_id_jobs")
        ),
        sa.ForeignKeyConstraint(
            ["key_id"], ["api_keys.id"], name=op.f("fk_change_queries_key_id_api_keys")
        ),
        sa.ForeignKeyConstraint(
            ["camera_id"], ["cameras.id"], name=op.f("fk_change_queries_camera_id_cameras")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_change_queries")),
        sa.UniqueConstraint("job_id", name=op.f("uq_change_queries_job_id")),
    )
    op.create_index(op.f("ix_change_queries_camera_id"), "change_queries", ["camera_id"])
    op.create_index(
        op.f("ix_change_queries_key_id_created_at_id"),
        "change_queries",
        ["key_id", "created_at", "id"],
    )
    _note_state_of("new.kind in ('query', 'changes')")


def downgrade() -> None:
    _note_state_of("new.kind = 'query'")
    op.drop_table("change_queries")
    op.execute("delete from jobs where kind = 'changes'")
    _allow_kinds(_KINDS)


def _allow_kinds(kinds: str) -> None:
    op.drop_constraint(op.f("ck_jobs_kind_known"), "jobs")
    op.create_check_constraint(op.f("ck_jobs_kind_known"), "jobs", f"kind in ({kinds})")


def _note_state_of(which: str) -> None:
    """Followers of these jobs are told of each state."""
    op.execute("drop trigger ris_query_state on jobs")
    op.execute(
        "create trigger ris_query_state after update on jobs for each row"
        f" when ({which} and new.state is distinct from old.state)"
        " execute function ris_note_query_state()"
    )
