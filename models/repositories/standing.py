"""Standing queries, the frames they are still to see, and their alerts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, cast, delete, exists, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session, joinedload
from sqlalchemy.sql.dml import UpdateBase

from models.access import ApiKey
from models.repositories.scope import FootageScope
from models.standing import Alert, NewFrames, StandingQuery
from models.video import Frame


def _changed(session: Session, statement: UpdateBase) -> int:
    result = session.execute(statement.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    return int(result.rowcount)


def _seconds(seconds: float) -> Any:
    return func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def add(session: Session, **values: Any) -> StandingQuery:
    """Record a standing query, running from now on."""
    standing = StandingQuery(**values)
    session.add(standing)
    session.flush()
    session.refresh(standing)
    return standing


def find(session: Session, standing_id: int, key_id: int | None) -> StandingQuery | None:
    """A standing query as it stands, of that key or, with None, of whomever."""
    query = select(StandingQuery).where(StandingQuery.id == standing_id)
    if key_id is not None:
        query = query.where(StandingQuery.key_id == key_id)
    return session.scalars(query, execution_options={"populate_existing": True}).one_or_none()


def list_all(
    session: Session, key_id: int | None, after_id: int, limit: int
) -> list[tuple[StandingQuery, int]]:
    """Standing queries by id behind one, of that key or of all, each with its number of alerts."""
    raised = (
        select(func.count())
        .where(Alert.standing_query_id == StandingQuery.id)
        .correlate(StandingQuery)
        .scalar_subquery()
    )
    query = (
        select(StandingQuery, raised)
        .where(StandingQuery.id > after_id)
        .order_by(StandingQuery.id)
        .limit(limit)
    )
    if key_id is not None:
        query = query.where(StandingQuery.key_id == key_id)
    return [(row[0], int(row[1])) for row in session.execute(query)]


def count_alerts(session: Session, standing_id: int) -> int:
    """How many alerts of it are kept."""
    query = select(func.count()).where(Alert.standing_query_id == standing_id)
    return session.scalars(query).one()


def count_open(session: Session, key_id: int | None) -> int:
    """How many of a key's have not ended."""
    mine = StandingQuery.key_id.is_(None) if key_id is None else StandingQuery.key_id == key_id
    return session.scalars(
        select(func.count()).select_from(StandingQuery).where(mine, StandingQuery.state != "ended")
    ).one()


def set_state(session: Session, standing_id: int, state: str) -> bool:
    """Pause it or have it run; False for one that has ended."""
    return bool(
        _changed(
            session,
            update(StandingQuery)
            .where(StandingQuery.id == standing_id, StandingQuery.state != "ended")
            .values(state=state),
        )
    )


def end(session: Session, standing_id: int, code: str, detail: str) -> bool:
    """End it and say why; False for one that has ended."""
    return bool(
        _changed(
            session,
            update(StandingQuery)
            .where(StandingQuery.id == standing_id, StandingQuery.state != "ended")
            .values(state="ended", ended_code=code, ended_detail=detail, ended_at=func.now()),
        )
    )


def due_to_end(session: Session) -> list[tuple[StandingQuery, str]]:
    """Those that are over: ``expired``, or ``unauthenticated`` because their key opens nothing."""
    expired = StandingQuery.expires_at <= func.now()
    keyless = or_(ApiKey.revoked_at.is_not(None), ApiKey.expires_at <= func.now())
    rows = session.execute(
        select(StandingQuery, func.coalesce(expired, False))
        .outerjoin(ApiKey, ApiKey.id == StandingQuery.key_id)
        .where(StandingQuery.state != "ended", or_(expired, keyless))
        .order_by(StandingQuery.id)
    )
    return [(row[0], "expired" if row[1] else "unauthenticated") for row in rows]


def running(session: Session) -> list[StandingQuery]:
    """Those that new frames are compared with, by id."""
    query = select(StandingQuery).where(StandingQuery.state == "running").order_by(StandingQuery.id)
    return list(session.scalars(query, execution_options={"populate_existing": True}))


