"""Index generations, shards and f_map runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Double,
    LargeBinary,
    cast,
    delete,
    func,
    literal,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by, insert
from sqlalchemy.orm import Session

from models.bulk import unnested
from models.index import FMapRun, IndexGeneration, Shard
from models.video import Frame

# Ingest commits hold it shared, the switch of the live generation holds it exclusively.
GENERATION_LOCK = 7_268_143_002
NO_OBJECT: dict[str, Any] = {
    "object_url": None,
    "object_bytes": None,
    "object_crc32s": None,
    "object_only": False,
}
"""Columns of a shard that is on no object storage, as are files written anew."""
_FRESH = {"populate_existing": True}


@dataclass(frozen=True, slots=True)
class NewRun:
    """One f_map run about to be recorded."""

    start_row: int
    row_count: int
    frame_id: int
    view: int
    crc32: int
    global_crc32: int


@dataclass(frozen=True, slots=True)
class ShardRuns:
    """The f_map of one shard, sorted by start_row; int64 arrays of equal length (runs,)."""

    start_row: NDArray[np.int64]
    row_count: NDArray[np.int64]
    frame_id: NDArray[np.int64]
    view: NDArray[np.int64]
    crc32: NDArray[np.int64]
    global_crc32: NDArray[np.int64]
    """-1 where it is not known."""
    t_epoch_s: NDArray[np.float64]


def live_generation(session: Session) -> IndexGeneration | None:
    """The generation that answers queries."""
    return session.scalars(
        select(IndexGeneration).where(IndexGeneration.state == "live")
    ).one_or_none()


def find_generation(session: Session, generation_id: int) -> IndexGeneration | None:
    """A generation by id."""
    return session.get(IndexGeneration, generation_id, populate_existing=True)


def list_generations(session: Session) -> list[IndexGeneration]:
    """All generations, oldest first."""
    return list(session.scalars(select(IndexGeneration).order_by(IndexGeneration.id)))


def create_generation(
    session: Session, *, backbone: str, spec_hash: str, spec: dict[str, Any], codec: str, state: str
) -> IndexGeneration:
    """Add a generation. Making a second live one violates a unique index."""
    generation = IndexGeneration(
        backbone=backbone, spec_hash=spec_hash, spec=spec, codec=codec, state=state
    )
    session.add(generation)
    session.flush()
    return generation


def set_generation_state(session: Session, generation_id: int, state: str) -> None:
    """Mark a generation building, live, retired or failed."""
    session.execute(
        update(IndexGeneration)
        .where(IndexGeneration.id == generation_id)
        .values(state=state, switched_at=func.now())
        .execution_options(synchronize_session=False)
    )


def set_comparison(session: Session, generation_id: int, comparison: dict[str, Any]) -> None:
    """Note how a generation compares with the live one."""
    session.execute(
        update(IndexGeneration)
        .where(IndexGeneration.id == generation_id)
        .values(comparison=comparison)
        .execution_options(synchronize_session=False)
    )


def lock_generations(session: Session, *, exclusive: bool) -> None:
    """Until the end of the transaction: shared for ingest commits, exclusive for the switch."""
    function = "pg_advisory_xact_lock" if exclusive else "pg_advisory_xact_lock_shared"
    session.execute(text(f"select {function}({GENERATION_LOCK})"))


def lock_shard(session: Session, generation_id: int, camera_id: int, bucket_utc: datetime) -> Shard:
    """The shard of this camera and time, created if new, locked for its only writer."""
    named = {"generation_id": generation_id, "camera_id": camera_id, "bucket_utc": bucket_utc}
    there = select(Shard).filter_by(**named).with_for_update()
    shard = session.scalars(there, execution_options=_FRESH).one_or_none()
    if shard is not None:
        return shard
    session.execute(insert(Shard).values(**named).on_conflict_do_nothing())
    return session.scalars(there, execution_options=_FRESH).one()


def find_shard(session: Session, shard_id: int, *, lock: bool = False) -> Shard | None:
    """A shard as it stands now, locked for its only writer if asked; None once it was erased."""
    query = select(Shard).filter_by(id=shard_id)
    query = query.with_for_update() if lock else query
    return session.scalars(query, execution_options=_FRESH).one_or_none()


def shards_by_id(session: Session, shard_ids: Sequence[int]) -> dict[int, Shard]:
    """Those of some shards that are there, as they stand now."""
    query = select(Shard).where(Shard.id.in_(shard_ids))
    return {shard.id: shard for shard in session.scalars(query, execution_options=_FRESH)}


def lock_shard_by_id(session: Session, shard_id: int) -> Shard:
    """A shard that is known to be there, as it stands now, locked for its only writer."""
    shard = find_shard(session, shard_id, lock=True)
    assert shard is not None
    return shard


def shard_revisions(session: Session) -> dict[int, int]:
    """Revision of every shard by id."""
    return dict(session.execute(select(Shard.id, Shard.revision)).tuples().all())


def shards_with_checksum(session: Session, shard_ids: Sequence[int], global_crc32: int) -> set[int]:
    """Which of these shards have a block of which that checksum is recorded."""
    query = select(FMapRun.shard_id).where(
        FMapRun.shard_id.in_(shard_ids), FMapRun.global_crc32 == global_crc32
    )
    return set(session.scalars(query.distinct()))


def replace_files(
    session: Session, shard: Shard, sums: Mapping[int, tuple[int, int]], merged_count: int
) -> None:
    """A locked shard's files are those of the next revision; ``sums``: start_row -> the checksums
    (``global_crc32``, ``crc32``) of the blocks that differ. ``merged_count``: leading blocks that
    are still made up from runs."""
    columns = {
        "global_crc32": [global_crc32 for global_crc32, _ in sums.values()],
        "crc32": [crc32 for _, crc32 in sums.values()],
    }
    record_checksums(session, shard.id, list(sums), columns)
    session.execute(
        update(Shard)
        .where(Shard.id == shard.id)
        .values(
            revision=Shard.revision + 1,
            coded_count=0,
            sealed_count=0,
            verified_count=0,
            merged_count=func.least(Shard.merged_count, merged_count),
            **NO_OBJECT,
        )
        .execution_options(synchronize_session=False)
    )


def record_checksums(
    session: Session, shard_id: int, start_rows: Sequence[int], columns: Mapping[str, Sequence[int]]
) -> None:
    """Other checksums, by name of column, for the runs that begin at these rows."""
    if not start_rows:
        return
    rows = unnested(FMapRun, {"start_row": start_rows, **columns})
    given = select(*rows).subquery()
    session.execute(
        update(FMapRun)
        .where(FMapRun.shard_id == shard_id, FMapRun.start_row == given.c.start_row)
        .values({name: given.c[name] for name in columns})
        .execution_options(synchronize_session=False)
    )


def remove_shard(session: Session, shard_id: int) -> None:
    """Forget a locked shard and its runs."""
    for table, column in ((FMapRun, FMapRun.shard_id), (Shard, Shard.id)):
        session.execute(
            delete(table).where(column == shard_id).execution_options(synchronize_session=False)
        )


def rewrite_runs(session: Session, shard: Shard, runs: Sequence[NewRun], merged_count: int) -> None:
    """A locked shard holds these runs and no others, in the files of its next revision; the first
    ``merged_count`` of them were made up when they were copied."""
    session.execute(
        delete(FMapRun)
        .where(FMapRun.shard_id == shard.id)
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(Shard)
        .where(Shard.id == shard.id)
        .values(
            frame_count=0,
            row_count=0,
            coded_count=0,
            sealed_count=0,
            verified_count=0,
            merged_count=0,
            last_utc=None,
            revision=Shard.revision + 1,
            **NO_OBJECT,
        )
        .execution_options(synchronize_session=False)
    )
    append_runs(session, shard, runs)
    session.execute(
        update(Shard)
        .where(Shard.id == shard.id)
        .values(merged_count=merged_count)
        .execution_options(synchronize_session=False)
    )


def append_runs(session: Session, shard: Shard, runs: Sequence[NewRun]) -> None:
    """Record runs at the end of a locked shard and advance its valid length."""
    columns = {
        "start_row": [run.start_row for run in runs],
        "row_count": [run.row_count for run in runs],
        "frame_id": [run.frame_id for run in runs],
        "view": [run.view for run in runs],
        "crc32": [run.crc32 for run in runs],
        "global_crc32": [run.global_crc32 for run in runs],
    }
    rows = unnested(FMapRun, columns)
    names = ["shard_id", *columns]
    session.execute(
        insert(FMapRun).from_select(names, select(literal(shard.id, BigInteger), *rows))
    )
    last = (
        select(func.max(Frame.t_utc))
        .where(Frame.id == func.any(cast(columns["frame_id"], ARRAY(BigInteger))))
        .scalar_subquery()
    )
    session.execute(
        update(Shard)
        .where(Shard.id == shard.id)
        .values(
            frame_count=Shard.frame_count + len(runs),
            row_count=Shard.row_count + sum(run.row_count for run in runs),
            last_utc=func.greatest(Shard.last_utc, last),  # of null and a time, the time
            changed_at=func.now(),
        )
        .execution_options(synchronize_session=False)
    )


def known_frames(session: Session, frame_ids: Sequence[int]) -> set[int]:
    """Which of these frames are still recorded."""
    return set(session.scalars(select(Frame.id).where(Frame.id.in_(frame_ids))))


def indexed_frames(session: Session, generation_id: int, frame_ids: Sequence[int]) -> set[int]:
    """Which of these frames already have rows in a generation."""
    ids = cast(list(frame_ids), ARRAY(BigInteger))
    rows = session.scalars(
        select(FMapRun.frame_id)
        .join(Shard, Shard.id == FMapRun.shard_id)
        .where(Shard.generation_id == generation_id, FMapRun.frame_id == func.any(ids))
    )
    return set(rows)


@dataclass(frozen=True, slots=True)
class ShardFilter:
    """Frames of these cameras in ``[t_from_utc, t_to_utc)``; None does not filter."""

    camera_ids: Sequence[int] | None = None
    t_from_utc: datetime | None = None
    t_to_utc: datetime | None = None

    def conditions(self, generation_id: int) -> list[ColumnElement[bool]]:
        """Of shards with valid rows that can hold such frames."""
        found = [Shard.generation_id == generation_id, Shard.frame_count > 0]
        if self.camera_ids is not None:
            found.append(Shard.camera_id.in_(self.camera_ids))
        if self.t_to_utc is not None:
            found.append(Shard.bucket_utc < self.t_to_utc)
        if self.t_from_utc is not None:
            found.append(Shard.last_utc >= self.t_from_utc)
        return found


ALL_FRAMES = ShardFilter()


def select_shards(
    session: Session, generation_id: int, within: ShardFilter = ALL_FRAMES
) -> list[Shard]:
    """Shards with valid rows that can hold frames that a filter lets in."""
    query = select(Shard).where(*within.conditions(generation_id))
    return list(session.scalars(query.order_by(Shard.camera_id, Shard.bucket_utc)))


def extent(
    session: Session, generation_id: int, within: ShardFilter
) -> tuple[int, datetime | None]:
    """How many frames these shards hold, some of which a filter by time may not let in, and the
    time of the last one."""
    query = select(func.coalesce(func.sum(Shard.frame_count), 0), func.max(Shard.last_utc))
    frames, last_utc = session.execute(query.where(*within.conditions(generation_id))).one()
    return int(frames), last_utc


def read_runs(
    session: Session, shard_ids: Sequence[int], from_row: int = 0
) -> dict[int, ShardRuns]:
    """The runs of some shards from ``from_row`` on, with their frames' times (epoch seconds), by
    id of the shard; one that has none is left out.

    Every column travels as one string of big-endian numbers per shard: a row per run took five
    times as long.
    """

    def packed(numbers: ColumnElement[Any]) -> ColumnElement[bytes]:
        parts: ColumnElement[bytes] = aggregate_order_by(
            literal_column("''::bytea"), FMapRun.start_row
        )
        return func.string_agg(numbers, parts, type_=LargeBinary)

    whole = (
        FMapRun.start_row,
        FMapRun.row_count,
        FMapRun.frame_id,
        FMapRun.view,
        FMapRun.crc32,
        func.coalesce(FMapRun.global_crc32, -1),
    )
    time_s = cast(func.extract("epoch", Frame.t_utc), Double)
    rows = session.execute(
        select(
            FMapRun.shard_id,
            *(packed(func.int8send(cast(column, BigInteger))) for column in whole),
            packed(func.float8send(time_s)),
        )
        .join(Frame, Frame.id == FMapRun.frame_id)
        .where(FMapRun.shard_id.in_(shard_ids), FMapRun.start_row >= from_row)
        .group_by(FMapRun.shard_id)
    )
    return {shard_id: _unpacked(columns) for shard_id, *columns in rows}


def _unpacked(columns: Sequence[bytes]) -> ShardRuns:
    whole = [np.frombuffer(column, dtype=">i8").astype(np.int64) for column in columns[:6]]
    start_row, row_count, frame_id, view, crc32, global_crc32 = whole
    t_epoch_s = np.frombuffer(columns[6], dtype=">f8").astype(np.float64)
    return ShardRuns(start_row, row_count, frame_id, view, crc32, global_crc32, t_epoch_s)


NO_RUNS = _unpacked([b""] * 7)


def find_run(session: Session, generation_id: int, frame_id: int) -> tuple[Shard, FMapRun] | None:
    """Where a frame's rows (view 0) lie in a generation."""
    row = session.execute(
        select(Shard, FMapRun)
        .join(FMapRun, FMapRun.shard_id == Shard.id)
        .where(
            Shard.generation_id == generation_id, FMapRun.frame_id == frame_id, FMapRun.view == 0
        )
    ).one_or_none()
    return (row[0], row[1]) if row else None


def count_frames(session: Session) -> int:
    """All recorded frames."""
    return session.scalars(select(func.count()).select_from(Frame)).one()


def count_indexed(session: Session, generation_id: int) -> int:
    """Frames with rows in a generation."""
    return session.scalars(
        select(func.count(func.distinct(FMapRun.frame_id)))
        .join(Shard, Shard.id == FMapRun.shard_id)
        .where(Shard.generation_id == generation_id)
    ).one()


def count_frames_and_indexed(session: Session, generation_id: int) -> tuple[int, int]:
    """:func:`count_frames` and :func:`count_indexed` at one moment, whatever ingest commits."""
    frames = select(func.count()).select_from(Frame).scalar_subquery()
    indexed = (
        select(func.count(func.distinct(FMapRun.frame_id)))
        .join(Shard, Shard.id == FMapRun.shard_id)
        .where(Shard.generation_id == generation_id)
        .scalar_subquery()
    )
    row = session.execute(select(frames, indexed)).one()
    return int(row[0]), int(row[1])
