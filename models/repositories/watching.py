"""Watched folders and the files in them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Text, and_, cast, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import Session

from models.bulk import unnested
from models.jobs import Job
from models.video import Camera, VideoSegment
from models.watch import WatchedFile, WatchedFolder

FileState = tuple[int, int]
"""Size in bytes, modification time in nanoseconds."""


@dataclass(frozen=True, slots=True)
class WatchSummary:
    """A watched folder with what became of its files; ``ingest_failed`` of the taken ones."""

    id: int
    folder: str
    camera: str | None
    name_pattern: str | None
    time_zone: str
    looked_at: datetime | None
    error_code: str | None
    error_detail: str | None
    waiting: int
    taken: int
    failed: int
    ingest_failed: int


@dataclass(frozen=True, slots=True)
class FailedFile:
    """A file that was not taken, or whose ingest failed."""

    folder: str
    path: str
    code: str | None
    detail: str | None


def create(session: Session, values: Mapping[str, Any]) -> WatchedFolder | None:
    """A new watched folder; None where it is watched already."""
    made = session.scalars(
        insert(WatchedFolder).values(**values).on_conflict_do_nothing().returning(WatchedFolder.id)
    ).one_or_none()
    return None if made is None else session.get(WatchedFolder, made)


def of_folder(session: Session, folder: str) -> WatchedFolder | None:
    """What is watched of a folder."""
    return session.scalars(select(WatchedFolder).filter_by(folder=folder)).one_or_none()


def find(session: Session, watch_id: int) -> WatchedFolder | None:
    """The watched folder as it stands."""
    return session.get(WatchedFolder, watch_id, populate_existing=True)


def lock(session: Session, watch_id: int) -> WatchedFolder | None:
    """The watched folder, which stays until the transaction ends."""
    return session.scalars(
        select(WatchedFolder)
        .where(WatchedFolder.id == watch_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one_or_none()


def remove(session: Session, watch_id: int) -> None:
    """Watch a folder no more, and forget its files."""
    watch = lock(session, watch_id)
    if watch is not None:
        session.delete(watch)
        session.flush()


def jobless(session: Session, rest_s: float) -> list[int]:
    """Watched folders whose job is missing or done, or failed ``rest_s`` ago."""
    ago = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, rest_s)
    rested = and_(Job.state == "failed", Job.finished_at < ago)
    return list(
        session.scalars(
            select(WatchedFolder.id)
            .outerjoin(Job, Job.id == WatchedFolder.job_id)
            .where(or_(Job.id.is_(None), Job.state == "done", rested))
            .order_by(WatchedFolder.id)
        )
    )


def set_looked(session: Session, watch_id: int, code: str | None, detail: str | None) -> None:
    """Note that a folder was looked at, or why it could not be."""
    values: dict[str, Any] = {"error_code": code, "error_detail": detail}
    if code is None:
        values["looked_at"] = func.now()
    session.execute(
        update(WatchedFolder)
        .where(WatchedFolder.id == watch_id)
        .values(**values)
        .execution_options(synchronize_session=False)
    )


def note_files(session: Session, watch_id: int, found: Mapping[str, FileState]) -> None:
    """Note files as they are now, by path. One that changed begins to wait anew; of the taken ones
    only those whose ingest failed, as the ingest of a half-written file does."""
    paths = cast(list(found), ARRAY(Text))
    rows = session.execute(
        select(
            WatchedFile.path,
            WatchedFile.size_bytes,
            WatchedFile.mtime_ns,
            and_(WatchedFile.state == "taken", VideoSegment.outcome.is_distinct_from("failed")),
        )
        .outerjoin(VideoSegment, VideoSegment.id == WatchedFile.segment_id)
        .where(WatchedFile.watch_id == watch_id, WatchedFile.path == func.any(paths))
    )
    known = {path: ((size, mtime), settled) for path, size, mtime, settled in rows}
    new = [path for path in found if path not in known]
    if new:
        columns: dict[str, list[Any]] = {
            "path": new,
            "size_bytes": [found[path][0] for path in new],
            "mtime_ns": [found[path][1] for path in new],
        }
        chosen = select(literal(watch_id, BigInteger), *unnested(WatchedFile, columns))
        names = ["watch_id", *columns]
        session.execute(insert(WatchedFile).from_select(names, chosen).on_conflict_do_nothing())
    for path, (state, settled) in known.items():
        if state != found[path] and not settled:
            size, mtime = found[path]
            set_file(
                session,
                watch_id,
                path,
                size_bytes=size,
                mtime_ns=mtime,
                state="seen",
                error_code=None,
                error_detail=None,
                changed_at=func.now(),
            )


def settled(
    session: Session, watch: WatchedFolder, settle_s: float, limit: int, *, old: bool
) -> list[WatchedFile]:
    """Files that have not changed for so long and are to be taken, oldest first. ``old``: those
    written before the folder was watched, else only the others."""
    since_ns = int(watch.created_at.timestamp() * 1e9)
    age = WatchedFile.mtime_ns < since_ns if old else WatchedFile.mtime_ns >= since_ns
    before = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, settle_s)
    return list(
        session.scalars(
            select(WatchedFile)
            .where(
                WatchedFile.watch_id == watch.id,
                WatchedFile.state == "seen",
                age,
                WatchedFile.changed_at <= before,
            )
            .order_by(WatchedFile.mtime_ns, WatchedFile.path)
            .limit(limit)
        )
    )


def set_file(session: Session, watch_id: int, path: str, **values: Any) -> None:
    """What became of a file."""
    session.execute(
        update(WatchedFile)
        .where(WatchedFile.watch_id == watch_id, WatchedFile.path == path)
        .values(**values)
        .execution_options(synchronize_session=False)
    )


def open_jobs(session: Session, kind: str) -> int:
    """How many jobs of a kind are queued or running."""
    query = select(func.count()).where(Job.kind == kind, Job.state.in_(["queued", "running"]))
    return session.scalars(query).one()


def any_due(session: Session, queue: str) -> bool:
    """Whether a job of a queue waits for a worker."""
    due = select(Job.id).where(
        Job.queue == queue, Job.state == "queued", Job.run_after <= func.now()
    )
    return session.scalars(due.limit(1)).one_or_none() is not None


def summarise(session: Session) -> list[WatchSummary]:
    """All watched folders."""
    ingest_failed = and_(WatchedFile.state == "taken", VideoSegment.outcome == "failed")
    counts = (
        select(
            WatchedFile.watch_id,
            func.count().filter(WatchedFile.state == "seen").label("waiting"),
            func.count().filter(WatchedFile.state == "taken").label("taken"),
            func.count().filter(WatchedFile.state == "failed").label("failed"),
            func.count().filter(ingest_failed).label("ingest_failed"),
        )
        .outerjoin(VideoSegment, VideoSegment.id == WatchedFile.segment_id)
        .group_by(WatchedFile.watch_id)
        .subquery()
    )
    names = ("waiting", "taken", "failed", "ingest_failed")
    rows = session.execute(
        select(WatchedFolder, *(func.coalesce(counts.c[name], 0) for name in names))
        .outerjoin(counts, counts.c.watch_id == WatchedFolder.id)
        .order_by(WatchedFolder.folder)
    )
    return [
        WatchSummary(
            *(watch.id, watch.folder, watch.camera, watch.name_pattern, watch.time_zone),
            *(watch.looked_at, watch.error_code, watch.error_detail),
            *(int(number) for number in numbers),
        )
        for watch, *numbers in rows
    ]


def failed_files(session: Session, limit: int) -> list[FailedFile]:
    """Files that were not taken, or whose ingest failed, and why."""
    rows = session.execute(
        select(
            WatchedFolder.folder,
            WatchedFile.path,
            func.coalesce(WatchedFile.error_code, Job.error_code),
            func.coalesce(WatchedFile.error_detail, Job.error_detail),
        )
        .join(WatchedFolder, WatchedFolder.id == WatchedFile.watch_id)
        .outerjoin(VideoSegment, VideoSegment.id == WatchedFile.segment_id)
        .outerjoin(Job, Job.id == VideoSegment.job_id)
        .where(or_(WatchedFile.state == "failed", VideoSegment.outcome == "failed"))
        .order_by(WatchedFolder.folder, WatchedFile.path)
        .limit(limit)
    )
    return [FailedFile(*row) for row in rows]


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A recording by path that is ingested, or is going to be. ``state``: None where it is not
    known how the file was then."""

    camera: str
    start_utc: datetime
    job_id: uuid.UUID
    state: FileState | None


