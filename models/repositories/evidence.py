"""Exports of evidence, and what they are made from."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.orm import Session, joinedload

from models.access import ApiKey, AuditEntry
from models.jobs import Job
from models.search import EvidenceExport, SearchHit
from models.video import Frame, PrivacyMask, VideoSegment


@dataclass(frozen=True, slots=True)
class FrameFacts:
    """A frame with its camera, the segment it was sampled from, and the mask it is painted with."""

    frame: Frame
    segment: VideoSegment
    mask: PrivacyMask | None


def create(
    session: Session,
    *,
    job_id: uuid.UUID,
    query_id: uuid.UUID,
    key_id: int | None,
    ranks: Sequence[int],
    frame_ids: Sequence[int],
) -> EvidenceExport:
    """Record an export beside its job."""
    made = EvidenceExport(
        id=uuid.uuid4(),
        job_id=job_id,
        query_id=query_id,
        key_id=key_id,
        ranks=list(ranks),
        frame_ids=list(frame_ids),
    )
    session.add(made)
    session.flush()
    return made


def of_job(session: Session, job_id: uuid.UUID) -> EvidenceExport | None:
    """The export a job makes."""
    return session.scalars(
        select(EvidenceExport).where(EvidenceExport.job_id == job_id)
    ).one_or_none()


def find(
    session: Session, query_id: uuid.UUID, evidence_id: uuid.UUID
) -> tuple[EvidenceExport, Job] | None:
    """An export of a query, and its job as it stands."""
    row = session.execute(
        select(EvidenceExport, Job)
        .join(Job, Job.id == EvidenceExport.job_id)
        .where(EvidenceExport.id == evidence_id, EvidenceExport.query_id == query_id)
        .execution_options(populate_existing=True)
    ).one_or_none()
    return None if row is None else (row[0], row[1])


def record_content(
    session: Session, evidence_id: uuid.UUID, sha256: str, size_bytes: int, signed_by: str
) -> None:
    """The bundle is made."""
    session.execute(
        update(EvidenceExport)
        .where(EvidenceExport.id == evidence_id)
        .values(content_sha256=sha256, content_bytes=size_bytes, signed_by=signed_by)
        .execution_options(synchronize_session=False)
    )


def remove_old(session: Session, kept_s: float) -> list[str]:
    """Forget exports that were ordered longer ago; returns the names of their bundles."""
    limit = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, kept_s)
    return remove_exports(session, EvidenceExport.created_at < limit)


def remove_beyond(session: Session, key_id: int | None, kept: int) -> list[str]:
    """Forget the oldest finished exports of a key (None: of the command line), but for so many;
    returns the names of their bundles."""
    finished = (
        select(EvidenceExport.id)
        .join(Job, Job.id == EvidenceExport.job_id)
        .where(EvidenceExport.key_id.is_not_distinct_from(key_id))
        .where(Job.state.in_(["done", "failed"]))
        .order_by(EvidenceExport.created_at.desc(), EvidenceExport.id)
        .offset(kept)
    )
    return remove_exports(session, EvidenceExport.id.in_(finished))


def remove_exports(session: Session, which: ColumnElement[bool]) -> list[str]:
    """Forget exports; returns the names of their bundles."""
    removed = session.scalars(
        delete(EvidenceExport)
        .where(which)
        .returning(EvidenceExport.content_sha256)
        .execution_options(synchronize_session=False)
    )
    return [name for name in removed if name is not None]


def count_open(session: Session, key_id: int) -> int:
    """Exports of a key that are queued or running."""
    return session.scalars(
        select(func.count())
        .select_from(EvidenceExport)
        .join(Job, Job.id == EvidenceExport.job_id)
        .where(EvidenceExport.key_id == key_id, Job.state.in_(["queued", "running"]))
    ).one()


def hit_terms(session: Session, query_id: uuid.UUID, ranks: Sequence[int]) -> dict[int, bytes]:
    """What the search knew of hits, by rank."""
    rows = session.execute(
        select(SearchHit.rank, SearchHit.terms).where(
            SearchHit.query_id == query_id,
            SearchHit.rank.in_(ranks),
            SearchHit.terms.is_not(None),
        )
    )
    return {int(rank): bytes(found or b"") for rank, found in rows}


def frame_facts(session: Session, frame_ids: Sequence[int]) -> dict[int, FrameFacts]:
    """What is known of frames, by id."""
    rows = session.execute(
        select(Frame, VideoSegment, PrivacyMask)
        .join(VideoSegment, VideoSegment.id == Frame.segment_id)
        .outerjoin(PrivacyMask, PrivacyMask.id == Frame.mask_id)
        .where(Frame.id.in_(frame_ids))
        .options(joinedload(Frame.camera))
    )
    return {frame.id: FrameFacts(frame, segment, mask) for frame, segment, mask in rows}


def key_names(session: Session, key_ids: Sequence[int]) -> dict[int, str]:
    """Labels of API keys, by id."""
    rows = session.execute(select(ApiKey.id, ApiKey.name).where(ApiKey.id.in_(key_ids)))
    return dict(rows.tuples().all())


def act_on(
    session: Session, act: str, name: str, value: str, since_utc: datetime
) -> AuditEntry | None:
    """The newest entry of an act whose details say so, of those since a time."""
    return session.scalars(
        select(AuditEntry)
        .where(AuditEntry.act == act, AuditEntry.t_utc >= since_utc)
        .where(AuditEntry.details.op("->>")(name) == value)
        .order_by(AuditEntry.seq.desc())
        .limit(1)
    ).one_or_none()
