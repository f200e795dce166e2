"""Erasures: orders, receipts, and what goes with frames when they go."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Text,
    and_,
    cast,
    delete,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session, joinedload
from sqlalchemy.sql.dml import UpdateBase

from models.erasure import Erasure
from models.events import Event
from models.index import FMapRun, Shard
from models.jobs import Job
from models.repositories import changes as changes_record
from models.repositories import evidence as evidence_record
from models.repositories import outlived as outlived_record
from models.search import EvidenceExport, SearchHit, SearchQuery
from models.standing import Alert, StandingQuery
from models.video import Camera, Frame, VideoSegment


@dataclass(frozen=True, slots=True)
class SpanSummary:
    """Frames of a camera in a span, and the first and last of their times."""

    frames: int
    first_utc: datetime | None
    last_utc: datetime | None


@dataclass(frozen=True, slots=True)
class Removed:
    """How many rows went, and the uploads, bundles and other files made from what went. Standing
    queries count as queries, alerts as hits. ``standing``: (id, name, key) of those."""

    frames: int
    queries: int
    hits: int
    uploads: list[str]
    standing: list[tuple[int, str, int | None]]


def create(session: Session, **values: Any) -> Erasure:
    """Record the order for an erasure, with the time it is now, after any wait for a lock."""
    erasure = Erasure(**values, created_at=func.clock_timestamp())
    session.add(erasure)
    session.flush()
    return erasure


def of_job(session: Session, job_id: uuid.UUID) -> Erasure | None:
    """The erasure a job carries out."""
    return session.scalars(
        select(Erasure).where(Erasure.job_id == job_id),
        execution_options={"populate_existing": True},
    ).one_or_none()


def with_leftovers(session: Session, camera_id: int) -> list[Erasure]:
    """Erasures of a camera whose files are not all removed."""
    return list(
        session.scalars(
            select(Erasure).where(Erasure.camera_id == camera_id, Erasure.leftovers != {})
        )
    )


def count_pictures(session: Session, erasure_id: int, pictures: int) -> None:
    """Add to the count of pictures removed."""
    change(session, erasure_id, pictures=Erasure.pictures + pictures)


def count_objects(session: Session, erasure_id: int, objects: int) -> None:
    """Add to the count of objects removed."""
    change(session, erasure_id, objects=Erasure.objects + objects)


def list_all(session: Session) -> list[tuple[Erasure, Job]]:
    """Every erasure with its camera and its job, oldest first."""
    rows = session.execute(
        select(Erasure, Job)
        .join(Job, Job.id == Erasure.job_id)
        .order_by(Erasure.id)
        .options(joinedload(Erasure.camera))
    )
    return [(erasure, job) for erasure, job in rows]


def change(session: Session, erasure_id: int, **values: Any) -> None:
    """Update columns of one erasure."""
    session.execute(
        update(Erasure)
        .where(Erasure.id == erasure_id)
        .values(**values)
        .execution_options(synchronize_session=False)
    )


def note_rest(
    session: Session, erasure_id: int, seen: dict[str, Any], rest: dict[str, Any]
) -> None:
    """Of the leftovers ``seen``, note what is left; where others are noted by now, those stay."""
    session.execute(
        update(Erasure)
        .where(Erasure.id == erasure_id, Erasure.leftovers == seen)
        .values(leftovers=rest)
        .execution_options(synchronize_session=False)
    )


def last_finished(session: Session) -> datetime | None:
    """When an erasure last ended: what was read before may hold what is gone."""
    return session.scalars(select(func.max(Erasure.finished_at))).one()


def spans_since(
    session: Session, camera_id: int, since_utc: datetime
) -> list[tuple[datetime | None, datetime | None]]:
    """``[from, to)`` of the erasures of a camera ordered at ``since_utc`` or later."""
    rows = session.execute(
        select(Erasure.from_utc, Erasure.to_utc).where(
            Erasure.camera_id == camera_id, Erasure.created_at >= since_utc
        )
    )
    return [(from_utc, to_utc) for from_utc, to_utc in rows]


def reaching(session: Session, camera_id: int, t_utc: datetime) -> list[tuple[Erasure, str]]:
    """Erasures of a camera that reach beyond a time, oldest first, each with its job's state."""
    beyond = or_(Erasure.to_utc.is_(None), Erasure.to_utc > t_utc)
    rows = session.execute(
        select(Erasure, Job.state)
        .join(Job, Job.id == Erasure.job_id)
        .where(Erasure.camera_id == camera_id, beyond)
        .order_by(Erasure.id)
    )
    return [(erasure, state) for erasure, state in rows]


