"""/v1/frames/{frame_id}/proposals: boxes that a query could be drawn with."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from api.access import Viewer
from api.desk import ApiDesk, Here
from api.fields import Id
from api.problems import READING
from api.routes.frames import known_frame, note_view
from api.told import XyXy
from models.repositories import browse
from models.session import Session
from models.video import Frame
from worker.accepting.keys import Caller
from worker.core.proposals import MIN_OTHERS, OTHERS, WIDTH_PX, propose_boxes
from worker.core.types import ImageArray, SizePx
from worker.errors import IndexDamaged, NotFound
from worker.video.picture import small_picture

router = APIRouter(prefix="/v1/frames", tags=["frames"])

_REACH = timedelta(minutes=10)
"""Further away the light has changed, and all would be new."""


class ProposalsTold(BaseModel):
    """What a frame shows and the camera's frames around it do not: moving things, shadows too. What
    stands still is missing, and things that touch are one."""

    frame_id: int
    compared: int = Field(
        description="Frames within ten minutes that it was compared with, at most"
        f" {OTHERS}; below {MIN_OTHERS} nothing is proposed."
    )
    boxes: list[Annotated[XyXy, Field(description="x0, y0, x1, y1, 0 to 1.")]] = Field(
        description="The largest first."
    )


@router.get("/{frame_id}/proposals", responses=READING)
async def get_proposals(caller: Viewer, desk: Here, frame_id: Id) -> ProposalsTold:
    """Boxes around what is new on a frame, to search with instead of drawing. No detector: they are
    found by comparison with the frames around."""
    sha256, others, size = await run_in_threadpool(_pictures_of, desk, caller, frame_id)
    told = await desk.decoding.run(lambda: _proposed(desk, frame_id, sha256, others, size))
    await run_in_threadpool(note_view, desk, caller, frame_id=frame_id, what="proposals")
    return told


def _pictures_of(desk: ApiDesk, caller: Caller, frame_id: int) -> tuple[str, list[str], SizePx]:
    """Content hash of a frame's picture and of those around, and the size to compare them in."""
    with desk.db.transaction() as session:
        frame = known_frame(session, caller, frame_id)
        others = [other.picture_sha256 for other in _around(session, caller, frame)]
        h_px = max(1, round(WIDTH_PX * frame.h_px / frame.w_px))
        return frame.picture_sha256, others, SizePx(h_px, WIDTH_PX)


def _around(session: Session, caller: Caller, frame: Frame) -> list[Frame]:
    """Frames of the same camera and size around a frame that exist for the caller, half of them
    before, half after."""
    found: list[Frame] = []
    for newest_first in (True, False):
        near = browse.list_frames(
            session,
            caller.scope,
            frame.camera_id,
            frame.t_utc - _REACH,
            frame.t_utc + _REACH,
            newest_first=newest_first,
            after=(frame.t_utc, frame.id),
            limit=OTHERS // 2,
        )
        found += [one for one in near if (one.h_px, one.w_px) == (frame.h_px, frame.w_px)]
    return found


def _proposed(
    desk: ApiDesk, frame_id: int, sha256: str, others: list[str], size: SizePx
) -> ProposalsTold:
    img_hwc = small_picture(desk.pictures.read(sha256), size)
    imgs_hwc: list[ImageArray] = []
    for other in others:
        with suppress(NotFound, IndexDamaged):  # erased meanwhile, or damaged: one less
            imgs_hwc.append(small_picture(desk.pictures.read(other), size))
    boxes = propose_boxes(img_hwc, imgs_hwc)
    return ProposalsTold(
        frame_id=frame_id,
        compared=len(imgs_hwc),
        boxes=[[box.x0, box.y0, box.x1, box.y1] for box in boxes],
    )
