"""/v1/queries/{query_id}/evidence: hits as one signed bundle."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter, Response

from api.access import Exporter
from api.bodies import EvidenceBody, json_body, named
from api.desk import ApiDesk, Here
from api.fields import IdempotencyKey
from api.given import EvidenceGiven
from api.problems import READING, SHOWING, WRITING
from api.routes.queries import known_query
from api.told_evidence import EvidenceTold
from models.repositories import evidence as evidence_record
from models.session import Session
from worker.accepting.evidence import AcceptedExport, bundle_of, not_kept, order_export
from worker.accepting.keys import Caller
from worker.accepting.queries import discard_uploads
from worker.accepting.repeats import made_before, note_made
from worker.errors import NotFound, TooManyRequests

router = APIRouter(prefix="/v1/queries/{query_id}/evidence", tags=["evidence"])

ZIP_TYPE = "application/zip"
_BUNDLE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The bundle (docs/evidence.md).",
        "content": {ZIP_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        "headers": {"Content-Disposition": {"schema": {"type": "string"}}},
    },
    **SHOWING,
}


@router.post("", status_code=202, responses=WRITING, openapi_extra=json_body(EvidenceGiven))
def export(
    caller: Exporter,
    desk: Here,
    query_id: uuid.UUID,
    given: EvidenceBody,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> EvidenceTold:
    """Export hits of an answered query, with their pictures and what they were made from, as one
    signed file. It is made at the address in Location, and kept there for 24 hours."""
    asked = named(idempotency_key, "evidence", str(query_id), given.model_dump(mode="json"))
    accepted: AcceptedExport | None = None
    with desk.db.transaction() as session:
        query = known_query(session, caller, query_id).query
        made = made_before(session, caller.key_id, asked)
        if made is None:
            _require_room(session, desk, caller)
            accepted = order_export(session, caller.actor, query, given.ranks, caller.scope)
            made = str(accepted.evidence_id)
            note_made(session, caller.key_id, asked, made)
        told = _known(session, query_id, uuid.UUID(made))
    if accepted is not None:
        desk.ring(accepted.job_id, "evidence")
        if accepted.given_up:
            discard_uploads(desk, accepted.given_up)
    response.headers["Location"] = f"/v1/queries/{query_id}/evidence/{told.evidence_id}"
    return told


def _require_room(session: Session, desk: ApiDesk, caller: Caller) -> None:
    most = desk.settings.api_open_queries
    if evidence_record.count_open(session, caller.key_id) >= most:
        raise TooManyRequests(
            f"API key {caller.key_id} has {most} exports that are not made yet"
            " (RIS_API_OPEN_QUERIES): wait for one"
        )


@router.get("/{evidence_id}", responses=READING)
def get_export(
    caller: Exporter, desk: Here, query_id: uuid.UUID, evidence_id: uuid.UUID
) -> EvidenceTold:
    """An export as it stands."""
    with desk.db.transaction() as session:
        known_query(session, caller, query_id)
        return _known(session, query_id, evidence_id)


@router.get("/{evidence_id}/bundle", responses=_BUNDLE_RESPONSES, response_class=Response)
def get_bundle(
    caller: Exporter, desk: Here, query_id: uuid.UUID, evidence_id: uuid.UUID
) -> Response:
    """The bundle, once it is made."""
    with desk.db.transaction() as session:
        known_query(session, caller, query_id)
        content = bundle_of(desk, session, caller.actor, query_id, evidence_id)
    headers = {
        "Content-Disposition": f'attachment; filename="evidence-{evidence_id}.zip"',
        "Cache-Control": "no-store",
    }
    return Response(content, media_type=ZIP_TYPE, headers=headers)


def _known(session: Session, query_id: uuid.UUID, evidence_id: uuid.UUID) -> EvidenceTold:
    """An export of a query that is known to the caller. Raises :class:`NotFound`."""
    found = evidence_record.find(session, query_id, evidence_id)
    if found is None:
        raise NotFound(not_kept(query_id, evidence_id))
    return EvidenceTold.of(*found)
