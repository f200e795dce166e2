"""Compact codes: the basis of a generation, and how far each shard is coded."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session

from models.index import CompactBasis, IndexGeneration, Shard
from models.jobs import Job

_USED = ("live", "building")


def basis_name(session: Session, generation_id: int) -> str | None:
    """Name of a generation's recorded basis."""
    return session.scalars(
        select(CompactBasis.name).where(CompactBasis.generation_id == generation_id)
    ).one_or_none()


def find_basis(session: Session, generation_id: int) -> CompactBasis | None:
    """A generation's recorded basis."""
    return session.get(CompactBasis, generation_id)


def record_basis(session: Session, **values: Any) -> None:
    """Record a basis; the first one of a generation stays."""
    session.execute(insert(CompactBasis).values(**values).on_conflict_do_nothing())


def lagging_shards(session: Session, generation_id: int) -> list[Shard]:
    """Shards of a generation whose codes do not reach their end, oldest first."""
    return list(
        session.scalars(
            select(Shard)
            .where(Shard.generation_id == generation_id, Shard.coded_count < Shard.frame_count)
            .order_by(Shard.bucket_utc, Shard.id)
        )
    )


def lag_by_generation(session: Session) -> list[tuple[int, int, int]]:
    """(id, frames, frames without codes) of each generation in use."""
    rows = session.execute(
        select(
            IndexGeneration.id,
            func.sum(Shard.frame_count),
            func.sum(Shard.frame_count - Shard.coded_count),
        )
        .join(Shard, Shard.generation_id == IndexGeneration.id)
        .where(IndexGeneration.state.in_(_USED))
        .group_by(IndexGeneration.id)
        .order_by(IndexGeneration.id)
    )
    return [(int(one), int(frames), int(lag)) for one, frames, lag in rows]


def advance(session: Session, shard: Shard, coded_count: int) -> bool:
    """Record how far a shard is coded; False when its files have been written anew meanwhile."""
    result = session.execute(
        update(Shard)
        .where(
            Shard.id == shard.id,
            Shard.revision == shard.revision,
            Shard.coded_count == shard.coded_count,
        )
        .values(coded_count=coded_count)
        .execution_options(synchronize_session=False)
    )
    assert isinstance(result, CursorResult)
    return result.rowcount == 1


def reset(session: Session, shard_id: int) -> None:
    """Forget a shard's codes: they are made again."""
    session.execute(
        update(Shard)
        .where(Shard.id == shard_id)
        .values(coded_count=0)
        .execution_options(synchronize_session=False)
    )


def is_open(session: Session) -> bool:
    """Whether codes are being made, or are about to be."""
    found = session.scalars(
        select(Job.id).where(Job.kind == "compact", Job.state.in_(["queued", "running"])).limit(1)
    ).one_or_none()
    return found is not None
