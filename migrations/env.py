"""Alembic environment: one migrator at a time, bounded waits, URL from RIS_DATABASE_URL."""

from __future__ import annotations

import os
import sys

from alembic import context
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

from models import NEWER_SCHEMA_EXIT
from models.schema import metadata
from models.session import normalised_url

# Any constant: two migrators of one database must pick the same one.
MIGRATION_LOCK = 7_268_143_001


def _database_url() -> str:
    url = context.config.get_main_option("sqlalchemy.url") or os.environ.get("RIS_DATABASE_URL")
    if not url:
        raise SystemExit("RIS_DATABASE_URL is not set: name the Postgres to migrate")
    return normalised_url(url)


def _refuse_newer(known: ScriptDirectory, heads: tuple[str, ...]) -> None:
    """Leave a database alone that a newer RIS has migrated, in one line instead of a traceback."""
    for revision in heads:
        try:
            known.get_revision(revision)
        except CommandError:
            sys.stderr.write(
                f"the database is at schema revision {revision}, which this RIS does not know:"
                f" a newer RIS migrated it (this one knows up to {known.get_current_head()});"
                " update RIS\n"
            )
            raise SystemExit(NEWER_SCHEMA_EXIT) from None


def _configure_and_run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_type=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        connection.execute(text("set local lock_timeout = '10s'"))
        connection.execute(text("set local statement_timeout = '300s'"))
        connection.execute(text(f"select pg_advisory_xact_lock({MIGRATION_LOCK})"))
        _refuse_newer(context.script, context.get_context().get_current_heads())
        context.run_migrations()


def run() -> None:
    """Migrate on the connection a test hands in, else on a connection of our own."""
    given = context.config.attributes.get("connection")
    if given is not None:
        _configure_and_run(given)
        return
    engine = create_engine(_database_url(), poolclass=NullPool)
    with engine.connect() as connection:
        _configure_and_run(connection)
        connection.commit()
    engine.dispose()


if context.is_offline_mode():
    context.configure(url=_database_url(), target_metadata=metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    run()
