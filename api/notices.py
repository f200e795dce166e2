"""Hearing from Postgres that a query changed, so that nobody has to ask again and again."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from models.search import QUERY_CHANNEL
from models.session import Database, DatabaseUnavailable

log = structlog.get_logger()

_LISTEN_S = 1.0
_AGAIN_S = 2.0


class QueryNotices:
    """Wakes those who follow queries. One thread and one connection, from the first follower on.

    Where Postgres cannot be heard (it is away, or a pooler stands in between that does not pass
    notices on), nobody is woken: who follows looks now and then anyway.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = threading.Lock()
        self._followers: dict[str, list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    @contextmanager
    def following(self, job_id: uuid.UUID) -> Iterator[asyncio.Event]:
        """An event of the running loop that is set whenever the query of this job changed, and once
        notices may have been missed."""
        follower = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._followers.setdefault(str(job_id), []).append(follower)
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._hear, name="notices", daemon=True)
                self._thread.start()
        try:
            yield follower[1]
        finally:
            with self._lock:
                left = self._followers[str(job_id)]
                left.remove(follower)
                if not left:
                    del self._followers[str(job_id)]

    def close(self) -> None:
        """Hear no more."""
        self._closed.set()

    def _hear(self) -> None:
        while not self._closed.is_set():
            try:
                with self._db.listening(QUERY_CHANNEL) as heard:
                    self._wake(None)
                    while not self._closed.is_set():
                        for job_id in heard(_LISTEN_S):
                            self._wake(job_id)
            except DatabaseUnavailable as error:
                log.warning("notices_not_heard", detail=str(error))
                self._closed.wait(_AGAIN_S)

    def _wake(self, job_id: str | None) -> None:
        """Followers of a job; of all with None."""
        with self._lock:
            if job_id is None:
                woken = [one for followers in self._followers.values() for one in followers]
            else:
                woken = list(self._followers.get(job_id, ()))
        for loop, event in woken:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)
