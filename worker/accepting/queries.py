"""Queries: an ROI on a picture or an indexed frame is accepted, told about, and taken back."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.jobs import Job
from models.repositories import jobs as job_record
from models.repositories import search as search_record
from models.repositories import videos as video_record
from models.repositories.scope import EVERYTHING, FootageScope
from models.search import SearchHit, SearchQuery
from models.session import Session
from worker.accepting.audit import brief, record_act
from worker.accepting.desk import COMMAND_LINE, Actor, Desk
from worker.accepting.events import tell_query
from worker.accepting.scope import limited_params
from worker.core.geometry import validate_roi
from worker.core.roi_json import roi_to_json
from worker.core.search_params import SearchParams
from worker.core.types import Roi
from worker.errors import Cancelled, InputInvalid, NotFound
from worker.messages import QUERY_QUEUE
from worker.tracing import carried, note
from worker.video.picture import load_query_picture

_ID_LIMIT = 2**63  # ids are Postgres bigints; a larger number would be an error of its own


@dataclass(frozen=True, slots=True)
class QueryState:
    """A query as it stands: its job's state, and its hits once done."""

    query: SearchQuery
    state: str
    error_code: str | None
    error_detail: str | None
    retry_detail: str | None
    hits: list[SearchHit]


@dataclass(frozen=True, slots=True)
class QueryOrder:
    """A query whose own fields are right: either of an indexed frame or of a picture's bytes."""

    roi: Roi
    params: SearchParams
    frame_id: int | None
    picture: bytes | None


@dataclass(frozen=True, slots=True)
class AcceptedQuery:
    """A recorded query and the job to ring for once it is committed."""

    query: SearchQuery
    job: Job

    @property
    def query_id(self) -> uuid.UUID:
        """Its id."""
        return self.query.id

    @property
    def job_id(self) -> uuid.UUID:
        """Its id."""
        return self.job.id


def submit_query(
    desk: Desk,
    roi: Roi,
    params: SearchParams,
    *,
    frame_id: int | None = None,
    picture: bytes | None = None,
    actor: Actor = COMMAND_LINE,
) -> uuid.UUID:
    """Accept a query: check everything that can be checked, record it, commit, ring.

    Give either the id of an indexed frame or the bytes of a picture. Raises
    :class:`InputInvalid`, :class:`RoiInvalid`, :class:`PictureInvalid`, :class:`NotFound`,
    :class:`StorageFull` or :class:`StorageFailed`.
    """
    order = checked_order(desk, roi, params, frame_id=frame_id, picture=picture)
    with desk.db.transaction() as session:
        accepted = record_query(desk, session, order, actor)
    desk.ring(accepted.job_id, "query")
    return accepted.query_id


def checked_order(
    desk: Desk,
    roi: Roi,
    params: SearchParams,
    *,
    frame_id: int | None = None,
    picture: bytes | None = None,
) -> QueryOrder:
    """What can be checked without the record: decodes the picture. Raises as
    :func:`submit_query`."""
    roi = validate_roi(roi)
    if (frame_id is None) == (picture is None):
        raise InputInvalid("give either a frame id or a picture, not both or neither")
    if picture is not None:
        load_query_picture(picture, desk.settings.query_picture_max_px)
    return QueryOrder(roi, params, frame_id, picture)


