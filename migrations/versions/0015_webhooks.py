"""events out, and the webhooks that are told

Revision ID: 0015
Revises: 0014
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

TIME = postgresql.TIMESTAMP(timezone=True)
NOW = sa.text("now()")


def upgrade() -> None:
    _allow_actions("'view', 'search', 'export', 'ingest', 'notify', 'admin'")
    op.create_table(
        "webhooks",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("kinds", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("key_id", sa.BigInteger(), nullable=True),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("former_secret", sa.Text(), nullable=True),
        sa.Column("former_until", TIME, nullable=True),
        sa.Column("state", sa.Text(), server_default="active", nullable=False),
        sa.Column("held_until", TIME, nullable=True),
        sa.Column("rest_until", TIME, nullable=True),
        sa.Column("failures", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("last_delivered_at", TIME, nullable=True),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.CheckConstraint("length(name) between 1 and 200", name=op.f("ck_webhooks_name_length")),
        sa.CheckConstraint("cardinality(kinds) > 0", name=op.f("ck_webhooks_kinds_given")),
        sa.CheckConstraint(
            "state in ('active', 'paused', 'gone')", name=op.f("ck_webhooks_state_known")
        ),
        sa.CheckConstraint(
            "(former_secret is null) = (former_until is null)",
            name=op.f("ck_webhooks_former_secret_ends"),
        ),
        sa.ForeignKeyConstraint(
            ["key_id"], ["api_keys.id"], name=op.f("fk_webhooks_key_id_api_keys")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("data", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("frame_id", sa.BigInteger(), nullable=True),
        sa.Column("query_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.ForeignKeyConstraint(
            ["frame_id"], ["frames.id"], name=op.f("fk_events_frame_id_frames")
        ),
        sa.ForeignKeyConstraint(
            ["query_id"], ["search_queries.id"], name=op.f("fk_events_query_id_search_queries")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    for column in ("created_at", "frame_id", "query_id"):
        op.create_index(op.f(f"ix_events_{column}"), "events", [column])
    op.create_table(
        "deliveries",
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("webhook_id", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("next_try_at", TIME, server_default=NOW, nullable=False),
        sa.Column("status", sa.BigInteger(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.Column("finished_at", TIME, nullable=True),
        sa.CheckConstraint(
            "state in ('pending', 'delivered', 'dead')", name=op.f("ck_deliveries_state_known")
        ),
        sa.CheckConstraint(
            "(state = 'pending') = (finished_at is null)",
            name=op.f("ck_deliveries_finished_if_over"),
        ),
        sa.ForeignKeyConstraint(
            ["event_id"],
            ["events.id"],
            name=op.f("fk_deliveries_event_id_events"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["webhook_id"],
            ["webhooks.id"],
            name=op.f("fk_deliveries_webhook_id_webhooks"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("event_id", "webhook_id", name=op.f("pk_deliveries")),
    )
    op.create_index(
        "ix_deliveries_due",
        "deliveries",
        ["webhook_id", "next_try_at"],
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        op.f("ix_deliveries_webhook_id_created_at_event_id"),
        "deliveries",
        ["webhook_id", "created_at", "event_id"],
    )


def downgrade() -> None:
    for table in ("deliveries", "events", "webhooks"):
        op.drop_table(table)
    # A key that allows nothing else any more opens nothing at all.
    op.execute(
        "update api_keys set revoked_at = coalesce(revoked_at, now()), actions = array['view']"
        " where actions = array['notify']"
    )
    op.execute("update api_keys set actions = array_remove(actions, 'notify')")
    _allow_actions("'view', 'search', 'export', 'ingest', 'admin'")


def _allow_actions(actions: str) -> None:
    op.drop_constraint(op.f("ck_api_keys_actions_known"), "api_keys")
    op.create_check_constraint(
        op.f("ck_api_keys_actions_known"), "api_keys", f"actions <@ array[{actions}]"
    )