def known_files(
    session: Session, paths: Sequence[str], policy_key: str
) -> dict[str, list[KnownFile]]:
    """What is known of files with that policy, by path; not of those whose ingest failed."""
    rows = session.execute(
        select(VideoSegment, Camera.name, Job.id, Job.payload)
        .join(Job, Job.id == VideoSegment.job_id)
        .join(Camera, Camera.id == VideoSegment.camera_id)
        .where(
            VideoSegment.source_path.in_(paths),
            VideoSegment.policy_key == policy_key,
            or_(VideoSegment.outcome.is_(None), VideoSegment.outcome != "failed"),
            Job.state != "failed",
        )
    )
    found: dict[str, list[KnownFile]] = {}
    for segment, camera, job_id, payload in rows:
        file = payload.get("file")
        state = None if file is None else (file["size_bytes"], file["mtime_ns"])
        known = KnownFile(camera, segment.start_utc, job_id, state)
        found.setdefault(segment.source_path, []).append(known)
    return found


def job_ends(
    session: Session, job_ids: Sequence[uuid.UUID]
) -> dict[uuid.UUID, tuple[str, int, str | None, str | None]]:
    """State, frames so far, and code and detail of the failure, or of why it is tried again."""
    rows = session.scalars(select(Job).where(Job.id.in_(job_ids)))
    return {
        job.id: (
            job.state,
            int(job.progress.get("frames", 0)),
            job.error_code or job.retry_code,
            job.error_detail or job.retry_detail,
        )
        for job in rows
    }
