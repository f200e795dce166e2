"""What answers about changes of a box hold."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from api.told import Failure, JobState, failure
from models.repositories.changes import ChangeView


class BoxStateTold(BaseModel):
    """A stretch in which the box looked the same, by its first and last frame."""

    number: int = Field(description="From 1, in order of time.")
    like: int = Field(
        description="Number of the first state that looked like it; its own where it is new."
    )
    from_utc: datetime
    to_utc: datetime
    before_utc: datetime | None = Field(
        description="Last frame that still showed something else: the change lies between it and"
        " from_utc; null for the first state."
    )
    first_frame_id: int
    last_frame_id: int
    difference: float = Field(
        description="Mean cosine distance to the state before; 0 for the first."
    )


class ChangesTold(BaseModel):
    """The question when a box changed, as it stands. `waiting`: why it is tried again; `error`: why
    it failed."""

    change_query_id: uuid.UUID
    job_id: uuid.UUID
    state: JobState
    camera_id: int
    roi: dict[str, Any]
    t_from_utc: datetime | None
    t_to_utc: datetime | None
    hold: int
    frames: int | None = Field(description="Frames that were looked at; null until it is done.")
    level: float | None = Field(
        description="A difference above it counts; null until it is done, and without frames."
    )
    states: list[BoxStateTold] | None = Field(
        description="States of the box in order of time, one more than there are changes; null"
        " until it is done, empty where there are no frames."
    )
    waiting: Failure | None
    error: Failure | None
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, view: ChangeView) -> ChangesTold:
        """From a row and its job."""
        asked, job = view.asked, view.job
        states = asked.states
        return cls(
            change_query_id=asked.id,
            job_id=job.id,
            state=job.state,
            camera_id=asked.camera_id,
            roi=asked.roi,
            t_from_utc=asked.from_utc,
            t_to_utc=asked.to_utc,
            hold=asked.hold,
            frames=asked.frames,
            level=asked.level,
            states=None if states is None else [BoxStateTold(**state) for state in states],
            waiting=failure(job.retry_code, job.retry_detail),
            error=failure(job.error_code, job.error_detail),
            created_at=asked.created_at,
            finished_at=job.finished_at,
        )
