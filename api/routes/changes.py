"""/v1/changes: when a box of a camera changed."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from api.access import Searcher
from api.bodies import ChangesBody, json_body, named
from api.desk import ApiDesk, Here
from api.events import EventStream, event_responses
from api.fields import Cursor, IdempotencyKey, Limit, moment, next_cursor, read_cursor
from api.given_changes import ChangesGiven
from api.problems import READING, WRITING
from api.routes.queries import owner
from api.told import Page
from api.told_changes import ChangesTold
from models.repositories import changes as changes_record
from models.repositories.changes import ChangeView
from models.session import Session
from worker.accepting.changes import (
    KEPT_S,
    AcceptedChanges,
    ChangeOrder,
    record_changes,
    remove_changes,
)
from worker.accepting.keys import Caller
from worker.accepting.repeats import made_before, note_made
from worker.core.roi_json import roi_from_json
from worker.errors import NotFound, TooManyRequests

router = APIRouter(prefix="/v1/changes", tags=["changes"])


@router.post("", status_code=202, responses=WRITING, openapi_extra=json_body(ChangesGiven))
def ask_changes(
    caller: Searcher,
    desk: Here,
    given: ChangesBody,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> ChangesTold:
    """Ask when a box of a camera changed, and when it was again as before. The answer comes at the
    address in Location, and is kept there for 24 hours."""
    asked = named(idempotency_key, "changes", given.model_dump(mode="json"))
    order = ChangeOrder(
        given.camera_id,
        roi_from_json(given.roi.model_dump()),
        given.t_from_utc,
        given.t_to_utc,
        given.hold,
    )
    accepted: AcceptedChanges | None = None
    with desk.db.transaction() as session:
        made = made_before(session, caller.key_id, asked)
        if made is None:
            _require_room(session, desk, caller)
            accepted = record_changes(session, order, caller.actor, caller.scope)
            made = str(accepted.change_query_id)
            note_made(session, caller.key_id, asked, made)
        told = ChangesTold.of(_known(session, caller, uuid.UUID(made)))
    if accepted is not None:
        desk.ring(accepted.job_id, "changes")
    response.headers["Location"] = f"/v1/changes/{told.change_query_id}"
    return told


def _require_room(session: Session, desk: ApiDesk, caller: Caller) -> None:
    most = desk.settings.api_open_queries
    if changes_record.count_open(session, caller.key_id) >= most:
        raise TooManyRequests(
            f"API key {caller.key_id} has {most} questions about changes that are not answered yet"
            " (RIS_API_OPEN_QUERIES): wait for one, or take one back"
        )


@router.get("", responses=READING)
def list_changes(
    caller: Searcher, desk: Here, limit: Limit = 50, cursor: Cursor = None
) -> Page[ChangesTold]:
    """What this key asked, newest first; an admin key sees that of all."""
    after = read_cursor(cursor, moment, lambda value: uuid.UUID(str(value)))
    with desk.db.transaction() as session:
        found = changes_record.list_all(session, owner(caller), after, limit)
    return Page(
        items=[ChangesTold.of(view) for view in found],
        next_cursor=next_cursor(
            found, limit, lambda view: [view.asked.created_at, str(view.asked.id)]
        ),
    )


@router.get("/{change_query_id}", responses=READING)
def get_changes(caller: Searcher, desk: Here, change_query_id: uuid.UUID) -> ChangesTold:
    """The question as it stands, with its answer once it is done."""
    with desk.db.transaction() as session:
        return ChangesTold.of(_known(session, caller, change_query_id))


@router.delete("/{change_query_id}", status_code=204, responses=WRITING)
def delete_changes(caller: Searcher, desk: Here, change_query_id: uuid.UUID) -> None:
    """Take it back, or forget its answer."""
    with desk.db.transaction() as session:
        _known(session, caller, change_query_id)
        remove_changes(session, caller.actor, change_query_id)


@router.get(
    "/{change_query_id}/events",
    responses=event_responses("`{change_query_id, state, error_code}`"),
    response_class=StreamingResponse,
)
async def follow_changes(
    caller: Searcher, desk: Here, change_query_id: uuid.UUID
) -> StreamingResponse:
    """Server-sent events: `state` now and at each change, until done or failed."""

    def job_id() -> uuid.UUID:
        with desk.db.transaction() as session:
            return _known(session, caller, change_query_id).job.id

    def look(session: Session) -> dict[str, Any] | None:
        view = changes_record.find(session, change_query_id, None)
        if view is None:
            return None
        return {
            "change_query_id": str(change_query_id),
            "state": view.job.state,
            "error_code": view.job.error_code,
        }

    return EventStream(desk, caller.key_id, await run_in_threadpool(job_id), look)


def _known(session: Session, caller: Caller, change_query_id: uuid.UUID) -> ChangeView:
    """A change query that exists for the caller. Raises :class:`NotFound`."""
    view = changes_record.find(session, change_query_id, owner(caller))
    if view is None:
        raise NotFound(
            f"change query {change_query_id} is not known: answers are kept for"
            f" {KEPT_S / 3600:.0f} hours, and go with their footage; ask again"
        )
    return view
