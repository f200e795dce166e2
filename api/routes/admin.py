"""/v1/me, /v1/keys, /v1/audit, /v1/jobs, /v1/generations: for operators, but for the first."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from api.access import Admin, Anyone
from api.bodies import KeyBody, json_body
from api.desk import Here
from api.fields import Cursor, Id, Limit, moment, next_cursor, read_cursor, whole
from api.given_keys import KeyGiven
from api.problems import READING, WRITING
from api.told import Page
from api.told_admin import AuditTold, CallerTold, GenerationTold, JobTold, KeyMade, KeyTold
from models.repositories import access as access_record
from models.repositories import audit as audit_record
from models.repositories import browse
from models.repositories import index as index_record
from models.repositories import jobs as job_record
from worker.accepting.keys import create_key, revoke_key
from worker.errors import NotFound
from worker.messages import JobKind

router = APIRouter(prefix="/v1")


@router.get("/me", responses=READING, tags=["keys"])
def get_me(caller: Anyone) -> CallerTold:
    """What the key of this request allows."""
    return CallerTold(
        key_id=caller.key_id,
        actions=sorted(caller.actions),
        camera_ids=caller.scope.cameras(),
        footage_from_utc=caller.scope.from_utc,
        footage_to_utc=caller.scope.to_utc,
        expires_at=caller.expires_at,
    )


@router.get("/keys", responses=READING, tags=["keys"])
def list_keys(
    caller: Admin, desk: Here, limit: Limit = 100, cursor: Cursor = None
) -> Page[KeyTold]:
    """Keys by id, revoked and expired ones as well."""
    after = read_cursor(cursor, whole) or (0,)
    with desk.db.transaction() as session:
        found = access_record.list_keys(session, after[0], limit)
    return Page(
        items=[KeyTold.of(key) for key in found],
        next_cursor=next_cursor(found, limit, lambda key: [key.id]),
    )


@router.post(
    "/keys",
    status_code=201,
    responses=WRITING,
    tags=["keys"],
    openapi_extra=json_body(KeyGiven),
)
def add_key(caller: Admin, desk: Here, given: KeyBody, response: Response) -> KeyMade:
    """Make a key. Its secret is in this answer and nowhere else; one with a role has none."""
    with desk.db.transaction() as session:
        key, secret = create_key(
            session,
            caller.actor,
            name=given.name,
            actions=given.actions,
            camera_ids=given.camera_ids,
            footage_from_utc=given.footage_from_utc,
            footage_to_utc=given.footage_to_utc,
            expires_at=given.expires_at,
            role=given.role,
        )
    response.headers["Location"] = f"/v1/keys/{key.id}"
    return KeyMade(**KeyTold.of(key).model_dump(), secret=secret)


@router.get("/keys/{key_id}", responses=READING, tags=["keys"])
def get_key(caller: Admin, desk: Here, key_id: Id) -> KeyTold:
    """A key."""
    with desk.db.transaction() as session:
        key = access_record.find_key(session, key_id)
    if key is None:
        raise NotFound(f"key {key_id} is not known")
    return KeyTold.of(key)


@router.delete("/keys/{key_id}", responses=WRITING, tags=["keys"])
def delete_key(caller: Admin, desk: Here, key_id: Id) -> KeyTold:
    """Revoke a key: from now on it opens nothing."""
    with desk.db.transaction() as session:
        return KeyTold.of(revoke_key(session, caller.actor, key_id))


@router.get("/audit", responses=READING, tags=["audit"])
def list_audit(
    caller: Admin, desk: Here, limit: Limit = 100, cursor: Cursor = None
) -> Page[AuditTold]:
    """The audit, newest first. `ris verify` checks its chain."""
    after = read_cursor(cursor, whole)
    with desk.db.transaction() as session:
        found = audit_record.list_entries(session, after[0] if after else None, limit)
    return Page(
        items=[AuditTold.of(entry) for entry in found],
        next_cursor=next_cursor(found, limit, lambda entry: [entry.seq]),
    )


@router.get("/jobs", responses=READING, tags=["jobs"])
def list_jobs(
    caller: Admin,
    desk: Here,
    kind: Annotated[JobKind | None, Query()] = None,
    state: Annotated[Literal["queued", "running", "done", "failed"] | None, Query()] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[JobTold]:
    """Jobs, newest first."""
    after = read_cursor(cursor, moment, lambda value: uuid.UUID(str(value)))
    with desk.db.transaction() as session:
        found = browse.list_jobs(session, kind=kind, state=state, after=after, limit=limit)
    return Page(
        items=[JobTold.of(job) for job in found],
        next_cursor=next_cursor(found, limit, lambda job: [job.created_at, str(job.id)]),
    )


@router.get("/jobs/{job_id}", responses=READING, tags=["jobs"])
def get_job(caller: Admin, desk: Here, job_id: uuid.UUID) -> JobTold:
    """A job."""
    with desk.db.transaction() as session:
        job = job_record.find(session, job_id)
    if job is None:
        raise NotFound(f"job {job_id} is not known")
    return JobTold.of(job)


@router.get("/generations", responses=READING, tags=["jobs"])
def list_generations(caller: Admin, desk: Here) -> Page[GenerationTold]:
    """Generations of the index, oldest first, all at once: there are few."""
    with desk.db.transaction() as session:
        found = index_record.list_generations(session)
    return Page(items=[GenerationTold.of(one) for one in found], next_cursor=None)
