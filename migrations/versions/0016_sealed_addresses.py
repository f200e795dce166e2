"""addresses of feeds that hold a password are kept encrypted

A migration knows no key. Rows stay as they are, and the sweeper encrypts those that need it as
soon as a process has one (worker.feeds.seal_addresses).

Revision ID: 0016
Revises: 0015
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("feeds", sa.Column("sealed_url", sa.Text(), nullable=True))


def downgrade() -> None:
    sealed = op.get_bind().scalar(
        sa.text("select count(*) from feeds where sealed_url is not null")
    )
    if sealed:
        raise RuntimeError(
            f"{sealed} feeds have an encrypted address, which an older RIS cannot read:"
            " remove them (`ris feed rm`) and add them again afterwards"
        )
    op.drop_column("feeds", "sealed_url")
