"""The job record: submit, claim with a lease, extend, yield, finish, fail, and find forgotten jobs.

All times are the database's clock, so workers' clocks do not matter.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session

from models.jobs import Job


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job this worker may run until its lease ends. ``token`` fences its results."""

    id: uuid.UUID
    kind: str
    payload: dict[str, Any]
    token: uuid.UUID
    attempts: int


@dataclass(frozen=True, slots=True)
class DueJob:
    """A job that should be running and is not."""

    id: uuid.UUID
    kind: str
    queue: str


def _seconds(seconds: float) -> ColumnElement[Any]:
    return func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def submit(
    session: Session, kind: str, queue: str, payload: dict[str, Any], *, delay_s: float = 0.0
) -> uuid.UUID:
    """Record accepted work; ring the bell only after the commit, unless the sweeper is to ring it
    ``delay_s`` from now."""
    return submit_job(session, kind, queue, payload, delay_s=delay_s).id


def submit_job(
    session: Session, kind: str, queue: str, payload: dict[str, Any], *, delay_s: float = 0.0
) -> Job:
    """As :func:`submit`; the row."""
    job = Job(id=uuid.uuid4(), kind=kind, queue=queue, payload=payload)
    if delay_s:
        job.run_after = func.now() + _seconds(delay_s)
    session.add(job)
    session.flush()
    return job


def free() -> ColumnElement[bool]:
    """Whether a job may be taken now."""
    return or_(
        and_(Job.state == "queued", Job.run_after <= func.now()),
        and_(Job.state == "running", Job.lease_until < func.now()),
    )


def unawaited_commit() -> ColumnElement[str]:
    """As a column of a statement: this transaction's commit does not wait for the disk."""
    return func.set_config("synchronous_commit", "off", True)


