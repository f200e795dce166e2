"""What the API shows: pages of rows, each limited to the footage that exists for who asks."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, and_, func, literal, or_, select, tuple_
from sqlalchemy.orm import Session, joinedload

from models.index import IndexGeneration, Shard
from models.jobs import Job
from models.repositories.scope import FootageScope
from models.search import SearchHit, SearchQuery
from models.video import Camera, Frame, VideoSegment

EPOCH_UTC = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
"""Where buckets, and spans of shards, are counted from."""


@dataclass(frozen=True, slots=True)
class CameraView:
    """A camera with what is indexed of it. ``frames``: of the live generation."""

    camera: Camera
    frames: int
    first_utc: datetime | None
    last_utc: datetime | None


@dataclass(frozen=True, slots=True)
class QueryView:
    """A query, its job, and how many hits it has."""

    query: SearchQuery
    job: Job
    hits: int


def list_cameras(
    session: Session, scope: FootageScope, after_id: int, limit: int, camera_id: int | None = None
) -> list[CameraView]:
    """Cameras by id behind one. Counts come from the shards, times from an index: nothing walks
    through all frames, but through those of a scope that times bound."""
    indexed = (
        select(func.coalesce(func.sum(Shard.frame_count), 0))
        .join(IndexGeneration, IndexGeneration.id == Shard.generation_id)
        .where(IndexGeneration.state == "live", Shard.camera_id == Camera.id)
        .scalar_subquery()
    )
    inside = (Frame.camera_id == Camera.id, *scope.of_times(Frame.t_utc))
    if scope.has_window:
        indexed = select(func.count()).select_from(Frame).where(*inside).scalar_subquery()
    first = select(func.min(Frame.t_utc)).where(*inside).scalar_subquery()
    last = select(func.max(Frame.t_utc)).where(*inside).scalar_subquery()
    query = (
        select(Camera, indexed, first, last)
        .where(Camera.id > after_id, *scope.of_cameras(Camera.id))
        .order_by(Camera.id)
        .limit(limit)
    )
    if camera_id is not None:
        query = query.where(Camera.id == camera_id)
    return [CameraView(row[0], int(row[1]), row[2], row[3]) for row in session.execute(query)]


def _in_span(query: Select[Any], from_utc: datetime | None, to_utc: datetime | None) -> Select[Any]:
    if from_utc is not None:
        query = query.where(Frame.t_utc >= from_utc)
    return query if to_utc is None else query.where(Frame.t_utc < to_utc)


def list_frames(
    session: Session,
    scope: FootageScope,
    camera_id: int,
    from_utc: datetime | None,
    to_utc: datetime | None,
    *,
    newest_first: bool,
    after: tuple[datetime, int] | None,
    limit: int,
) -> list[Frame]:
    """Frames of a camera in time, behind one (its time and id)."""
    place = tuple_(Frame.t_utc, Frame.id)
    same = select(Frame).where(Frame.camera_id == camera_id, *scope.of_frames())
    query = _in_span(same, from_utc, to_utc)
    if after is not None:
        edge = tuple_(literal(after[0]), literal(after[1]))
        query = query.where(place < edge if newest_first else place > edge)
    order = (Frame.t_utc.desc(), Frame.id.desc()) if newest_first else (Frame.t_utc, Frame.id)
    return list(session.scalars(query.order_by(*order).limit(limit)))


def nearest_frame(
    session: Session, scope: FootageScope, camera_id: int, t_utc: datetime
) -> Frame | None:
    """The camera's frame whose time is nearest; of two as near, the earlier."""
    same = select(Frame).where(Frame.camera_id == camera_id, *scope.of_frames())
    before = session.scalars(
        same.where(Frame.t_utc <= t_utc).order_by(Frame.t_utc.desc(), Frame.id.desc()).limit(1)
    ).one_or_none()
    after = session.scalars(
        same.where(Frame.t_utc > t_utc).order_by(Frame.t_utc, Frame.id).limit(1)
    ).one_or_none()
    if before is None or after is None:
        return before or after
    return before if t_utc - before.t_utc <= after.t_utc - t_utc else after


def frames_per_bucket(
    session: Session,
    scope: FootageScope,
    camera_id: int,
    from_utc: datetime,
    to_utc: datetime,
    bucket_s: int,
) -> list[tuple[datetime, int]]:
    """How many frames of ``[from_utc, to_utc)``, which are whole buckets, each bucket holds;
    buckets without any are left out. Buckets are counted from ``EPOCH_UTC``.

    Counts come from the shards where each of them lies in one bucket, whatever span it was made
    with: then it does not matter how many frames there are. Not for a scope that times bound, which
    may do so within a shard.
    """
    counted = None
    if not scope.has_window:
        counted = _shard_frames_per_bucket(session, camera_id, from_utc, to_utc, bucket_s)
    if counted is not None:
        return counted
    bucket = func.date_bin(timedelta(seconds=bucket_s), Frame.t_utc, EPOCH_UTC)
    same = select(bucket, func.count()).where(Frame.camera_id == camera_id, *scope.of_frames())
    rows = session.execute(_in_span(same, from_utc, to_utc).group_by(bucket).order_by(bucket))
    return [(row[0], int(row[1])) for row in rows]