def lock_running(session: Session, standing_ids: Sequence[int]) -> dict[int, StandingQuery]:
    """Those of them that run still, locked: their alerts are raised by one at a time."""
    query = (
        select(StandingQuery)
        .where(StandingQuery.id.in_(standing_ids), StandingQuery.state == "running")
        .order_by(StandingQuery.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    return {standing.id: standing for standing in session.scalars(query)}


def count_frames(session: Session, standing_id: int, judged: int, unjudged: int) -> None:
    """Add to what it has seen."""
    _changed(
        session,
        update(StandingQuery)
        .where(StandingQuery.id == standing_id)
        .values(
            judged_frames=StandingQuery.judged_frames + judged,
            unjudged_frames=StandingQuery.unjudged_frames + unjudged,
        ),
    )


def remove(session: Session, standing_id: int) -> None:
    """Forget a standing query with its alerts."""
    _changed(session, delete(StandingQuery).where(StandingQuery.id == standing_id))


def remove_ended(session: Session, after_days: float) -> list[str]:
    """Forget those that ended so long ago, with their alerts; their uploads."""
    long_ago = func.now() - _seconds(after_days * 86_400)
    gone = session.scalars(
        delete(StandingQuery)
        .where(StandingQuery.state == "ended", StandingQuery.ended_at < long_ago)
        .returning(StandingQuery.picture_sha256)
        .execution_options(synchronize_session=False)
    )
    return [sha256 for sha256 in gone if sha256 is not None]


def queue_frames(session: Session, camera_id: int, frame_ids: Sequence[int]) -> None:
    """Have standing queries look at these frames once they are committed, if any runs."""
    if not frame_ids:
        return
    one_runs = exists().where(StandingQuery.state == "running")
    values = select(literal(camera_id, BigInteger), cast(list(frame_ids), ARRAY(BigInteger))).where(
        one_runs
    )
    session.execute(insert(NewFrames).from_select(["camera_id", "frame_ids"], values))


def take_frames(session: Session, hold_s: float, limit: int) -> list[NewFrames]:
    """Batches that nobody looks at, oldest first, held by the caller for ``hold_s``."""
    now = func.now()
    free = or_(NewFrames.held_until.is_(None), NewFrames.held_until < now)
    query = (select(NewFrames).where(free).order_by(NewFrames.id).limit(limit)).with_for_update(
        skip_locked=True
    )
    batches = list(session.scalars(query, execution_options={"populate_existing": True}))
    if batches:
        held = update(NewFrames).where(NewFrames.id.in_([batch.id for batch in batches]))
        _changed(
            session, held.values(held_until=now + _seconds(hold_s), attempts=NewFrames.attempts + 1)
        )
        for batch in batches:
            session.refresh(batch)
    return batches


def done_with(session: Session, batch: NewFrames) -> bool:
    """Take a batch off the list; False when its hold was over and another worker has it."""
    mine = delete(NewFrames).where(NewFrames.id == batch.id, NewFrames.attempts == batch.attempts)
    return bool(_changed(session, mine))


def let_go(session: Session, batch: NewFrames, after_s: float) -> None:
    """Have a batch looked at again later."""
    mine = NewFrames.id == batch.id, NewFrames.attempts == batch.attempts
    later = func.now() + _seconds(after_s)
    _changed(session, update(NewFrames).where(*mine).values(held_until=later))


def waiting_frames(session: Session) -> int:
    """How many batches wait."""
    return session.scalars(select(func.count()).select_from(NewFrames)).one()


def is_cool(
    session: Session, standing_id: int, camera_id: int, t_utc: datetime, cool_down_s: float
) -> bool:
    """Whether no alert of it on that camera lies within the cool-down of a time."""
    around = timedelta(seconds=cool_down_s)
    near = exists().where(
        Alert.standing_query_id == standing_id,
        Alert.camera_id == camera_id,
        Alert.t_utc > t_utc - around,
        Alert.t_utc < t_utc + around,
    )
    return not session.execute(select(near)).scalar_one()


def alert_times(session: Session, standing_id: int) -> dict[int, list[datetime]]:
    """Times of the frames of its newest alerts, a thousand at most, by camera."""
    rows = session.execute(
        select(Alert.camera_id, Alert.t_utc)
        .where(Alert.standing_query_id == standing_id)
        .order_by(Alert.id.desc())
        .limit(1000)
    )
    times: dict[int, list[datetime]] = {}
    for camera_id, t_utc in rows:
        times.setdefault(camera_id, []).append(t_utc)
    return times


def add_alert(session: Session, **values: Any) -> int | None:
    """Record an alert; None when there is one of that frame."""
    return session.scalars(
        insert(Alert).values(**values).on_conflict_do_nothing().returning(Alert.id)
    ).one_or_none()


def list_alerts(
    session: Session,
    key_id: int | None,
    scope: FootageScope,
    *,
    standing_id: int | None = None,
    camera_id: int | None = None,
    before_id: int | None = None,
    alert_id: int | None = None,
    limit: int,
) -> list[Alert]:
    """Alerts of that key's standing queries, or of all, newest first, before one, each with its
    frame, camera and standing query."""
    query = (
        select(Alert)
        .join(StandingQuery, StandingQuery.id == Alert.standing_query_id)
        .order_by(Alert.id.desc())
        .limit(limit)
        .options(joinedload(Alert.frame).joinedload(Frame.camera), joinedload(Alert.standing_query))
    )
    if key_id is not None:
        query = query.where(StandingQuery.key_id == key_id)
    query = query.where(*scope.of_cameras(Alert.camera_id), *scope.of_times(Alert.t_utc))
    for column, wanted in (
        (Alert.standing_query_id, standing_id),
        (Alert.camera_id, camera_id),
        (Alert.id, alert_id),
    ):
        if wanted is not None:
            query = query.where(column == wanted)
    if before_id is not None:
        query = query.where(Alert.id < before_id)
    return list(session.scalars(query))
