"""API keys: made, checked, revoked. A secret is told once and kept nowhere; a key that has none is
for whoever an issuer gives its role."""

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
from models.repositories.scope import FootageScope
from models.session import Session
from worker.accepting.audit import record_act
from worker.accepting.desk import Actor
from worker.accepting.names import checked_name
from worker.accepting.scope import scope_of
from worker.errors import AlreadyThere, Forbidden, InputInvalid, NotFound, Unauthenticated
from worker.oidc.rules import Person

Action = Literal["view", "search", "export", "ingest", "notify", "admin"]
ACTIONS: Final[tuple[Action, ...]] = get_args(Action)
SECRET_PREFIX = "ris_"  # noqa: S105 - how a leaked key is recognised
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks through the API, what they may, and the footage that exists for them."""

    actor: Actor
    key_id: int
    actions: frozenset[str]
    scope: FootageScope
    expires_at: datetime | None

    def may(self, action: Action) -> bool:
        """An admin key may do everything."""
        return action in self.actions or "admin" in self.actions


def create_key(
    session: Session,
    actor: Actor,
    *,
    name: str,
    actions: Sequence[str],
    camera_ids: Sequence[int] | None = None,
    footage_from_utc: datetime | None = None,
    footage_to_utc: datetime | None = None,
    expires_at: datetime | None = None,
    role: str | None = None,
) -> tuple[ApiKey, str | None]:
    """Make a key; returns it and its secret, which cannot be read again.

    ``footage_from_utc``, ``footage_to_utc``: it sees frames of that time only. ``role``: it has no
    secret, and is for access tokens with that role. Raises :class:`InputInvalid` for unknown
    actions, a past expiry, or a key that is limited in what such a key may not be,
    :class:`NotFound` for an unknown camera, and :class:`AlreadyThere` for a role that has a key.
    """
    name = checked_name("name", name)
    if role is not None:
        role = _free_role(session, role)
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
    scope = _checked_window(
        FootageScope(
            None if camera_ids is None else frozenset(camera_ids), footage_from_utc, footage_to_utc
        ),
        actions,
    )
    if expires_at is not None:
        expires_at = _future(expires_at)
    secret = None if role is not None else SECRET_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    key = access_record.add_key(
        session,
        name=name,
        secret_sha256=None if secret is None else secret_sha256(secret),
        role=role,
        actions=[action for action in ACTIONS if action in actions],
        scope=scope,
        expires_at=expires_at,
    )
    record_act(
        session,
        actor,
        "key.create",
        key_id=key.id,
        actions=key.actions,
        camera_ids=key.camera_ids,
        footage_from_utc=_time_text(scope.from_utc),
        footage_to_utc=_time_text(scope.to_utc),
        expires_at=_time_text(key.expires_at),
        role=role,
    )
    return key, secret


def _free_role(session: Session, role: str) -> str:
    role = checked_name("role", role)
    access_record.lock_keys(session)  # until the end: of two that are made at once one is refused
    if (there := access_record.unrevoked_key_of_role(session, role)) is not None:
        raise AlreadyThere(f"role {role!r} is that of key {there.id}: revoke that one first")
    return role


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
        scope_of(key),
        key.expires_at,
    )


def is_token(sent: str) -> bool:
    """Whether it can only be an access token: there is no dot in a secret."""
    return "." in sent and not sent.startswith(SECRET_PREFIX)


def caller_of_person(session: Session, person: Person) -> Caller:
    """What a person of an access token may: what the key of one of their roles allows; of several
    the one made first. Raises :class:`Forbidden` where no role has a key that opens anything."""
    key = access_record.key_of_roles(session, person.roles)
    if key is None:
        raise Forbidden(
            "no role of this access token opens anything here: an operator gives it a key"
            " (`ris keys --create NAME --role ROLE`)"
        )
    ends = [at for at in (key.expires_at, person.expires_at) if at is not None]
    return Caller(
        # The issuer, which has no blank, comes last: whatever the subject is, one can be told
        # from the other.
        Actor(f"key {key.id}, subject {person.subject} of {person.issuer}", key.id),
        key.id,
        frozenset(key.actions),
        scope_of(key),
        min(ends),
    )


def secret_sha256(secret: str) -> str:
    """What is kept of a secret: it has 256 random bits, so a plain hash cannot be guessed back."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _checked_window(scope: FootageScope, actions: Sequence[str]) -> FootageScope:
    """The scope with its times in UTC. Raises :class:`InputInvalid`."""
    if not scope.has_window:
        return scope
    if refused := {"admin", "ingest"} & set(actions):
        raise InputInvalid(
            f"a key that sees the footage of some time only reads: leave that time or"
            f" {sorted(refused)[0]!r} out"
        )
    start = None if scope.from_utc is None else _in_utc("footage_from_utc", scope.from_utc)
    end = None if scope.to_utc is None else _in_utc("footage_to_utc", scope.to_utc)
    if start is not None and end is not None and start >= end:
        raise InputInvalid(
            f"footage_from_utc must be before footage_to_utc, got {start.isoformat()} and"
            f" {end.isoformat()}"
        )
    return FootageScope(scope.camera_ids, start, end)


def _future(expires_at: datetime) -> datetime:
    expires_at = _in_utc("expiry", expires_at)
    if expires_at <= datetime.now(UTC):
        raise InputInvalid(f"expiry {expires_at.isoformat()} is past: name a time to come")
    return expires_at


def _in_utc(what: str, t_utc: datetime) -> datetime:
    if t_utc.tzinfo is None:
        raise InputInvalid(f"{what} {t_utc} has no time zone: add one, e.g. +00:00")
    try:
        return t_utc.astimezone(UTC)
    except OverflowError as error:
        raise InputInvalid(f"{what} {t_utc} is outside what a date can say") from error


def _time_text(t_utc: datetime | None) -> str | None:
    return None if t_utc is None else t_utc.isoformat()
