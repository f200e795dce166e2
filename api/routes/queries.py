"""/v1/queries: ask, follow, take back."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from api.access import Searcher
from api.bodies import DrawnBody, drawn_body, named, read_drawn
from api.desk import ApiDesk, Here
from api.events import EventStream, event_responses
from api.fields import Cursor, IdempotencyKey, Limit, moment, next_cursor, read_cursor
from api.given import BoxGiven, QueryGiven
from api.pictures import PICTURE_RESPONSES, picture_response, unchanged
from api.problems import READING, WRITING
from api.routes.frames import known_frame, note_view
from api.told import Page, QueryTold
from models.repositories import browse
from models.repositories.browse import QueryView
from models.session import Session
from worker.accepting.keys import Caller
from worker.accepting.queries import (
    QueryOrder,
    cancel_query,
    checked_order,
    discard_uploads,
    record_query,
)
from worker.accepting.repeats import NamedRequest, made_before, repeated
from worker.core.roi_json import roi_from_json
from worker.core.search_params import search_params_from_json
from worker.errors import Forbidden, NotFound, TooManyRequests
from worker.video.picture import as_jpeg, load_query_picture

router = APIRouter(prefix="/v1/queries", tags=["queries"])


@router.post(
    "", status_code=202, responses=WRITING, openapi_extra={"requestBody": drawn_body(QueryGiven)}
)
async def submit(
    caller: Searcher,
    desk: Here,
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> QueryTold:
    """Search for what is inside a box or polygon of an indexed frame (JSON) or of a picture
    (multipart form). The answer comes at the address in Location."""
    body = await read_drawn(request, QueryGiven)
    given = body.given
    picture_sha256 = None if body.picture is None else hashlib.sha256(body.picture).hexdigest()
    asked = named(idempotency_key, "query", given.model_dump(mode="json"), picture_sha256)
    told = None
    if body.picture is not None or not isinstance(given.roi, BoxGiven):
        told = await run_in_threadpool(_made_already, desk, caller, asked)
    if told is None:
        run = run_in_threadpool if body.picture is None else desk.decoding.run
        order = await run(lambda: query_order(desk, body))
        told = await run_in_threadpool(_accept, desk, caller, order, asked)
    response.headers["Location"] = f"/v1/queries/{told.query_id}"
    return told


def _made_already(desk: ApiDesk, caller: Caller, asked: NamedRequest | None) -> QueryTold | None:
    """What the same request made before; else there is room for another query. Looked at before
    the work that checking polygons and pictures is."""
    with desk.db.transaction() as session:
        made = repeated(session, caller.key_id, asked)
        if made is not None:
            return QueryTold.of(known_query(session, caller, uuid.UUID(made)))
        _require_room(session, desk, caller)
    return None


def query_order(desk: ApiDesk, body: DrawnBody[Any]) -> QueryOrder:
    """What was drawn, checked. Decodes a picture."""
    given = body.given
    return checked_order(
        desk,
        roi_from_json(given.roi.model_dump()),
        search_params_from_json(given.params.to_fields()),
        frame_id=given.frame_id,
        picture=body.picture,
    )


def _accept(
    desk: ApiDesk, caller: Caller, order: QueryOrder, asked: NamedRequest | None
) -> QueryTold:
    query_id = uuid.uuid4()
    with desk.db.transaction() as session:
        made = made_before(session, caller.key_id, asked, making=str(query_id))
        if made is not None:
            return QueryTold.of(known_query(session, caller, uuid.UUID(made)))
        _require_room(session, desk, caller)
        accepted = record_query(desk, session, order, caller.actor, caller.scope, query_id)
    desk.ring(accepted.job_id, "query")
    return QueryTold.of(QueryView(accepted.query, accepted.job, hits=0))


def _require_room(session: Session, desk: ApiDesk, caller: Caller) -> None:
    most = desk.settings.api_open_queries
    if browse.count_open_queries(session, caller.key_id) >= most:
        raise TooManyRequests(
            f"API key {caller.key_id} has {most} queries that are not answered yet"
            " (RIS_API_OPEN_QUERIES): wait for one, or cancel one"
        )


@router.get("", responses=READING)
def list_queries(
    caller: Searcher, desk: Here, limit: Limit = 50, cursor: Cursor = None
) -> Page[QueryTold]:
    """Queries of this key, newest first; an admin key sees those of all."""
    after = read_cursor(cursor, moment, _uuid)
    with desk.db.transaction() as session:
        found = browse.list_queries(session, owner(caller), after, limit)
    return Page(
        items=[QueryTold.of(view) for view in found],
        next_cursor=next_cursor(
            found, limit, lambda view: [view.query.created_at, str(view.query.id)]
        ),
    )


def _uuid(value: object) -> uuid.UUID:
    return uuid.UUID(str(value))


@router.get("/{query_id}", responses=READING)
def get_query(caller: Searcher, desk: Here, query_id: uuid.UUID) -> QueryTold:
    """A query as it stands."""
    with desk.db.transaction() as session:
        return QueryTold.of(known_query(session, caller, query_id))


@router.get("/{query_id}/picture", responses=PICTURE_RESPONSES, response_class=Response)
async def get_picture(
    caller: Searcher, desk: Here, query_id: uuid.UUID, request: Request
) -> Response:
    """The picture that the query was drawn on, as a JPEG; an upload is turned upright. A frame's
    needs the action view as well."""
    sha256, is_upload = await run_in_threadpool(_picture_of, desk, caller, query_id)
    if answer := unchanged(request, sha256):
        return answer
    if is_upload:
        most_px = desk.settings.query_picture_max_px
        jpeg = await desk.decoding.run(
            lambda: as_jpeg(load_query_picture(desk.uploads.load(sha256), most_px))
        )
    else:
        jpeg = await run_in_threadpool(desk.pictures.read, sha256)
    await run_in_threadpool(note_view, desk, caller, query_id=str(query_id), what="query picture")
    return picture_response(jpeg, sha256)


def _picture_of(desk: ApiDesk, caller: Caller, query_id: uuid.UUID) -> tuple[str, bool]:
    """Content hash of a query's picture, and whether it is an upload."""
    with desk.db.transaction() as session:
        query = known_query(session, caller, query_id).query
        if query.frame_id is None:
            return str(query.picture_sha256), True
        if not caller.may("view"):
            raise Forbidden(
                f"API key {caller.key_id} does not allow 'view', which the picture of a frame needs"
            )
        return known_frame(session, caller, query.frame_id).picture_sha256, False


