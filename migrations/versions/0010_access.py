"""keys of the API, what they asked for, and the audit

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

TIME = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("secret_sha256", sa.Text(), nullable=False),
        sa.Column("actions", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("camera_ids", postgresql.ARRAY(sa.BigInteger()), nullable=True),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("revoked_at", TIME, nullable=True),
        sa.CheckConstraint("length(name) between 1 and 200", name="name_length"),
        sa.CheckConstraint("length(secret_sha256) = 64", name="secret_sha256_hex"),
        sa.CheckConstraint("cardinality(actions) > 0", name="actions_given"),
        sa.CheckConstraint(
            "actions <@ array['view', 'search', 'ingest', 'admin']",
            name="actions_known",
        ),
        sa.CheckConstraint(
            "camera_ids is null or not 'admin' = any (actions)",
            name="admin_sees_every_camera",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("secret_sha256", name="uq_api_keys_secret_sha256"),
    )
    op.create_table(
        "request_keys",
        sa.Column("key_id", sa.BigInteger(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("request_sha256", sa.Text(), nullable=False),
        sa.Column("made", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["key_id"], ["api_keys.id"], name="fk_request_keys_key_id_api_keys"
        ),
        sa.PrimaryKeyConstraint("key_id", "idempotency_key", name="pk_request_keys"),
    )
    op.create_table(
        "audit_entries",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("t_utc", TIME, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("act", sa.Text(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("previous_sha256", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.CheckConstraint("seq >= 1", name="seq_from_one"),
        sa.CheckConstraint("length(sha256) = 64", name="sha256_hex"),
        sa.PrimaryKeyConstraint("seq", name="pk_audit_entries"),
        sa.UniqueConstraint("sha256", name="uq_audit_entries_sha256"),
    )
    op.execute(
        """
        create or replace function audit_is_append_only() returns trigger language plpgsql as $$
        begin
            raise exception 'audit_entries is append-only';
        end $$
        """
    )
    op.execute(
        """
        create trigger append_only before update or delete or truncate on audit_entries
        for each statement execute function audit_is_append_only()
        """
    )
    op.add_column("search_queries", sa.Column("key_id", sa.BigInteger(), nullable=True))
    op.create_foreign_key(
        "fk_search_queries_key_id_api_keys", "search_queries", "api_keys", ["key_id"], ["id"]
    )
    op.create_index(
        "ix_search_queries_key_id_created_at_id",
        "search_queries",
        ["key_id", "created_at", "id"],
    )


def downgrade() -> None:
    op.drop_index("ix_search_queries_key_id_created_at_id", table_name="search_queries")
    op.drop_column("search_queries", "key_id")
    op.drop_table("audit_entries")
    op.execute("drop function audit_is_append_only()")
    op.drop_table("request_keys")
    op.drop_table("api_keys")
