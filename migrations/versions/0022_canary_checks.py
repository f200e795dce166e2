"""canary checks of the live generation

Revision ID: 0022
Revises: 0021
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "canary_checks",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("generation_id", sa.BigInteger(), nullable=False),
        sa.Column("asked", sa.BigInteger(), nullable=False),
        sa.Column("found", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint("asked >= 1", name=op.f("ck_canary_checks_asked_some")),
        sa.CheckConstraint(
            "found between 0 and asked", name=op.f("ck_canary_checks_found_of_asked")
        ),
        sa.ForeignKeyConstraint(
            ["generation_id"],
            ["index_generations.id"],
            name=op.f("fk_canary_checks_generation_id_index_generations"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_canary_checks")),
    )
    op.create_index(
        op.f("ix_canary_checks_generation_id_id"), "canary_checks", ["generation_id", "id"]
    )


def downgrade() -> None:
    op.drop_table("canary_checks")
