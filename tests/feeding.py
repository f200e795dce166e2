"""What tests of feeds share: a pool of threads that runs feed jobs as a worker does."""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.conftest import Services
from tests.parts import HANDLERS, fresh_context, sql
from worker.backbones.base import Backbone
from worker.context import Context
from worker.core.types import Descriptors, ImageArray
from worker.feed_host import FeedHost
from worker.feeds import fail_feed, reconcile
from worker.jobs import Handler, run_job, sweep
from worker.messages import JobKind


@contextmanager
def feed_context(
    services: Services, template: str, folder: Path, **changes: Any
) -> Iterator[Context]:
    """A context of its own for a module of feed tests, with short slices and patience."""
    given = {
        "backbone": "tiny-a",
        "job_lease_s": 3.0,
        "job_slice_s": 2.0,
        "feed_hosts": "127.0.0.0/8",
        "feed_stall_s": 5.0,  # a busy machine is late
        "feed_status_every_s": 0.5,
        **changes,
    }
    with fresh_context(services.database_url, template, folder, **given) as made:
        made.backbone("tiny-a")  # once, before many threads ask for it
        yield made


@dataclass
class SlowBackbone:
    """A real backbone on a machine that is too small."""

    real: Backbone

    @property
    def spec(self):
        return self.real.spec

    def embed(self, pictures: Sequence[ImageArray]) -> Descriptors:
        time.sleep(0.4)
        return self.real.embed(pictures)


class Worker:
    """One feed worker: a host, and threads that take bells from a queue it may share."""

    def __init__(self, context: Context, bells: queue.Queue[uuid.UUID], slots: int) -> None:
        self.host = FeedHost()
        self.bells = bells
        self.context = replace(context, ring=self._ring)
        self.broker_away = False
        self.slots = slots
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(slots)]
        for thread in self.threads:
            thread.start()

    def _ring(self, job_id: uuid.UUID, _kind: JobKind) -> bool:
        if not self.broker_away:
            self.bells.put(job_id)
        return not self.broker_away

    def _run(self) -> None:
        while not self.ended.is_set():
            try:
                job_id = self.bells.get(timeout=0.1)
            except queue.Empty:
                continue
            handler = Handler(self.host.run, fail_feed, self.host.goes_on)
            run_job(self.context, job_id, {**HANDLERS, "feed": handler})

    def stop(self) -> None:
        """As a worker does on SIGTERM: slices end, what was read is recorded."""
        self.ended.set()
        self.host.stop()
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()


@contextmanager
def feed_worker(context: Context, slots: int = 8, every_s: float = 0.5) -> Iterator[Worker]:
    """A worker and a sweeper."""
    bells: queue.Queue[uuid.UUID] = queue.Queue()
    worker = Worker(context, bells, slots)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(every_s):
            reconcile(worker.context)
            sweep(worker.context, lambda _queue: bells.qsize())

    beater = threading.Thread(target=beat, daemon=True)
    beater.start()
    try:
        yield worker
    finally:
        over.set()
        beater.join(10)
        if not worker.ended.is_set():
            worker.stop()


def until(true: Callable[[], Any], limit_s: float = 30.0, what: str = "it") -> Any:
    """Wait for something to become true; returns it."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        found = true()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {limit_s} s")


def frame_times(context: Context, camera: str) -> list[float]:
    """Epoch seconds of a camera's frames, in order of recording."""
    rows = sql(
        context,
        "select extract(epoch from t_utc)::float8 from frames f join cameras c on c.id = camera_id"
        " where c.name = %s order by f.id",
        camera,
    )
    return [row[0] for row in rows]


def gap_rows(context: Context, camera: str) -> list[tuple[float, float | None, str]]:
    """(from, to, reason) of a camera's gaps, oldest first, epoch seconds."""
    return sql(
        context,
        "select extract(epoch from from_utc)::float8, extract(epoch from to_utc)::float8, reason"
        " from feed_gaps g join cameras c on c.id = camera_id where c.name = %s order by g.id",
        camera,
    )
