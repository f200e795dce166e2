"""privacy masks of cameras

Revision ID: 0013
Revises: 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "privacy_masks",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("camera_id", sa.BigInteger(), nullable=False),
        sa.Column("areas", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["camera_id"], ["cameras.id"], name=op.f("fk_privacy_masks_camera_id_cameras")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_privacy_masks")),
    )
    op.create_index(op.f("ix_privacy_masks_camera_id"), "privacy_masks", ["camera_id"])
    for table in ("cameras", "frames"):  # without a default no row is written anew
        op.add_column(table, sa.Column("mask_id", sa.BigInteger(), nullable=True))
        op.create_foreign_key(
            op.f(f"fk_{table}_mask_id_privacy_masks"),
            table,
            "privacy_masks",
            ["mask_id"],
            ["id"],
        )


def downgrade() -> None:
    for table in ("frames", "cameras"):
        op.drop_constraint(op.f(f"fk_{table}_mask_id_privacy_masks"), table, type_="foreignkey")
        op.drop_column(table, "mask_id")
    op.drop_table("privacy_masks")
