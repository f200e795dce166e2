"""The bell: a Celery message that wakes a worker for a job that is committed."""

from __future__ import annotations

import uuid

import structlog
from kombu.exceptions import KombuError, OperationalError

from worker.errors import ServiceUnavailable
from worker.messages import ASIDE_KINDS, FETCH_TASK, QUEUE_OF_KIND, RUN_JOB_TASK, JobKind

log = structlog.get_logger()


def ring(job_id: uuid.UUID, kind: JobKind) -> bool:
    """Send the bell for a committed job; False when the broker is away: the sweeper rings then."""
    try:
        from worker.app import app

        app.send_task(
            FETCH_TASK if kind in ASIDE_KINDS else RUN_JOB_TASK,
            args=[str(job_id)],
            queue=QUEUE_OF_KIND[kind],
            retry=False,
        )
    except (OperationalError, KombuError, OSError, ServiceUnavailable) as error:
        log.warning("bell_not_rung", job_id=str(job_id), detail=str(error))
        return False
    return True
