"""What answers to operators hold: jobs, generations, keys, the audit."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from api.told import Failure, JobState
from models.access import ApiKey, AuditEntry
from models.index import IndexGeneration
from models.jobs import Job


def _whole(code: str | None, detail: str | None) -> Failure | None:
    """With the detail as it was, unlike what others are told."""
    return None if code is None else Failure(code=code, detail=detail or "")


class JobTold(BaseModel):
    """A unit of accepted work."""

    job_id: uuid.UUID
    kind: str
    state: JobState
    attempts: int
    progress: dict[str, Any]
    waiting: Failure | None
    error: Failure | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, job: Job) -> JobTold:
        """From a row."""
        return cls(
            job_id=job.id,
            kind=job.kind,
            state=job.state,
            attempts=job.attempts,
            progress=job.progress,
            waiting=_whole(job.retry_code, job.retry_detail),
            error=_whole(job.error_code, job.error_detail),
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
        )


class GenerationTold(BaseModel):
    """A generation of the index."""

    generation_id: int
    backbone: str
    spec_hash: str
    codec: str
    state: str
    comparison: dict[str, Any] | None
    created_at: datetime
    switched_at: datetime | None

    @classmethod
    def of(cls, generation: IndexGeneration) -> GenerationTold:
        """From a row."""
        return cls(
            generation_id=generation.id,
            backbone=generation.backbone,
            spec_hash=generation.spec_hash,
            codec=generation.codec,
            state=generation.state,
            comparison=generation.comparison,
            created_at=generation.created_at,
            switched_at=generation.switched_at,
        )


class KeyTold(BaseModel):
    """A key, without its secret."""

    key_id: int
    name: str
    role: str | None = Field(
        description="It has no secret, and is for access tokens with this role; null: a secret."
    )
    actions: list[str]
    camera_ids: list[int] | None = Field(description="null: every camera.")
    footage_from_utc: datetime | None = Field(
        description="It sees frames at or after; null: from the first."
    )
    footage_to_utc: datetime | None = Field(description="It sees frames before; null: to the last.")
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    @classmethod
    def of(cls, key: ApiKey) -> KeyTold:
        """From a row."""
        return cls(
            key_id=key.id,
            name=key.name,
            role=key.role,
            actions=key.actions,
            camera_ids=key.camera_ids,
            footage_from_utc=key.footage_from_utc,
            footage_to_utc=key.footage_to_utc,
            created_at=key.created_at,
            expires_at=key.expires_at,
            revoked_at=key.revoked_at,
        )


class KeyMade(KeyTold):
    """A new key with its secret, which is told this once."""

    secret: str | None = Field(description="null: of a key with a role.")


class CallerTold(BaseModel):
    """Who asks, and what the key allows: that of the secret, or of a role of the token."""

    key_id: int
    actions: list[str]
    camera_ids: list[int] | None
    footage_from_utc: datetime | None
    footage_to_utc: datetime | None
    expires_at: datetime | None


class AuditTold(BaseModel):
    """An act of the audit; `sha256` chains it to the one before."""

    seq: int
    t_utc: datetime
    actor: str
    act: str
    details: dict[str, Any]
    previous_sha256: str
    sha256: str

    @classmethod
    def of(cls, entry: AuditEntry) -> AuditTold:
        """From a row."""
        return cls(
            seq=entry.seq,
            t_utc=entry.t_utc,
            actor=entry.actor,
            act=entry.act,
            details=entry.details,
            previous_sha256=entry.previous_sha256,
            sha256=entry.sha256,
        )
