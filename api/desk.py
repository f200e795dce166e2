"""What one process of the API holds: the record, the stores, the bell, and its limits."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, TypeVar

import structlog
from fastapi import Depends, Request

from api.metrics import RequestMetrics
from api.notices import QueryNotices
from models.session import Database, connect
from worker.bell import ring
from worker.config import Settings
from worker.errors import ServiceUnavailable, TooManyRequests
from worker.messages import JobKind
from worker.oidc.rules import issuer_rules
from worker.services import database_url
from worker.video.frame_store import FrameStore
from worker.video.recording_store import RecordingStore
from worker.video.upload_store import UploadStore

if TYPE_CHECKING:  # needs a package that only some have
    from worker.oidc.tokens import TokenChecker

log = structlog.get_logger()

STATEMENT_TIMEOUT_MS = 15_000
IDLE_IN_TRANSACTION_MS = 60_000
CONNECTIONS = 20
_WAITING_BELLS = 1000
_BURST_S = 2.0
_AT_ONCE = 2
_WAIT_S = 5.0

Made = TypeVar("Made")


class Pace:
    """How often each key may ask: ``per_s`` on average, twice that at once."""

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._burst = max(1.0, per_s * _BURST_S)
        self._clock = clock
        self._lock = threading.Lock()
        self._left: dict[int, tuple[float, float]] = {}

    def take(self, key_id: int) -> None:
        """Count one request. Raises :class:`TooManyRequests`."""
        with self._lock:
            now_s = self._clock()
            left, then_s = self._left.get(key_id, (self._burst, now_s))
            left = min(self._burst, left + (now_s - then_s) * self._per_s)
            allowed = left >= 1
            self._left[key_id] = (left - 1 if allowed else left, now_s)
        if not allowed:
            raise TooManyRequests(
                f"API key {key_id} asks more than {self._per_s:g} times a second"
                " (RIS_API_REQUESTS_PER_S): ask again in a second"
            )


class Streams:
    """How many streams each key has open: ``most`` at once. ``what`` they are and which setting
    bounds them, for people."""

    def __init__(
        self, most: int, what: str = "streams of events", setting: str = "RIS_API_OPEN_QUERIES"
    ) -> None:
        self._most = most
        self._told = f"{most} {what} open ({setting})"
        self._lock = threading.Lock()
        self._open: Counter[int] = Counter()

    def begin(self, key_id: int) -> None:
        """Count one more. Raises :class:`TooManyRequests`."""
        with self._lock:
            if self._open[key_id] >= self._most:
                raise TooManyRequests(f"API key {key_id} has {self._told}: let one end first")
            self._open[key_id] += 1

    def end(self, key_id: int) -> None:
        """Count one less."""
        with self._lock:
            self._open[key_id] -= 1
            if not self._open[key_id]:
                del self._open[key_id]


class BackgroundBell:
    """Rings beside the request, which must not wait for a broker that is away. What is not rung
    here, the sweeper rings."""

    def __init__(self, ring_now: Callable[[uuid.UUID, JobKind], object]) -> None:
        self._ring = ring_now
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bell")
        self._room = threading.BoundedSemaphore(_WAITING_BELLS)

    def __call__(self, job_id: uuid.UUID, kind: JobKind) -> None:
        """Ring soon."""
        if not self._room.acquire(blocking=False):
            log.warning("bell_left_to_the_sweeper", job_id=str(job_id))
            return
        self._thread.submit(self._ring, job_id, kind).add_done_callback(
            lambda _: self._room.release()
        )

    def close(self) -> None:
        """Ring what waits, if that is soon, and end."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class Few:
    """Threads of their own for work that takes long, so that it never holds up those that check
    keys and read the record. ``wait_s``: whoever has not begun by then is refused."""

    def __init__(
        self, what: str = "requests", wait_s: float | None = None, threads: int = _AT_ONCE
    ) -> None:
        self._what = what
        self._wait_s = wait_s
        self._make = partial(ThreadPoolExecutor, threads, thread_name_prefix=what)
        self._threads = self._make()

    async def run(self, work: Callable[[], Made]) -> Made:
        """Do it when it is its turn. Raises :class:`ServiceUnavailable`, and what it raises."""
        asked_s = time.monotonic()

        def in_turn() -> Made:
            if self._wait_s is not None and time.monotonic() - asked_s > self._wait_s:
                raise ServiceUnavailable(f"too many {self._what} wait here: ask again soon")
            return work()

        return await asyncio.get_running_loop().run_in_executor(self._threads, in_turn)

    def close(self) -> None:
        """Give up what has not begun. Like connections, threads are made again when needed."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._threads = self._make()


@dataclass(frozen=True, slots=True)
class ApiDesk:
    """A :class:`worker.accepting.desk.Desk` with the limits of the API.

    ``decoding``: few pictures at a time, whatever is asked; ``hashing``: few recordings;
    ``receiving``: pieces of recordings that are being sent, to the disk; ``uploading``: how many
    are; ``following``: few looks at the state of queries; ``tokens``: checks those of an issuer,
    None where none is set.
    """

    settings: Settings
    db: Database
    pictures: FrameStore
    uploads: UploadStore
    recordings: RecordingStore
    ring: Callable[[uuid.UUID, JobKind], object]
    pace: Pace
    streams: Streams
    uploading: Streams
    notices: QueryNotices
    tokens: TokenChecker | None = None
    decoding: Few = field(default_factory=lambda: Few("pictures", _WAIT_S))
    hashing: Few = field(default_factory=lambda: Few("recordings"))
    receiving: Few = field(default_factory=lambda: Few("uploads"))
    following: Few = field(default_factory=lambda: Few("streams"))
    metrics: RequestMetrics = field(default_factory=RequestMetrics)

    def close(self) -> None:
        """End what runs beside requests, and the connections."""
        if isinstance(self.ring, BackgroundBell):
            self.ring.close()
        self.decoding.close()
        self.hashing.close()
        self.receiving.close()
        self.following.close()
        self.notices.close()
        self.db.close()


def open_tokens(configured: Settings) -> TokenChecker | None:
    """What checks access tokens; None where the settings name no issuer. Raises as
    :func:`issuer_rules`."""
    rules = issuer_rules(configured)
    if rules is None:
        return None
    from worker.oidc.tokens import token_checker

    return token_checker(rules)


def open_desk(
    configured: Settings, ring_job: Callable[[uuid.UUID, JobKind], object] = ring
) -> ApiDesk:
    """A desk on the settings' database; connects to nothing yet.

    Raises :class:`ServiceUnavailable` when no database is configured or running, and as
    :func:`open_tokens`.
    """
    tokens = open_tokens(configured)
    folder = configured.data_dir.resolve()
    db = connect(
        database_url(configured),
        application_name="ris api",
        statement_timeout_ms=min(STATEMENT_TIMEOUT_MS, configured.statement_timeout_ms),
        lock_timeout_ms=configured.lock_timeout_ms,
        pool_size=CONNECTIONS,
        connect_timeout_s=2,
        pool_timeout_s=2.0,
        idle_in_transaction_timeout_ms=IDLE_IN_TRANSACTION_MS,
    )
    return ApiDesk(
        settings=configured,
        db=db,
        pictures=FrameStore(folder / "pictures", configured.picture_quality),
        uploads=UploadStore(folder / "uploads"),
        recordings=RecordingStore(folder / "recordings"),
        ring=ring_job,
        pace=Pace(configured.api_requests_per_s),
        streams=Streams(configured.api_open_queries),
        uploading=Streams(configured.api_open_uploads, "uploads", "RIS_API_OPEN_UPLOADS"),
        notices=QueryNotices(db),
        tokens=tokens,
    )


async def desk_of(request: Request) -> ApiDesk:
    """The desk of the running application. Waits for nothing: what is no coroutine is handed to a
    thread."""
    desk: ApiDesk = request.app.state.desk
    return desk


Here = Annotated[ApiDesk, Depends(desk_of)]
