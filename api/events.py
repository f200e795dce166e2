"""Server-sent events: the state of a query, or a change query, until it has ended."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.desk import ApiDesk
from api.problems import READING
from models.session import DatabaseUnavailable, Session

_FIRST_POLL_S, _SLOWEST_POLL_S = 0.25, 2.0
"""Between looks of who hears no notice."""
_BEAT_S = 10.0

Look = Callable[[Session], Mapping[str, Any] | None]
"""What an event is to tell now, ``state`` among it; None once there is nothing to tell of."""


def event_responses(fields: str) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of a stream of events with these fields."""
    return {
        200: {
            "description": f"A stream of events `state` with {fields}.",
            "content": {"text/event-stream": {}},  # a schema would be one of each event
        },
        **READING,
    }


class EventStream(StreamingResponse):
    """A stream of a key, counted until it ends, however it ends. Raises
    :class:`TooManyRequests`."""

    def __init__(self, desk: ApiDesk, key_id: int, job_id: uuid.UUID, look: Look) -> None:
        super().__init__(state_events(desk, job_id, look), media_type="text/event-stream")
        desk.streams.begin(key_id)
        self._end = partial(desk.streams.end, key_id)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


async def state_events(desk: ApiDesk, job_id: uuid.UUID, look: Look) -> AsyncIterator[str]:
    """The stream. It ends with the job, when what ``look`` tells of was erased, when Postgres is
    away, and after ``RIS_API_EVENTS_S``: a browser then asks again by itself."""

    def look_now() -> Mapping[str, Any] | None:
        with desk.db.transaction() as session:
            return look(session)

    until_s = time.monotonic() + desk.settings.api_events_s
    told: Mapping[str, Any] | None = None
    poll_s, spoke_s = _FIRST_POLL_S, time.monotonic()
    yield "retry: 1000\n\n"
    with desk.notices.following(job_id) as changed:
        while time.monotonic() < until_s:
            changed.clear()
            try:
                found = await desk.following.run(look_now)
            except DatabaseUnavailable:
                return
            if found is None:
                return
            if found != told:
                told, poll_s, spoke_s = found, _FIRST_POLL_S, time.monotonic()
                yield f"event: state\ndata: {json.dumps(found)}\n\n"
                if found["state"] in ("done", "failed"):
                    return
            elif time.monotonic() - spoke_s > _BEAT_S:
                spoke_s = time.monotonic()
                yield ": still there\n\n"
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), poll_s)
            poll_s = min(_SLOWEST_POLL_S, poll_s * 1.2)
