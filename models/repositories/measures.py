"""Numbers for whoever watches an installation: each one statement, none walks through frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import BigInteger, case, cast, func, select
from sqlalchemy.orm import Session

from models.arrivals import MessageCount
from models.erasure import Erasure
from models.feed import Feed, FeedDrop, FeedGap, FeedStatus
from models.index import IndexGeneration, Shard
from models.jobs import Job
from models.repositories.canaries import LastCheck, last_check
from models.watch import WatchedFolder


@dataclass(frozen=True, slots=True)
class Measures:
    """What the record says now.

    ``failed_lately``: by kind, jobs that failed in the last quarter of an hour; rows of jobs go in
    time, so a difference of counts would miss some. ``waiting_s``: by kind, how long the queued job
    that is due longest has waited; a kind with none is left out. ``feeds``: by phase, or by what is
    wanted where that is not running. ``frames`` and ``shards``: of the live generation.
    ``canaries``: its newest check, if there was one.
    """

    jobs: Mapping[tuple[str, str], int]
    failed_lately: Mapping[str, int]
    waiting_s: Mapping[str, float]
    feeds: Mapping[str, int]
    open_gaps: Mapping[str, int]
    dropped_frames: Mapping[str, int]
    messages: Mapping[tuple[str, str], int]
    watched_folders: int
    watch_troubles: int
    frames: int
    shards: int
    erasures: int
    canaries: LastCheck | None


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
        waiting_s=_waiting_s(session),
        feeds=_feeds(session),
        open_gaps=_open_gaps(session),
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
    )


def _jobs(session: Session) -> dict[tuple[str, str], int]:
    query = select(Job.kind, Job.state, func.count()).group_by(Job.kind, Job.state)
    return {(kind, state): count for kind, state, count in session.execute(query)}


def _failed_lately(session: Session) -> dict[str, int]:
    lately = Job.finished_at > func.now() - func.make_interval(0, 0, 0, 0, 0, 15)
    query = select(Job.kind, func.count()).where(Job.state == "failed", lately)
    return dict(session.execute(query.group_by(Job.kind)).tuples().all())


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