def claim(session: Session, job_id: uuid.UUID, lease_s: float) -> ClaimedJob | None:
    """Take a queued job, or a running one whose lease ran out. None when there is nothing to take.

    A job locked by another claimer at this moment counts as taken (SKIP LOCKED). Not waited for on
    the disk: a claim lost in a crash is one nobody holds, and the job is taken again.
    """
    token = uuid.uuid4()
    unlocked = select(Job.id).where(Job.id == job_id, free()).with_for_update(skip_locked=True)
    taken = session.execute(
        update(Job)
        .where(Job.id.in_(unlocked))
        .values(
            state="running",
            lease_token=token,
            lease_until=func.now() + _seconds(lease_s),
            attempts=Job.attempts + 1,
            started_at=func.coalesce(Job.started_at, func.now()),
        )
        .returning(Job.kind, Job.payload, Job.attempts, unawaited_commit())
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return (
        None
        if taken is None
        else ClaimedJob(job_id, taken.kind, taken.payload, token, taken.attempts)
    )


def _held(job_id: uuid.UUID, token: uuid.UUID) -> ColumnElement[bool]:
    return and_(Job.id == job_id, Job.lease_token == token, Job.state == "running")


def _update_held(session: Session, job_id: uuid.UUID, token: uuid.UUID, **values: Any) -> bool:
    result = session.execute(
        update(Job)
        .where(_held(job_id, token))
        .values(**values)
        .execution_options(synchronize_session=False)
    )
    assert isinstance(result, CursorResult)
    return result.rowcount == 1


def extend(session: Session, job_id: uuid.UUID, token: uuid.UUID, lease_s: float) -> bool:
    """Prolong the lease; False when another worker took the job over."""
    return _update_held(session, job_id, token, lease_until=func.now() + _seconds(lease_s))


def record_progress(
    session: Session, job_id: uuid.UUID, token: uuid.UUID, progress: dict[str, Any], lease_s: float
) -> bool:
    """Record progress together with the results of this transaction; False when taken over.

    Locks the job row until the commit, so a take-over waits for it or prevents it.
    """
    return _update_held(
        session,
        job_id,
        token,
        progress=progress,
        attempts=0,
        lease_until=func.now() + _seconds(lease_s),
    )


def finish(
    session: Session, job_id: uuid.UUID, token: uuid.UUID, progress: dict[str, Any] | None = None
) -> bool:
    """Record the end of a job; False when taken over."""
    values: dict[str, Any] = {} if progress is None else {"progress": progress}
    return _update_held(
        session,
        job_id,
        token,
        state="done",
        lease_token=None,
        lease_until=None,
        retry_code=None,
        retry_detail=None,
        finished_at=func.now(),
        **values,
    )


def fail(session: Session, job_id: uuid.UUID, token: uuid.UUID, code: str, detail: str) -> bool:
    """Record a failure that another attempt cannot mend; False when taken over."""
    return _update_held(
        session,
        job_id,
        token,
        state="failed",
        lease_token=None,
        lease_until=None,
        retry_code=None,
        retry_detail=None,
        error_code=code,
        error_detail=detail,
        finished_at=func.now(),
    )


def cancel(session: Session, job_id: uuid.UUID, code: str, detail: str) -> bool:
    """End a job that is queued or running as failed; False when it had ended.

    Whoever runs it has lost its lease and can record nothing any more.
    """
    return cancel_all(session, [job_id], code, detail) == 1


def cancel_all(session: Session, job_ids: Sequence[uuid.UUID], code: str, detail: str) -> int:
    """The same for those of some jobs that have not ended; returns how many."""
    result = session.execute(
        update(Job)
        .where(Job.id.in_(job_ids), Job.state.in_(["queued", "running"]))
        .values(
            state="failed",
            lease_token=None,
            lease_until=None,
            retry_code=None,
            retry_detail=None,
            error_code=code,
            error_detail=detail,
            finished_at=func.now(),
        )
        .execution_options(synchronize_session=False)
    )
    assert isinstance(result, CursorResult)
    return int(result.rowcount)


def requeue(
    session: Session,
    job_id: uuid.UUID,
    token: uuid.UUID,
    *,
    delay_s: float = 0.0,
    retry: tuple[str, str] | None = None,
    counted: bool = False,
) -> bool:
    """Give a job back for its next slice, or with the (code, detail) of why this try ended.

    ``counted`` says whether the try uses up one of the job's attempts: a full disk does not.
    """
    code, detail = retry if retry is not None else (None, None)
    attempts = Job.attempts if counted else Job.attempts - 1
    return _update_held(
        session,
        job_id,
        token,
        state="queued",
        lease_token=None,
        lease_until=None,
        run_after=func.now() + _seconds(delay_s),
        rung_at=None,
        retry_code=code,
        retry_detail=detail,
        attempts=func.greatest(attempts, 0),
    )


def take_due(
    session: Session, ring_again_s: float, busy_queues: Sequence[str] = (), limit: int = 500
) -> list[DueJob]:
    """Jobs whose bell was never heard, or whose worker is gone; marks them as rung now.

    Queued jobs of ``busy_queues`` that were rung before are left out: their bell may still wait.
    """
    now = func.now()
    rung_long_ago = or_(Job.rung_at.is_(None), Job.rung_at < now - _seconds(ring_again_s))
    unheard = and_(
        Job.state == "queued",
        Job.run_after <= now,
        or_(Job.rung_at.is_(None), Job.queue.not_in(busy_queues)),
    )
    orphaned = and_(Job.state == "running", Job.lease_until < now)
    jobs = session.scalars(
        select(Job)
        .where(or_(unheard, orphaned), rung_long_ago)
        .order_by(Job.run_after)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    if jobs:
        session.execute(
            update(Job)
            .where(Job.id.in_([job.id for job in jobs]))
            .values(rung_at=now)
            .execution_options(synchronize_session=False)
        )
    return [DueJob(job.id, job.kind, job.queue) for job in jobs]


def find(session: Session, job_id: uuid.UUID) -> Job | None:
    """The job's record as it stands."""
    return session.get(Job, job_id, populate_existing=True)


def count_open(session: Session) -> dict[str, int]:
    """How many jobs are queued or running, by state."""
    rows = session.execute(
        select(Job.state, func.count())
        .where(Job.state.in_(["queued", "running"]))
        .group_by(Job.state)
    )
    return dict(rows.tuples().all())
