"""The audit: appended to, read, never changed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from models.access import AuditEntry

AUDIT_LOCK = 7_268_143_004
"""Advisory lock of whoever appends: taken last in a transaction, so that nobody waits behind it."""
_ROWS_AT_ONCE = 1000


def lock_end(session: Session) -> tuple[int, str, datetime]:
    """Number and hash of the last entry (0 and "" of none) and the time, until the transaction
    ends nobody else appends."""
    session.execute(text(f"select pg_advisory_xact_lock({AUDIT_LOCK})"))
    last = session.execute(
        select(AuditEntry.seq, AuditEntry.sha256, func.clock_timestamp())
        .order_by(AuditEntry.seq.desc())
        .limit(1)
    ).one_or_none()
    if last is None:
        return 0, "", session.execute(select(func.clock_timestamp())).scalar_one()
    return int(last[0]), str(last[1]), last[2]


def add_entry(session: Session, entry: AuditEntry) -> None:
    """Append an entry."""
    session.add(entry)
    session.flush()


def list_entries(session: Session, before_seq: int | None, limit: int) -> list[AuditEntry]:
    """Entries, newest first, before one."""
    query = select(AuditEntry).order_by(AuditEntry.seq.desc()).limit(limit)
    if before_seq is not None:
        query = query.where(AuditEntry.seq < before_seq)
    return list(session.scalars(query))


def all_entries(session: Session) -> Iterator[AuditEntry]:
    """Every entry, oldest first, a thousand in memory at a time."""
    after = 0
    while True:
        rows = session.scalars(
            select(AuditEntry)
            .where(AuditEntry.seq > after)
            .order_by(AuditEntry.seq)
            .limit(_ROWS_AT_ONCE)
        ).all()
        yield from rows
        if len(rows) < _ROWS_AT_ONCE:
            return
        after = rows[-1].seq
        session.expunge_all()
