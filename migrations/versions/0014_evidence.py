"""evidence: what searches knew, and exports of hits

Revision ID: 0014
Revises: 0013
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_ACTIONS = "actions <@ array['view', 'search', {}'ingest', 'admin']"
_KINDS = "'ingest', 'query', 'reindex', 'erase', 'compact', 'seal', 'offload', 'feed'"


def upgrade() -> None:
    _allow(_ACTIONS.format("'export', "), f"{_KINDS}, 'evidence'")
    op.add_column("search_queries", sa.Column("terms_sha256", sa.Text(), nullable=True))
    op.add_column(
        "search_queries",
        sa.Column("terms_frame_ids", postgresql.ARRAY(sa.BigInteger()), nullable=True),
    )
    op.create_index(
        op.f("ix_search_queries_terms_frame_ids"),
        "search_queries",
        ["terms_frame_ids"],
        postgresql_using="gin",
    )
    op.add_column("search_hits", sa.Column("terms", sa.LargeBinary(), nullable=True))
    op.create_table(
        "evidence_exports",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("query_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.BigInteger(), nullable=True),
        sa.Column("ranks", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("frame_ids", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("content_sha256", sa.Text(), nullable=True),
        sa.Column("content_bytes", sa.BigInteger(), nullable=True),
        sa.Column("signed_by", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint("cardinality(ranks) > 0", name=op.f("ck_evidence_exports_ranks_given")),
        sa.CheckConstraint(
            "num_nulls(content_sha256, content_bytes, signed_by) in (0, 3)",
            name=op.f("ck_evidence_exports_content_whole"),
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_evidence_exports_job_id_jobs")
        ),
        sa.ForeignKeyConstraint(
            ["query_id"],
            ["search_queries.id"],
            name=op.f("fk_evidence_exports_query_id_search_queries"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["key_id"], ["api_keys.id"], name=op.f("fk_evidence_exports_key_id_api_keys")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evidence_exports")),
        sa.UniqueConstraint("job_id", name=op.f("uq_evidence_exports_job_id")),
    )
    op.create_index(op.f("ix_evidence_exports_query_id"), "evidence_exports", ["query_id"])
    op.create_index(
        op.f("ix_evidence_exports_frame_ids"),
        "evidence_exports",
        ["frame_ids"],
        postgresql_using="gin",
    )


def downgrade() -> None:
    op.drop_table("evidence_exports")
    op.drop_column("search_hits", "terms")
    op.drop_column("search_queries", "terms_frame_ids")
    op.drop_column("search_queries", "terms_sha256")
    op.execute("delete from jobs where kind = 'evidence'")
    # A key that could do nothing else opens nothing more; the others lose this.
    op.execute(
        "update api_keys set revoked_at = now() where actions = array['export']"
        " and revoked_at is null"
    )
    op.execute("update api_keys set actions = array['search'] where actions = array['export']")
    op.execute("update api_keys set actions = array_remove(actions, 'export')")
    _allow(_ACTIONS.format(""), _KINDS)


def _allow(actions: str, kinds: str) -> None:
    op.drop_constraint(op.f("ck_api_keys_actions_known"), "api_keys")
    op.create_check_constraint(op.f("ck_api_keys_actions_known"), "api_keys", actions)
    op.drop_constraint(op.f("ck_jobs_kind_known"), "jobs")
    op.create_check_constraint(op.f("ck_jobs_kind_known"), "jobs", f"kind in ({kinds})")
