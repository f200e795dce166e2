"""Running a job exactly once from a bell that may ring twice or never (design, section 7)."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import structlog

from models.repositories import jobs as job_record
from models.repositories import search as search_record
from models.repositories.jobs import ClaimedJob
from models.session import DatabaseUnavailable, Session
from worker.context import Context
from worker.errors import LeaseLost, NotFound, RisError, ServiceUnavailable
from worker.messages import INGEST_QUEUES
from worker.tracing import CARRIED, entry, note, note_failure

log = structlog.get_logger()

Outcome = Literal["finished", "yield", "rest"]
"""``rest``: the next slice begins after ``watch_every_s``, when the sweeper rings."""
MAX_RETRY_DELAY_S = 60.0
UNEXPECTED = "internal"
WORKER_LOST = "worker_lost"
_MOST_AT_ONCE = 64
"""Workers that may take a query at the same moment: who comes late takes the next one."""
_OWN_TRACES = frozenset({"feed", "watch", "reindex"})
"""Kinds that go on for days: a trace each slice, which names the one of who ordered it."""


class _Patience:
    """Until when, by the monotonic clock, an attempt's lease is renewed."""

    until_s = float("inf")


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to record results of one claimed job, renewed in the background.

    Every recording method takes part in the caller's transaction and raises
    :class:`LeaseLost` when another worker took the job over: then nothing may be recorded.
    """

    context: Context
    job: ClaimedJob
    started_s: float = field(default_factory=time.monotonic)
    patience: _Patience = field(default_factory=_Patience)

    def slice_over(self) -> bool:
        """Whether a long task should yield now."""
        return time.monotonic() - self.started_s >= self.context.settings.job_slice_s

    def alive_for(self, limit_s: float) -> None:
        """Have the lease renewed no longer than this, unless it is asked for again: the renewing
        thread cannot see that the attempt's own thread hangs."""
        self.patience.until_s = time.monotonic() + limit_s

    def record_progress(self, session: Session, progress: dict[str, Any]) -> None:
        """Fence this transaction's results and note progress."""
        lease_s = self.context.settings.job_lease_s
        if not job_record.record_progress(session, self.job.id, self.job.token, progress, lease_s):
            raise LeaseLost(f"job {self.job.id} was taken over by another worker")

    def hold(self, session: Session) -> None:
        """Fence this transaction's results. Unlike progress, that keeps the count of attempts."""
        lease_s = self.context.settings.job_lease_s
        if not job_record.extend(session, self.job.id, self.job.token, lease_s):
            raise LeaseLost(f"job {self.job.id} was taken over by another worker")

    def finish(self, session: Session, progress: dict[str, Any]) -> None:
        """Fence this transaction's results and end the job."""
        if not job_record.finish(session, self.job.id, self.job.token, progress):
            raise LeaseLost(f"job {self.job.id} was taken over by another worker")


@dataclass(frozen=True, slots=True)
class Handler:
    """How one kind of job is run. ``on_fail`` records the failure where the kind keeps it.

    ``goes_on``: whether the next slice runs here, at once, when no worker could be rung for it.
    ``after_fail``: what follows once the failure is committed.
    """

    run: Callable[[Context, ClaimedJob, Lease], Outcome]
    on_fail: Callable[[Session, ClaimedJob, str], None] = lambda _session, _job, _code: None
    goes_on: Callable[[], bool] = lambda: False
    after_fail: Callable[[Context, ClaimedJob], None] = lambda _context, _job: None


def run_rung(context: Context, job_id: uuid.UUID, handlers: Mapping[str, Handler]) -> None:
    """Run the job whose bell was heard. The bell of a query is that of any: the one is run whose
    turn it is, so that nobody waits for all that somebody else has asked."""
    with context.db.transaction() as session:
        in_turn = search_record.queries_in_turn(session, job_id, _MOST_AT_ONCE)
    for candidate in dict.fromkeys([*in_turn, job_id]):
        if run_job(context, candidate, handlers):
            return


def run_job(context: Context, job_id: uuid.UUID, handlers: Mapping[str, Handler]) -> bool:
    """Run one job; False if it was not there to be taken. Never raises for what the job itself
    does."""
    taken, goes_on = _run_slice(context, job_id, handlers)
    while goes_on:
        log.info("job_goes_on_unrung", job_id=str(job_id))
        _, goes_on = _run_slice(context, job_id, handlers)
    return taken


def _run_slice(
    context: Context, job_id: uuid.UUID, handlers: Mapping[str, Handler]
) -> tuple[bool, bool]:
    """One attempt: whether there was one, and whether the next is to follow in this process."""
    with context.db.transaction() as session:
        job = job_record.claim(session, job_id, context.settings.job_lease_s)
    if job is None:
        log.debug("job_not_free", job_id=str(job_id))
        return False, False
    structlog.contextvars.bind_contextvars(job_id=str(job_id), kind=job.kind)
    try:
        with entry(
            f"job {job.kind}",
            job.payload.get(CARRIED),
            kind="consumer",
            linked=job.kind in _OWN_TRACES,
            attributes={"job_id": job_id, "kind": job.kind, "attempt": job.attempts},
        ):
            return True, _attempt(context, job, handlers[job.kind])
    finally:
        structlog.contextvars.unbind_contextvars("job_id", "kind")


