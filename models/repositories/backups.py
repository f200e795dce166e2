"""What a backup asks of one snapshot: which files the database speaks of, and how it is known."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from models.erasure import Erasure
from models.index import FMapRun, IndexGeneration, Shard
from models.video import Frame


@dataclass(frozen=True, slots=True)
class Moment:
    """What identifies the database at one moment. ``index_made``: when its first generation was,
    which tells two indexes apart; None while there is none."""

    taken_utc: datetime
    schema_revision: str
    index_made: datetime | None
    last_erasure: int | None
    frames: int


def take_time(session: Session) -> None:
    """Until the end of the transaction: statements may read whole tables, however long it takes."""
    session.execute(text("set local statement_timeout = 0"))


def export_snapshot(session: Session) -> str:
    """Name under which others may see what this transaction sees, until it ends."""
    return str(session.execute(text("select pg_export_snapshot()")).scalar_one())


def moment(session: Session) -> Moment:
    """The database as this transaction sees it."""
    revision = session.execute(text("select version_num from alembic_version")).scalar_one()
    return Moment(
        taken_utc=session.execute(select(func.now())).scalar_one(),
        schema_revision=str(revision),
        index_made=session.scalars(select(func.min(IndexGeneration.created_at))).one(),
        last_erasure=session.scalars(select(func.max(Erasure.id))).one(),
        frames=session.scalars(select(func.count()).select_from(Frame)).one(),
    )


def shards_with_files(session: Session) -> list[Shard]:
    """Shards with valid blocks of every generation that has not been removed."""
    return list(
        session.scalars(
            select(Shard)
            .join(IndexGeneration, IndexGeneration.id == Shard.generation_id)
            .where(IndexGeneration.state != "removed", Shard.frame_count > 0)
            .order_by(Shard.id)
        )
    )


def checksums_digest(session: Session, shard_id: int, blocks: int) -> str:
    """Digest of the checksums of a shard's first blocks: equal for equal content."""
    sums = func.concat(FMapRun.global_crc32, " ", FMapRun.crc32)
    first = (
        select(sums.label("sums"), FMapRun.start_row)
        .where(FMapRun.shard_id == shard_id)
        .order_by(FMapRun.start_row)
        .limit(blocks)
        .subquery()
    )
    joined = func.string_agg(first.c.sums, text("',' order by start_row"))
    return str(session.scalars(select(func.md5(func.coalesce(joined, "")))).one())


def forget_codes(session: Session) -> None:
    """No shard has compact codes: they are made again behind ingest. Nor was any read back."""
    session.execute(
        update(Shard)
        .values(coded_count=0, verified_count=0)
        .execution_options(synchronize_session=False)
    )
