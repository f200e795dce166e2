"""Who asks: the key of a request, and whether it allows the action of its route."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.desk import Here
from worker.accepting.keys import ACTIONS, Action, Caller, caller_of
from worker.errors import Forbidden, Unauthenticated

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="An API key: `Authorization: Bearer ris_...`; made with `ris keys create`.",
)
_Sent = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


def _identified(request: Request, desk: Here, sent: _Sent) -> Caller:
    """Raises :class:`Unauthenticated` or :class:`TooManyRequests`."""
    if sent is None:
        raise Unauthenticated("no API key: send the header Authorization: Bearer ris_...")
    with desk.db.transaction() as session:
        caller = caller_of(session, sent.credentials)
    request.scope["key_id"] = caller.key_id
    desk.pace.take(caller.key_id)
    return caller


def _allowing(action: Action) -> Callable[..., Caller]:
    def check(caller: Annotated[Caller, Depends(_identified)]) -> Caller:
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
