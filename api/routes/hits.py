"""/v1/queries/{query_id}/hits and /appearances: the answer, page by page."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from api.access import Searcher
from api.desk import ApiDesk, Here
from api.fields import Cursor, Limit, next_cursor, read_cursor, whole
from api.pictures import OVERLAY_RESPONSES, picture_response, unchanged
from api.problems import READING
from api.routes.frames import MaxSidePx, note_view
from api.routes.queries import known_query
from api.told import Appearances, CameraAppearance, HitTold, Page, hit_box
from models.repositories import browse
from models.search import SearchHit
from worker.accepting.keys import Caller
from worker.core.appearances import join_appearances
from worker.core.search_params import search_params_from_json
from worker.core.types import Box, GridSize
from worker.errors import NotFound
from worker.video.picture import HitPicture, draw_overlay

router = APIRouter(prefix="/v1/queries/{query_id}", tags=["hits"])

_MOST_HITS = 1000
_KINDS: dict[str, Literal["JPEG", "PNG"]] = {"jpeg": "JPEG", "png": "PNG"}
_GapS = Annotated[
    float | None,
    Query(ge=0, le=3600, description="Seconds between hits of one; left out: as was asked."),
]


@router.get("/hits", responses=READING)
def list_hits(
    caller: Searcher, desk: Here, query_id: uuid.UUID, limit: Limit = 50, cursor: Cursor = None
) -> Page[HitTold]:
    """Hits by rank. Of a query that runs, the first ones, if any: `answer` of the query says what
    they are, and they are to be read again once it is `final`."""
    after = read_cursor(cursor, whole) or (0,)
    with desk.db.transaction() as session:
        known_query(session, caller, query_id)
        found = browse.list_hits(session, query_id, caller.scope, after[0], limit)
    return Page(
        items=[HitTold.of(hit) for hit in found],
        next_cursor=next_cursor(found, limit, lambda hit: [hit.rank]),
    )


@router.get("/hits/{rank}/overlay", responses=OVERLAY_RESPONSES, response_class=Response)
async def get_overlay(
    caller: Searcher,
    desk: Here,
    query_id: uuid.UUID,
    rank: Annotated[int, Path(ge=1, le=_MOST_HITS)],
    request: Request,
    form: Annotated[Literal["jpeg", "png"], Query(alias="format")] = "jpeg",
    max_side_px: MaxSidePx = 1920,
) -> Response:
    """The hit's picture with the matched region tinted and the subject's box drawn."""
    hit = await run_in_threadpool(_known_hit, desk, caller, query_id, rank)
    sha256, kind = hit.frame.picture_sha256, _KINDS[form]
    drawn = f"{hit.region_cell_index}{hit.box}{hit.score}"  # others, until the query is done
    etag = hashlib.sha256(f"{sha256}{drawn}-{rank}-{form}-{max_side_px}".encode()).hexdigest()
    if answer := unchanged(request, etag):
        return answer
    content = await desk.decoding.run(
        lambda: draw_overlay(_as_drawn(hit, desk.pictures.load(sha256)), max_side_px, kind)
    )
    details = {"frame_id": hit.frame_id, "query_id": str(query_id), "rank": rank}
    await run_in_threadpool(note_view, desk, caller, what="overlay", **details)
    return picture_response(content, etag, f"image/{form}")


def _known_hit(desk: ApiDesk, caller: Caller, query_id: uuid.UUID, rank: int) -> SearchHit:
    with desk.db.transaction() as session:
        known_query(session, caller, query_id)
        found = browse.list_hits(session, query_id, caller.scope, rank - 1, 1)
    if not found or found[0].rank != rank:
        raise NotFound(f"query {query_id} has no hit {rank}")
    return found[0]


def _as_drawn(hit: SearchHit, img_hwc: np.ndarray) -> HitPicture:
    box = hit_box(hit)
    return HitPicture(
        img_hwc=img_hwc,
        rank=hit.rank,
        camera=hit.frame.camera.name,
        t_utc=hit.frame.t_utc,
        score=hit.score,
        cell_index=np.array(hit.region_cell_index, dtype=np.int64),
        grid=GridSize(hit.grid_h, hit.grid_w),
        box=None if box is None else Box(*box),
    )


@router.get("/appearances", responses=READING)
def list_appearances(
    caller: Searcher, desk: Here, query_id: uuid.UUID, gap_s: _GapS = None
) -> Appearances:
    """Hits of one camera joined in time, in order of time: the subject's way."""
    with desk.db.transaction() as session:
        query = known_query(session, caller, query_id).query
        hits = browse.list_hits(session, query_id, caller.scope, 0, _MOST_HITS)
    params = search_params_from_json(query.params)
    if params.group == "appearance" and gap_s is None:
        items = [_as_recorded(hit) for hit in hits]
    else:
        items = _joined(hits, params.appearance_gap_s if gap_s is None else gap_s)
    return Appearances(items=sorted(items, key=lambda one: (one.from_utc, one.camera_id)))


def _as_recorded(hit: SearchHit) -> CameraAppearance:
    told = HitTold.of(hit)
    return CameraAppearance(
        camera_id=told.camera_id,
        camera_name=told.camera_name,
        from_utc=told.appearance.from_utc,
        to_utc=told.appearance.to_utc,
        frames=told.appearance.frames,
        best=told,
    )


def _joined(hits: Sequence[SearchHit], gap_s: float) -> list[CameraAppearance]:
    found = join_appearances(
        np.array([hit.frame.camera_id for hit in hits], dtype=np.int64),
        np.array([hit.frame.t_utc.timestamp() for hit in hits], dtype=np.float64),
        gap_s,
    )
    items = []
    for one in found:
        best = HitTold.of(hits[one.best])
        items.append(
            CameraAppearance(
                camera_id=best.camera_id,
                camera_name=best.camera_name,
                from_utc=datetime.fromtimestamp(one.from_epoch_s, UTC),
                to_utc=datetime.fromtimestamp(one.to_epoch_s, UTC),
                frames=sum(hits[member].appearance_frames for member in one.members),
                best=best,
            )
        )
    return items
