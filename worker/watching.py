"""Watched folders: what recorders write there is ingested once it has stopped growing.

One job per folder, for ever: it looks, takes what is finished, and rests. Looking and reading wait
for disks, often over a network, so it runs on the threads of fetches.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

import structlog

from models.repositories import jobs as job_record
from models.repositories import videos as video_record
from models.repositories import watching as watch_record
from models.repositories.jobs import ClaimedJob
from models.repositories.watching import FileState
from models.session import Session
from models.watch import WatchedFile, WatchedFolder
from worker.accepting.audit import record_act
from worker.accepting.desk import BEAT, COMMAND_LINE
from worker.accepting.segments import record_segment
from worker.context import Context
from worker.core.file_names import NamePattern
from worker.core.sampling import SamplingPolicy, policy_from_json, policy_to_json
from worker.errors import AlreadyThere, InputInvalid, NotFound, RisError, VideoUnreadable
from worker.ingest import recording_of
from worker.jobs import Lease, Outcome
from worker.messages import QUEUE_OF_KIND, JobKind
from worker.recorder_folders import NameRules, recordings_below

log = structlog.get_logger()

REST_S: Final = 600.0
"""How long after its job failed a folder gets another one by itself."""
_AT_ONCE: Final = 1000
_MOST_BACKFILL: Final = 200
"""Open back-fill jobs from which on files that were there before wait in their folder."""


def add_watch(
    context: Context, folder: Path, rules: NameRules, policy: SamplingPolicy
) -> tuple[int, bool]:
    """Watch a folder from now on; its id, and whether it is new. Repeating it changes nothing.

    Raises :class:`InputInvalid` where there is no such folder, and :class:`AlreadyThere` where it
    is watched in another way.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise InputInvalid(f"{folder} is no folder")
    if folder.is_relative_to(context.settings.data_dir.resolve()):
        raise InputInvalid(f"{folder} lies inside the data folder")
    values = {
        "folder": str(folder),
        "camera": rules.camera,
        "name_pattern": None if rules.pattern is None else rules.pattern.text,
        "time_zone": rules.zone.key,
        "policy": policy_to_json(policy),
    }
    with context.db.transaction() as session:
        made = watch_record.create(session, values)
        watch = made or watch_record.of_folder(session, str(folder))
        if watch is None or any(getattr(watch, name) != value for name, value in values.items()):
            raise AlreadyThere(f"{folder} is watched in another way: `ris watch rm` it first")
        if made is not None:
            record_act(session, COMMAND_LINE, "watch.add", watch_id=watch.id, folder=str(folder))
        job_id = _ensure_job(session, watch.id)
    _ring(context, job_id)
    return watch.id, made is not None


def remove_watch(context: Context, folder: Path) -> None:
    """Watch a folder no more. What was ingested stays. Raises :class:`NotFound`."""
    with context.db.transaction() as session:
        watch = watch_record.of_folder(session, str(folder.resolve()))
        if watch is None:
            raise NotFound(f"{folder} is not watched: `ris watch ls` lists what is")
        record_act(session, COMMAND_LINE, "watch.remove", watch_id=watch.id, folder=watch.folder)
        watch_record.remove(session, watch.id)


def reconcile(context: Context) -> int:
    """Make a job for every watched folder that has none; returns how many."""
    with context.db.transaction() as session:
        jobless = watch_record.jobless(session, REST_S)
    for watch_id in jobless:
        with context.db.transaction() as session:
            job_id = _ensure_job(session, watch_id)
        _ring(context, job_id)
    return len(jobless)


def _ensure_job(session: Session, watch_id: int) -> uuid.UUID | None:
    watch = watch_record.lock(session, watch_id)
    if watch is None:
        return None
    job = None if watch.job_id is None else job_record.find(session, watch.job_id)
    if job is not None and job.state in ("queued", "running"):
        return None
    queue = QUEUE_OF_KIND["watch"]
    watch.job_id = job_record.submit(session, "watch", queue, {"watch_id": watch_id})
    session.flush()
    return watch.job_id


def _ring(context: Context, job_id: uuid.UUID | None) -> None:
    if job_id is not None:
        context.ring(job_id, "watch")


