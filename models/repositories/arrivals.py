"""Messages that tell of recordings: counts, and who listens."""

from __future__ import annotations

from typing import Final

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from models.arrivals import MessageCount

LISTENER_LOCK: Final = 7_268_143_018
"""Advisory lock of the one process that listens."""


def count_message(session: Session, source: str, outcome: str, detail: str | None = None) -> None:
    """Count one."""
    values = {"source": source, "outcome": outcome, "messages": 1, "last_detail": detail}
    session.execute(
        insert(MessageCount)
        .values(**values)
        .on_conflict_do_update(
            index_elements=["source", "outcome"],
            set_={
                "messages": MessageCount.messages + 1,
                "last_detail": detail,
                "last_at": func.now(),
            },
        )
    )


def counts(session: Session) -> list[MessageCount]:
    """All counts."""
    order = (MessageCount.source, MessageCount.outcome)
    return list(session.scalars(select(MessageCount).order_by(*order)))


def try_to_listen(session: Session) -> bool:
    """Whether this transaction is the one that listens, until it ends."""
    return bool(
        session.execute(text(f"select pg_try_advisory_xact_lock({LISTENER_LOCK})")).scalar_one()
    )


def still_there(session: Session) -> None:
    """Raises where the connection has gone, and with it what the transaction holds."""
    session.execute(text("select 1"))
