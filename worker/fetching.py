"""Fetch: from an address to a recording on disk whose ingest is ordered in the same transaction.

Fetches wait for the network, so they have threads of their own in the ingest worker, beside what it
ingests. Each is a job under its lease: another worker takes it up when this one is gone.
"""

from __future__ import annotations

import queue
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from models.repositories import jobs as job_record
from models.repositories import recordings as recording_record
from models.repositories import videos as video_record
from models.repositories.jobs import ClaimedJob
from models.session import Session
from models.video import VideoSegment
from worker.accepting.segments import fetch_address, fetch_rules, file_state
from worker.context import Context
from worker.errors import AddressRefused, InputInvalid, NotFound
from worker.jobs import Handler, Lease, Outcome, run_job
from worker.messages import INGEST_QUEUE
from worker.tracing import carried
from worker.video.download import DownloadBounds, open_download
from worker.video.recording_store import IncomingRecording

log = structlog.get_logger()

THREADS: Final = 8
_MOST_WAITING: Final = 1000


class FetchHost:
    """The fetches of one process: few at a time. Its :meth:`run` is the handler of fetch jobs."""

    def __init__(self) -> None:
        self._jobs: queue.Queue[uuid.UUID] = queue.Queue()
        self._known: set[uuid.UUID] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()

    def take(self, context: Context, job_id: uuid.UUID, handlers: Mapping[str, Handler]) -> None:
        """Run a job soon, on a thread of the host; returns at once. What is too much is left to
        the sweeper, which rings again."""
        with self._lock:
            if job_id in self._known or len(self._known) >= _MOST_WAITING:
                return
            self._known.add(job_id)
            if not self._threads:
                self._threads = [
                    threading.Thread(
                        target=self._work, args=(context, handlers), name="fetch", daemon=True
                    )
                    for _ in range(THREADS)
                ]
                for thread in self._threads:
                    thread.start()
        self._jobs.put(job_id)

    def _work(self, context: Context, handlers: Mapping[str, Handler]) -> None:
        while True:
            job_id = self._jobs.get()
            try:
                if not self._stopping.is_set():
                    run_job(context, job_id, handlers)
            except Exception:  # Postgres is away, say: the sweeper rings again
                log.exception("fetch_unexpected", job_id=str(job_id))
            finally:
                with self._lock:
                    self._known.discard(job_id)

    def run(self, context: Context, job: ClaimedJob, lease: Lease) -> Outcome:
        """Fetch one recording."""
        return run_fetch(context, job, lease, self._stopping.is_set)

    def stop(self) -> None:
        """Give up what is being fetched; it is begun anew elsewhere."""
        self._stopping.set()


def run_fetch(
    context: Context,
    job: ClaimedJob,
    lease: Lease,
    stopping: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Fetch a segment's recording and order its ingest."""
    segment_id = int(job.payload["segment_id"])
    with context.db.transaction() as session:
        segment = video_record.find_segment(session, segment_id)
    if segment is None or segment.fetch_url is None:
        raise NotFound(f"video segment {segment_id} has nothing to fetch")
    settings = context.settings
    try:
        rules = fetch_rules(settings)
    except InputInvalid as error:  # the setting was there when it was accepted
        raise AddressRefused(str(error)) from error
    url = fetch_address(settings, segment.fetch_url)
    bounds = DownloadBounds(settings.fetch_max_bytes, settings.fetch_timeout_s)
    incoming: IncomingRecording | None = None
    try:
        with open_download(url, rules, bounds) as download:
            incoming = context.recordings.begin(settings.min_free_bytes, download.byte_count)
            for chunk in download.chunks:
                incoming.write(chunk)
                if stopping():
                    return "yield"
        incoming.finish()
        ingest_id = _record(context, lease, segment, incoming)
    finally:
        if incoming is not None:
            incoming.discard()  # unless it was kept
    context.ring(ingest_id, "ingest")
    return "finished"


def _record(
    context: Context, lease: Lease, segment: VideoSegment, incoming: IncomingRecording
) -> uuid.UUID:
    """The file gets its name, the segment its file, the fetch its end, the ingest its job."""
    state = file_state(incoming.path)
    with context.db.transaction() as session:
        recording_record.lock_recordings(session, exclusive=False)  # nobody sweeps it meanwhile
        lease.finish(session, {"bytes": incoming.byte_count})
        context.recordings.keep(incoming)
        payload = {"segment_id": segment.id, "file": state, **carried()}
        job_id = job_record.submit(session, "ingest", INGEST_QUEUE, payload)
        video_record.set_segment(
            session,
            segment.id,
            job_id=job_id,
            held_sha256=incoming.digest.hexdigest(),
            fetch_url=None,
        )
    return job_id


def fail_fetch(session: Session, job: ClaimedJob, _code: str) -> None:
    """Note on the segment that there is nothing to ingest, and forget its address."""
    segment_id = int(job.payload["segment_id"])
    video_record.finish_segment(session, segment_id, "failed", fetch_url=None)
