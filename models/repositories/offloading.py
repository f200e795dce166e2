"""Sealed shards on object storage: which are to be moved there, and which have been."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from models.index import IndexGeneration, Shard
from models.jobs import Job
from models.repositories.index import NO_OBJECT


def due_shards(session: Session, before_utc: datetime) -> list[Shard]:
    """Shards of the live generation that are sealed to their end and have their codes, here only,
    unchanged since then, oldest change first."""
    return list(
        session.scalars(
            select(Shard)
            .join(IndexGeneration, IndexGeneration.id == Shard.generation_id)
            .where(
                IndexGeneration.state == "live",
                Shard.frame_count > 0,
                Shard.sealed_count == Shard.frame_count,
                Shard.coded_count == Shard.frame_count,
                Shard.object_url.is_(None),
                Shard.changed_at <= before_utc,
            )
            .order_by(Shard.changed_at, Shard.id)
        )
    )


def is_open(session: Session) -> bool:
    """Whether shards are being moved, or are about to be."""
    found = session.scalars(
        select(Job.id).where(Job.kind == "offload", Job.state.in_(["queued", "running"])).limit(1)
    ).one_or_none()
    return found is not None


def record_object(
    session: Session, shard_id: int, url: str, byte_count: int, crc32s: bytes
) -> None:
    """A locked shard's sealed patches lie at ``url`` as well."""
    _change(session, shard_id, object_url=url, object_bytes=byte_count, object_crc32s=crc32s)


def record_local_gone(session: Session, shard_id: int, url: str) -> None:
    """The local copy of what lies at ``url`` is removed."""
    session.execute(
        update(Shard)
        .where(Shard.id == shard_id, Shard.object_url == url)
        .values(object_only=True)
        .execution_options(synchronize_session=False)
    )


def forget_object(session: Session, shard_id: int) -> None:
    """A locked shard's sealed patches are here again, and nowhere else."""
    _change(session, shard_id, **NO_OBJECT)


def forget_objects(session: Session) -> None:
    """No shard has anything on object storage."""
    session.execute(update(Shard).values(NO_OBJECT).execution_options(synchronize_session=False))


def _change(session: Session, shard_id: int, **columns: object) -> None:
    session.execute(
        update(Shard)
        .where(Shard.id == shard_id)
        .values(columns)
        .execution_options(synchronize_session=False)
    )


def moved_shards(session: Session, *, local: bool = False) -> list[Shard]:
    """Shards with an object; ``local``: those of which a copy is here too."""
    query = select(Shard).where(Shard.object_url.is_not(None)).order_by(Shard.id)
    return list(session.scalars(query.where(Shard.object_only.is_(False)) if local else query))


def object_urls(session: Session) -> set[str]:
    """Every object that a shard names."""
    found = session.scalars(select(Shard.object_url).where(Shard.object_url.is_not(None)))
    return {str(url) for url in found}