def is_open(session: Session, camera_id: int, reason: str) -> bool:
    """Whether an erasure of a camera for this reason is under way."""
    found = session.scalars(
        select(Erasure.id)
        .join(Job, Job.id == Erasure.job_id)
        .where(Erasure.camera_id == camera_id, Erasure.reason == reason)
        .where(Job.state.in_(["queued", "running"]))
        .limit(1)
    ).one_or_none()
    return found is not None


def _inside(
    camera_id: int, from_utc: datetime | None, to_utc: datetime | None
) -> ColumnElement[bool]:
    conditions = [Frame.camera_id == camera_id]
    if from_utc is not None:
        conditions.append(Frame.t_utc >= from_utc)
    if to_utc is not None:
        conditions.append(Frame.t_utc < to_utc)
    return and_(*conditions)


def summarise_span(
    session: Session, camera_id: int, from_utc: datetime | None, to_utc: datetime | None
) -> SpanSummary:
    """What lies in a span of a camera."""
    row = session.execute(
        select(func.count(), func.min(Frame.t_utc), func.max(Frame.t_utc)).where(
            _inside(camera_id, from_utc, to_utc)
        )
    ).one()
    return SpanSummary(int(row[0]), row[1], row[2])


def frames_in_span(
    session: Session, camera_id: int, from_utc: datetime | None, to_utc: datetime | None
) -> dict[int, str]:
    """Picture (content hash) of every frame of a camera in a span, by frame id."""
    rows = session.execute(
        select(Frame.id, Frame.picture_sha256).where(_inside(camera_id, from_utc, to_utc))
    )
    return dict(rows.tuples().all())


def shards_of_span(
    session: Session, camera_id: int, from_utc: datetime | None, to_utc: datetime | None
) -> list[tuple[Shard, int]]:
    """Shards of every generation that hold frames of the span, each with how many."""
    rows = session.execute(
        select(Shard, func.count())
        .join(FMapRun, FMapRun.shard_id == Shard.id)
        .join(Frame, Frame.id == FMapRun.frame_id)
        .where(Shard.camera_id == camera_id, _inside(camera_id, from_utc, to_utc))
        .group_by(Shard.id)
        .order_by(Shard.id)
    )
    return [(shard, int(count)) for shard, count in rows]


