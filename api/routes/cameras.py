"""/v1/cameras."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.access import Admin, Viewer
from api.bodies import CameraBody, CameraChangeBody, MaskBody, json_body
from api.desk import Here
from api.fields import Cursor, Id, Limit, Time, next_cursor, read_cursor, whole
from api.given import CameraChange, CameraGiven, MaskGiven
from api.problems import READING, WRITING
from api.told import Bucket, CameraTold, Coverage, Gap, MaskTold, Page
from models.repositories import browse
from models.repositories import videos as video_record
from models.repositories.browse import CameraView
from models.session import Session
from worker.accepting.cameras import change_camera, create_camera, set_mask
from worker.accepting.keys import Caller
from worker.core.roi_json import roi_from_json
from worker.errors import InputInvalid, NotFound

router = APIRouter(prefix="/v1/cameras", tags=["cameras"])

MAX_BUCKETS = 2000
_BUCKETS_S = (60, 300, 900, 3600, 6 * 3600, 86_400, 7 * 86_400, 28 * 86_400)
_ENOUGH_BUCKETS = 500
_BucketS = Annotated[
    int | None,
    Query(ge=1, le=366 * 86_400, description="Length of a bucket; left out: at most 500 of them."),
]


@router.get("", responses=READING)
def list_cameras(
    caller: Viewer, desk: Here, limit: Limit = 100, cursor: Cursor = None
) -> Page[CameraTold]:
    """Cameras that exist for the key, by id."""
    after = read_cursor(cursor, whole) or (0,)
    with desk.db.transaction() as session:
        found = browse.list_cameras(session, caller.scope, after[0], limit)
    return Page(
        items=[CameraTold.of(view) for view in found],
        next_cursor=next_cursor(found, limit, lambda view: [view.camera.id]),
    )


@router.post("", status_code=201, responses=WRITING, openapi_extra=json_body(CameraGiven))
def add_camera(caller: Admin, desk: Here, given: CameraBody, response: Response) -> CameraTold:
    """Make a camera. `ris ingest` makes those that it does not know by itself."""
    with desk.db.transaction() as session:
        camera = create_camera(session, caller.actor, given.name, given.retention_days)
        response.headers["Location"] = f"/v1/cameras/{camera.id}"
        return CameraTold.of(CameraView(camera, 0, None, None))


@router.get("/{camera_id}", responses=READING)
def get_camera(caller: Viewer, desk: Here, camera_id: Id) -> CameraTold:
    """A camera."""
    with desk.db.transaction() as session:
        return CameraTold.of(known_camera(session, caller, camera_id))


@router.patch("/{camera_id}", responses=WRITING, openapi_extra=json_body(CameraChange))
def patch_camera(caller: Admin, desk: Here, camera_id: Id, given: CameraChangeBody) -> CameraTold:
    """Rename a camera, or change how long its footage is kept."""
    changes = given.model_dump(exclude_unset=True)
    if "name" in changes and changes["name"] is None:
        raise InputInvalid("name: a camera has a name; leave the field out to keep it")
    with desk.db.transaction() as session:
        known_camera(session, caller, camera_id)
        change_camera(session, caller.actor, camera_id, changes)
        session.expire_all()
        return CameraTold.of(known_camera(session, caller, camera_id))


@router.get("/{camera_id}/mask", responses=READING)
def get_mask(caller: Viewer, desk: Here, camera_id: Id) -> MaskTold:
    """The privacy mask of a camera: parts of its picture that new frames are painted black in."""
    with desk.db.transaction() as session:
        known_camera(session, caller, camera_id)
        return _mask_told(session, camera_id)


@router.put("/{camera_id}/mask", responses=WRITING, openapi_extra=json_body(MaskGiven))
def put_mask(caller: Admin, desk: Here, camera_id: Id, given: MaskBody) -> MaskTold:
    """Set the privacy mask of a camera, an empty list: none. From the answer on no frame is
    recorded without it; frames recorded before stay as they are."""
    areas = [roi_from_json(area.model_dump()) for area in given.areas]
    with desk.db.transaction() as session:
        known_camera(session, caller, camera_id)
        set_mask(session, caller.actor, camera_id, areas)
        return _mask_told(session, camera_id)


def _mask_told(session: Session, camera_id: int) -> MaskTold:
    return MaskTold.of(camera_id, video_record.camera_masks(session, [camera_id]).get(camera_id))


@router.get("/{camera_id}/coverage", responses=READING)
def get_coverage(
    caller: Viewer,
    desk: Here,
    camera_id: Id,
    from_utc: Annotated[Time | None, Query()] = None,
    to_utc: Annotated[Time | None, Query()] = None,
    bucket_s: _BucketS = None,
) -> Coverage:
    """Frames over time, for a timeline: whole buckets that reach over the asked span, left out from
    the camera's first frame to its last."""
    with desk.db.transaction() as session:
        view = known_camera(session, caller, camera_id)
        start = from_utc or view.first_utc or datetime.now(UTC)
        end = to_utc or (view.last_utc or start) + timedelta(seconds=1)
        if to_utc is None and end <= start:
            end = start + timedelta(seconds=1)
        start, end, bucket_s = _aligned(start, end, bucket_s)
        rows = browse.frames_per_bucket(session, caller.scope, camera_id, start, end, bucket_s)
    return Coverage(
        camera_id=camera_id,
        from_utc=start,
        to_utc=end,
        bucket_s=bucket_s,
        frames=sum(frames for _, frames in rows),
        buckets=[Bucket(from_utc=at, frames=frames) for at, frames in rows],
        gaps=gaps([at for at, _ in rows], start, end, bucket_s),
    )


def known_camera(session: Session, caller: Caller, camera_id: int) -> CameraView:
    """A camera that exists for the caller. Raises :class:`NotFound`."""
    found = browse.list_cameras(session, caller.scope, 0, 1, camera_id)
    if not found:
        raise NotFound(f"camera {camera_id} is not known; GET /v1/cameras lists them")
    return found[0]


def _aligned(
    start: datetime, end: datetime, bucket_s: int | None
) -> tuple[datetime, datetime, int]:
    """Whole buckets around a span. Raises :class:`InputInvalid`."""
    span_s = (end - start).total_seconds()
    if span_s <= 0:
        raise InputInvalid(f"from_utc must be before to_utc, got {start} and {end}")
    if bucket_s is None:
        fitting = (size for size in _BUCKETS_S if span_s / size <= _ENOUGH_BUCKETS)
        bucket_s = next(fitting, 366 * 86_400)
    if span_s / bucket_s > MAX_BUCKETS:
        raise InputInvalid(
            f"{span_s / bucket_s:.0f} buckets of {bucket_s} s: at most {MAX_BUCKETS} at a time, ask"
            " for a shorter span or longer buckets"
        )
    bucket, epoch = timedelta(seconds=bucket_s), browse.EPOCH_UTC
    try:
        first = epoch + (start - epoch) // bucket * bucket
        return first, epoch - (epoch - end) // bucket * bucket, bucket_s
    except OverflowError:
        raise InputInvalid(f"{start} to {end} is outside what a date can say") from None


def gaps(held: list[datetime], start: datetime, end: datetime, bucket_s: int) -> list[Gap]:
    """Stretches of ``[start, end)`` between the buckets that hold frames, in order."""
    found, at = [], start
    for bucket in (*held, end):
        if bucket > at:
            found.append(Gap(from_utc=at, to_utc=bucket))
        if bucket < end:
            at = bucket + timedelta(seconds=bucket_s)
    return found
