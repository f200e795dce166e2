"""Limiting what is asked to the footage that exists for who asks."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from models.access import ApiKey
from models.repositories import access as access_record
from models.repositories.scope import EVERYTHING, FootageScope
from models.session import Session
from worker.core.search_params import SearchParams
from worker.errors import InputInvalid


def scope_of(key: ApiKey) -> FootageScope:
    """What exists for a key."""
    cameras = None if key.camera_ids is None else frozenset(key.camera_ids)
    return FootageScope(cameras, key.footage_from_utc, key.footage_to_utc)


def scope_of_asker(session: Session, key_id: int | None) -> FootageScope:
    """What exists for the key that asked something; for the command line everything. A key's scope
    never changes."""
    key = None if key_id is None else access_record.find_key(session, key_id)
    return EVERYTHING if key is None else scope_of(key)


def limited_span(
    scope: FootageScope, from_utc: datetime | None, to_utc: datetime | None
) -> tuple[datetime | None, datetime | None]:
    """The part of ``[from_utc, to_utc)`` that lies in the scope. Raises :class:`InputInvalid`
    where none does."""
    starts = [at for at in (from_utc, scope.from_utc) if at is not None]
    ends = [at for at in (to_utc, scope.to_utc) if at is not None]
    start, end = max(starts, default=None), min(ends, default=None)
    if scope.has_window and start is not None and end is not None and start >= end:
        window = f"from {_told(scope.from_utc)} to {_told(scope.to_utc)}"
        raise InputInvalid(f"this API key sees footage {window}, and none of that is asked for")
    return start, end


def limited_params(scope: FootageScope, params: SearchParams) -> SearchParams:
    """Parameters that name no more than the scope; cameras that are named are checked elsewhere.
    Raises as :func:`limited_span`."""
    start, end = limited_span(scope, params.t_from_utc, params.t_to_utc)
    camera_ids = params.camera_ids
    if camera_ids is None and scope.camera_ids is not None:
        camera_ids = tuple(sorted(scope.camera_ids))
    return replace(params, camera_ids=camera_ids, t_from_utc=start, t_to_utc=end)


def _told(at: datetime | None) -> str:
    return "any time" if at is None else at.isoformat()
