"""Evidence: hits of an answered query are ordered as one signed bundle."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from models.repositories import browse
from models.repositories import evidence as evidence_record
from models.repositories import jobs as job_record
from models.repositories import search as search_record
from models.repositories.scope import EVERYTHING, FootageScope
from models.search import SearchQuery
from models.session import Session
from worker.accepting.audit import record_act
from worker.accepting.desk import Actor, Desk
from worker.errors import IndexDamaged, InputInvalid, NotFound
from worker.messages import QUERY_QUEUE
from worker.tracing import carried, note

MAX_HITS = 50
"""Hits of one bundle."""
KEPT_S = 24 * 3600.0
"""How long a bundle can be fetched; it can be exported again."""
KEPT_BUNDLES = 20
"""Bundles of a key that are kept at a time: the newest."""


@dataclass(frozen=True, slots=True)
class AcceptedExport:
    """A recorded export, the job to ring for once it is committed, and bundles that were given up
    for it: :func:`discard_uploads` removes them then."""

    evidence_id: uuid.UUID
    job_id: uuid.UUID
    given_up: tuple[str, ...] = ()


def bundle_of(
    desk: Desk, session: Session, actor: Actor, query_id: uuid.UUID, evidence_id: uuid.UUID
) -> bytes:
    """A bundle, handed out: that is an act of its own, recorded in the caller's transaction.

    Raises :class:`NotFound`, :class:`InputInvalid` while it is not made, and what reading it does.
    """
    found = evidence_record.find(session, query_id, evidence_id)
    if found is None:
        raise NotFound(not_kept(query_id, evidence_id))
    export, job = found
    if export.content_sha256 is None:
        raise InputInvalid(f"evidence {evidence_id} is {job.state}: there is no bundle to fetch")
    try:
        content = desk.uploads.read(export.content_sha256)
    except (NotFound, IndexDamaged) as error:
        raise type(error)(f"evidence {evidence_id} is gone or damaged: export it again") from None
    record_act(
        session,
        actor,
        "evidence.fetch",
        evidence_id=str(evidence_id),
        query_id=str(query_id),
        sha256=export.content_sha256,
    )
    return content


def not_kept(query_id: uuid.UUID, evidence_id: uuid.UUID) -> str:
    """Why an export is not known, in words."""
    return (
        f"query {query_id} has no evidence {evidence_id}: bundles are kept for"
        f" {KEPT_S / 3600:.0f} hours, the newest {KEPT_BUNDLES} of a key, and go with their"
        " footage; export it again"
    )


def checked_ranks(ranks: Sequence[int]) -> list[int]:
    """The ranks in order, each once. Raises :class:`InputInvalid`."""
    found = sorted(set(ranks))
    if not 1 <= len(found) <= MAX_HITS:
        raise InputInvalid(
            f"ranks: name 1 to {MAX_HITS} hits of the query, not {len(found)}; make several bundles"
        )
    if found[0] < 1:
        raise InputInvalid(f"ranks: hits are counted from 1, got {found[0]}")
    return found


def order_export(
    session: Session,
    actor: Actor,
    query: SearchQuery,
    ranks: Sequence[int],
    scope: FootageScope = EVERYTHING,
) -> AcceptedExport:
    """Record an export in the caller's transaction, which rings after its commit.

    ``scope``: the footage that exists for the actor. Raises :class:`InputInvalid`
    for a query that is not answered, and :class:`NotFound` for a hit that it does not have.
    """
    ranks = checked_ranks(ranks)
    job = job_record.find(session, query.job_id)
    if job is None or job.state != "done":
        state = "gone" if job is None else job.state
        raise InputInvalid(f"query {query.id} is {state}: hits can be exported once it is done")
    if not search_record.lock_query(session, query.id):
        raise NotFound(f"query {query.id} is not known")
    hits = {}
    for rank in ranks:
        found = browse.list_hits(session, query.id, scope, rank - 1, 1)
        if not found or found[0].rank != rank:
            raise NotFound(f"query {query.id} has no hit {rank}")
        hits[rank] = found[0].frame_id
    frame_ids = {*hits.values(), *(query.terms_frame_ids or ())}
    if query.frame_id is not None:
        frame_ids.add(query.frame_id)
    if search_record.frames_kept(session, sorted(frame_ids)) != frame_ids:
        raise NotFound(f"footage of query {query.id} was erased: search again")
    given_up = evidence_record.remove_old(session, KEPT_S)
    given_up += evidence_record.remove_beyond(session, actor.key_id, KEPT_BUNDLES - 1)
    job_id = job_record.submit(session, "evidence", QUERY_QUEUE, carried())
    note(job_id=job_id, query_id=query.id)
    made = evidence_record.create(
        session,
        job_id=job_id,
        query_id=query.id,
        key_id=actor.key_id,
        ranks=ranks,
        frame_ids=sorted(frame_ids),
    )
    record_act(
        session,
        actor,
        "evidence.order",
        evidence_id=str(made.id),
        query_id=str(query.id),
        ranks=ranks,
        frame_ids=[hits[rank] for rank in ranks],
    )
    return AcceptedExport(made.id, job_id, tuple(given_up))
