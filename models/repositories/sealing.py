"""Sealing: which shards nothing is added to any more, and that one was sealed."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from models.index import IndexGeneration, Shard
from models.jobs import Job
from models.repositories.index import record_checksums

_USED = ("live", "building")


def due_shards(session: Session, after_s: float, min_frames: int, max_frames: int) -> list[Shard]:
    """Shards with patches that are not sealed, unchanged for ``after_s``, oldest change first."""
    unchanged = Shard.changed_at <= func.now() - text(":after_s * interval '1 second'")
    return list(
        session.scalars(
            select(Shard)
            .join(IndexGeneration, IndexGeneration.id == Shard.generation_id)
            .where(
                IndexGeneration.state.in_(_USED),
                Shard.sealed_count < Shard.frame_count,
                Shard.frame_count.between(min_frames, max_frames),
                unchanged,
            )
            .order_by(Shard.changed_at, Shard.id),
            {"after_s": after_s},
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
