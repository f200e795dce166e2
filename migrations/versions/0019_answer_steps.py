"""first hits of queries that still run, and notices of what changes

Revision ID: 0019
Revises: 0018
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "search_queries",
        sa.Column("answer_step", sa.Text(), server_default="none", nullable=False),
    )
    op.execute(
        "update search_queries set answer_step = 'final' from jobs"
        " where jobs.id = search_queries.job_id and jobs.state = 'done'"
    )
    op.create_check_constraint(
        op.f("ck_search_queries_answer_step_known"),
        "search_queries",
        "answer_step in ('none', 'early', 'ranked', 'final')",
    )
    # Told at the commit, so whoever is told sees it.
    op.execute(
        """
        create function ris_note_query_state() returns trigger language plpgsql as $$
        begin
            perform pg_notify('ris_queries', new.id::text);
            return null;
        end $$
        """
    )
    op.execute(
        """
        create trigger ris_query_state after update on jobs for each row
        when (new.kind = 'query' and new.state is distinct from old.state)
        execute function ris_note_query_state()
        """
    )


def downgrade() -> None:
    op.execute("drop trigger ris_query_state on jobs")
    op.execute("drop function ris_note_query_state()")
    op.drop_constraint(op.f("ck_search_queries_answer_step_known"), "search_queries", type_="check")
    op.drop_column("search_queries", "answer_step")
