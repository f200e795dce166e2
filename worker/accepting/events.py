"""Events: what others are told of, written in the transaction of what happened."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal, get_args

from models.repositories import events as event_record
from models.repositories.events import NewEvent
from models.search import ChangeQuery, SearchQuery
from models.session import Session
from models.standing import StandingQuery
from models.video import Frame, VideoSegment
from worker.accepting.keys import Action

EventKind = Literal[
    "query.done",
    "query.failed",
    "query.cancelled",
    "changes.done",
    "changes.failed",
    "feed.live",
    "feed.down",
    "segment.ingested",
    "segment.failed",
    "alert.raised",
    "standing.ended",
]
EVENT_KINDS: Final[tuple[EventKind, ...]] = get_args(EventKind)
TEST_KIND: Final = "webhook.test"
ACTION_OF_KIND: Final[dict[EventKind, Action]] = {
    "query.done": "search",
    "query.failed": "search",
    "query.cancelled": "search",
    "changes.done": "search",
    "changes.failed": "search",
    "feed.live": "view",
    "feed.down": "view",
    "segment.ingested": "ingest",
    "segment.failed": "ingest",
    "alert.raised": "search",
    "standing.ended": "search",
}
"""What a key must allow to be told: what it needs to read the same."""


def tell_query(session: Session, kind: EventKind, query: SearchQuery, **more: Any) -> None:
    """A query ended; told to the key that asked, and to whoever sees the queries of all."""
    told = {"query_id": str(query.id), "path": f"/v1/queries/{query.id}", **more}
    event_record.add(
        session,
        NewEvent(
            kind,
            told,
            ACTION_OF_KIND[kind],
            key_id=query.key_id,
            of_key=True,
            query_id=query.id,
        ),
    )


def tell_changes(session: Session, kind: EventKind, asked: ChangeQuery, **more: Any) -> None:
    """A change query ended; told to the key that asked, and to whoever sees those of all. It says
    nothing of the answer, which may be erased before the event is."""
    told = {"change_query_id": str(asked.id), "path": f"/v1/changes/{asked.id}", **more}
    event_record.add(
        session, NewEvent(kind, told, ACTION_OF_KIND[kind], key_id=asked.key_id, of_key=True)
    )


def tell_feed(
    session: Session,
    kind: EventKind,
    camera_id: int,
    camera: str,
    *,
    since_utc: datetime,
    reason: str | None = None,
) -> None:
    """A camera has frames from that time on, or none, and why."""
    told = {"camera_id": camera_id, "camera": camera, "since_utc": since_utc.isoformat()}
    if reason is not None:
        told["reason"] = reason
    event_record.add(session, NewEvent(kind, told, ACTION_OF_KIND[kind], camera_id=camera_id))


def tell_segment(session: Session, kind: EventKind, segment: VideoSegment, **more: Any) -> None:
    """A recording was ingested, or could not be."""
    told = {
        "segment_id": segment.id,
        "camera_id": segment.camera_id,
        "start_utc": segment.start_utc.isoformat(),
        "path": f"/v1/segments/{segment.id}",
        **more,
    }
    event_record.add(
        session, NewEvent(kind, told, ACTION_OF_KIND[kind], camera_id=segment.camera_id)
    )


def tell_alert(
    session: Session, standing: StandingQuery, alert_id: int, frame: Frame, **more: Any
) -> None:
    """A standing query fired on a frame; told to whom the standing query is of."""
    told = {
        "alert_id": alert_id,
        "standing_query_id": standing.id,
        "name": standing.name,
        "camera_id": frame.camera_id,
        "camera": frame.camera.name,
        "frame_id": frame.id,
        "t_utc": frame.t_utc.isoformat(),
        "path": f"/v1/alerts/{alert_id}",
        **more,
    }
    event_record.add(
        session,
        NewEvent(
            "alert.raised",
            told,
            ACTION_OF_KIND["alert.raised"],
            camera_id=frame.camera_id,
            t_utc=frame.t_utc,
            key_id=standing.key_id,
            of_key=True,
            frame_id=frame.id,
            standing_query_id=standing.id,
        ),
    )


def tell_standing_ended(
    session: Session, standing_id: int, name: str, key_id: int | None, code: str
) -> None:
    """A standing query sees nothing more, and why in one word."""
    told = {"standing_query_id": standing_id, "name": name, "code": code}
    event_record.add(
        session,
        NewEvent(
            "standing.ended",
            told,
            ACTION_OF_KIND["standing.ended"],
            key_id=key_id,
            of_key=True,
        ),
    )
