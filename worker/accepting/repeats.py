"""Requests that come twice: the second is answered with what the first made."""

from __future__ import annotations

from dataclasses import dataclass

from models.access import RequestKey
from models.repositories import access as access_record
from models.session import Session
from worker.errors import KeyReused

KEPT_S = 24 * 3600.0
"""How long an Idempotency-Key is remembered."""


@dataclass(frozen=True, slots=True)
class NamedRequest:
    """A request that its sender named. ``sha256``: over all that it asks for."""

    idempotency_key: str
    sha256: str


def repeated(session: Session, key_id: int, request: NamedRequest | None) -> str | None:
    """What the same request made before, else None; notes nothing and waits for nobody. Raises
    :class:`KeyReused`."""
    if request is None:
        return None
    earlier = access_record.find_request(session, key_id, request.idempotency_key, KEPT_S)
    return None if earlier is None else _made_by(earlier, request)


def made_before(
    session: Session, key_id: int, request: NamedRequest | None, making: str = ""
) -> str | None:
    """What the same request made before; None for a new one, which is noted.

    ``making``: what it will make, where that is known; else :func:`note_made` follows. Waits while
    the same one is under way. Raises :class:`KeyReused` where it was another request.
    """
    if request is None:
        return None
    earlier = access_record.remember_request(
        session, key_id, request.idempotency_key, request.sha256, making, KEPT_S
    )
    return None if earlier is None else _made_by(earlier, request)


def _made_by(earlier: RequestKey, request: NamedRequest) -> str:
    if earlier.request_sha256 != request.sha256:
        raise KeyReused(
            f"Idempotency-Key {request.idempotency_key!r} came with another request before: take"
            " a new one for each request"
        )
    return earlier.made


def note_made(session: Session, key_id: int, request: NamedRequest | None, made: str) -> None:
    """Note what a new request made, in the transaction that makes it."""
    if request is not None:
        access_record.record_made(session, key_id, request.idempotency_key, made)