def record_query(
    desk: Desk,
    session: Session,
    order: QueryOrder,
    actor: Actor,
    scope: FootageScope = EVERYTHING,
    query_id: uuid.UUID | None = None,
) -> AcceptedQuery:
    """Record a query in the caller's transaction, which rings after its commit; ``query_id``: a new
    one, where the caller has told of it before.

    ``scope``: the footage that exists for the actor. A query is limited to it before it is
    recorded, so that neither its hits nor its counts tell of other footage; frames and cameras
    outside are not known. Raises :class:`NotFound`, :class:`InputInvalid` for a time outside, and
    what storing an upload raises.
    """
    require_known(session, order.frame_id, order.params, scope)
    params = limited_params(scope, order.params)
    picture_sha256 = None
    if order.picture is not None:
        # One that lay there unused must not be swept before this query names it.
        search_record.lock_uploads(session, exclusive=False)
        desk.uploads.require_free(desk.settings.min_free_bytes)
        picture_sha256 = desk.uploads.put(order.picture)
    job = job_record.submit_job(session, "query", QUERY_QUEUE, carried())
    query_id = query_id or uuid.uuid4()
    query = search_record.create_query(
        session,
        query_id=query_id,
        job_id=job.id,
        frame_id=order.frame_id,
        picture_sha256=picture_sha256,
        roi=roi_to_json(order.roi),
        params=params.to_json(),
        key_id=actor.key_id,
    )
    record_act(
        session,
        actor,
        "query.submit",
        query_id=str(query_id),
        frame_id=order.frame_id,
        picture_sha256=picture_sha256,
        roi=brief(roi_to_json(order.roi)),
        params={name: brief(value) for name, value in params.to_json().items()},
    )
    note(query_id=query_id, job_id=job.id)
    return AcceptedQuery(query, job)


def require_known(
    session: Session,
    frame_id: int | None,
    params: SearchParams,
    scope: FootageScope,
) -> None:
    """Raise :class:`NotFound` unless frame, examples and cameras exist within the scope; the frame
    is kept until the transaction ends."""
    if frame_id is not None and not (
        0 < frame_id < _ID_LIMIT and _sees_frame(session, frame_id, scope, keep=True)
    ):
        raise NotFound(f"frame {frame_id} is not known")
    for example in (*params.more, *params.less):
        if not _sees_frame(session, example.frame_id, scope):
            raise NotFound(f"frame {example.frame_id} of an example is not known")
    if params.camera_ids is not None:
        known = filter(scope.sees_camera, video_record.camera_ids(session))
        unknown = sorted(set(params.camera_ids).difference(known))
        if unknown:
            raise NotFound(f"cameras {unknown} are not known; `ris cameras` lists them")


def _sees_frame(
    session: Session, frame_id: int, scope: FootageScope, *, keep: bool = False
) -> bool:
    frame = video_record.find_frame(session, frame_id, keep=keep)
    return frame is not None and scope.sees(frame)


def query_state(desk: Desk, query_id: uuid.UUID) -> QueryState:
    """State and hits of a query. Raises :class:`NotFound`."""
    with desk.db.transaction() as session:
        query = search_record.find_query(session, query_id)
        if query is None:
            raise NotFound(f"query {query_id} is not known")
        job = job_record.find(session, query.job_id)
        assert job is not None
        session.refresh(query)  # its results are committed with the job's end: look after it
        hits = search_record.list_hits(session, query_id) if job.state == "done" else []
        return QueryState(
            query, job.state, job.error_code, job.error_detail, job.retry_detail, hits
        )


def cancel_query(session: Session, actor: Actor, query: SearchQuery) -> bool:
    """Take a query back, in the caller's transaction; False when it had ended already.

    A worker that runs it loses its lease and records nothing. Its upload goes with
    :func:`discard_uploads`, after the commit.
    """
    details: dict[str, Any] = {"query_id": str(query.id)}
    if not job_record.cancel(
        session, query.job_id, Cancelled.code, "whoever asked took the query back"
    ):
        return False
    search_record.lock_query(session, query.id)
    search_record.drop_hits(session, query.id)
    tell_query(session, "query.cancelled", query)
    record_act(session, actor, "query.cancel", **details)
    return True


def discard_uploads(desk: Desk, sha256s: Sequence[str]) -> int:
    """Remove those of these uploads that no query is asked on any more; returns how many."""
    with desk.db.transaction() as session:
        search_record.lock_uploads(session, exclusive=True)
        unused = search_record.unused_uploads(session, sha256s)
        return sum(desk.uploads.remove(sha256) for sha256 in sorted(unused))
