"""Who may do what, what was asked under which Idempotency-Key, and what was done."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    Text,
    event,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, created_at_column


class ApiKey(Base):
    """A key of the HTTP API: of its secret only the SHA-256 is kept, or, where it has none, the
    ``role`` of an issuer's access tokens that opens the same.

    ``camera_ids``: null lets it see every camera. ``footage_from_utc``, ``footage_to_utc``: it sees
    frames of this time only, null is no bound. A key never changes, but for ``revoked_at``.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint("length(name) between 1 and 200", name="name_length"),
        CheckConstraint("length(secret_sha256) = 64", name="secret_sha256_hex"),
        CheckConstraint("num_nonnulls(secret_sha256, role) = 1", name="secret_or_role"),
        CheckConstraint("length(role) between 1 and 200", name="role_length"),
        Index(
            "uq_api_keys_role_alive",
            "role",
            unique=True,
            postgresql_where=text("revoked_at is null"),
        ),
        CheckConstraint("cardinality(actions) > 0", name="actions_given"),
        CheckConstraint(
            "actions <@ array['view', 'search', 'export', 'ingest', 'notify', 'admin']",
            name="actions_known",
        ),
        CheckConstraint(
            "camera_ids is null or not 'admin' = any (actions)", name="admin_sees_every_camera"
        ),
        CheckConstraint("footage_from_utc < footage_to_utc", name="window_has_length"),
        CheckConstraint(
            "num_nonnulls(footage_from_utc, footage_to_utc) = 0"
            " or not actions && array['ingest', 'admin']",
            name="window_is_for_reading",
        ),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str]
    secret_sha256: Mapped[str | None] = mapped_column(unique=True)
    role: Mapped[str | None]
    actions: Mapped[list[str]] = mapped_column(ARRAY(Text))
    camera_ids: Mapped[list[int] | None] = mapped_column(ARRAY(BigInteger))
    footage_from_utc: Mapped[datetime | None]
    footage_to_utc: Mapped[datetime | None]
    created_at: Mapped[datetime] = created_at_column()
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class RequestKey(Base):
    """What a request with an Idempotency-Key made: repeated, it is answered with the same."""

    __tablename__ = "request_keys"
    __table_args__ = (Index(None, "key_id", "created_at"),)

    key_id: Mapped[int] = mapped_column(ForeignKey("api_keys.id"), primary_key=True)
    idempotency_key: Mapped[str] = mapped_column(primary_key=True)
    request_sha256: Mapped[str]
    made: Mapped[str]
    created_at: Mapped[datetime] = created_at_column()


class AuditEntry(Base):
    """One act, recorded in its own transaction. Rows are never changed or removed (trigger).

    ``sha256`` is over the entry's own fields and ``previous_sha256``, the one before it: a changed,
    missing or inserted row breaks the chain. ``details`` keeps JSON as it was written.
    """

    __tablename__ = "audit_entries"
    __table_args__ = (
        CheckConstraint("seq >= 1", name="seq_from_one"),
        CheckConstraint("length(sha256) = 64", name="sha256_hex"),
    )

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    t_utc: Mapped[datetime]
    actor: Mapped[str]
    act: Mapped[str]
    details: Mapped[dict[str, Any]] = mapped_column(JSON)
    previous_sha256: Mapped[str]
    sha256: Mapped[str] = mapped_column(unique=True)


APPEND_ONLY = (
    """
    create or replace function audit_is_append_only() returns trigger language plpgsql as $$
    begin
        raise exception 'audit_entries is append-only';
    end $$
    """,
    """
    create trigger append_only before update or delete or truncate on audit_entries
    for each statement execute function audit_is_append_only()
    """,
)
for _statement in APPEND_ONLY:
    event.listen(AuditEntry.__table__, "after_create", DDL(_statement))  # type: ignore[no-untyped-call]
