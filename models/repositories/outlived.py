"""Queries with what was made for them, and ended jobs, that nobody needs any more."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Select, delete, func, select
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import InstrumentedAttribute, Session
from sqlalchemy.sql.dml import UpdateBase

from models.erasure import Erasure
from models.events import Event
from models.feed import Feed
from models.jobs import Job
from models.repositories import evidence as evidence_record
from models.repositories import jobs as job_record
from models.search import ChangeQuery, EvidenceExport, SearchHit, SearchQuery
from models.video import VideoSegment
from models.watch import WatchedFolder

ENDED = ("done", "failed")
_NAME_A_JOB: tuple[InstrumentedAttribute[uuid.UUID] | InstrumentedAttribute[uuid.UUID | None], ...]
_NAME_A_JOB = (
    SearchQuery.job_id,
    EvidenceExport.job_id,
    ChangeQuery.job_id,
    Erasure.job_id,
    VideoSegment.job_id,
    Feed.job_id,
    WatchedFolder.job_id,
)
_COLUMNS = (
    SearchQuery.id,
    SearchQuery.job_id,
    SearchQuery.picture_sha256,
    SearchQuery.terms_sha256,
)
_Found = Select[uuid.UUID, uuid.UUID, str | None, str | None]


@dataclass(frozen=True, slots=True)
class RemovedQueries:
    """How many rows went, and the names of uploads and bundles that were made for them."""

    queries: int
    hits: int
    files: list[str]


def lock_queries(session: Session, which: ColumnElement[bool]) -> None:
    """Keep queries as they are until the transaction ends: first the jobs of those that are not
    answered, then the queries. That is the order of all that lock both."""
    open_jobs = select(SearchQuery.job_id).where(which)
    session.execute(
        select(Job.id)
        .where(Job.id.in_(open_jobs), Job.state.not_in(ENDED))
        .order_by(Job.id)
        .with_for_update()
    )
    session.execute(select(SearchQuery.id).where(which).order_by(SearchQuery.id).with_for_update())


def remove_queries(session: Session, which: ColumnElement[bool]) -> RemovedQueries:
    """Forget queries with their hits, exports and events. What is not answered yet ends now."""
    lock_queries(session, which)
    return _remove(session, select(*_COLUMNS).where(which))


def remove_queries_ended(session: Session, keep_days: float, limit: int) -> RemovedQueries:
    """Forget up to ``limit`` queries that ended longer ago, oldest first; those that somebody
    writes to are for the next time."""
    old = (
        select(SearchQuery.id)
        .join(Job, Job.id == SearchQuery.job_id)
        .where(Job.state.in_(ENDED), Job.finished_at < _ago(keep_days))
        .order_by(SearchQuery.created_at)
        .limit(limit)
        .with_for_update(of=SearchQuery, skip_locked=True)
    )
    ids = session.scalars(old).all()
    return _remove(session, select(*_COLUMNS).where(SearchQuery.id.in_(ids)))


def remove_jobs_ended(session: Session, keep_days: float, limit: int) -> int:
    """Forget up to ``limit`` jobs that ended longer ago and that no row names; returns how many."""
    named = [select(column).where(column == Job.id).exists() for column in _NAME_A_JOB]
    old = (
        select(Job.id)
        .where(Job.state.in_(ENDED), Job.finished_at < _ago(keep_days))
        .where(*(~one for one in named))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return _count(session, delete(Job).where(Job.id.in_(old)))


def _remove(session: Session, found: _Found) -> RemovedQueries:
    queries = session.execute(found).all()
    ids, job_ids = [query[0] for query in queries], [query[1] for query in queries]
    files = [name for query in queries for name in query[2:] if name is not None]
    files += evidence_record.remove_exports(session, EvidenceExport.query_id.in_(ids))
    _count(session, delete(Event).where(Event.query_id.in_(ids)))
    hits = _count(session, delete(SearchHit).where(SearchHit.query_id.in_(ids)))
    _count(session, delete(SearchQuery).where(SearchQuery.id.in_(ids)))
    job_record.cancel_all(
        session, job_ids, "not_found", "the query was erased with the footage it shows"
    )
    return RemovedQueries(len(ids), hits, files)


def _ago(days: float) -> ColumnElement[datetime]:
    return func.now() - func.make_interval(0, 0, 0, 0, 0, 0, days * 86_400)


def _count(session: Session, statement: UpdateBase) -> int:
    result = session.execute(statement.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    return int(result.rowcount)
