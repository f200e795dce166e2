"""Connections and the one place that commits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolExhausted
from sqlalchemy.orm import Session, sessionmaker

__all__ = ["Database", "DatabaseUnavailable", "Session", "connect", "normalised_url"]


_KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
_USER_TIMEOUT_MS = 15_000
"""Seconds, seconds, times, milliseconds: either side gives up a peer that vanished without a word,
which else keeps its locks, or its thread here, for hours. Unix sockets have no such thing."""


class DatabaseUnavailable(ConnectionError):
    """Postgres cannot be reached, dropped the connection, or timed out on a lock or statement."""


@dataclass(frozen=True, slots=True)
class Database:
    """A pool of connections to one Postgres. Sessions come from :meth:`transaction` only."""

    engine: Engine
    sessions: sessionmaker[Session]

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """One unit of work: commits once at the end, rolls back on any error.

        Raises :class:`DatabaseUnavailable` where the connection, not the statement, failed.
        """
        try:
            with self.sessions.begin() as session:
                yield session
        except (OperationalError, InterfaceError) as error:
            raise DatabaseUnavailable(_first_line(error)) from error
        except PoolExhausted as error:
            raise DatabaseUnavailable(f"no free connection in this process: {error}") from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise DatabaseUnavailable(_first_line(error)) from error
            raise

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """A read-only transaction whose statements all see one moment, whatever is committed."""
        with self.transaction() as session:
            session.connection(
                execution_options={
                    "isolation_level": "REPEATABLE READ",
                    "postgresql_readonly": True,
                }
            )
            yield session

    @contextmanager
    def listening(self, channel: str) -> Iterator[Callable[[float], list[str]]]:
        """A connection of the pool that hears a channel: the function waits for at most so many
        seconds and returns what was notified meanwhile. Raises :class:`DatabaseUnavailable`."""
        try:
            pooled = self.engine.raw_connection()
            try:
                driver = cast(Any, pooled.driver_connection)
                driver.set_autocommit(True)
                driver.execute(f'listen "{channel}"')

                def heard(wait_s: float) -> list[str]:
                    told = driver.notifies(timeout=wait_s, stop_after=1)
                    return [notice.payload for notice in told]

                yield heard
            finally:
                pooled.invalidate()  # nobody else is to get one that listens
        except (self.engine.dialect.loaded_dbapi.Error, DBAPIError, PoolExhausted) as error:
            raise DatabaseUnavailable(str(error)) from error

    def ping(self) -> str:
        """Server version. Raises :class:`DatabaseUnavailable`."""
        with self.transaction() as session:
            return str(session.execute(text("show server_version")).scalar_one())

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def connect(
    url: str,
    *,
    application_name: str,
    statement_timeout_ms: int = 60_000,
    lock_timeout_ms: int = 10_000,
    pool_size: int = 5,
    connect_timeout_s: int = 5,
    pool_timeout_s: float = 30.0,
    idle_in_transaction_timeout_ms: int | None = None,
) -> Database:
    """Describe a database; the first connection is made on first use.

    ``idle_in_transaction_timeout_ms``: Postgres ends a session that keeps a transaction open and
    says nothing for so long. ``url`` may be ``postgresql://`` or ``postgresql+psycopg://``;
    psycopg 3 is used either way.
    """
    server: dict[str, int | str] = {
        "statement_timeout": statement_timeout_ms,
        "lock_timeout": lock_timeout_ms,
        "timezone": "UTC",
        "tcp_user_timeout": _USER_TIMEOUT_MS,
        **{f"tcp_{name}": value for name, value in _KEEPALIVE.items()},
    }
    if idle_in_transaction_timeout_ms is not None:
        server["idle_in_transaction_session_timeout"] = idle_in_transaction_timeout_ms
    engine = create_engine(
        normalised_url(url),
        pool_pre_ping=True,
        hide_parameters=True,  # they may be a camera's password, and errors are logged
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=pool_timeout_s,
        connect_args={
            "application_name": application_name,
            "connect_timeout": connect_timeout_s,
            "options": " ".join(f"-c {name}={value}" for name, value in server.items()),
            "tcp_user_timeout": _USER_TIMEOUT_MS,
            **_KEEPALIVE,
        },
    )
    return Database(engine, sessionmaker(engine, expire_on_commit=False))


def normalised_url(url: str) -> str:
    """The URL with the psycopg 3 driver named."""
    for prefix in ("postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+psycopg://" + url.removeprefix(prefix)
    return url


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0] if error.orig else str(error)
