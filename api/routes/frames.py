"""/v1/frames: metadata, pictures, thumbnails."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from api.access import Viewer
from api.desk import ApiDesk, Here
from api.fields import MAX_ID, Cursor, Id, Limit, Time, moment, next_cursor, read_cursor, whole
from api.pictures import PICTURE_RESPONSES, picture_response, unchanged
from api.problems import READING
from api.routes.cameras import known_camera
from api.told import FrameTold, Page
from models.repositories import browse
from models.repositories import videos as video_record
from models.session import Session
from models.video import Frame
from worker.accepting.audit import record_act
from worker.accepting.keys import Caller
from worker.errors import NotFound
from worker.video.picture import thumbnail

router = APIRouter(prefix="/v1/frames", tags=["frames"])

_CameraId = Annotated[int, Query(ge=1, le=MAX_ID)]
MaxSidePx = Annotated[int, Query(ge=16, le=4096, description="Longest side.")]


@router.get("", responses=READING)
def list_frames(
    caller: Viewer,
    desk: Here,
    camera_id: _CameraId,
    from_utc: Annotated[Time | None, Query(description="At or after.")] = None,
    to_utc: Annotated[Time | None, Query(description="Before.")] = None,
    order: Literal["oldest", "newest"] = "oldest",
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[FrameTold]:
    """Frames of a camera in order of time."""
    after: tuple[datetime, int] | None = read_cursor(cursor, moment, whole)
    with desk.db.transaction() as session:
        known_camera(session, caller, camera_id)
        found = browse.list_frames(
            session,
            caller.scope,
            camera_id,
            from_utc,
            to_utc,
            newest_first=order == "newest",
            after=after,
            limit=limit,
        )
    return Page(
        items=[FrameTold.of(frame) for frame in found],
        next_cursor=next_cursor(found, limit, lambda frame: [frame.t_utc, frame.id]),
    )


@router.get("/nearest", responses=READING)
def get_nearest(
    caller: Viewer, desk: Here, camera_id: _CameraId, t_utc: Annotated[Time, Query()]
) -> FrameTold:
    """The frame of a camera whose time is nearest."""
    with desk.db.transaction() as session:
        known_camera(session, caller, camera_id)
        frame = browse.nearest_frame(session, caller.scope, camera_id, t_utc)
    if frame is None:
        raise NotFound(f"camera {camera_id} has no frames yet")
    return FrameTold.of(frame)


@router.get("/{frame_id}", responses=READING)
def get_frame(caller: Viewer, desk: Here, frame_id: Id) -> FrameTold:
    """A frame."""
    with desk.db.transaction() as session:
        return FrameTold.of(known_frame(session, caller, frame_id))


@router.get("/{frame_id}/picture", responses=PICTURE_RESPONSES, response_class=Response)
def get_picture(caller: Viewer, desk: Here, frame_id: Id, request: Request) -> Response:
    """The kept picture, as stored."""
    with desk.db.transaction() as session:
        frame = known_frame(session, caller, frame_id)
        if answer := unchanged(request, frame.picture_sha256):
            return answer
        jpeg = desk.pictures.read(frame.picture_sha256)
        record_act(session, caller.actor, "picture.view", frame_id=frame_id, what="picture")
    return picture_response(jpeg, frame.picture_sha256)


@router.get("/{frame_id}/thumbnail", responses=PICTURE_RESPONSES, response_class=Response)
async def get_thumbnail(
    caller: Viewer, desk: Here, frame_id: Id, request: Request, max_side_px: MaxSidePx = 320
) -> Response:
    """The kept picture, made smaller."""
    sha256 = (await run_in_threadpool(_known, desk, caller, frame_id)).picture_sha256
    etag = f"{sha256}-{max_side_px}"
    if answer := unchanged(request, etag):
        return answer
    small = await desk.decoding.run(lambda: thumbnail(desk.pictures.read(sha256), max_side_px))
    await run_in_threadpool(note_view, desk, caller, frame_id=frame_id, what="thumbnail")
    return picture_response(small, etag)


def _known(desk: ApiDesk, caller: Caller, frame_id: int) -> Frame:
    with desk.db.transaction() as session:
        return known_frame(session, caller, frame_id)


def note_view(desk: ApiDesk, caller: Caller, **details: Any) -> None:
    """Record that a picture is shown."""
    with desk.db.transaction() as session:
        record_act(session, caller.actor, "picture.view", **details)


def known_frame(session: Session, caller: Caller, frame_id: int) -> Frame:
    """A frame that exists for the caller. Raises :class:`NotFound`."""
    frame = video_record.find_frame(session, frame_id)
    if frame is None or not caller.scope.sees(frame):
        raise NotFound(f"frame {frame_id} is not known")
    return frame
