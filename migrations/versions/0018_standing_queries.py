"""standing queries, the frames they are to see, and their alerts

Revision ID: 0018
Revises: 0017
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

TIME = postgresql.TIMESTAMP(timezone=True)
NOW = sa.text("now()")
IDS = postgresql.ARRAY(sa.SmallInteger())


def upgrade() -> None:
    _standing_queries()
    op.create_table(
        "new_frames",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("camera_id", sa.BigInteger(), nullable=False),
        sa.Column("frame_ids", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("held_until", TIME, nullable=True),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.CheckConstraint("cardinality(frame_ids) > 0", name=op.f("ck_new_frames_frames_given")),
        sa.ForeignKeyConstraint(
            ["camera_id"], ["cameras.id"], name=op.f("fk_new_frames_camera_id_cameras")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_new_frames")),
    )
    _alerts()
    op.add_column("events", sa.Column("standing_query_id", sa.BigInteger(), nullable=True))
    op.create_foreign_key(
        op.f("fk_events_standing_query_id_standing_queries"),
        "events",
        "standing_queries",
        ["standing_query_id"],
        ["id"],
        ondelete="CASCADE",
    )
    op.create_index(op.f("ix_events_standing_query_id"), "events", ["standing_query_id"])


def _standing_queries() -> None:
    op.create_table(
        "standing_queries",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key_id", sa.BigInteger(), nullable=True),
        sa.Column("frame_id", sa.BigInteger(), nullable=True),
        sa.Column("picture_sha256", sa.Text(), nullable=True),
        sa.Column("roi", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("params", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("max_false_per_day", sa.Float(), nullable=False),
        sa.Column("cool_down_s", sa.Float(), nullable=False),
        sa.Column("state", sa.Text(), server_default="running", nullable=False),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("judged_frames", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("unjudged_frames", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("ended_code", sa.Text(), nullable=True),
        sa.Column("ended_detail", sa.Text(), nullable=True),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.CheckConstraint(
            "length(name) between 1 and 200", name=op.f("ck_standing_queries_name_length")
        ),
        sa.CheckConstraint(
            "num_nonnulls(frame_id, picture_sha256) = 1",
            name=op.f("ck_standing_queries_one_source"),
        ),
        sa.CheckConstraint(
            "state in ('running', 'paused', 'ended')",
            name=op.f("ck_standing_queries_state_known"),
        ),
        sa.CheckConstraint(
            "(state = 'ended') = (ended_code is not null)"
            " and (state = 'ended') = (ended_at is not null)",
            name=op.f("ck_standing_queries_ended_with_reason"),
        ),
        sa.CheckConstraint(
            "max_false_per_day > 0 and cool_down_s >= 0",
            name=op.f("ck_standing_queries_rule_valid"),
        ),
        sa.ForeignKeyConstraint(
            ["key_id"], ["api_keys.id"], name=op.f("fk_standing_queries_key_id_api_keys")
        ),
        sa.ForeignKeyConstraint(
            ["frame_id"], ["frames.id"], name=op.f("fk_standing_queries_frame_id_frames")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_standing_queries")),
    )
    for column in ("frame_id", "key_id"):
        op.create_index(op.f(f"ix_standing_queries_{column}"), "standing_queries", [column])


def _alerts() -> None:
    op.create_table(
        "alerts",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("standing_query_id", sa.BigInteger(), nullable=False),
        sa.Column("frame_id", sa.BigInteger(), nullable=False),
        sa.Column("camera_id", sa.BigInteger(), nullable=False),
        sa.Column("t_utc", TIME, nullable=False),
        sa.Column("generation_id", sa.BigInteger(), nullable=False),
        sa.Column("likeness", sa.Float(), nullable=False),
        sa.Column("false_per_day", sa.Float(), nullable=False),
        sa.Column("similarity", sa.Float(), nullable=False),
        sa.Column("coverage", sa.Float(), nullable=False),
        sa.Column("grid_h", sa.SmallInteger(), nullable=False),
        sa.Column("grid_w", sa.SmallInteger(), nullable=False),
        sa.Column("region_query_index", IDS, nullable=False),
        sa.Column("region_cell_index", IDS, nullable=False),
        sa.Column("box", postgresql.ARRAY(sa.Double()), nullable=True),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.ForeignKeyConstraint(
            ["standing_query_id"],
            ["standing_queries.id"],
            name=op.f("fk_alerts_standing_query_id_standing_queries"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["frame_id"], ["frames.id"], name=op.f("fk_alerts_frame_id_frames")
        ),
        sa.ForeignKeyConstraint(
            ["camera_id"], ["cameras.id"], name=op.f("fk_alerts_camera_id_cameras")
        ),
        sa.ForeignKeyConstraint(
            ["generation_id"],
            ["index_generations.id"],
            name=op.f("fk_alerts_generation_id_index_generations"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alerts")),
        sa.UniqueConstraint(
            "standing_query_id", "frame_id", name=op.f("uq_alerts_standing_query_id_frame_id")
        ),
    )
    op.create_index(op.f("ix_alerts_frame_id"), "alerts", ["frame_id"])
    op.create_index(
        op.f("ix_alerts_standing_query_id_camera_id_t_utc"),
        "alerts",
        ["standing_query_id", "camera_id", "t_utc"],
    )


def downgrade() -> None:
    op.drop_constraint(
        op.f("fk_events_standing_query_id_standing_queries"), "events", type_="foreignkey"
    )
    op.drop_column("events", "standing_query_id")
    for table in ("alerts", "new_frames", "standing_queries"):
        op.drop_table(table)
