"""The audit: every act in one chain, appended in the transaction of the act."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from models.access import AuditEntry
from models.repositories import audit as audit_record
from models.session import Session
from worker.accepting.desk import Actor

MAX_PROBLEMS = 20
_MOST_POINTS = 50


def record_act(session: Session, actor: Actor, act: str, **details: Any) -> None:
    """Append an act. The last statement of a transaction: until its end nobody else appends.

    ``details``: ids and parameters, plain JSON; never a picture, a secret, or a person's name.
    """
    last_seq, previous_sha256, t_utc = audit_record.lock_end(session)
    entry = AuditEntry(
        seq=last_seq + 1,
        t_utc=t_utc,
        actor=actor.name,
        act=act,
        details=details,
        previous_sha256=previous_sha256,
    )
    entry.sha256 = entry_sha256(entry)
    audit_record.add_entry(session, entry)


def brief(value: Any) -> Any:
    """The value with large polygons told by count and hash: the audit is kept for ever."""
    if isinstance(value, list):
        return [brief(one) for one in value] if value and isinstance(value[0], dict) else value
    if not isinstance(value, dict) or len(value.get("polygon", ())) <= _MOST_POINTS:
        return value
    text = json.dumps(value["polygon"], separators=(",", ":"))
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return value | {"polygon": {"points": len(value["polygon"]), "sha256": sha256}}


def entry_sha256(entry: AuditEntry) -> str:
    """SHA-256 (hex) over an entry's own fields and the hash before it, as canonical JSON."""
    fields = [
        entry.previous_sha256,
        entry.seq,
        _time_text(entry.t_utc),
        entry.actor,
        entry.act,
        entry.details,
    ]
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _time_text(t_utc: datetime) -> str:
    return t_utc.astimezone(UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True, slots=True)
class Chain:
    """What was found: number of entries, the last hash, and where the chain is broken."""

    entries: int
    last_sha256: str
    problems: tuple[str, ...]


def check_chain(session: Session) -> Chain:
    """Read the whole audit. A tail that was cut off leaves a shorter, whole chain: compare
    ``entries`` and ``last_sha256`` with what was noted elsewhere."""
    entries, expected, previous = 0, 1, ""
    problems: list[str] = []
    for entry in audit_record.all_entries(session):
        if entry.seq != expected:
            problems.append(f"audit: entries {expected} to {entry.seq - 1} are missing")
        if entry.previous_sha256 != previous:
            problems.append(f"audit entry {entry.seq} does not follow the one before it")
        if entry_sha256(entry) != entry.sha256:
            problems.append(f"audit entry {entry.seq} was changed after it was recorded")
        entries, expected, previous = entries + 1, entry.seq + 1, entry.sha256
    return Chain(entries, previous, tuple(problems[:MAX_PROBLEMS]))
