"""What answers about evidence hold."""

from __future__ import annotations

import uuid
from datetime import datetime

from pydantic import BaseModel, Field

from api.told import Failure, JobState, failure
from models.jobs import Job
from models.search import EvidenceExport


class EvidenceTold(BaseModel):
    """An export of hits as it stands. `waiting`: why it is tried again; `error`: why it failed."""

    evidence_id: uuid.UUID
    query_id: uuid.UUID
    job_id: uuid.UUID
    state: JobState
    ranks: list[int]
    bytes: int | None
    sha256: str | None = Field(description="Of the bundle.")
    signed_by: str | None = Field(description="Fingerprint of the key that signed it.")
    bundle: str | None = Field(description="Address of the bundle; null until it is made.")
    waiting: Failure | None
    error: Failure | None
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, export: EvidenceExport, job: Job) -> EvidenceTold:
        """From a row and its job."""
        path = f"/v1/queries/{export.query_id}/evidence/{export.id}/bundle"
        return cls(
            evidence_id=export.id,
            query_id=export.query_id,
            job_id=job.id,
            state=job.state,
            ranks=export.ranks,
            bytes=export.content_bytes,
            sha256=export.content_sha256,
            signed_by=export.signed_by,
            bundle=path if job.state == "done" else None,
            waiting=failure(job.retry_code, job.retry_detail),
            error=failure(job.error_code, job.error_detail),
            created_at=export.created_at,
            finished_at=job.finished_at,
        )
