"""old Idempotency-Keys are found by their time, without walking through all of a key

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        op.f("ix_request_keys_key_id_created_at"), "request_keys", ["key_id", "created_at"]
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_request_keys_key_id_created_at"), "request_keys")