@router.delete("/{query_id}", responses=WRITING)
def cancel(caller: Searcher, desk: Here, query_id: uuid.UUID) -> QueryTold:
    """Take a query back: it ends as failed with `cancelled`. One that has ended stays as it is."""
    with desk.db.transaction() as session:
        query = known_query(session, caller, query_id).query
        cancelled = cancel_query(session, caller.actor, query)
        session.expire_all()
        told = QueryTold.of(known_query(session, caller, query_id))
    if cancelled and query.picture_sha256 is not None:
        discard_uploads(desk, [query.picture_sha256])
    return told


_EVENT_RESPONSES = event_responses(
    "`{query_id, state, error_code, answer}`; `answer` says what hits there are (docs/api.md)"
)


@router.get("/{query_id}/events", responses=_EVENT_RESPONSES, response_class=StreamingResponse)
async def follow(caller: Searcher, desk: Here, query_id: uuid.UUID) -> StreamingResponse:
    """Server-sent events: `state` now and at each change, until done or failed."""

    def job_id() -> uuid.UUID:
        with desk.db.transaction() as session:
            return known_query(session, caller, query_id).job.id

    def look(session: Session) -> dict[str, Any] | None:
        found = browse.query_state(session, query_id)
        return None if found is None else {"query_id": str(query_id), **asdict(found)}

    return EventStream(desk, caller.key_id, await run_in_threadpool(job_id), look)


def owner(caller: Caller) -> int | None:
    """Whose queries the caller sees: its own, or everyone's."""
    return None if caller.may("admin") else caller.key_id


def known_query(session: Session, caller: Caller, query_id: uuid.UUID) -> QueryView:
    """A query that exists for the caller. Raises :class:`NotFound`."""
    view = browse.find_query(session, query_id, owner(caller))
    if view is None:
        raise NotFound(f"query {query_id} is not known")
    return view
