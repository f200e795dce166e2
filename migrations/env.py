"""Alembic environment: one migrator at a time, bounded waits, URL from RIS_DATABASE_URL."""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

from models.schema import metadata
from models.session import normalised_url

# Any constant: two migrators of one database must pick the same one.
MIGRATION_LOCK = 7_268_143_001


def _database_url() -> str:
    url = context.config.get_main_option("sqlalchemy.url") or os.environ.get("RIS_DATABASE_URL")
    if not url:
        raise SystemExit("RIS_DATABASE_URL is not set: name the Postgres to migrate")
    return normalised_url(url)


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
