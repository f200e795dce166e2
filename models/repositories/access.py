"""API keys, and what requests with an Idempotency-Key made."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from models.access import ApiKey, RequestKey
from models.repositories.scope import FootageScope


def add_key(
    session: Session,
    *,
    name: str,
    secret_sha256: str | None,
    role: str | None,
    actions: Sequence[str],
    scope: FootageScope,
    expires_at: datetime | None,
) -> ApiKey:
    """Record a key: of a secret, or of a role."""
    key = ApiKey(
        name=name,
        secret_sha256=secret_sha256,
        role=role,
        actions=list(actions),
        camera_ids=scope.cameras(),
        footage_from_utc=scope.from_utc,
        footage_to_utc=scope.to_utc,
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    session.refresh(key)
    return key


def key_of_secret(session: Session, secret_sha256: str) -> tuple[ApiKey, bool] | None:
    """The key of a secret and whether it is expired, by the database's clock."""
    row = session.execute(
        select(ApiKey, func.coalesce(ApiKey.expires_at <= func.now(), False)).where(
            ApiKey.secret_sha256 == secret_sha256
        )
    ).one_or_none()
    return None if row is None else (row[0], bool(row[1]))


def key_of_roles(session: Session, roles: Sequence[str]) -> ApiKey | None:
    """The key made first of those that open something for one of the roles."""
    return session.scalars(
        select(ApiKey)
        .where(
            ApiKey.role.in_(roles),
            ApiKey.revoked_at.is_(None),
            func.coalesce(ApiKey.expires_at > func.now(), True),
        )
        .order_by(ApiKey.id)
        .limit(1)
    ).one_or_none()


def unrevoked_key_of_role(session: Session, role: str) -> ApiKey | None:
    """There is one at most; it may be expired."""
    return session.scalars(
        select(ApiKey).where(ApiKey.role == role, ApiKey.revoked_at.is_(None))
    ).one_or_none()


def find_key(session: Session, key_id: int) -> ApiKey | None:
    """A key by id, as it stands."""
    return session.get(ApiKey, key_id, populate_existing=True)


def list_keys(session: Session, after_id: int, limit: int) -> list[ApiKey]:
    """Keys by id, behind one."""
    query = select(ApiKey).where(ApiKey.id > after_id).order_by(ApiKey.id).limit(limit)
    return list(session.scalars(query))


def any_key(session: Session) -> bool:
    """Whether a key was ever made."""
    return session.scalars(select(ApiKey.id).limit(1)).one_or_none() is not None


def lock_keys(session: Session) -> None:
    """Until the end of the transaction nobody else makes a key."""
    session.execute(text("lock table api_keys in share row exclusive mode"))


def revoke_key(session: Session, key_id: int) -> None:
    """From now on the key opens nothing; the first revocation's time stays."""
    session.execute(
        update(ApiKey)
        .where(ApiKey.id == key_id)
        .values(revoked_at=func.coalesce(ApiKey.revoked_at, func.now()))
        .execution_options(synchronize_session=False)
    )


def remember_request(
    session: Session,
    key_id: int,
    idempotency_key: str,
    request_sha256: str,
    making: str,
    kept_s: float,
) -> RequestKey | None:
    """Note a request and what it makes; the earlier one of that Idempotency-Key if there is.

    Waits for a transaction that is noting the same one. Notes older than ``kept_s`` are forgotten.
    """
    session.execute(
        delete(RequestKey)
        .where(
            RequestKey.key_id == key_id,
            RequestKey.created_at < func.now() - func.make_interval(0, 0, 0, 0, 0, 0, kept_s),
        )
        .execution_options(synchronize_session=False)
    )
    noted = session.scalars(
        insert(RequestKey)
        .values(
            key_id=key_id,
            idempotency_key=idempotency_key,
            request_sha256=request_sha256,
            made=making,
        )
        .on_conflict_do_nothing()
        .returning(RequestKey.key_id)
    ).one_or_none()
    if noted is not None:
        return None
    return session.get(RequestKey, (key_id, idempotency_key), populate_existing=True)


def find_request(
    session: Session, key_id: int, idempotency_key: str, kept_s: float
) -> RequestKey | None:
    """What is noted of a request, and is not older than ``kept_s``."""
    return session.scalars(
        select(RequestKey).where(
            RequestKey.key_id == key_id,
            RequestKey.idempotency_key == idempotency_key,
            RequestKey.created_at >= func.now() - func.make_interval(0, 0, 0, 0, 0, 0, kept_s),
        )
    ).one_or_none()


def record_made(session: Session, key_id: int, idempotency_key: str, made: str) -> None:
    """Note what the request made."""
    session.execute(
        update(RequestKey)
        .where(RequestKey.key_id == key_id, RequestKey.idempotency_key == idempotency_key)
        .values(made=made)
        .execution_options(synchronize_session=False)
    )
