"""Questions when a box of a camera changed, and their answers."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Select, cast, delete, exists, func, literal, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from models.jobs import Job
from models.search import ChangeQuery
from models.video import Frame


@dataclass(frozen=True, slots=True)
class ChangeView:
    """A change query and its job."""

    asked: ChangeQuery
    job: Job


def create(session: Session, **values: Any) -> ChangeQuery:
    """Record a change query beside its job."""
    made = ChangeQuery(id=uuid.uuid4(), **values)
    session.add(made)
    session.flush()
    return made


def of_job(session: Session, job_id: uuid.UUID) -> ChangeQuery | None:
    """The change query that a job answers."""
    return session.scalars(select(ChangeQuery).where(ChangeQuery.job_id == job_id)).one_or_none()


def _views(key_id: int | None) -> Select[ChangeQuery, Job]:
    query = select(ChangeQuery, Job).join(Job, Job.id == ChangeQuery.job_id)
    return query if key_id is None else query.where(ChangeQuery.key_id == key_id)


def find(session: Session, change_query_id: uuid.UUID, key_id: int | None) -> ChangeView | None:
    """A change query as it stands; with ``key_id`` only of that key."""
    row = session.execute(
        _views(key_id)
        .where(ChangeQuery.id == change_query_id)
        .execution_options(populate_existing=True)
    ).one_or_none()
    return None if row is None else ChangeView(row[0], row[1])


def list_all(
    session: Session, key_id: int | None, after: tuple[datetime, uuid.UUID] | None, limit: int
) -> list[ChangeView]:
    """Change queries, newest first, behind one; with ``key_id`` only of that key."""
    place = tuple_(ChangeQuery.created_at, ChangeQuery.id)
    query = _views(key_id).order_by(ChangeQuery.created_at.desc(), ChangeQuery.id.desc())
    if after is not None:
        query = query.where(place < tuple_(literal(after[0]), literal(after[1])))
    return [ChangeView(row[0], row[1]) for row in session.execute(query.limit(limit))]


def count_open(session: Session, key_id: int) -> int:
    """Change queries of a key that are queued or running."""
    return session.scalars(
        select(func.count())
        .select_from(ChangeQuery)
        .join(Job, Job.id == ChangeQuery.job_id)
        .where(ChangeQuery.key_id == key_id, Job.state.in_(["queued", "running"]))
    ).one()


def lock(session: Session, change_query_id: uuid.UUID) -> ChangeQuery | None:
    """A change query, kept from being removed until the transaction ends; None: it is gone."""
    return session.scalars(
        select(ChangeQuery)
        .where(ChangeQuery.id == change_query_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one_or_none()


def count_frames(session: Session, frame_ids: Sequence[int]) -> int:
    """How many of these frames are there."""
    ids = cast(list(frame_ids), ARRAY(BigInteger))
    return session.scalars(
        select(func.count()).select_from(Frame).where(Frame.id == func.any(ids))
    ).one()


def remove(session: Session, change_query_id: uuid.UUID) -> None:
    """Forget one."""
    _remove(session, ChangeQuery.id == change_query_id)


def remove_old(session: Session, kept_s: float) -> int:
    """Forget those that were asked longer ago; returns how many."""
    limit = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, kept_s)
    return _remove(session, ChangeQuery.created_at < limit)


def remove_of_frames(session: Session, frame_ids: Sequence[int]) -> int:
    """Forget what was answered from frames that go; returns how many.

    To be called before they go. Those of the camera that are not answered are locked: whoever
    answers them waits, and then sees that frames are gone.
    """
    ids = cast(list(frame_ids), ARRAY(BigInteger))
    cameras = select(Frame.camera_id).where(Frame.id == func.any(ids)).distinct()
    session.execute(
        select(ChangeQuery.id)
        .where(ChangeQuery.camera_id.in_(cameras))
        .order_by(ChangeQuery.id)
        .with_for_update()
    )
    seen = exists().where(
        Frame.id == func.any(ids),
        Frame.camera_id == ChangeQuery.camera_id,
        Frame.t_utc >= ChangeQuery.first_utc,
        Frame.t_utc <= ChangeQuery.last_utc,
    )
    return _remove(session, seen)


def _remove(session: Session, which: Any) -> int:
    removed = session.scalars(
        delete(ChangeQuery)
        .where(which)
        .returning(ChangeQuery.id)
        .execution_options(synchronize_session=False)
    )
    return len(removed.all())
