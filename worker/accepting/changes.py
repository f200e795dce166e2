"""Change queries: the question when a box of a camera changed is accepted, told, taken back."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

from models.repositories import changes as changes_record
from models.repositories import jobs as job_record
from models.repositories import videos as video_record
from models.repositories.scope import EVERYTHING, FootageScope
from models.session import Session
from worker.accepting.audit import brief, record_act
from worker.accepting.desk import Actor
from worker.accepting.scope import limited_span
from worker.core.geometry import validate_roi
from worker.core.roi_json import roi_to_json
from worker.core.types import Roi
from worker.errors import Cancelled, InputInvalid, NotFound
from worker.messages import QUERY_QUEUE
from worker.tracing import carried, note

KEPT_S = 24 * 3600.0
"""How long an answer can be read; it can be asked for again."""


@dataclass(frozen=True, slots=True)
class ChangeOrder:
    """A box of a camera, the span ``[from_utc, to_utc)`` asked about, None where it is open, and
    for how many frames a new state must last. A value that exists is valid."""

    camera_id: int
    roi: Roi
    from_utc: datetime | None
    to_utc: datetime | None
    hold: int

    def __post_init__(self) -> None:
        validate_roi(self.roi)
        if self.hold < 1:
            raise InputInvalid(f"hold: a state holds for at least 1 frame, not {self.hold}")
        if self.from_utc is not None and self.to_utc is not None and self.from_utc >= self.to_utc:
            raise InputInvalid(
                f"t_from_utc must be before t_to_utc, got {self.from_utc.isoformat()} and"
                f" {self.to_utc.isoformat()}"
            )


@dataclass(frozen=True, slots=True)
class AcceptedChanges:
    """A recorded change query and the job to ring for once it is committed."""

    change_query_id: uuid.UUID
    job_id: uuid.UUID


def record_changes(
    session: Session, order: ChangeOrder, actor: Actor, scope: FootageScope = EVERYTHING
) -> AcceptedChanges:
    """Record a change query in the caller's transaction, which rings after its commit.

    ``scope``: the footage that exists for the actor; no other is looked at. Raises
    :class:`NotFound`, and :class:`InputInvalid` for a time outside.
    """
    known = video_record.camera_ids(session)
    if order.camera_id not in known or not scope.sees_camera(order.camera_id):
        raise NotFound(f"camera {order.camera_id} is not known; GET /v1/cameras lists them")
    from_utc, to_utc = limited_span(scope, order.from_utc, order.to_utc)
    job_id = job_record.submit(session, "changes", QUERY_QUEUE, carried())
    note(job_id=job_id, camera_id=order.camera_id)
    roi = roi_to_json(order.roi)
    made = changes_record.create(
        session,
        job_id=job_id,
        key_id=actor.key_id,
        camera_id=order.camera_id,
        roi=roi,
        from_utc=from_utc,
        to_utc=to_utc,
        hold=order.hold,
    )
    record_act(
        session,
        actor,
        "changes.ask",
        change_query_id=str(made.id),
        camera_id=order.camera_id,
        roi=brief(roi),
        from_utc=None if from_utc is None else from_utc.isoformat(),
        to_utc=None if to_utc is None else to_utc.isoformat(),
    )
    return AcceptedChanges(made.id, job_id)


def remove_changes(session: Session, actor: Actor, change_query_id: uuid.UUID) -> None:
    """Forget one with its answer; a worker that is about it records nothing. In the caller's
    transaction; nothing happens where it is gone already."""
    found = changes_record.find(session, change_query_id, None)
    if found is None:
        return
    # The job first: the order of all that lock both.
    job_record.cancel(session, found.job.id, Cancelled.code, "whoever asked took it back")
    changes_record.remove(session, change_query_id)
    record_act(session, actor, "changes.remove", change_query_id=str(change_query_id))
