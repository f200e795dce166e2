"""/v1/segments: recorded files to ingest, and how that stands."""

from __future__ import annotations

import uuid
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.concurrency import run_in_threadpool

from api.access import Feeder
from api.bodies import SegmentBody, json_body, named
from api.desk import ApiDesk, Here
from api.fields import Cursor, Id, IdempotencyKey, Limit, next_cursor, read_cursor, whole
from api.given import SegmentGiven
from api.problems import READING, WRITING
from api.routes.cameras import known_camera
from api.told import Page, SegmentTold
from models.repositories import browse
from models.session import Session
from worker.accepting.keys import Caller
from worker.accepting.repeats import NamedRequest, made_before, note_made, repeated
from worker.accepting.segments import Recording, Submission, read_content, record_segment
from worker.core.sampling import policy_named
from worker.errors import InputInvalid, NotFound, VideoUnreadable

router = APIRouter(prefix="/v1/segments", tags=["segments"])


@router.post("", status_code=202, responses=WRITING, openapi_extra=json_body(SegmentGiven))
async def submit(
    caller: Feeder,
    desk: Here,
    given: SegmentBody,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> SegmentTold:
    """Ingest a recorded file that lies on the server. The same file again changes nothing. The
    file is read once before the answer, two files at a time: allow a second for each 500 MB."""
    asked = named(idempotency_key, "segment", given.model_dump(mode="json"))
    told, camera = await run_in_threadpool(_made_already, desk, caller, given, asked)
    if told is None:
        path = await run_in_threadpool(footage_path, desk, caller, camera, given.path)
        recording = await desk.hashing.run(lambda: _recording(path, given))
        told = await run_in_threadpool(_accept, desk, caller, given, recording, asked)
    response.headers["Location"] = f"/v1/segments/{told.segment_id}"
    return told


def _made_already(
    desk: ApiDesk, caller: Caller, given: SegmentGiven, asked: NamedRequest | None
) -> tuple[SegmentTold | None, str]:
    """What the same request made before, and the name of the camera."""
    with desk.db.transaction() as session:
        camera = known_camera(session, caller, given.camera_id).camera.name
        made = repeated(session, caller.key_id, asked)
        return None if made is None else _known_segment(session, caller, int(made)), camera


def _recording(path: Path, given: SegmentGiven) -> Recording:
    try:
        content = read_content(path)
    except VideoUnreadable as error:  # where the footage folder lies is not told
        raise VideoUnreadable(str(error).replace(str(path), given.path[:80])) from error
    return Recording(
        path, content, given.start_utc, "given", policy_named(given.policy, given.every_s)
    )


def _accept(
    desk: ApiDesk,
    caller: Caller,
    given: SegmentGiven,
    recording: Recording,
    asked: NamedRequest | None,
) -> SegmentTold:
    submission: Submission | None = None
    with desk.db.transaction() as session:
        made = made_before(session, caller.key_id, asked)
        if made is None:
            known_camera(session, caller, given.camera_id)
            submission = record_segment(session, given.camera_id, recording, caller.actor)
            made = str(submission.segment_id)
            note_made(session, caller.key_id, asked, made)
        told = _known_segment(session, caller, int(made))
    if submission is not None and submission.is_new:
        desk.ring(uuid.UUID(submission.job_id), "ingest")
    return told


def footage_path(desk: ApiDesk, caller: Caller, camera: str, given: str) -> Path:
    """A file below the footage folder; for a key that is limited to cameras one below the folder
    of its camera's name there: other cameras' recordings lie beside it.

    Raises :class:`InputInvalid` or :class:`VideoUnreadable`; of files elsewhere nothing is told.
    """
    if desk.settings.footage_dir is None:
        raise InputInvalid(
            "path: this server takes no files by path; set RIS_FOOTAGE_DIR to the folder that"
            " recordings lie in"
        )
    folder = desk.settings.footage_dir.resolve()
    try:
        path = (folder / given).resolve()
        within = path.relative_to(folder).parts if path.is_relative_to(folder) else ()
        known = path.is_file()
    except (ValueError, OSError, RuntimeError):  # a NUL, a name too long, a loop of links
        raise InputInvalid(f"path {given[:80]!r} is no path") from None
    if caller.camera_ids is not None:
        if not known or within[:1] != (camera,):
            raise VideoUnreadable(
                f"path {given[:80]!r} is no file below {camera}/ in the footage folder of this"
                f" server; API key {caller.key_id} is limited to cameras"
            )
    elif not within:
        raise InputInvalid(f"path {given[:80]!r} is outside the footage folder of this server")
    elif not known:
        raise VideoUnreadable(
            f"path {given[:80]!r} is no file in the footage folder of this server"
        )
    return path


@router.get("", responses=READING)
def list_segments(
    caller: Feeder, desk: Here, limit: Limit = 100, cursor: Cursor = None
) -> Page[SegmentTold]:
    """Segments by id, each with the state of its ingest."""
    after = read_cursor(cursor, whole) or (0,)
    with desk.db.transaction() as session:
        found = browse.list_segments(session, caller.cameras(), after[0], limit)
    return Page(
        items=[SegmentTold.of(segment, job) for segment, job in found],
        next_cursor=next_cursor(found, limit, lambda row: [row[0].id]),
    )


@router.get("/{segment_id}", responses=READING)
def get_segment(caller: Feeder, desk: Here, segment_id: Id) -> SegmentTold:
    """A segment and how its ingest stands."""
    with desk.db.transaction() as session:
        return _known_segment(session, caller, segment_id)


def _known_segment(session: Session, caller: Caller, segment_id: int) -> SegmentTold:
    found = browse.list_segments(session, caller.cameras(), 0, 1, segment_id)
    if not found:
        raise NotFound(f"segment {segment_id} is not known")
    return SegmentTold.of(*found[0])
