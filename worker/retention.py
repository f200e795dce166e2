"""Retention: what is older than its camera's rule, or its kind's, goes by itself."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import structlog

from models.repositories import erasures as erasure_record
from models.repositories import outlived as outlived_record
from models.repositories import recordings as recording_record
from models.repositories import videos as video_record
from models.session import DatabaseUnavailable
from worker.accepting.audit import record_act
from worker.accepting.desk import BEAT, COMMAND_LINE
from worker.accepting.queries import discard_uploads
from worker.context import Context
from worker.erasure import Span, submit_erasure
from worker.errors import NotFound, ObjectStoreUnavailable, RisError
from worker.leftovers import (
    STRAY_AFTER_S,
    remove_stray_objects,
    remove_stray_recordings,
    remove_stray_shards,
    remove_stray_uploads,
    remove_strays,
)
from worker.recording import bucket_of

log = structlog.get_logger()

_AT_ONCE = 500
"""Rows of a transaction."""
_ROUNDS = 20


def go_through(context: Context, *steps: Callable[[Context], object]) -> None:
    """Each step, whatever becomes of the others; the first error is raised in the end."""
    errors: list[RisError | DatabaseUnavailable] = []
    for step in steps:
        try:
            step(context)
        except (RisError, DatabaseUnavailable) as error:
            log.warning("retention_step_failed", step=step.__qualname__, detail=str(error))
            errors.append(error)
    if errors:
        raise errors[0]


def submit_due(context: Context) -> int:
    """Order the erasure of what has outlived its retention; returns for how many cameras.

    Whole shard spans only, so that shards go as files and are not written anew. What writers that
    died left behind goes as well: folders of vectors, recordings and objects each time, pictures,
    which take a walk through all of them, once an erasure is so long over that they count as
    strays.
    """
    with context.db.transaction() as session:
        last, now = erasure_record.last_finished(session), erasure_record.database_time(session)
    long_over = last is not None and (now - last).total_seconds() > STRAY_AFTER_S
    if long_over and context.swept.is_news(last):
        remove_strays(context)
    else:
        remove_stray_shards(context)
        remove_stray_recordings(context)
    try:
        remove_stray_objects(context)
    except ObjectStoreUnavailable as error:  # what outlived its time must go all the same
        log.warning("objects_not_swept", detail=str(error))
    due = []
    with context.db.transaction() as session:
        now_utc = erasure_record.database_time(session)
        for camera in erasure_record.list_cameras(session):
            days = camera.retention_days
            if days is None:
                days = context.settings.retention_days
            if not days or erasure_record.is_open(session, camera.id, "retention"):
                continue
            until = bucket_of(now_utc - timedelta(days=days), context.settings.shard_span_s)
            frames = erasure_record.first_frame_utc(session, camera.id, None, until) is not None
            if frames or recording_record.any_ended_before(session, camera.id, until):
                due.append(Span(camera.id, None, until))
    for span in due:
        submit_erasure(context, span, "retention", actor=BEAT)
    return len(due)


def forget_outlived(context: Context) -> None:
    """Forget queries, with their hits and uploads, and then jobs, that were kept for their time.

    Some thousands of each; what is left is for the next time.
    """
    settings = context.settings
    for _ in range(_ROUNDS if settings.query_keep_days else 0):
        with context.db.transaction() as session:
            gone = outlived_record.remove_queries_ended(session, settings.query_keep_days, _AT_ONCE)
            if gone.queries:
                counts = {"queries": gone.queries, "hits": gone.hits}
                record_act(session, BEAT, "query.forget", **counts)
        discard_uploads(context, gone.files)
        if gone.queries < _AT_ONCE:
            break
    if settings.query_keep_days:
        remove_stray_uploads(context)  # of a worker that died before it removed them
    for _ in range(_ROUNDS if settings.job_keep_days else 0):
        with context.db.transaction() as session:
            removed = outlived_record.remove_jobs_ended(session, settings.job_keep_days, _AT_ONCE)
        if removed < _AT_ONCE:
            break


def set_retention(context: Context, camera_name: str, days: int | None) -> None:
    """Set how long a camera's footage is kept. Raises :class:`NotFound`."""
    with context.db.transaction() as session:
        camera = video_record.camera_named(session, camera_name)
        if camera is None:
            raise NotFound(f"camera {camera_name!r} is not known; `ris cameras` lists them")
        erasure_record.set_retention(session, camera.id, days)
        record_act(session, COMMAND_LINE, "retention.set", camera_id=camera.id, days=days)
