"""Who asks: the key or access token of a request, and whether it allows its route's action."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.desk import Here
from worker.accepting.keys import ACTIONS, Action, Caller, caller_of, caller_of_person, is_token
from worker.errors import Forbidden, Unauthenticated

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="An API key: `Authorization: Bearer ris_...`, made with `ris keys --create`; or,"
    " where RIS_OIDC_ISSUER is set, an access token (JWT) of that issuer.",
)
_Sent = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


async def _issuer_asked(desk: Here, sent: _Sent) -> None:
    """Has the issuer's keys fetched where a token needs them. Waits without a thread: an issuer
    that is slow must not take those that requests with keys need."""
    if sent is None or desk.tokens is None or not is_token(sent.credentials):
        return
    fetch = desk.tokens.fetch_wanted(sent.credentials)
    if fetch is not None:
        await asyncio.wait([asyncio.wrap_future(fetch.done)], timeout=fetch.left_s)


def _identified(
    request: Request, desk: Here, sent: _Sent, _asked: Annotated[None, Depends(_issuer_asked)]
) -> Caller:
    """Raises :class:`Unauthenticated`, :class:`IssuerUnavailable`, :class:`Forbidden` for a token
    whose roles open nothing, and :class:`TooManyRequests`."""
    if sent is None:
        text = "no API key: send the header Authorization: Bearer ris_..."
        raise Unauthenticated(text, presented=False)
    person = None
    if desk.tokens is not None and is_token(sent.credentials):
        person = desk.tokens.person_of(sent.credentials)
    with desk.db.transaction() as session:
        if person is None:
            caller = caller_of(session, sent.credentials)
        else:
            caller = caller_of_person(session, person)
    request.scope["key_id"] = caller.key_id
    desk.pace.take(caller.key_id)
    return caller


def _allowing(action: Action) -> Callable[..., Awaitable[Caller]]:
    async def check(caller: Annotated[Caller, Depends(_identified)]) -> Caller:
        if not caller.may(action):
            raise Forbidden(
                f"API key {caller.key_id} does not allow {action!r}: ask for one that does"
            )
        return caller

    return check


CHECKS: dict[Action, Any] = {action: _allowing(action) for action in ACTIONS}
"""By action; each route depends on exactly one, or on being identified at all."""

Anyone = Annotated[Caller, Depends(_identified)]
Viewer = Annotated[Caller, Depends(CHECKS["view"])]
Searcher = Annotated[Caller, Depends(CHECKS["search"])]
Exporter = Annotated[Caller, Depends(CHECKS["export"])]
Feeder = Annotated[Caller, Depends(CHECKS["ingest"])]
Notifier = Annotated[Caller, Depends(CHECKS["notify"])]
Admin = Annotated[Caller, Depends(CHECKS["admin"])]
