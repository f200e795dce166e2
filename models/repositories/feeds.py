"""Feeds: what is wanted, how they are, gaps and drops."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    DateTime,
    Integer,
    Select,
    and_,
    case,
    cast,
    delete,
    func,
    literal,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, joinedload

from models.feed import Feed, FeedDrop, FeedGap, FeedStatus
from models.jobs import Job
from models.repositories.scope import FootageScope
from models.video import Camera


@dataclass(frozen=True, slots=True)
class FeedSummary:
    """A feed as people see it. ``url`` may hold a password: never show it as it is."""

    id: int
    camera_id: int
    camera: str
    url: str
    policy: dict[str, Any]
    desired_state: str
    phase: str
    connected_since: datetime | None
    last_seen_utc: datetime | None
    last_frame_utc: datetime | None
    time_source: str | None
    error_code: str | None
    error_detail: str | None
    open_gap_reason: str | None
    open_gap_from_utc: datetime | None
    gaps: int
    dropped_frames: int
    behind_frames: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch without frames of one camera; ``to_utc`` None: it lasts."""

    camera: str
    from_utc: datetime
    to_utc: datetime | None
    reason: str


@dataclass(frozen=True, slots=True)
class CameraGap:
    """A stretch without frames, as far as who asks may know; ``to_utc`` None: it lasts."""

    id: int
    from_utc: datetime
    to_utc: datetime | None
    reason: str


def create(session: Session, camera_id: int, values: Mapping[str, Any]) -> Feed | None:
    """A new feed of a camera with an empty status; None when the camera has one."""
    feed_id = session.scalars(
        insert(Feed)
        .values(camera_id=camera_id, **values)
        .on_conflict_do_nothing(index_elements=["camera_id"])
        .returning(Feed.id)
    ).one_or_none()
    if feed_id is None:
        return None
    session.add(FeedStatus(feed_id=feed_id))
    session.flush()
    return session.get(Feed, feed_id)


def named(session: Session, camera_name: str) -> Feed | None:
    """The feed of that camera, locked."""
    return session.scalars(
        select(Feed)
        .join(Camera, Camera.id == Feed.camera_id)
        .where(Camera.name == camera_name)
        .with_for_update(of=Feed)
    ).one_or_none()


def find(session: Session, feed_id: int) -> Feed | None:
    """The feed with its camera, as it stands."""
    return session.scalars(
        select(Feed)
        .where(Feed.id == feed_id)
        .options(joinedload(Feed.camera))
        .execution_options(populate_existing=True)
    ).one_or_none()