def _shard_frames_per_bucket(
    session: Session, camera_id: int, from_utc: datetime, to_utc: datetime, bucket_s: int
) -> list[tuple[datetime, int]] | None:
    """The same from the shards of the live generation; None where one reaches over an edge."""
    length = timedelta(seconds=bucket_s)
    bucket = func.date_bin(length, Shard.bucket_utc, EPOCH_UTC)
    last_bucket = func.date_bin(length, Shard.last_utc, EPOCH_UTC)
    rows = session.execute(
        select(bucket, func.sum(Shard.frame_count), func.bool_and(bucket == last_bucket))
        .join(IndexGeneration, IndexGeneration.id == Shard.generation_id)
        .where(IndexGeneration.state == "live", Shard.camera_id == camera_id)
        .where(Shard.last_utc >= from_utc, Shard.bucket_utc < to_utc)
        .group_by(bucket)
        .order_by(bucket)
    ).all()
    return [(row[0], int(row[1])) for row in rows] if all(row[2] for row in rows) else None


def _queries() -> Select[Any]:
    hits = (
        select(func.count())
        .select_from(SearchHit)
        .where(SearchHit.query_id == SearchQuery.id)
        .scalar_subquery()
    )
    return select(SearchQuery, Job, hits).join(Job, Job.id == SearchQuery.job_id)


def find_query(session: Session, query_id: uuid.UUID, key_id: int | None) -> QueryView | None:
    """A query as it stands; with ``key_id`` only of that key."""
    query = _queries().where(SearchQuery.id == query_id)
    if key_id is not None:
        query = query.where(SearchQuery.key_id == key_id)
    row = session.execute(query).one_or_none()
    return None if row is None else QueryView(row[0], row[1], int(row[2]))


def list_queries(
    session: Session, key_id: int | None, after: tuple[datetime, uuid.UUID] | None, limit: int
) -> list[QueryView]:
    """Queries, newest first, behind one; with ``key_id`` only of that key."""
    query = _queries().order_by(SearchQuery.created_at.desc(), SearchQuery.id.desc()).limit(limit)
    if key_id is not None:
        query = query.where(SearchQuery.key_id == key_id)
    if after is not None:
        place = tuple_(SearchQuery.created_at, SearchQuery.id)
        query = query.where(place < tuple_(literal(after[0]), literal(after[1])))
    return [QueryView(row[0], row[1], int(row[2])) for row in session.execute(query)]


@dataclass(frozen=True, slots=True)
class QueryState:
    """How a query stands: state of its job, and what its hits are."""

    state: str
    error_code: str | None
    answer: str


def query_state(session: Session, query_id: uuid.UUID) -> QueryState | None:
    """How a query stands; None once it was erased."""
    row = session.execute(
        select(Job.state, Job.error_code, SearchQuery.answer_step)
        .join(SearchQuery, SearchQuery.job_id == Job.id)
        .where(SearchQuery.id == query_id)
    ).one_or_none()
    return None if row is None else QueryState(*row)


def count_open_queries(session: Session, key_id: int) -> int:
    """Queries of a key that are queued or running."""
    return session.scalars(
        select(func.count())
        .select_from(SearchQuery)
        .join(Job, Job.id == SearchQuery.job_id)
        .where(SearchQuery.key_id == key_id, Job.state.in_(["queued", "running"]))
    ).one()


def list_hits(
    session: Session, query_id: uuid.UUID, scope: FootageScope, after_rank: int, limit: int
) -> list[SearchHit]:
    """Hits by rank behind one, each with its frame and camera."""
    query = (
        select(SearchHit)
        .join(Frame, Frame.id == SearchHit.frame_id)
        .where(SearchHit.query_id == query_id, SearchHit.rank > after_rank)
        .where(*scope.of_frames())
        .order_by(SearchHit.rank)
        .limit(limit)
        .options(joinedload(SearchHit.frame).joinedload(Frame.camera))
    )
    return list(session.scalars(query))


def list_segments(
    session: Session, scope: FootageScope, after_id: int, limit: int, segment_id: int | None = None
) -> list[tuple[VideoSegment, Job | None]]:
    """Segments by id behind one, each with its job."""
    query = (
        select(VideoSegment, Job)
        .outerjoin(Job, Job.id == VideoSegment.job_id)
        .where(VideoSegment.id > after_id, *scope.of_cameras(VideoSegment.camera_id))
        .order_by(VideoSegment.id)
        .limit(limit)
    )
    if segment_id is not None:
        query = query.where(VideoSegment.id == segment_id)
    return [(row[0], row[1]) for row in session.execute(query)]


def list_jobs(
    session: Session,
    *,
    kind: str | None,
    state: str | None,
    after: tuple[datetime, uuid.UUID] | None,
    limit: int,
) -> list[Job]:
    """Jobs, newest first, behind one."""
    query = select(Job).order_by(Job.created_at.desc(), Job.id.desc()).limit(limit)
    if kind is not None:
        query = query.where(Job.kind == kind)
    if state is not None:
        query = query.where(Job.state == state)
    if after is not None:
        created_at, job_id = after
        query = query.where(
            or_(
                Job.created_at < created_at,
                and_(Job.created_at == created_at, Job.id < job_id),
            )
        )
    return list(session.scalars(query))
