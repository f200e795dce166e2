"""Events out: written beside what they tell of, handed to whoever delivers them, forgotten."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, case, delete, exists, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session, joinedload
from sqlalchemy.sql.dml import UpdateBase

from models.access import ApiKey
from models.events import Delivery, Event, Webhook

_GIVEN_UP = "not delivered within its time"
_KEY_GONE = "the API key that made this webhook is revoked or has expired"


@dataclass(frozen=True, slots=True)
class NewEvent:
    """What happened. ``action``: what a key must allow to be told. ``camera_id``: told to those
    who may see that camera, at the time ``t_utc`` of its frame; where there is none, to no key that
    sees some time only. ``key_id`` with ``of_key``: to that key, and to whoever may see what
    every key does."""

    kind: str
    data: dict[str, Any]
    action: str = "admin"
    camera_id: int | None = None
    t_utc: datetime | None = None
    key_id: int | None = None
    of_key: bool = False
    frame_id: int | None = None
    query_id: uuid.UUID | None = None
    standing_query_id: int | None = None


def add(session: Session, event: NewEvent) -> uuid.UUID | None:
    """Record an event and a delivery for each webhook that is to be told; None where none is.

    In the caller's transaction. A webhook that is just being removed is waited for.
    """
    is_admin = literal("admin") == func.any(ApiKey.actions)
    may_know: list[ColumnElement[bool]] = [
        is_admin | (literal(event.action) == func.any(ApiKey.actions))
    ]
    if event.camera_id is not None:
        sees = ApiKey.camera_ids.is_(None) | (
            literal(event.camera_id) == func.any(ApiKey.camera_ids)
        )
        may_know += [sees, _in_window(event.t_utc)]
    if event.of_key:
        may_know.append(is_admin | (ApiKey.id == event.key_id))
    told = (
        select(Webhook.id)
        .outerjoin(ApiKey, ApiKey.id == Webhook.key_id)
        .where(Webhook.state != "gone", literal(event.kind) == func.any(Webhook.kinds))
        .where(or_(Webhook.key_id.is_(None), and_(_alive(), *may_know)))
        .with_for_update(read=True, key_share=True, of=Webhook)
    )
    return record(session, event, list(session.scalars(told)))


def _in_window(t_utc: datetime | None) -> ColumnElement[bool]:
    """The joined key sees that time; with None: every time."""
    start, end = ApiKey.footage_from_utc, ApiKey.footage_to_utc
    if t_utc is None:
        return and_(start.is_(None), end.is_(None))
    return and_(
        or_(start.is_(None), start <= literal(t_utc)), or_(end.is_(None), end > literal(t_utc))
    )


def record(session: Session, event: NewEvent, webhook_ids: Sequence[int]) -> uuid.UUID | None:
    """Record an event for these webhooks; None, and nothing, for none of them."""
    if not webhook_ids:
        return None
    event_id = uuid.uuid4()
    session.execute(
        insert(Event).values(
            id=event_id,
            kind=event.kind,
            data=event.data,
            frame_id=event.frame_id,
            query_id=event.query_id,
            standing_query_id=event.standing_query_id,
        )
    )
    session.execute(
        insert(Delivery), [{"event_id": event_id, "webhook_id": one} for one in webhook_ids]
    )
    return event_id


def _alive() -> ColumnElement[bool]:
    """The joined key opens something still; true without one."""
    expired = func.coalesce(ApiKey.expires_at <= func.now(), False)
    return and_(ApiKey.revoked_at.is_(None), ~expired)


def _seconds(seconds: float) -> Any:
    return func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def _changed(session: Session, statement: UpdateBase) -> int:
    result = session.execute(statement.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    return int(result.rowcount)


def add_webhook(session: Session, **values: Any) -> Webhook:
    """Record a webhook."""
    webhook = Webhook(**values)
    session.add(webhook)
    session.flush()
    session.refresh(webhook)
    return webhook


def find_webhook(session: Session, webhook_id: int, key_id: int | None) -> Webhook | None:
    """A webhook as it stands, of that key or, with None, of whomever."""
    query = select(Webhook).where(Webhook.id == webhook_id)
    if key_id is not None:
        query = query.where(Webhook.key_id == key_id)
    return session.scalars(query, execution_options={"populate_existing": True}).one_or_none()


def list_webhooks(
    session: Session, key_id: int | None, after_id: int, limit: int
) -> list[tuple[Webhook, dict[str, int]]]:
    """Webhooks by id behind one, of that key or of all, with the number of deliveries by state."""
    query = select(Webhook).where(Webhook.id > after_id).order_by(Webhook.id).limit(limit)
    if key_id is not None:
        query = query.where(Webhook.key_id == key_id)
    found = list(session.scalars(query))
    counts = delivery_counts(session, [webhook.id for webhook in found])
    return [(webhook, counts.get(webhook.id, {})) for webhook in found]


def delivery_counts(session: Session, webhook_ids: Sequence[int]) -> dict[int, dict[str, int]]:
    """Deliveries that are kept, by webhook and state."""
    rows = session.execute(
        select(Delivery.webhook_id, Delivery.state, func.count())
        .where(Delivery.webhook_id.in_(webhook_ids))
        .group_by(Delivery.webhook_id, Delivery.state)
    )
    counts: dict[int, dict[str, int]] = {}
    for webhook_id, state, count in rows:
        counts.setdefault(webhook_id, {})[state] = int(count)
    return counts


def change_webhook(session: Session, webhook_id: int, values: dict[str, Any]) -> None:
    """Set columns of a webhook."""
    _changed(session, update(Webhook).where(Webhook.id == webhook_id).values(**values))


def rotate_secret(session: Session, webhook_id: int, secret: str, overlap_s: float) -> None:
    """Sign with another secret from now on, and for ``overlap_s`` with the present one too."""
    values = {
        "secret": secret,
        "former_secret": Webhook.secret,
        "former_until": func.now() + _seconds(overlap_s),
    }
    change_webhook(session, webhook_id, values)


def remove_webhook(session: Session, webhook_id: int) -> None:
    """Forget a webhook and what was on its way to it."""
    _changed(session, delete(Webhook).where(Webhook.id == webhook_id))


def list_deliveries(
    session: Session,
    webhook_id: int,
    state: str | None,
    after: tuple[datetime, uuid.UUID] | None,
    limit: int,
) -> list[Delivery]:
    """Deliveries of a webhook with their events, newest first, behind one."""
    query = (
        select(Delivery)
        .where(Delivery.webhook_id == webhook_id)
        .order_by(Delivery.created_at.desc(), Delivery.event_id.desc())
        .limit(limit)
        .options(joinedload(Delivery.event))
    )
    if state is not None:
        query = query.where(Delivery.state == state)
    if after is not None:
        created_at, event_id = after
        query = query.where(
            or_(
                Delivery.created_at < created_at,
                and_(Delivery.created_at == created_at, Delivery.event_id < event_id),
            )
        )
    return list(session.scalars(query))


def find_delivery(session: Session, webhook_id: int, event_id: uuid.UUID) -> Delivery | None:
    """A delivery with its event."""
    return session.scalars(
        select(Delivery)
        .where(Delivery.webhook_id == webhook_id, Delivery.event_id == event_id)
        .options(joinedload(Delivery.event))
        .execution_options(populate_existing=True)
    ).one_or_none()


def try_again(session: Session, webhook_id: int, event_id: uuid.UUID) -> bool:
    """Deliver what was given up or delivered once more; False where it is on its way."""
    return bool(
        _changed(
            session,
            update(Delivery)
            .where(Delivery.webhook_id == webhook_id, Delivery.event_id == event_id)
            .where(Delivery.state != "pending")
            .values(state="pending", attempts=0, next_try_at=func.now(), finished_at=None),
        )
    )


def take_turn(session: Session, hold_s: float) -> Webhook | None:
    """A webhook with a delivery that is due, held by the caller for ``hold_s``; None: there is
    none. The one that has waited longest comes first."""
    now = func.now()
    due = exists().where(
        Delivery.webhook_id == Webhook.id, Delivery.state == "pending", Delivery.next_try_at <= now
    )
    webhook = session.scalars(
        select(Webhook)
        .outerjoin(ApiKey, ApiKey.id == Webhook.key_id)
        .where(Webhook.state == "active", due)
        .where(or_(Webhook.key_id.is_(None), _alive()))
        .where(or_(Webhook.held_until.is_(None), Webhook.held_until < now))
        .where(or_(Webhook.rest_until.is_(None), Webhook.rest_until <= now))
        .order_by(Webhook.rest_until.nulls_first(), Webhook.held_until.nulls_first(), Webhook.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=Webhook)
    ).one_or_none()
    if webhook is not None:
        change_webhook(session, webhook.id, {"held_until": now + _seconds(hold_s)})
        session.refresh(webhook)
    return webhook


def next_due(session: Session, webhook_id: int) -> Delivery | None:
    """The delivery of a webhook that is due longest, with its event; None where none is, or the
    webhook is not to be told any more."""
    return session.scalars(
        select(Delivery)
        .join(Webhook, Webhook.id == Delivery.webhook_id)
        .where(Delivery.webhook_id == webhook_id, Webhook.state == "active")
        .where(Delivery.state == "pending", Delivery.next_try_at <= func.now())
        .order_by(Delivery.next_try_at, Delivery.event_id)
        .limit(1)
        .options(joinedload(Delivery.event))
        .execution_options(populate_existing=True)
    ).one_or_none()


def signing_secrets(session: Session, webhook_id: int) -> list[str]:
    """Secrets of a webhook as they are kept, the present one first, a former one while it holds."""
    former = case((Webhook.former_until > func.now(), Webhook.former_secret))
    row = session.execute(
        select(Webhook.secret, former).where(Webhook.id == webhook_id)
    ).one_or_none()
    return [] if row is None else [secret for secret in row if secret is not None]


def record_delivered(
    session: Session, webhook_id: int, event_id: uuid.UUID, status: int | None
) -> None:
    """Note that the receiver has it; ``status`` of its answer, where there is one."""
    values = {"state": "delivered", "status": status, "detail": None, "finished_at": func.now()}
    _end(session, webhook_id, event_id, values)
    change_webhook(
        session,
        webhook_id,
        {"failures": 0, "rest_until": None, "last_delivered_at": func.clock_timestamp()},
    )


def record_failed(
    session: Session,
    webhook_id: int,
    event_id: uuid.UUID,
    *,
    status: int | None,
    detail: str,
    retry_s: float | None,
    rest_s: float,
) -> None:
    """Note why a try failed. ``retry_s``: when it is tried again, None: never."""
    values: dict[str, Any] = {"status": status, "detail": detail}
    if retry_s is None:
        values |= {"state": "dead", "finished_at": func.now()}
    else:
        values["next_try_at"] = func.now() + _seconds(retry_s)
    _end(session, webhook_id, event_id, values)
    change_webhook(
        session,
        webhook_id,
        {"failures": Webhook.failures + 1, "rest_until": func.now() + _seconds(rest_s)},
    )


def _end(session: Session, webhook_id: int, event_id: uuid.UUID, values: dict[str, Any]) -> None:
    _changed(
        session,
        update(Delivery)
        .where(Delivery.webhook_id == webhook_id, Delivery.event_id == event_id)
        .where(Delivery.state == "pending")
        .values(attempts=Delivery.attempts + 1, **values),
    )


def give_up(session: Session, after_s: float) -> int:
    """End deliveries that are too old, or whose webhook is told nothing any more; how many."""
    old = Delivery.created_at < func.now() - _seconds(after_s)
    keyless = (
        select(Webhook.id)
        .join(ApiKey, ApiKey.id == Webhook.key_id)
        .where(~_alive())
        .scalar_subquery()
    )
    orphaned = Delivery.webhook_id.in_(keyless)
    return _changed(
        session,
        update(Delivery)
        .where(Delivery.state == "pending", or_(old, orphaned))
        .values(
            state="dead",
            finished_at=func.now(),
            detail=case(
                (orphaned, _KEY_GONE), else_=func.concat_ws("; ", _GIVEN_UP, Delivery.detail)
            ),
        ),
    )


def forget(session: Session, after_days: float) -> int:
    """Remove deliveries that ended so long ago, and events that nobody is told of any more; how
    many events."""
    long_ago = func.now() - _seconds(after_days * 86_400)
    ended = and_(Delivery.state != "pending", Delivery.finished_at < long_ago)
    _changed(session, delete(Delivery).where(ended))
    on_its_way = exists().where(Delivery.event_id == Event.id)
    return _changed(session, delete(Event).where(Event.created_at < func.now(), ~on_its_way))