def _attempt(context: Context, job: ClaimedJob, handler: Handler) -> bool:
    if job.attempts > context.settings.job_max_attempts:
        detail = f"{job.attempts - 1} attempts in a row ended without progress; see the worker log"
        _record_failure(context, job, handler, WORKER_LOST, detail)
        return False
    lease = Lease(context, job)
    goes_on = False
    try:
        with _Heartbeat(lease):
            outcome = handler.run(context, job, lease)
        if outcome == "rest":
            _requeue(context, job, None, context.settings.watch_every_s, counted=False)
        if outcome == "yield":
            goes_on = not _give_back(context, job) and handler.goes_on()
        note(outcome=outcome)
        log.info("job_" + outcome, seconds=round(time.monotonic() - lease.started_s, 3))
    except LeaseLost as error:
        note_failure(error.code)
        log.warning("lease_lost", detail=str(error))
    except DatabaseUnavailable as error:
        log.warning("database_unavailable", detail=str(error))  # where it is, is for the log
        _retry(context, job, ServiceUnavailable("Postgres is away or busy"))
    except RisError as error:
        if error.retryable:
            _retry(context, job, error)
        elif error.again:
            _retry_counted(context, job, handler, error.code, str(error))
        else:
            _record_failure(context, job, handler, error.code, str(error))
    except Exception as error:
        log.exception("job_unexpected")
        detail = f"{type(error).__name__}: {error}"
        _retry_counted(context, job, handler, UNEXPECTED, detail)
    return goes_on


class _Heartbeat:
    """Renews the lease every third of its length until the attempt ends, or hangs."""

    def __init__(self, lease: Lease) -> None:
        self._context, self._job, self._lease = lease.context, lease.job, lease
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _beat(self) -> None:
        lease_s = self._context.settings.job_lease_s
        while not self._stop.wait(lease_s / 3):
            if time.monotonic() > self._lease.patience.until_s:
                log.error("lease_let_go", job_id=str(self._job.id), detail="its thread hangs")
                return
            try:
                with self._context.db.transaction() as session:
                    held = job_record.extend(session, self._job.id, self._job.token, lease_s)
            except DatabaseUnavailable as error:
                log.warning("lease_not_renewed", detail=str(error))
                continue
            if not held:
                return


def _give_back(context: Context, job: ClaimedJob) -> bool:
    """Put a job back and ring for it; False when nobody could be rung."""
    with context.db.transaction() as session:
        given = job_record.requeue(session, job.id, job.token)
    return not given or context.ring(job.id, job.kind) is not False  # type: ignore[arg-type]


def _retry(context: Context, job: ClaimedJob, error: RisError) -> None:
    """The surroundings failed, not the job: it is kept until they are back, however long."""
    note_failure(error.code)
    log.warning("job_retry", code=error.code, detail=str(error))
    delay_s = 2 * context.settings.job_retry_base_s
    _requeue(context, job, (error.code, str(error)), delay_s, counted=False)


def _retry_counted(
    context: Context, job: ClaimedJob, handler: Handler, code: str, detail: str
) -> None:
    """Try again later, ever later, unless it was tried often enough."""
    attempts = _attempts_without_progress(context, job)
    if attempts >= context.settings.job_max_attempts:
        _record_failure(context, job, handler, code, detail)
        return
    note_failure(code)
    log.info("job_tried_again", code=code, detail=detail, attempts=attempts)
    delay_s = min(MAX_RETRY_DELAY_S, context.settings.job_retry_base_s * 2.0**attempts)
    _requeue(context, job, (code, detail), delay_s, counted=True)


def _attempts_without_progress(context: Context, job: ClaimedJob) -> int:
    """The record's count: progress made by this very try has set it back to 0."""
    try:
        with context.db.transaction() as session:
            found = job_record.find(session, job.id)
    except DatabaseUnavailable:
        return job.attempts
    return job.attempts if found is None else found.attempts


def _requeue(
    context: Context,
    job: ClaimedJob,
    retry: tuple[str, str] | None,
    delay_s: float,
    *,
    counted: bool,
) -> None:
    try:
        with context.db.transaction() as session:
            job_record.requeue(
                session, job.id, job.token, delay_s=delay_s, retry=retry, counted=counted
            )
    except DatabaseUnavailable as unavailable:
        log.warning("retry_left_to_the_sweeper", detail=str(unavailable))


def _record_failure(
    context: Context, job: ClaimedJob, handler: Handler, code: str, detail: str
) -> None:
    note(outcome="failed")
    note_failure(code)
    log.error("job_failed", code=code, detail=detail)
    try:
        with context.db.transaction() as session:
            failed = job_record.fail(session, job.id, job.token, code, detail)
            if failed:
                handler.on_fail(session, job, code)
        if failed:
            handler.after_fail(context, job)
    except DatabaseUnavailable as unavailable:
        log.warning("failure_left_to_the_sweeper", detail=str(unavailable))


def sweep(context: Context, queue_length: Callable[[str], int]) -> int:
    """Ring again for jobs whose bell was lost or whose worker is gone; returns how many.

    ``queue_length(queue)`` is the broker's: while messages wait there, unheard bells may be among
    them, and ringing again would only pile up copies.
    """
    with context.db.transaction() as session:
        due = job_record.take_due(
            session,
            ring_again_s=context.settings.sweep_every_s,
            busy_queues=[q for q in (*INGEST_QUEUES, "query", "feed") if queue_length(q) > 0],
        )
    for job in due:
        context.ring(job.id, job.kind)  # type: ignore[arg-type]
    return len(due)


def job_state(context: Context, job_id: uuid.UUID) -> dict[str, Any]:
    """A job as a plain object. Raises :class:`NotFound`."""
    with context.db.transaction() as session:
        job = job_record.find(session, job_id)
    if job is None:
        raise NotFound(f"job {job_id} is not known")
    return {
        "id": str(job.id),
        "kind": job.kind,
        "state": job.state,
        "progress": job.progress,
        "error_code": job.error_code,
        "error_detail": job.error_detail,
        "retry_code": job.retry_code,
        "retry_detail": job.retry_detail,
    }