def run_watch(context: Context, job: ClaimedJob, lease: Lease) -> Outcome:
    """Look once at a folder and take what is finished there."""
    watch_id = int(job.payload["watch_id"])
    with context.db.transaction() as session:
        watch = watch_record.find(session, watch_id)
        if watch is None or watch.job_id != job.id:
            lease.finish(session, {})
            return "finished"
    trouble = _look(context, watch)
    with context.db.transaction() as session:
        lease.record_progress(session, {})
        watch_record.set_looked(session, watch_id, *(trouble or (None, None)))
    if trouble is not None:
        return "rest"
    policy = policy_from_json(watch.policy)
    rules = NameRules(
        watch.camera,
        None if watch.name_pattern is None else NamePattern.parse(watch.name_pattern),
        ZoneInfo(watch.time_zone),
    )
    for file, kind in _finished(context, watch):
        _take(context, lease, watch, file, kind, rules, policy)
        if lease.slice_over():
            return "yield"
    return "rest"


def _look(context: Context, watch: WatchedFolder) -> tuple[str, str] | None:
    """Note all recordings of a folder as they are now; why not, where it cannot be read."""
    found: dict[str, FileState] = {}
    try:
        for path, state in recordings_below(Path(watch.folder)):
            found[path] = state
            if len(found) == _AT_ONCE:
                _note(context, watch, found)
                found = {}
    except OSError as error:
        return "video_unreadable", f"{error.filename or watch.folder}: {error.strerror or error}"
    _note(context, watch, found)
    return None


def _note(context: Context, watch: WatchedFolder, found: dict[str, FileState]) -> None:
    if not found:
        return
    with context.db.transaction() as session:
        if watch_record.find(session, watch.id) is not None:
            watch_record.note_files(session, watch.id, found)


def _finished(context: Context, watch: WatchedFolder) -> Iterator[tuple[WatchedFile, JobKind]]:
    """Files that have stopped growing, and how they are ingested: what was there before the folder
    was watched comes last, and only as long as not too much of it waits."""
    settle_s = context.settings.watch_settle_s
    with context.db.transaction() as session:
        fresh = watch_record.settled(session, watch, settle_s, _AT_ONCE, old=False)
        room = _MOST_BACKFILL - watch_record.open_jobs(session, "backfill")
        old = watch_record.settled(session, watch, settle_s, max(0, room), old=True)
    for file in fresh:
        yield file, "ingest"
    for file in old:
        yield file, "backfill"


def _take(
    context: Context,
    lease: Lease,
    watch: WatchedFolder,
    file: WatchedFile,
    kind: JobKind,
    rules: NameRules,
    policy: SamplingPolicy,
) -> None:
    """Record a file as a segment and as taken at once, or why not."""
    path = Path(watch.folder) / file.path
    try:
        camera_name, start = rules.read(file.path)
        recording = recording_of(context, path, policy, start, "file-name", kind)
        state = recording.content.state
        if (state["size_bytes"], state["mtime_ns"]) != (file.size_bytes, file.mtime_ns):
            return  # it goes on growing: the next look notes it
        with context.db.transaction() as session:
            lease.record_progress(session, {})
            camera = video_record.ensure_camera(session, camera_name)
            made = record_segment(session, camera.id, recording, BEAT)
            watch_record.set_file(
                session, watch.id, file.path, state="taken", segment_id=made.segment_id
            )
    except (InputInvalid, VideoUnreadable) as error:
        if error.again:
            log.info("file_waits", path=file.path, detail=str(error))
            return  # until the next look
        _note_failure(context, lease, watch, file, error)
        return
    if made.is_new:
        context.ring(uuid.UUID(made.job_id), made.kind)


def _note_failure(
    context: Context, lease: Lease, watch: WatchedFolder, file: WatchedFile, error: RisError
) -> None:
    try:
        now = (Path(watch.folder) / file.path).stat()
        grew = (now.st_size, now.st_mtime_ns) != (file.size_bytes, file.mtime_ns)
    except OSError:
        grew = False
    if grew:
        return  # read while it was written to: the next look notes it
    log.warning("file_not_taken", path=file.path, code=error.code, detail=str(error))
    with context.db.transaction() as session:
        lease.record_progress(session, {})
        watch_record.set_file(
            session,
            watch.id,
            file.path,
            state="failed",
            error_code=error.code,
            error_detail=str(error),
        )


def fail_watch(session: Session, job: ClaimedJob, code: str) -> None:
    """Note that a folder is not looked at for a while: its job failed."""
    detail = f"job {job.id} failed, see the worker log; tried again after {REST_S / 60:.0f} minutes"
    watch_record.set_looked(session, int(job.payload["watch_id"]), code, detail)
