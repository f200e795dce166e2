"""What a reindex asks of frames and shards: what is missing yet, what was read back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, exists, func, select, tuple_, update
from sqlalchemy.orm import Session

from models.index import FMapRun, Shard
from models.jobs import Job
from models.video import Frame


@dataclass(frozen=True, slots=True)
class FramePlace:
    """Where a frame stands in the order of camera and time."""

    camera_id: int
    t_utc: datetime
    frame_id: int


def place_of(frame: Frame) -> FramePlace:
    """The place of a frame."""
    return FramePlace(frame.camera_id, frame.t_utc, frame.id)


def last_begun(session: Session, generation_id: int) -> FramePlace | None:
    """The place before all frames of the shard that a generation got last; None without any."""
    query = select(Shard).filter_by(generation_id=generation_id).order_by(Shard.id.desc()).limit(1)
    shard = session.scalars(query).one_or_none()
    return None if shard is None else FramePlace(shard.camera_id, shard.bucket_utc, 0)


def missing_frames(
    session: Session, generation_id: int, limit: int, after: FramePlace | None = None
) -> list[Frame]:
    """Frames without rows in a generation, in order of camera and time, behind ``after``."""
    order = (Frame.camera_id, Frame.t_utc, Frame.id)
    query = select(Frame).where(_missing(generation_id))
    if after is not None:
        query = query.where(tuple_(*order) > tuple_(after.camera_id, after.t_utc, after.frame_id))
    return list(session.scalars(query.order_by(*order).limit(limit)))


def missing_since(session: Session, generation_id: int, frame_id: int, limit: int) -> list[Frame]:
    """Those of the frames with higher ids that have no rows in a generation."""
    query = select(Frame).where(Frame.id > frame_id, _missing(generation_id))
    return list(session.scalars(query.order_by(Frame.id).limit(limit)))


def _missing(generation_id: int) -> ColumnElement[bool]:
    has_run = (
        exists()
        .where(FMapRun.frame_id == Frame.id)
        .where(Shard.id == FMapRun.shard_id, Shard.generation_id == generation_id)
    )
    return ~has_run


def newest_frame(session: Session) -> int:
    """The highest id of a frame; 0 without any."""
    return session.scalars(select(func.coalesce(func.max(Frame.id), 0))).one()


def count_held(session: Session, generation_id: int) -> int:
    """Frames of a generation's shards: no frame is in two of them."""
    total = func.coalesce(func.sum(Shard.frame_count), 0)
    return int(session.scalars(select(total).where(Shard.generation_id == generation_id)).one())


def unverified_shards(session: Session, generation_id: int, limit: int) -> list[Shard]:
    """Shards with blocks that were not read back yet."""
    query = select(Shard).where(
        Shard.generation_id == generation_id, Shard.verified_count < Shard.frame_count
    )
    query = query.order_by(Shard.id).limit(limit).execution_options(populate_existing=True)
    return list(session.scalars(query))


def note_verified(session: Session, shard: Shard) -> None:
    """All blocks of a shard as it was seen were read back; says nothing of files written since."""
    session.execute(
        update(Shard)
        .where(Shard.id == shard.id, Shard.revision == shard.revision)
        .where(Shard.frame_count >= shard.frame_count)
        .values(verified_count=shard.frame_count)
        .execution_options(synchronize_session=False)
    )


def forget_verified(session: Session, generation_id: int) -> None:
    """Nothing of a generation counts as read back."""
    session.execute(
        update(Shard)
        .where(Shard.generation_id == generation_id)
        .values(verified_count=0)
        .execution_options(synchronize_session=False)
    )


def count_verified(session: Session, generation_id: int) -> int:
    """Blocks of a generation that were read back."""
    total = func.coalesce(func.sum(Shard.verified_count), 0)
    return int(session.scalars(select(total).where(Shard.generation_id == generation_id)).one())


def jobs_under_way(session: Session) -> dict[int, tuple[dict[str, Any], float | None]]:
    """Progress of the reindex of each generation that is being built, and for how many seconds it
    has been under way; None before it began."""
    since = func.extract("epoch", func.now() - Job.started_at)
    query = select(Job.payload, Job.progress, since).where(
        Job.kind == "reindex", Job.state.in_(["queued", "running"])
    )
    return {
        int(payload["generation_id"]): (progress, None if age_s is None else float(age_s))
        for payload, progress, age_s in session.execute(query)
    }
