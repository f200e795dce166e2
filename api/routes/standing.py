"""/v1/standing-queries and /v1/alerts: what new frames are compared with, and what came of it."""

from __future__ import annotations

import hashlib
import uuid
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from api.access import Searcher
from api.bodies import DrawnBody, drawn_body, named, read_drawn
from api.desk import ApiDesk, Here
from api.fields import (
    Cursor,
    Id,
    IdempotencyKey,
    IdParam,
    Limit,
    next_cursor,
    read_cursor,
    whole,
)
from api.given import StandingGiven
from api.pictures import OVERLAY_RESPONSES, picture_response, unchanged
from api.problems import READING, WRITING
from api.routes.frames import MaxSidePx, note_view
from api.routes.queries import owner, query_order
from api.told import Page
from api.told_standing import AlertTold, StandingMade, StandingTold
from models.repositories import standing as standing_record
from models.session import Session
from models.standing import Alert
from worker.accepting import standing as accepting
from worker.accepting.keys import Caller
from worker.accepting.queries import AcceptedQuery, discard_uploads
from worker.accepting.repeats import NamedRequest, made_before, note_made
from worker.accepting.standing import StandingOrder
from worker.core.types import Box, GridSize
from worker.errors import NotFound
from worker.video.picture import HitPicture, draw_overlay

router = APIRouter(prefix="/v1", tags=["standing queries"])

_KINDS: dict[str, Literal["JPEG", "PNG"]] = {"jpeg": "JPEG", "png": "PNG"}


