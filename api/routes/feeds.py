"""/v1/feeds: cameras that are read all the time; /v1/cameras/.../gaps: what was missed of them."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.access import Admin, Viewer
from api.bodies import FeedBody, json_body
from api.desk import Here
from api.fields import Cursor, Id, Limit, moment, next_cursor, read_cursor, whole
from api.given import FeedGiven
from api.problems import READING, WRITING
from api.routes.cameras import known_camera
from api.told import Page
from api.told_feeds import FeedGapTold, FeedTold
from models.repositories import feeds as feed_record
from models.session import Session
from worker.accepting import feeds as accepting
from worker.accepting.keys import Caller
from worker.core.sampling import policy_named
from worker.errors import NotFound

router = APIRouter(prefix="/v1", tags=["feeds"])


@router.get("/feeds", responses=READING)
def list_feeds(
    caller: Viewer, desk: Here, limit: Limit = 100, cursor: Cursor = None
) -> Page[FeedTold]:
    """Feeds of the cameras that exist for the key, by id, and how each is."""
    after = read_cursor(cursor, whole) or (0,)
    with desk.db.transaction() as session:
        found = feed_record.list_feeds(session, caller.scope, after[0], limit)
    return Page(
        items=[FeedTold.of(feed) for feed in found],
        next_cursor=next_cursor(found, limit, lambda feed: [feed.id]),
    )


@router.post("/feeds", status_code=201, responses=WRITING, openapi_extra=json_body(FeedGiven))
def add_feed(caller: Admin, desk: Here, given: FeedBody, response: Response) -> FeedTold:
    """Read a camera from now on. The same request again changes nothing."""
    policy = policy_named(given.policy, given.every_s)
    order = accepting.checked_feed(desk.settings, given.url.get_secret_value(), policy)
    with desk.db.transaction() as session:
        if given.camera_id is not None:
            camera = known_camera(session, caller, given.camera_id).camera
        else:
            camera = accepting.feed_camera(session, caller.actor, str(given.camera))
        accepted = accepting.add_feed(session, caller.actor, camera, order)
        told = _known_feed(session, caller, accepted.feed_id)
    if accepted.job_id is not None:
        desk.ring(accepted.job_id, "feed")
    response.headers["Location"] = f"/v1/feeds/{told.feed_id}"
    return told


@router.get("/feeds/{feed_id}", responses=READING)
def get_feed(caller: Viewer, desk: Here, feed_id: Id) -> FeedTold:
    """A feed and how it is."""
    with desk.db.transaction() as session:
        return _known_feed(session, caller, feed_id)


@router.post("/feeds/{feed_id}/pause", responses=WRITING)
def pause_feed(caller: Admin, desk: Here, feed_id: Id) -> FeedTold:
    """Read a camera no more until it is resumed; the gap is recorded."""
    with desk.db.transaction() as session:
        _known_feed(session, caller, feed_id)
        accepting.pause_feed(session, caller.actor, feed_id)
        return _known_feed(session, caller, feed_id)


@router.post("/feeds/{feed_id}/resume", responses=WRITING)
def resume_feed(caller: Admin, desk: Here, feed_id: Id) -> FeedTold:
    """Read a paused camera again, or a clip once more."""
    with desk.db.transaction() as session:
        _known_feed(session, caller, feed_id)
        accepted = accepting.resume_feed(session, caller.actor, feed_id)
        told = _known_feed(session, caller, feed_id)
    if accepted.job_id is not None:
        desk.ring(accepted.job_id, "feed")
    return told


@router.delete("/feeds/{feed_id}", status_code=204, responses=WRITING)
def delete_feed(caller: Admin, desk: Here, feed_id: Id) -> None:
    """Read a camera no more and forget its address. Footage, gaps and counts stay."""
    with desk.db.transaction() as session:
        _known_feed(session, caller, feed_id)
        accepting.remove_feed(session, caller.actor, feed_id)


@router.get("/cameras/{camera_id}/gaps", responses=READING)
def list_gaps(
    caller: Viewer, desk: Here, camera_id: Id, limit: Limit = 100, cursor: Cursor = None
) -> Page[FeedGapTold]:
    """Of which times a live camera has no frames and why, newest first."""
    after = read_cursor(cursor, moment, whole)
    with desk.db.transaction() as session:
        known_camera(session, caller, camera_id)
        found = feed_record.camera_gaps(session, caller.scope, camera_id, after, limit)
    return Page(
        items=[FeedGapTold.of(gap) for gap in found],
        next_cursor=next_cursor(found, limit, lambda gap: [gap.from_utc, gap.id]),
    )


def _known_feed(session: Session, caller: Caller, feed_id: int) -> FeedTold:
    """A feed of a camera that exists for the caller. Raises :class:`NotFound`."""
    found = feed_record.list_feeds(session, caller.scope, 0, 1, feed_id)
    if not found:
        raise NotFound(f"feed {feed_id} is not known; GET /v1/feeds lists them")
    return FeedTold.of(found[0])
