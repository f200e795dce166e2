"""Recordings that lie in the data folder: whose they are, and which nobody needs any more."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, and_, func, or_, select, text, update
from sqlalchemy.orm import Session

from models.video import VideoSegment

RECORDING_LOCK = 7_268_143_017
"""Advisory lock between those who keep a recording and those who remove unneeded ones."""


def lock_recordings(session: Session, *, exclusive: bool) -> None:
    """Until the end of the transaction: shared for new recordings, exclusive for removing."""
    function = "pg_advisory_xact_lock" if exclusive else "pg_advisory_xact_lock_shared"
    session.execute(text(f"select {function}({RECORDING_LOCK})"))


def recording_hashes(session: Session) -> set[str]:
    """Names of the recordings that are held."""
    query = select(VideoSegment.held_sha256).where(VideoSegment.held_sha256.is_not(None))
    return {str(sha256) for sha256 in session.scalars(query.distinct())}


def unheld(session: Session, sha256s: Sequence[str]) -> set[str]:
    """Which of these recordings no segment holds."""
    held = session.scalars(
        select(VideoSegment.held_sha256).where(VideoSegment.held_sha256.in_(sha256s))
    )
    return set(sha256s) - {str(sha256) for sha256 in held}


def _ended() -> ColumnElement[bool]:
    return and_(VideoSegment.held_sha256.is_not(None), VideoSegment.outcome.is_not(None))


def let_go(session: Session, segment_id: int) -> str | None:
    """Forget the recording of a segment whose ingest has ended; its name where it held one."""
    return next(iter(_forget(session, VideoSegment.id == segment_id)), None)


def let_go_ended(session: Session) -> list[str]:
    """Forget the recordings of all segments whose ingest has ended; their names."""
    return _forget(session)


def let_go_in_span(
    session: Session, camera_id: int, from_utc: datetime | None, to_utc: datetime | None
) -> list[str]:
    """Forget a camera's recordings that reach into a span, of ended ingests; their names."""
    return _forget(session, *_reaching(camera_id, from_utc, to_utc))


def any_ended_before(session: Session, camera_id: int, to_utc: datetime) -> bool:
    """Whether recordings of a camera whose ingest has ended begin before a time."""
    found = select(VideoSegment.id).where(_ended(), *_reaching(camera_id, None, to_utc))
    return session.scalars(found.limit(1)).one_or_none() is not None


def _reaching(
    camera_id: int, from_utc: datetime | None, to_utc: datetime | None
) -> list[ColumnElement[bool]]:
    """Of a length that nobody knows: to the end of time."""
    within = [VideoSegment.camera_id == camera_id]
    if to_utc is not None:
        within.append(VideoSegment.start_utc < to_utc)
    if from_utc is not None:
        end = VideoSegment.start_utc + func.make_interval(0, 0, 0, 0, 0, 0, VideoSegment.duration_s)
        within.append(or_(VideoSegment.duration_s.is_(None), end >= from_utc))
    return within


def _forget(session: Session, *which: ColumnElement[bool]) -> list[str]:
    held = session.scalars(
        select(VideoSegment).where(_ended(), *which).order_by(VideoSegment.id).with_for_update()
    ).all()
    names = sorted({str(segment.held_sha256) for segment in held})
    session.execute(
        update(VideoSegment)
        .where(VideoSegment.id.in_([segment.id for segment in held]))
        .values(held_sha256=None)
        .execution_options(synchronize_session=False)
    )
    return names