@router.post(
    "/standing-queries",
    status_code=201,
    responses=WRITING,
    openapi_extra={"requestBody": drawn_body(StandingGiven)},
)
async def add_standing(
    caller: Searcher,
    desk: Here,
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> StandingMade:
    """Compare every frame that is committed from now on, live or recorded, with what is inside a
    box or polygon, and raise an alert where it is more alike than chance brings."""
    body = await read_drawn(request, StandingGiven)
    picture_sha256 = None if body.picture is None else hashlib.sha256(body.picture).hexdigest()
    asked = named(idempotency_key, "standing", body.given.model_dump(mode="json"), picture_sha256)
    run = run_in_threadpool if body.picture is None else desk.decoding.run
    order = await run(lambda: _order(desk, body))
    made = await run_in_threadpool(_accept, desk, caller, order, asked)
    response.headers["Location"] = f"/v1/standing-queries/{made.standing_query_id}"
    return made


def _order(desk: ApiDesk, body: DrawnBody[StandingGiven]) -> StandingOrder:
    given = body.given
    return StandingOrder(
        given.name,
        query_order(desk, body),
        given.max_false_per_day,
        given.cool_down_s,
        given.expires_at,
        given.backfill,
    )


def _accept(
    desk: ApiDesk, caller: Caller, order: StandingOrder, asked: NamedRequest | None
) -> StandingMade:
    backfill: AcceptedQuery | None = None
    with desk.db.transaction() as session:
        made = made_before(session, caller.key_id, asked)
        if made is None:
            accepted = accepting.record_standing(desk, session, order, caller.actor, caller.scope)
            backfill = accepted.backfill
            query_id = "" if backfill is None else str(backfill.query_id)
            made = f"{accepted.standing_id} {query_id}"
            note_made(session, caller.key_id, asked, made)
        standing_id, _, query_id = made.partition(" ")
        standing = accepting.known_standing(session, owner(caller), int(standing_id))
        told = StandingMade.with_backfill(standing, uuid.UUID(query_id) if query_id else None)
    if backfill is not None:
        desk.ring(backfill.job_id, "query")
    return told


@router.get("/standing-queries", responses=READING)
def list_standing(
    caller: Searcher, desk: Here, limit: Limit = 100, cursor: Cursor = None
) -> Page[StandingTold]:
    """Standing queries of this key by id, ended ones as well; an admin key sees those of all."""
    after = read_cursor(cursor, whole) or (0,)
    with desk.db.transaction() as session:
        found = standing_record.list_all(session, owner(caller), after[0], limit)
    return Page(
        items=[StandingTold.of(standing, alerts) for standing, alerts in found],
        next_cursor=next_cursor(found, limit, lambda row: [row[0].id]),
    )


@router.get("/standing-queries/{standing_query_id}", responses=READING)
def get_standing(caller: Searcher, desk: Here, standing_query_id: Id) -> StandingTold:
    """A standing query as it stands."""
    with desk.db.transaction() as session:
        return _told(session, caller, standing_query_id)


@router.post("/standing-queries/{standing_query_id}/pause", responses=WRITING)
def pause_standing(caller: Searcher, desk: Here, standing_query_id: Id) -> StandingTold:
    """Compare nothing with it until it is resumed."""
    return _set_running(caller, desk, standing_query_id, running=False)


@router.post("/standing-queries/{standing_query_id}/resume", responses=WRITING)
def resume_standing(caller: Searcher, desk: Here, standing_query_id: Id) -> StandingTold:
    """Compare new frames with it again. Those that came meanwhile it does not see."""
    return _set_running(caller, desk, standing_query_id, running=True)


@router.delete("/standing-queries/{standing_query_id}", status_code=204, responses=WRITING)
def delete_standing(caller: Searcher, desk: Here, standing_query_id: Id) -> None:
    """Forget it, with its alerts and its picture."""
    with desk.db.transaction() as session:
        upload = accepting.remove_standing(session, caller.actor, owner(caller), standing_query_id)
    if upload is not None:
        discard_uploads(desk, [upload])


@router.get("/alerts", responses=READING, tags=["alerts"])
def list_alerts(
    caller: Searcher,
    desk: Here,
    standing_query_id: Annotated[IdParam, Query()] = None,
    camera_id: Annotated[IdParam, Query()] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[AlertTold]:
    """Alerts of this key's standing queries, newest first; an admin key sees those of all."""
    after = read_cursor(cursor, whole)
    with desk.db.transaction() as session:
        if standing_query_id is not None:
            accepting.known_standing(session, owner(caller), standing_query_id)
        found = standing_record.list_alerts(
            session,
            owner(caller),
            caller.scope,
            standing_id=standing_query_id,
            camera_id=camera_id,
            before_id=after[0] if after else None,
            limit=limit,
        )
    return Page(
        items=[AlertTold.of(alert) for alert in found],
        next_cursor=next_cursor(found, limit, lambda alert: [alert.id]),
    )


@router.get("/alerts/{alert_id}", responses=READING, tags=["alerts"])
def get_alert(caller: Searcher, desk: Here, alert_id: Id) -> AlertTold:
    """An alert."""
    return AlertTold.of(_known_alert(desk, caller, alert_id))


@router.get(
    "/alerts/{alert_id}/overlay",
    responses=OVERLAY_RESPONSES,
    response_class=Response,
    tags=["alerts"],
)
async def get_alert_overlay(
    caller: Searcher,
    desk: Here,
    alert_id: Id,
    request: Request,
    form: Annotated[Literal["jpeg", "png"], Query(alias="format")] = "jpeg",
    max_side_px: MaxSidePx = 1920,
) -> Response:
    """The alert's picture with the matched region tinted and the subject's box drawn."""
    alert = await run_in_threadpool(_known_alert, desk, caller, alert_id)
    sha256 = alert.frame.picture_sha256
    etag = f"{sha256}-alert-{alert_id}-{form}-{max_side_px}"
    if answer := unchanged(request, etag):
        return answer
    content = await desk.decoding.run(
        lambda: draw_overlay(
            _as_drawn(alert, desk.pictures.load(sha256)), max_side_px, _KINDS[form]
        )
    )
    details = {"frame_id": alert.frame_id, "alert_id": alert_id}
    await run_in_threadpool(note_view, desk, caller, what="overlay", **details)
    return picture_response(content, etag, f"image/{form}")


def _as_drawn(alert: Alert, img_hwc: np.ndarray) -> HitPicture:
    return HitPicture(
        img_hwc=img_hwc,
        rank=alert.id,
        camera=alert.frame.camera.name,
        t_utc=alert.t_utc,
        score=alert.likeness,
        cell_index=np.array(alert.region_cell_index, dtype=np.int64),
        grid=GridSize(alert.grid_h, alert.grid_w),
        box=None if alert.box is None else Box(*alert.box),
    )


def _set_running(caller: Caller, desk: ApiDesk, standing_id: int, *, running: bool) -> StandingTold:
    with desk.db.transaction() as session:
        accepting.set_running(session, caller.actor, owner(caller), standing_id, running=running)
        return _told(session, caller, standing_id)


def _told(session: Session, caller: Caller, standing_id: int) -> StandingTold:
    standing = accepting.known_standing(session, owner(caller), standing_id)
    return StandingTold.of(standing, standing_record.count_alerts(session, standing_id))


def _known_alert(desk: ApiDesk, caller: Caller, alert_id: int) -> Alert:
    with desk.db.transaction() as session:
        found = standing_record.list_alerts(
            session, owner(caller), caller.scope, alert_id=alert_id, limit=1
        )
    if not found:
        raise NotFound(f"alert {alert_id} is not known")
    return found[0]
