"""Sealing: which shards nothing is added to any more, and that one was sealed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from models.index import IndexGeneration, Shard
from models.jobs import Job
from models.repositories.index import NO_OBJECT, record_checksums

_USED = ("live", "building")


def unchanged_before(session: Session, after_s: float) -> datetime:
    """The moment that lies ``after_s`` back."""
    moment = func.now() - text(":after_s * interval '1 second'")
    found: datetime = session.execute(select(moment), {"after_s": after_s}).scalar_one()
    return found


def due_shards(
    session: Session, before_utc: datetime, min_frames: int, max_frames: int
) -> list[Shard]:
    """Shards with patches that are not sealed, unchanged since then, oldest change first."""
    return list(
        session.scalars(
            select(Shard)
            .join(IndexGeneration, IndexGeneration.id == Shard.generation_id)
            .where(
                IndexGeneration.state.in_(_USED),
                Shard.sealed_count < Shard.frame_count,
                Shard.frame_count.between(min_frames, max_frames),
                Shard.changed_at <= before_utc,
            )
            .order_by(Shard.changed_at, Shard.id)
        )
    )


def is_open(session: Session) -> bool:
    """Whether shards are being sealed, or are about to be."""
    found = session.scalars(
        select(Job.id).where(Job.kind == "seal", Job.state.in_(["queued", "running"])).limit(1)
    ).one_or_none()
    return found is not None


def record_seal(
    session: Session, shard: Shard, crc32s: Sequence[int], start_rows: Sequence[int], coded: int
) -> None:
    """A locked shard's files are those of the next revision, its first frames sealed.

    ``crc32s``, ``start_rows``: of the sealed blocks as they are made up. ``coded``: blocks that
    have codes.
    """
    record_checksums(session, shard.id, start_rows, {"crc32": crc32s})
    session.execute(
        update(Shard)
        .where(Shard.id == shard.id)
        .values(
            revision=Shard.revision + 1,
            sealed_count=len(crc32s),
            merged_count=len(crc32s),
            coded_count=coded,
            verified_count=0,
            **NO_OBJECT,
        )
        .execution_options(synchronize_session=False)
    )


def put_off(session: Session, shard_id: int) -> None:
    """Let a shard wait as if something had been added to it now."""
    session.execute(
        update(Shard)
        .where(Shard.id == shard_id)
        .values(changed_at=func.now())
        .execution_options(synchronize_session=False)
    )