def _count(session: Session, statement: UpdateBase) -> int:
    result = session.execute(statement.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    return int(result.rowcount)


def remove_frames(session: Session, frame_ids: Sequence[int], sha256s: Sequence[str]) -> Removed:
    """Delete frames that no f_map run names any more, with what hangs on them.

    Their hits; what was learnt, exported or answered from them; the queries drawn on them, or on an
    upload that is, byte for byte, one of the pictures ``sha256s`` that no other frame has; segments
    that ended and have no frame left.
    """
    ids = cast(list(frame_ids), ARRAY(BigInteger))
    shown = select(SearchHit.query_id).where(SearchHit.frame_id == func.any(ids))
    # Queries before frames and hits, as whoever answers or forgets one.
    touched = or_(SearchQuery.frame_id == func.any(ids), SearchQuery.id.in_(shown))
    outlived_record.lock_queries(session, touched)
    locked = select(Frame.segment_id).where(Frame.id == func.any(ids)).with_for_update()
    segments = sorted(set(session.scalars(locked)))  # answers being recorded end first
    _count(session, delete(Event).where(Event.frame_id == func.any(ids)))
    changes_record.remove_of_frames(session, frame_ids)
    hits = _count(session, delete(SearchHit).where(SearchHit.frame_id == func.any(ids)))
    hits += _count(session, delete(Alert).where(Alert.frame_id == func.any(ids)))
    drawn = _remove_queries(session, SearchQuery.frame_id == func.any(ids))
    stood = _remove_standing(session, StandingQuery.frame_id == func.any(ids))
    frames = _count(session, delete(Frame).where(Frame.id == func.any(ids)))
    gone = cast(sorted(unused_pictures(session, sha256s)), ARRAY(Text))
    uploaded = _remove_queries(session, SearchQuery.picture_sha256 == func.any(gone))
    stood_on_upload = _remove_standing(session, StandingQuery.picture_sha256 == func.any(gone))
    _remove_empty_segments(session, segments)
    removed = (drawn, stood, uploaded, stood_on_upload)
    learnt = _forget_terms(session, SearchQuery.terms_frame_ids.overlap(ids))
    bundles = evidence_record.remove_exports(session, EvidenceExport.frame_ids.overlap(ids))
    files = {name for part in removed for name in part.uploads}
    return Removed(
        frames,
        sum(part.queries for part in removed),
        hits + sum(part.hits for part in removed),
        sorted({*files, *learnt, *bundles}),
        stood.standing + stood_on_upload.standing,
    )


def _forget_terms(session: Session, which: ColumnElement[bool]) -> list[str]:
    """Forget what searches knew; returns the names of its files."""
    found = select(SearchQuery.id, SearchQuery.terms_sha256).where(which).with_for_update()
    known = session.execute(found).all()
    ids = [query_id for query_id, _ in known]
    forgotten = update(SearchQuery).where(SearchQuery.id.in_(ids))
    _count(session, forgotten.values(terms_sha256=None, terms_frame_ids=None))
    return [name for _, name in known if name is not None]


def _remove_queries(session: Session, shown: ColumnElement[bool]) -> Removed:
    removed = outlived_record.remove_queries(session, shown)
    return Removed(0, removed.queries, removed.hits, removed.files, [])


def _remove_standing(session: Session, shown: ColumnElement[bool]) -> Removed:
    found = session.scalars(select(StandingQuery).where(shown).with_for_update()).all()
    ids = [standing.id for standing in found]
    alerts = _count(session, delete(Alert).where(Alert.standing_query_id.in_(ids)))
    _count(session, delete(StandingQuery).where(StandingQuery.id.in_(ids)))
    uploads = [standing.picture_sha256 for standing in found if standing.picture_sha256]
    told = [(standing.id, standing.name, standing.key_id) for standing in found]
    return Removed(0, len(ids), alerts, uploads, told)


def _remove_empty_segments(session: Session, segment_ids: Sequence[int]) -> None:
    """Count what the segments have left; those that ended and have nothing left are forgotten."""
    left = (
        select(func.count())
        .where(Frame.segment_id == VideoSegment.id)
        .correlate(VideoSegment)
        .scalar_subquery()
    )
    touched = VideoSegment.id.in_(segment_ids)
    _count(session, update(VideoSegment).where(touched).values(frame_count=left))
    empty = and_(touched, VideoSegment.frame_count == 0, VideoSegment.outcome.is_not(None))
    _count(session, delete(VideoSegment).where(empty))


def unused_pictures(session: Session, sha256s: Sequence[str]) -> set[str]:
    """Which of these pictures no frame has."""
    hashes = cast(list(sha256s), ARRAY(Text))
    used = session.scalars(
        select(Frame.picture_sha256).where(Frame.picture_sha256 == func.any(hashes))
    )
    return set(sha256s) - set(used)


def set_retention(session: Session, camera_id: int, days: int | None) -> None:
    """How long a camera's footage is kept: 0 for ever, None as the settings say."""
    session.execute(
        update(Camera)
        .where(Camera.id == camera_id)
        .values(retention_days=days)
        .execution_options(synchronize_session=False)
    )


def list_cameras(session: Session) -> list[Camera]:
    """Every camera, by name."""
    return list(session.scalars(select(Camera).order_by(Camera.name)))


def first_frame_utc(
    session: Session, camera_id: int, from_utc: datetime | None, to_utc: datetime | None
) -> datetime | None:
    """Time of a camera's earliest frame in a span."""
    return session.scalars(
        select(func.min(Frame.t_utc)).where(_inside(camera_id, from_utc, to_utc))
    ).one()


def database_time(session: Session) -> datetime:
    """The database's clock, which every worker shares."""
    now: datetime = session.execute(select(func.now())).scalar_one()
    return now
