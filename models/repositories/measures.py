"""Numbers for whoever watches an installation: each one statement, none walks through frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import ARRAY, BigInteger, ColumnElement, Float, case, cast, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from models.arrivals import MessageCount
from models.erasure import Erasure
from models.events import Delivery
from models.feed import Feed, FeedDrop, FeedGap, FeedStatus
from models.index import IndexGeneration, Shard
from models.jobs import Job
from models.repositories.canaries import LastCheck, last_check
from models.search import SearchQuery
from models.watch import WatchedFolder

_TIMED_STAGES = ("describe", "early", "search", "look")
"""As queries note them in ``stats``, in milliseconds."""


@dataclass(frozen=True, slots=True)
class Measures:
    """What the record says now.

    ``failed_lately``: by kind, jobs that failed in the last quarter of an hour; rows of jobs go in
    time, so a difference of counts would miss some. ``waiting_s``: by kind, how long the queued job
    that is due longest has waited; a kind with none is left out. ``feeds``: by phase, or by what is
    wanted where that is not running. ``frames`` and ``shards``: of the live generation.
    ``retrying``: by kind and code, jobs that failed and wait for another try. ``gaps``: by reason,
    of all times. ``query_stage_s``: by stage, median and 95th percentile of the queries answered in
    the last quarter of an hour. ``deliveries``: of events, by state.
    ``canaries``: its newest check, if there was one.
    """

    jobs: Mapping[tuple[str, str], int]
    failed_lately: Mapping[str, int]
    retrying: Mapping[tuple[str, str], int]
    waiting_s: Mapping[str, float]
    feeds: Mapping[str, int]
    open_gaps: Mapping[str, int]
    gaps: Mapping[str, int]
    dropped_frames: Mapping[str, int]
    messages: Mapping[tuple[str, str], int]
    watched_folders: int
    watch_troubles: int
    frames: int
    shards: int
    erasures: int
    canaries: LastCheck | None
    query_stage_s: Mapping[str, tuple[float, float]]
    deliveries: Mapping[str, int]


def measure(session: Session) -> Measures:
    """All numbers, of one moment when the transaction is a snapshot."""
    frames, shards = session.execute(
        select(cast(func.coalesce(func.sum(Shard.frame_count), 0), BigInteger), func.count())
        .join(IndexGeneration, IndexGeneration.id == Shard.generation_id)
        .where(IndexGeneration.state == "live")
    ).one()
    return Measures(
        jobs=_jobs(session),
        failed_lately=_failed_lately(session),
        retrying=_retrying(session),
        waiting_s=_waiting_s(session),
        feeds=_feeds(session),
        open_gaps=_open_gaps(session),
        gaps=_by(session, FeedGap.reason),
        dropped_frames=_dropped_frames(session),
        messages={
            (one.source, one.outcome): one.messages for one in session.scalars(select(MessageCount))
        },
        watched_folders=session.scalars(select(func.count(WatchedFolder.id))).one(),
        watch_troubles=session.scalars(
            select(func.count(WatchedFolder.id)).where(WatchedFolder.error_code.is_not(None))
        ).one(),
        frames=frames,
        shards=shards,
        erasures=session.scalars(
            select(func.count())
            .select_from(Erasure)
            .join(Job, Job.id == Erasure.job_id)
            .where(Job.state.in_(["queued", "running"]))
        ).one(),
        canaries=last_check(session),
        query_stage_s=_query_stage_s(session),
        deliveries=_by(session, Delivery.state),
    )


def _jobs(session: Session) -> dict[tuple[str, str], int]:
    query = select(Job.kind, Job.state, func.count()).group_by(Job.kind, Job.state)
    return {(kind, state): count for kind, state, count in session.execute(query)}


def _failed_lately(session: Session) -> dict[str, int]:
    query = select(Job.kind, func.count()).where(Job.state == "failed", _lately())
    return dict(session.execute(query.group_by(Job.kind)).tuples().all())


def _lately() -> ColumnElement[bool]:
    return Job.finished_at > func.now() - func.make_interval(0, 0, 0, 0, 0, 15)


def _retrying(session: Session) -> dict[tuple[str, str], int]:
    query = select(Job.kind, Job.retry_code, func.count()).where(
        Job.state == "queued", Job.retry_code.is_not(None)
    )
    rows = session.execute(query.group_by(Job.kind, Job.retry_code))
    return {(kind, str(code)): count for kind, code, count in rows}


def _by(session: Session, column: InstrumentedAttribute[str]) -> dict[str, int]:
    query = select(column, func.count()).group_by(column)
    return dict(session.execute(query).tuples().all())


def _query_stage_s(session: Session) -> dict[str, tuple[float, float]]:
    """Stages that no query had are left out."""
    took_s = {name: SearchQuery.stats[f"{name}_ms"].as_float() / 1000 for name in _TIMED_STAGES}
    took_s["queued"] = func.extract("epoch", Job.started_at - Job.created_at)
    took_s["all"] = func.extract("epoch", Job.finished_at - Job.created_at)
    shares = cast([0.5, 0.95], ARRAY(Float))
    columns = [func.percentile_cont(shares).within_group(value) for value in took_s.values()]
    answered = select(*columns).join(Job, Job.id == SearchQuery.job_id)
    row = session.execute(answered.where(Job.state == "done", _lately())).one()
    return {stage: (one[0], one[1]) for stage, one in zip(took_s, row, strict=True) if one}


def _waiting_s(session: Session) -> dict[str, float]:
    age_s = func.extract("epoch", func.clock_timestamp() - func.min(Job.run_after))
    query = select(Job.kind, age_s).where(Job.state == "queued").group_by(Job.kind)
    return {kind: max(0.0, float(waited_s)) for kind, waited_s in session.execute(query)}


def _feeds(session: Session) -> dict[str, int]:
    state = case((Feed.desired_state == "running", FeedStatus.phase), else_=Feed.desired_state)
    query = (
        select(state, func.count())
        .select_from(Feed)
        .join(FeedStatus, FeedStatus.feed_id == Feed.id)
        .group_by(state)
    )
    return dict(session.execute(query).tuples().all())


def _open_gaps(session: Session) -> dict[str, int]:
    query = select(FeedGap.reason, func.count()).where(FeedGap.to_utc.is_(None))
    return dict(session.execute(query.group_by(FeedGap.reason)).tuples().all())


def _dropped_frames(session: Session) -> dict[str, int]:
    frames = cast(func.sum(FeedDrop.frames), BigInteger)
    query = select(FeedDrop.reason, frames).group_by(FeedDrop.reason)
    return dict(session.execute(query).tuples().all())
