"""Server-sent events: the state of a query until it has ended."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.desk import ApiDesk
from api.problems import READING
from models.repositories import browse
from models.session import DatabaseUnavailable

_POLL_S = 0.1
_SLOWEST_POLL_S = 1.0
_BEAT_S = 10.0

EVENT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A stream of events `state` with `{query_id, state, error_code}`.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    **READING,
}


class EventStream(StreamingResponse):
    """A stream of a key, counted until it ends, however it ends. Raises
    :class:`TooManyRequests`."""

    def __init__(self, desk: ApiDesk, key_id: int, query_id: uuid.UUID) -> None:
        super().__init__(query_events(desk, query_id), media_type="text/event-stream")
        desk.streams.begin(key_id)
        self._end = partial(desk.streams.end, key_id)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


async def query_events(desk: ApiDesk, query_id: uuid.UUID) -> AsyncIterator[str]:
    """The stream. It ends with the query, when it was erased, when Postgres is away, and after
    ``RIS_API_EVENTS_S``: a browser then asks again by itself."""

    def look() -> tuple[str, str | None] | None:
        with desk.db.transaction() as session:
            return browse.query_state(session, query_id)

    until_s = time.monotonic() + desk.settings.api_events_s
    told: tuple[str, str | None] | None = None
    poll_s, spoke_s = _POLL_S, time.monotonic()
    yield "retry: 1000\n\n"
    while time.monotonic() < until_s:
        try:
            found = await desk.following.run(look)
        except DatabaseUnavailable:
            return
        if found is None:
            return
        if found != told:
            told, poll_s, spoke_s = found, _POLL_S, time.monotonic()
            state, error_code = found
            event = {"query_id": str(query_id), "state": state, "error_code": error_code}
            yield f"event: state\ndata: {json.dumps(event)}\n\n"
            if state in ("done", "failed"):
                return
        elif time.monotonic() - spoke_s > _BEAT_S:
            spoke_s = time.monotonic()
            yield ": still there\n\n"
        await asyncio.sleep(poll_s)
        poll_s = min(_SLOWEST_POLL_S, poll_s * 1.2)