def lock(session: Session, feed_id: int) -> Feed | None:
    """The feed, locked until the commit."""
    return session.scalars(
        select(Feed)
        .where(Feed.id == feed_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one_or_none()


def remove(session: Session, feed_id: int) -> None:
    """Remove a feed and its status; gaps and drops stay with the camera."""
    session.execute(delete(Feed).where(Feed.id == feed_id))


def status_of(session: Session, feed_id: int) -> FeedStatus | None:
    """The feed's status, as it stands."""
    return session.get(FeedStatus, feed_id, populate_existing=True)


def wanted(session: Session, feed_id: int) -> str | None:
    """What is wanted of a feed, None when it was removed; neither changes until the commit."""
    query = select(Feed.desired_state).where(Feed.id == feed_id).with_for_update(read=True)
    return session.scalars(query).one_or_none()


def set_status(session: Session, feed_id: int, **values: Any) -> None:
    """Note how a feed is."""
    session.execute(
        update(FeedStatus)
        .where(FeedStatus.feed_id == feed_id)
        .values(updated_at=func.now(), **values)
        .execution_options(synchronize_session=False)
    )


def is_free(session: Session, feed_id: int, holder: uuid.UUID) -> bool:
    """Whether no other process than ``holder`` has the connection."""
    free = or_(
        FeedStatus.held_by.is_(None),
        FeedStatus.held_by == holder,
        FeedStatus.held_until < func.now(),
    )
    query = select(FeedStatus.feed_id).where(FeedStatus.feed_id == feed_id, free)
    return session.scalars(query).first() is not None


def hold(session: Session, feed_id: int, holder: uuid.UUID, seconds: float) -> None:
    """Note who has the connection, and how long from now nobody else takes it."""
    session.execute(
        update(FeedStatus)
        .where(FeedStatus.feed_id == feed_id)
        .values(held_by=holder, held_until=func.now() + _seconds(seconds))
        .execution_options(synchronize_session=False)
    )


def _seconds(seconds: float) -> Any:
    return func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def addresses(session: Session) -> list[tuple[int, str, str | None]]:
    """Id, shown and encrypted address of every feed."""
    found = session.execute(select(Feed.id, Feed.url, Feed.sealed_url).order_by(Feed.id))
    return [(feed_id, url, sealed_url) for feed_id, url, sealed_url in found]


def jobless(session: Session, rest_s: float) -> list[int]:
    """Feeds that should run and whose job is missing or done, or failed ``rest_s`` ago."""
    rested = or_(Job.finished_at.is_(None), Job.finished_at < func.now() - _seconds(rest_s))
    return list(
        session.scalars(
            select(Feed.id)
            .outerjoin(Job, Job.id == Feed.job_id)
            .where(
                Feed.desired_state == "running",
                or_(Job.id.is_(None), Job.state == "done", and_(Job.state == "failed", rested)),
            )
            .order_by(Feed.id)
        )
    )


def any_running(session: Session) -> bool:
    """Whether a feed is wanted to run."""
    query = select(Feed.id).filter_by(desired_state="running").limit(1)
    return session.scalars(query).first() is not None


def frames_behind(session: Session, within_s: float) -> int:
    """Frames that live feeds wait to have recorded, by statuses not older than ``within_s``."""
    return session.scalars(
        select(func.coalesce(func.sum(FeedStatus.behind_frames), 0)).where(
            FeedStatus.updated_at > func.now() - _seconds(within_s)
        )
    ).one()


def open_gap(session: Session, camera_id: int, from_utc: datetime, reason: str) -> bool:
    """Note that frames are missing from now on; False: one that is open already goes on.

    The same gap is not written twice, as when the answer of a commit was lost.
    """
    same = select(FeedGap.id).where(
        FeedGap.camera_id == camera_id, FeedGap.from_utc == from_utc, FeedGap.reason == reason
    )
    values = select(
        literal(camera_id, Integer), literal(from_utc, DateTime(timezone=True)), literal(reason)
    )
    made = session.scalars(
        insert(FeedGap)
        .from_select(["camera_id", "from_utc", "reason"], values.where(~same.exists()))
        .on_conflict_do_nothing(index_elements=["camera_id"], index_where=FeedGap.to_utc.is_(None))
        .returning(FeedGap.id)
    )
    return made.one_or_none() is not None


def close_gap(
    session: Session, camera_id: int, to_utc: datetime, wrong_after_utc: datetime
) -> bool:
    """End the open gap with the first frame after it; False: there is none, or the frame is of
    before it, which leaves it open.

    A gap from later than ``wrong_after_utc`` was begun by a wrong clock: it ends where it begins.
    """
    over = or_(FeedGap.from_utc < to_utc, FeedGap.from_utc > wrong_after_utc)
    ended = session.scalars(
        update(FeedGap)
        .where(FeedGap.camera_id == camera_id, FeedGap.to_utc.is_(None), over)
        .values(from_utc=func.least(FeedGap.from_utc, to_utc), to_utc=to_utc)
        .returning(FeedGap.id)
        .execution_options(synchronize_session=False)
    )
    return ended.one_or_none() is not None


def end_gap(session: Session, camera_id: int) -> None:
    """End the open gap now: nothing is expected of the camera any more."""
    session.execute(
        update(FeedGap)
        .where(FeedGap.camera_id == camera_id, FeedGap.to_utc.is_(None))
        .values(to_utc=func.greatest(FeedGap.from_utc, func.now()))
        .execution_options(synchronize_session=False)
    )


def add_drops(session: Session, camera_id: int, counts: Mapping[tuple[datetime, str], int]) -> None:
    """Add numbers of dropped frames by (hour, reason)."""
    for (hour_utc, reason), frames in sorted(counts.items()):
        added = insert(FeedDrop).values(
            camera_id=camera_id, hour_utc=hour_utc, reason=reason, frames=frames
        )
        session.execute(
            added.on_conflict_do_update(
                index_elements=["camera_id", "hour_utc", "reason"],
                set_={"frames": FeedDrop.frames + added.excluded.frames},
            )
        )


def camera_gaps(
    session: Session,
    scope: FootageScope,
    camera_id: int,
    after: tuple[datetime, int] | None,
    limit: int,
) -> list[CameraGap]:
    """Gaps of a camera as far as the scope's times reach, newest first, behind one (its beginning
    and id)."""
    begin: Any = FeedGap.from_utc
    end: Any = FeedGap.to_utc
    inside = [FeedGap.camera_id == camera_id]
    if scope.from_utc is not None:
        inside.append(or_(end.is_(None), end > scope.from_utc))
        begin = func.greatest(begin, literal(scope.from_utc))
    if scope.to_utc is not None:
        inside.append(begin < scope.to_utc)
        over = case((literal(scope.to_utc) <= func.now(), literal(scope.to_utc)))
        end = func.least(end, over)  # of null and a time it is the time
    query = (
        select(FeedGap.id, begin, end, FeedGap.reason)
        .where(*inside)
        .order_by(begin.desc(), FeedGap.id.desc())
        .limit(limit)
    )
    if after is not None:
        query = query.where(
            tuple_(begin, FeedGap.id) < tuple_(literal(after[0]), literal(after[1]))
        )
    return [CameraGap(*row) for row in session.execute(query).tuples()]


def gaps(session: Session, camera_name: str | None = None, limit: int = 100) -> list[Gap]:
    """Newest gaps first, of one camera or of all."""
    query = (
        select(Camera.name, FeedGap.from_utc, FeedGap.to_utc, FeedGap.reason)
        .join(Camera, Camera.id == FeedGap.camera_id)
        .order_by(FeedGap.from_utc.desc(), FeedGap.id.desc())
        .limit(limit)
    )
    if camera_name is not None:
        query = query.where(Camera.name == camera_name)
    return [Gap(*row) for row in session.execute(query)]


def drops(session: Session, camera_name: str | None = None) -> list[tuple[str, str, int]]:
    """(camera, reason, frames) of all that was dropped."""
    query = (
        select(Camera.name, FeedDrop.reason, func.sum(FeedDrop.frames))
        .join(Camera, Camera.id == FeedDrop.camera_id)
        .group_by(Camera.name, FeedDrop.reason)
        .order_by(Camera.name, FeedDrop.reason)
    )
    if camera_name is not None:
        query = query.where(Camera.name == camera_name)
    return [(camera, reason, int(frames)) for camera, reason, frames in session.execute(query)]


def summarise(session: Session) -> list[FeedSummary]:
    """Every feed with its status, by camera name."""
    return _summaries(session, _with_status().order_by(Camera.name))


def list_feeds(
    session: Session,
    scope: FootageScope,
    after_id: int,
    limit: int,
    feed_id: int | None = None,
) -> list[FeedSummary]:
    """Feeds of the scope's cameras by id behind one; none for a scope that times bound: how a
    camera is now is not of that time."""
    if scope.has_window:
        return []
    query = _with_status().where(Feed.id > after_id).order_by(Feed.id).limit(limit)
    query = query.where(*scope.of_cameras(Feed.camera_id))
    if feed_id is not None:
        query = query.where(Feed.id == feed_id)
    return _summaries(session, query)


def _summaries(session: Session, query: Select[Any]) -> list[FeedSummary]:
    return [FeedSummary(*row) for row in session.execute(query).tuples()]


def _with_status() -> Select[Any]:
    """The fields of a :class:`FeedSummary` of each feed."""
    counted = (
        select(FeedGap.camera_id, func.count().label("gaps")).group_by(FeedGap.camera_id).subquery()
    )
    dropped = (
        select(FeedDrop.camera_id, cast(func.sum(FeedDrop.frames), BigInteger).label("frames"))
        .group_by(FeedDrop.camera_id)
        .subquery()
    )
    return (
        select(
            Feed.id,
            Feed.camera_id,
            Camera.name,
            Feed.url,
            Feed.policy,
            Feed.desired_state,
            FeedStatus.phase,
            FeedStatus.connected_since,
            FeedStatus.last_seen_utc,
            FeedStatus.last_frame_utc,
            FeedStatus.time_source,
            FeedStatus.error_code,
            FeedStatus.error_detail,
            FeedGap.reason,
            FeedGap.from_utc,
            func.coalesce(counted.c.gaps, 0),
            func.coalesce(dropped.c.frames, 0),
            FeedStatus.behind_frames,
        )
        .join(Camera, Camera.id == Feed.camera_id)
        .join(FeedStatus, FeedStatus.feed_id == Feed.id)
        .outerjoin(FeedGap, (FeedGap.camera_id == Feed.camera_id) & FeedGap.to_utc.is_(None))
        .outerjoin(counted, counted.c.camera_id == Feed.camera_id)
        .outerjoin(dropped, dropped.c.camera_id == Feed.camera_id)
    )
