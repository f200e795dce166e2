"""Search queries and hits."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, and_, case, delete, func, not_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, joinedload

from models.jobs import Job
from models.repositories.jobs import free, unawaited_commit
from models.search import QUERY_CHANNEL, EvidenceExport, SearchHit, SearchQuery
from models.standing import StandingQuery
from models.video import Frame

UPLOAD_LOCK = 7_268_143_003
"""Advisory lock between those who make a query from an upload and those who remove unused ones."""


def lock_uploads(session: Session, *, exclusive: bool) -> None:
    """Until the end of the transaction: shared for new queries, exclusive for removing."""
    function = "pg_advisory_xact_lock" if exclusive else "pg_advisory_xact_lock_shared"
    session.execute(text(f"select {function}({UPLOAD_LOCK})"))


_RECENT = timedelta(minutes=10)
_COMMAND_LINE = 0
"""No key has this id."""


def queries_in_turn(session: Session, rung_job_id: uuid.UUID, limit: int) -> list[uuid.UUID]:
    """Jobs of the queries that wait, if the one that was rung for is a query: those who ask (keys,
    and the command line) take turns, each with its oldest query first. Who has queries that run
    has taken so many turns; of those who have taken as many, it is the turn of who waits longest
    since a query of theirs began."""
    others = select(Job.id).where(Job.kind == "query", Job.id != rung_job_id, free()).exists()
    rung = session.execute(select(Job.kind, others).where(Job.id == rung_job_id)).one_or_none()
    if rung is None or rung.kind != "query":
        return []
    if not rung[1]:
        return [rung_job_id]
    party = func.coalesce(SearchQuery.key_id, _COMMAND_LINE).label("party")
    place = func.row_number().over(partition_by=party, order_by=(Job.created_at, Job.id))
    waiting = (
        select(Job.id, Job.created_at, party, place.label("place"))
        .join(SearchQuery, SearchQuery.job_id == Job.id)
        .where(Job.kind == "query", free())
        .cte("waiting")
    )
    running = (
        select(party, func.count().label("count"))
        .join(Job, Job.id == SearchQuery.job_id)
        .where(Job.state == "running", Job.lease_until >= func.now())
        .group_by(party)
        .subquery()
    )
    oldest = func.min(waiting.c.created_at).label("oldest")
    who = select(waiting.c.party, oldest).group_by(waiting.c.party).subquery()
    last_begun = _last_begun(who.c.party, who.c.oldest).label("last_begun")
    asking = select(who.c.party, last_begun).cte("asking")
    asking = asking.prefix_with("materialized")  # or it is asked once for each query
    turn = waiting.c.place + func.coalesce(running.c.count, 0)
    return list(
        session.scalars(
            select(waiting.c.id)
            .join(asking, waiting.c.party == asking.c.party)
            .outerjoin(running, waiting.c.party == running.c.party)
            .order_by(turn, asking.c.last_begun.nulls_first(), waiting.c.created_at, waiting.c.id)
            .limit(limit)
        )
    )


def _last_begun(
    party: ColumnElement[int], oldest: ColumnElement[datetime]
) -> ColumnElement[datetime | None]:
    """When a query of theirs began last, of those asked not long before the oldest that waits."""
    asked = (
        select(func.max(Job.started_at))
        .join(SearchQuery, SearchQuery.job_id == Job.id)
        .where(SearchQuery.created_at > oldest - _RECENT)
    )
    of_key = asked.where(SearchQuery.key_id == party).scalar_subquery()
    of_nobody = asked.where(SearchQuery.key_id.is_(None)).scalar_subquery()
    return case((party == _COMMAND_LINE, of_nobody), else_=of_key)  # each uses the index


def _asked_uploads() -> Select[Any]:
    """Uploads of queries and standing queries, but for queries that were taken back: nobody waits
    for their answer."""
    taken_back = and_(Job.state == "failed", Job.error_code == "cancelled")
    asked = (
        select(SearchQuery.picture_sha256)
        .join(Job, Job.id == SearchQuery.job_id)
        .where(SearchQuery.picture_sha256.is_not(None), not_(taken_back))
        .union(
            select(StandingQuery.picture_sha256).where(StandingQuery.picture_sha256.is_not(None))
        )
        .subquery()
    )
    return select(asked.c.picture_sha256)


def _named_files() -> list[tuple[Select[Any], Any]]:
    """Every file of the upload store that some row names, and the column that does."""
    terms, bundle = SearchQuery.terms_sha256, EvidenceExport.content_sha256
    return [
        (_asked_uploads(), SearchQuery.picture_sha256),
        (select(terms).where(terms.is_not(None)), terms),
        (select(bundle).where(bundle.is_not(None)), bundle),
    ]


def upload_hashes(session: Session) -> set[str]:
    """Names of the uploads that queries are asked on, of what searches knew, and of bundles."""
    return {str(name) for named, _ in _named_files() for name in session.scalars(named)}


def unused_uploads(session: Session, sha256s: Sequence[str]) -> set[str]:
    """Which of these files no row names."""
    used = {
        str(name)
        for named, _ in _named_files()
        for name in session.scalars(named.where(named.selected_columns[0].in_(sha256s)))
    }
    return set(sha256s) - used


def create_query(
    session: Session,
    *,
    query_id: uuid.UUID,
    job_id: uuid.UUID,
    frame_id: int | None,
    picture_sha256: str | None,
    roi: dict[str, Any],
    params: dict[str, Any],
    key_id: int | None = None,
) -> SearchQuery:
    """Record a query beside its job. ``key_id``: the API key that asks."""
    query = SearchQuery(
        id=query_id,
        job_id=job_id,
        frame_id=frame_id,
        picture_sha256=picture_sha256,
        roi=roi,
        params=params,
        key_id=key_id,
    )
    session.add(query)
    session.flush()
    return query


def lock_query(session: Session, query_id: uuid.UUID) -> bool:
    """Keep a query from being erased until the transaction ends; False when it was already."""
    query = select(SearchQuery.id).where(SearchQuery.id == query_id).with_for_update()
    return session.scalars(query).one_or_none() is not None


def find_query(session: Session, query_id: uuid.UUID) -> SearchQuery | None:
    """A query by id."""
    return session.get(SearchQuery, query_id, populate_existing=True)


def query_of_job(session: Session, job_id: uuid.UUID) -> SearchQuery | None:
    """The query a job is for."""
    return session.scalars(select(SearchQuery).where(SearchQuery.job_id == job_id)).one_or_none()


def recent_queries(session: Session, limit: int) -> list[uuid.UUID]:
    """Ids of the newest queries that were answered, newest first."""
    return list(
        session.scalars(
            select(SearchQuery.id)
            .join(Job, Job.id == SearchQuery.job_id)
            .where(Job.state == "done")
            .order_by(SearchQuery.created_at.desc(), SearchQuery.id)
            .limit(limit)
        )
    )


def frames_kept(session: Session, frame_ids: Sequence[int]) -> set[int]:
    """Which of these frames are still there; they stay so until the transaction ends."""
    query = (
        select(Frame.id).where(Frame.id.in_(frame_ids)).with_for_update(read=True, key_share=True)
    )
    return set(session.scalars(query))


def record_hits(
    session: Session,
    query_id: uuid.UUID,
    generation_id: int,
    stats: dict[str, Any],
    hits: Sequence[dict[str, Any]],
    terms: tuple[str, Sequence[int]] | None = None,
) -> None:
    """Replace a query's hits by the final ones; a repeated run leaves one set. ``terms``: name of
    the file that says what the search knew, and the frames whose descriptors are in it."""
    _replace_hits(session, query_id, hits)
    _update_query(
        session,
        query_id,
        answer_step="final",
        generation_id=generation_id,
        stats=stats,
        terms_sha256=None if terms is None else terms[0],
        terms_frame_ids=None if terms is None else sorted(terms[1]),
    )


def record_first_hits(
    session: Session,
    query: SearchQuery,
    step: Literal["early", "ranked"],
    hits: Sequence[dict[str, Any]],
    stats: dict[str, Any],
) -> None:
    """Replace a running query's hits by others that are not final yet, and tell who follows it.

    Not waited for on the disk: after a crash the query runs again.
    """
    _replace_hits(session, query.id, hits)
    _update_query(session, query.id, answer_step=step, stats=stats)
    session.execute(select(func.pg_notify(QUERY_CHANNEL, str(query.job_id)), unawaited_commit()))


def _replace_hits(session: Session, query_id: uuid.UUID, hits: Sequence[dict[str, Any]]) -> None:
    session.execute(delete(SearchHit).where(SearchHit.query_id == query_id))
    if hits:
        session.execute(insert(SearchHit), [{"query_id": query_id, **hit} for hit in hits])


def _update_query(session: Session, query_id: uuid.UUID, **values: Any) -> None:
    session.execute(
        update(SearchQuery)
        .where(SearchQuery.id == query_id)
        .values(**values)
        .execution_options(synchronize_session=False)
    )


def drop_hits(session: Session, query_id: uuid.UUID) -> None:
    """Forget the hits of a query that was not answered."""
    _replace_hits(session, query_id, [])
    _update_query(session, query_id, answer_step="none", stats=None)


def list_hits(session: Session, query_id: uuid.UUID) -> list[SearchHit]:
    """Hits by rank, each with its frame and camera."""
    return list(
        session.scalars(
            select(SearchHit)
            .where(SearchHit.query_id == query_id)
            .order_by(SearchHit.rank)
            .options(joinedload(SearchHit.frame).joinedload(Frame.camera))
        )
    )
