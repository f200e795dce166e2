"""keys that are no secret but a role of an issuer's access tokens

Revision ID: 0023
Revises: 0022
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("role", sa.Text(), nullable=True))
    op.alter_column("api_keys", "secret_sha256", nullable=True)
    op.create_check_constraint(
        op.f("ck_api_keys_secret_or_role"), "api_keys", "num_nonnulls(secret_sha256, role) = 1"
    )
    op.create_check_constraint(
        op.f("ck_api_keys_role_length"), "api_keys", "length(role) between 1 and 200"
    )
    op.create_index(
        "uq_api_keys_role_alive",
        "api_keys",
        ["role"],
        unique=True,
        postgresql_where=sa.text("revoked_at is null"),
    )


def downgrade() -> None:
    op.drop_index("uq_api_keys_role_alive", table_name="api_keys")
    op.drop_constraint(op.f("ck_api_keys_role_length"), "api_keys", type_="check")
    op.drop_constraint(op.f("ck_api_keys_secret_or_role"), "api_keys", type_="check")
    # The audit and queries name these rows: they stay, revoked, and with a hash that no secret has.
    op.execute(
        "update api_keys set revoked_at = coalesce(revoked_at, now()),"
        " secret_sha256 = lpad(id::text, 64, '0') where secret_sha256 is null"
    )
    op.alter_column("api_keys", "secret_sha256", nullable=False)
    op.drop_column("api_keys", "role")
