"""Canary checks: which frames are asked for, and how many found themselves."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from models.index import CanaryCheck, FMapRun, IndexGeneration, Shard
from models.jobs import Job

ENOUGH = 0.9
"""Share of the frames asked for that find themselves in an index that is sound."""
_KEPT_DAYS = 30
_URGENT = ("query", "changes", "evidence")


@dataclass(frozen=True, slots=True)
class LastCheck:
    """The newest check of the live generation: its age, and how many of how many were found."""

    asked: int
    found: int
    age_s: float


def pick_frames(session: Session, generation_id: int, count: int) -> list[int]:
    """Ids of frames of a generation, one of each of up to ``count`` shards of different cameras,
    by chance."""
    one_per_camera = (
        select(Shard.id)
        .where(Shard.generation_id == generation_id, Shard.frame_count > 0)
        .distinct(Shard.camera_id)
        .order_by(Shard.camera_id, func.random())
        .subquery()
    )
    shards = select(one_per_camera.c.id).order_by(func.random()).limit(count)
    picked = (
        select(FMapRun.frame_id)
        .where(FMapRun.shard_id.in_(shards))
        .distinct(FMapRun.shard_id)
        .order_by(FMapRun.shard_id, func.random())
    )
    return list(session.scalars(picked))


def somebody_waits(session: Session) -> bool:
    """Whether a query, or what else somebody waits for, is queued or running."""
    waiting = exists().where(Job.kind.in_(_URGENT), Job.state.in_(["queued", "running"]))
    return bool(session.execute(select(waiting)).scalar_one())


def record_check(session: Session, generation_id: int, asked: int, found: int) -> None:
    """Record a check, and forget old ones."""
    old = CanaryCheck.created_at < func.now() - func.make_interval(0, 0, 0, _KEPT_DAYS)
    session.execute(delete(CanaryCheck).where(old).execution_options(synchronize_session=False))
    session.execute(
        insert(CanaryCheck).values(generation_id=generation_id, asked=asked, found=found)
    )


def last_check(session: Session) -> LastCheck | None:
    """The newest check of the live generation; None: there was none."""
    age_s = func.extract("epoch", func.clock_timestamp() - CanaryCheck.created_at)
    row = session.execute(
        select(CanaryCheck.asked, CanaryCheck.found, age_s)
        .join(IndexGeneration, IndexGeneration.id == CanaryCheck.generation_id)
        .where(IndexGeneration.state == "live")
        .order_by(CanaryCheck.id.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else LastCheck(row[0], row[1], max(0.0, float(row[2])))
