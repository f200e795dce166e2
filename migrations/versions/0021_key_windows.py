"""keys that see the footage of some time only

Revision ID: 0021
Revises: 0020
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

_COLUMNS = ("footage_from_utc", "footage_to_utc")


def upgrade() -> None:
    for name in _COLUMNS:
        op.add_column(
            "api_keys", sa.Column(name, postgresql.TIMESTAMP(timezone=True), nullable=True)
        )
    op.create_check_constraint(
        op.f("ck_api_keys_window_has_length"), "api_keys", "footage_from_utc < footage_to_utc"
    )
    op.create_check_constraint(
        op.f("ck_api_keys_window_is_for_reading"),
        "api_keys",
        "num_nonnulls(footage_from_utc, footage_to_utc) = 0"
        " or not actions && array['ingest', 'admin']",
    )


def downgrade() -> None:
    # Without its window a key would see everything.
    op.execute(
        "update api_keys set revoked_at = now() where revoked_at is null"
        " and num_nonnulls(footage_from_utc, footage_to_utc) > 0"
    )
    op.drop_constraint(op.f("ck_api_keys_window_is_for_reading"), "api_keys", type_="check")
    op.drop_constraint(op.f("ck_api_keys_window_has_length"), "api_keys", type_="check")
    for name in _COLUMNS:
        op.drop_column("api_keys", name)
