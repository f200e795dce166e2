"""API keys: made, checked, revoked. The secret is told once and kept nowhere."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, get_args

from models.access import ApiKey
from models.repositories import access as access_record
from models.repositories import videos as video_record
from models.session import Session
from worker.accepting.audit import record_act
from worker.accepting.desk import Actor
from worker.accepting.names import checked_name
from worker.errors import InputInvalid, NotFound, Unauthenticated

Action = Literal["view", "search", "export", "ingest", "notify", "admin"]
ACTIONS: Final[tuple[Action, ...]] = get_args(Action)
SECRET_PREFIX = "ris_"  # noqa: S105 - how a leaked key is recognised
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks through the API and what they may: ``camera_ids`` None is every camera."""

    actor: Actor
    key_id: int
    actions: frozenset[str]
    camera_ids: frozenset[int] | None
    expires_at: datetime | None

    def may(self, action: Action) -> bool:
        """An admin key may do everything."""
        return action in self.actions or "admin" in self.actions

    def sees(self, camera_id: int) -> bool:
        """Whether this camera exists for the caller."""
        return self.camera_ids is None or camera_id in self.camera_ids

    def cameras(self) -> list[int] | None:
        """The cameras that queries of the record are limited to; None is no limit."""
        return None if self.camera_ids is None else sorted(self.camera_ids)


def create_key(
    session: Session,
    actor: Actor,
    *,
    name: str,
    actions: Sequence[str],
    camera_ids: Sequence[int] | None = None,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Make a key; returns it and its secret, which cannot be read again.

    Raises :class:`InputInvalid` for unknown actions, a past expiry, or an admin key that is limited
    to cameras, and :class:`NotFound` for an unknown camera.
    """
    name = checked_name("name", name)
    if not actions or (unknown := sorted(set(actions) - set(ACTIONS))):
        wrong = f"got {', '.join(unknown)}" if actions else "got none"
        raise InputInvalid(f"actions must be some of {', '.join(ACTIONS)}; {wrong}")
    if camera_ids is not None:
        if "admin" in actions:
            raise InputInvalid("an admin key sees every camera: leave the cameras or admin out")
        if not camera_ids:
            raise InputInvalid("name at least one camera, or leave them out for every camera")
        unknown_ids = sorted(set(camera_ids) - video_record.camera_ids(session))
        if unknown_ids:
            raise NotFound(f"cameras {unknown_ids} are not known; `ris cameras` lists them")
    if expires_at is not None:
        expires_at = _future(expires_at)
    secret = SECRET_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    key = access_record.add_key(
        session,
        name=name,
        secret_sha256=secret_sha256(secret),
        actions=[action for action in ACTIONS if action in actions],
        camera_ids=None if camera_ids is None else sorted(set(camera_ids)),
        expires_at=expires_at,
    )
    record_act(
        session,
        actor,
        "key.create",
        key_id=key.id,
        actions=key.actions,
        camera_ids=key.camera_ids,
        expires_at=None if key.expires_at is None else key.expires_at.isoformat(),
    )
    return key, secret


def create_first_key(session: Session, actor: Actor) -> str | None:
    """The secret of the first admin key; None when there is, or ever was, a key."""
    access_record.lock_keys(session)
    if access_record.any_key(session):
        return None
    return create_key(session, actor, name="first admin key", actions=["admin"])[1]


def revoke_key(session: Session, actor: Actor, key_id: int) -> ApiKey:
    """From the commit on the key opens nothing. Repeating it changes nothing.

    Raises :class:`NotFound`.
    """
    key = access_record.find_key(session, key_id) if 0 < key_id < 2**63 else None
    if key is None:
        raise NotFound(f"key {key_id} is not known; `ris keys` lists them")
    if key.revoked_at is None:
        access_record.revoke_key(session, key_id)
        session.refresh(key)
        record_act(session, actor, "key.revoke", key_id=key_id)
    return key


def caller_of(session: Session, secret: str) -> Caller:
    """Who a secret belongs to. Raises :class:`Unauthenticated`, saying why only where the secret
    was right."""
    found = access_record.key_of_secret(session, secret_sha256(secret))
    if found is None:
        raise Unauthenticated("this API key is not known: send Authorization: Bearer ris_...")
    key, expired = found
    if key.revoked_at is not None:
        raise Unauthenticated(f"API key {key.id} was revoked: ask for another")
    if expired:
        raise Unauthenticated(f"API key {key.id} has expired: ask for another")
    return Caller(
        Actor(f"key {key.id}", key.id),
        key.id,
        frozenset(key.actions),
        None if key.camera_ids is None else frozenset(key.camera_ids),
        key.expires_at,
    )


def secret_sha256(secret: str) -> str:
    """What is kept of a secret: it has 256 random bits, so a plain hash cannot be guessed back."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _future(expires_at: datetime) -> datetime:
    if expires_at.tzinfo is None:
        raise InputInvalid(f"expiry {expires_at} has no time zone: add one, e.g. +00:00")
    try:
        expires_at = expires_at.astimezone(UTC)
    except OverflowError as error:
        raise InputInvalid(f"expiry {expires_at} is outside what a date can say") from error
    if expires_at <= datetime.now(UTC):
        raise InputInvalid(f"expiry {expires_at.isoformat()} is past: name a time to come")
    return expires_at
