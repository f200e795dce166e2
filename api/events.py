"""Server-sent events: the state of a query until it has ended."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.desk import ApiDesk
from api.problems import READING
from models.repositories import browse
from models.repositories.browse import QueryState
from models.session import DatabaseUnavailable

_FIRST_POLL_S, _SLOWEST_POLL_S = 0.25, 2.0
"""Between looks of who hears no notice."""
_BEAT_S = 10.0

EVENT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A stream of events `state` with `{query_id, state, error_code, answer}`;"
        " `answer` says what hits there are (docs/api.md).",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    **READING,
}


class EventStream(StreamingResponse):
    """A stream of a key, counted until it ends, however it ends. Raises
    :class:`TooManyRequests`."""

    def __init__(self, desk: ApiDesk, key_id: int, query_id: uuid.UUID, job_id: uuid.UUID) -> None:
        super().__init__(query_events(desk, query_id, job_id), media_type="text/event-stream")
        desk.streams.begin(key_id)
        self._end = partial(desk.streams.end, key_id)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


async def query_events(desk: ApiDesk, query_id: uuid.UUID, job_id: uuid.UUID) -> AsyncIterator[str]:
    """The stream. It ends with the query, when it was erased, when Postgres is away, and after
    ``RIS_API_EVENTS_S``: a browser then asks again by itself."""

    def look() -> QueryState | None:
        with desk.db.transaction() as session:
            return browse.query_state(session, query_id)

    until_s = time.monotonic() + desk.settings.api_events_s
    told: QueryState | None = None
    poll_s, spoke_s = _FIRST_POLL_S, time.monotonic()
    yield "retry: 1000\n\n"
    with desk.notices.following(job_id) as changed:
        while time.monotonic() < until_s:
            changed.clear()
            try:
                found = await desk.following.run(look)
            except DatabaseUnavailable:
                return
            if found is None:
                return
            if found != told:
                told, poll_s, spoke_s = found, _FIRST_POLL_S, time.monotonic()
                yield _state_event(query_id, found)
                if found.state in ("done", "failed"):
                    return
            elif time.monotonic() - spoke_s > _BEAT_S:
                spoke_s = time.monotonic()
                yield ": still there\n\n"
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), poll_s)
            poll_s = min(_SLOWEST_POLL_S, poll_s * 1.2)


def _state_event(query_id: uuid.UUID, found: QueryState) -> str:
    event = {
        "query_id": str(query_id),
        "state": found.state,
        "error_code": found.error_code,
        "answer": found.answer_step,
    }
    return f"event: state\ndata: {json.dumps(event)}\n\n"
