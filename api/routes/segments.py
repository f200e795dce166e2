"""/v1/segments: recorded files to ingest, and how that stands."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from api.access import Feeder
from api.bodies import FORM_TYPE, JSON_TYPE, json_of, kind_of, named
from api.desk import ApiDesk, Here
from api.fields import Cursor, Id, IdempotencyKey, Limit, next_cursor, read_cursor, whole
from api.given import RecordingGiven, SegmentGiven
from api.problems import READING, WRITING
from api.recordings import SEGMENT_BODY, Received, receive_recording
from api.routes.cameras import known_camera
from api.told import Page, SegmentTold
from models.repositories import browse
from models.repositories import videos as video_record
from models.session import Session
from models.video import Camera
from worker.accepting.keys import Caller
from worker.accepting.repeats import NamedRequest, made_before, note_made, repeated
from worker.accepting.segments import (
    FileContent,
    Recording,
    Submission,
    file_state,
    keep_segment,
    read_content,
    record_segment,
    recording_at,
    sent_name,
)
from worker.core.sampling import policy_named
from worker.errors import InputInvalid, MediaUnsupported, NotFound, VideoUnreadable

router = APIRouter(prefix="/v1/segments", tags=["segments"])


@router.post("", status_code=202, responses=WRITING, openapi_extra={"requestBody": SEGMENT_BODY})
async def submit(
    caller: Feeder,
    desk: Here,
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> SegmentTold:
    """Ingest a recorded file: one that lies on the server or is fetched from an address (JSON), or
    one that is sent (multipart form). The same again changes nothing. A file by path is read once
    before the answer, two files at a time: allow a second for each 500 MB."""
    if kind_of(request) == FORM_TYPE:
        told = await _submit_sent(caller, desk, request, idempotency_key)
    elif kind_of(request) == JSON_TYPE:
        given = await json_of(request, SegmentGiven)
        told = await _submit_named(caller, desk, given, idempotency_key)
    else:
        raise MediaUnsupported(
            f"Content-Type {kind_of(request) or 'missing'}: send {JSON_TYPE} or {FORM_TYPE}"
        )
    response.headers["Location"] = f"/v1/segments/{told.segment_id}"
    return told


async def _submit_named(
    caller: Caller, desk: ApiDesk, given: SegmentGiven, idempotency_key: str | None
) -> SegmentTold:
    url = None if given.url is None else given.url.get_secret_value()
    asked = named(idempotency_key, "segment", given.model_dump(mode="json") | {"url": url})
    told, camera = await run_in_threadpool(_made_already, desk, caller, given, asked)
    if told is not None:
        return told
    if url is None:
        name = str(given.path)
        path = await run_in_threadpool(footage_path, desk, caller, camera, name)
        recording = await desk.hashing.run(lambda: _recording(path, name, given))
    else:
        policy = policy_named(given.policy, given.every_s)
        recording = recording_at(desk.settings, url, given.start_utc, policy)

    def accept(session: Session, camera_id: int) -> Submission:
        return record_segment(session, camera_id, recording, caller.actor)

    return await run_in_threadpool(_accept, desk, caller, given, accept, asked)


async def _submit_sent(
    caller: Caller, desk: ApiDesk, request: Request, idempotency_key: str | None
) -> SegmentTold:
    """What is sent goes to the disk first and into the record with its last byte."""

    async def check(given: RecordingGiven) -> None:
        await run_in_threadpool(_made_already, desk, caller, given, None)

    desk.uploading.begin(caller.key_id)
    try:
        received = await receive_recording(request, desk, check)
        try:
            return await run_in_threadpool(_accept_sent, desk, caller, received, idempotency_key)
        finally:
            received.incoming.discard()  # unless it was kept
    finally:
        desk.uploading.end(caller.key_id)


def _accept_sent(
    desk: ApiDesk, caller: Caller, received: Received, idempotency_key: str | None
) -> SegmentTold:
    given, incoming = received.given, received.incoming
    asked = named(idempotency_key, "segment", given.model_dump(mode="json"), received.sha256)
    content = FileContent(received.sha256, file_state(incoming.path))
    policy = policy_named(given.policy, given.every_s)
    recording = Recording(
        sent_name(received.name), content, given.start_utc, "given", policy, held=True
    )

    def accept(session: Session, camera_id: int) -> Submission:
        return keep_segment(desk, session, camera_id, recording, incoming, caller.actor)

    return _accept(desk, caller, given, accept, asked)


def _made_already(
    desk: ApiDesk, caller: Caller, given: RecordingGiven, asked: NamedRequest | None
) -> tuple[SegmentTold | None, str]:
    """What the same request made before, and the name of the camera."""
    with desk.db.transaction() as session:
        camera = _camera_of(session, caller, given).name
        made = repeated(session, caller.key_id, asked)
        return None if made is None else _known_segment(session, caller, int(made)), camera


def _camera_of(session: Session, caller: Caller, given: RecordingGiven) -> Camera:
    """Raises :class:`NotFound`, also for cameras that the caller must not know of."""
    if given.camera_id is not None:
        return known_camera(session, caller, given.camera_id).camera
    camera = video_record.camera_named(session, str(given.camera))
    if camera is None or not caller.scope.sees_camera(camera.id):
        raise NotFound(f"camera {given.camera!r} is not known; GET /v1/cameras lists them")
    return camera


def _recording(path: Path, name: str, given: SegmentGiven) -> Recording:
    try:
        content = read_content(path)
    except VideoUnreadable as error:  # where the footage folder lies is not told
        raise VideoUnreadable(str(error).replace(str(path), name[:80])) from error
    return Recording(
        path, content, given.start_utc, "given", policy_named(given.policy, given.every_s)
    )


def _accept(
    desk: ApiDesk,
    caller: Caller,
    given: RecordingGiven,
    accept: Callable[[Session, int], Submission],
    asked: NamedRequest | None,
) -> SegmentTold:
    submission: Submission | None = None
    with desk.db.transaction() as session:
        made = made_before(session, caller.key_id, asked)
        if made is None:
            submission = accept(session, _camera_of(session, caller, given).id)
            made = str(submission.segment_id)
            note_made(session, caller.key_id, asked, made)
        told = _known_segment(session, caller, int(made))
    if submission is not None and submission.is_new:
        desk.ring(uuid.UUID(submission.job_id), submission.kind)
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
    if caller.scope.camera_ids is not None:
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
        found = browse.list_segments(session, caller.scope, after[0], limit)
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
    found = browse.list_segments(session, caller.scope, 0, 1, segment_id)
    if not found:
        raise NotFound(f"segment {segment_id} is not known")
    return SegmentTold.of(*found[0])
