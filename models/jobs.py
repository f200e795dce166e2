"""Jobs: Postgres is the record of all work, Celery only rings the bell."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, Index, func
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, created_at_column


class Job(Base):
    """One unit of accepted work.

    ``attempts`` counts tries in a row without progress. While running, ``lease_token`` names the
    try that may record results (fencing) and ``lease_until`` when another worker may take over.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(
            "kind in ('ingest', 'backfill', 'fetch', 'watch', 'query', 'reindex', 'erase',"
            " 'compact', 'seal', 'offload', 'feed', 'evidence', 'changes')",
            name="kind_known",
        ),
        CheckConstraint("state in ('queued', 'running', 'done', 'failed')", name="state_known"),
        CheckConstraint("(state = 'running') = (lease_token is not null)", name="lease_running"),
        CheckConstraint("(state = 'failed') = (error_code is not null)", name="error_failed"),
        Index("ix_jobs_open", "run_after", postgresql_where="state in ('queued', 'running')"),
        Index("ix_jobs_ended", "finished_at", postgresql_where="state in ('done', 'failed')"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    kind: Mapped[str]
    queue: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="queued")
    payload: Mapped[dict[str, Any]]
    attempts: Mapped[int] = mapped_column(server_default="0")
    lease_token: Mapped[uuid.UUID | None]
    lease_until: Mapped[datetime | None]
    run_after: Mapped[datetime] = mapped_column(server_default=func.now())
    rung_at: Mapped[datetime | None]
    progress: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    retry_code: Mapped[str | None]
    retry_detail: Mapped[str | None]
    error_code: Mapped[str | None]
    error_detail: Mapped[str | None]
    created_at: Mapped[datetime] = created_at_column()
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
