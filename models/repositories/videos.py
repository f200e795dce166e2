"""Cameras, video segments and frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, case, cast, func, literal, select, tuple_, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, joinedload

from models.bulk import unnested
from models.video import Camera, Frame, PrivacyMask, VideoSegment


@dataclass(frozen=True, slots=True)
class CameraSummary:
    """A camera with what is indexed of it."""

    id: int
    name: str
    segments: int
    frames: int
    first_utc: datetime | None
    last_utc: datetime | None


@dataclass(frozen=True, slots=True)
class NewFrame:
    """A frame about to be recorded."""

    t_utc: datetime
    pts: int
    h_px: int
    w_px: int
    picture_sha256: str
    mask_id: int | None = None


def camera_named(session: Session, name: str) -> Camera | None:
    """The camera of that name."""
    return session.scalars(select(Camera).where(Camera.name == name)).one_or_none()


def ensure_camera(session: Session, name: str) -> Camera:
    """The camera of that name, created if it is new."""
    session.execute(insert(Camera).values(name=name).on_conflict_do_nothing())
    return session.scalars(select(Camera).where(Camera.name == name)).one()


def add_camera(session: Session, name: str, retention_days: int | None) -> Camera | None:
    """A new camera; None when one of that name is there."""
    values = {"name": name, "retention_days": retention_days}
    made = session.scalars(
        insert(Camera).values(**values).on_conflict_do_nothing().returning(Camera.id)
    ).one_or_none()
    return None if made is None else session.get(Camera, made)


def change_camera(session: Session, camera_id: int, values: dict[str, Any]) -> bool:
    """Set columns of a camera; False when another one has that name."""
    try:
        with session.begin_nested():
            session.execute(
                update(Camera)
                .where(Camera.id == camera_id)
                .values(**values)
                .execution_options(synchronize_session=False)
            )
    except IntegrityError:
        return False
    return True


def set_mask(session: Session, camera_id: int, areas: list[dict[str, Any]]) -> int | None:
    """Make the areas the privacy mask of a camera from now on, none: no mask; returns its id.

    Waits for batches that are being recorded; what is recorded later has this mask. The same areas
    as now are the same mask.
    """
    session.execute(select(Camera.id).where(Camera.id == camera_id).with_for_update())
    now = camera_masks(session, [camera_id]).get(camera_id)
    if now is not None and now.areas == areas:
        return now.id
    mask_id = None
    if areas:
        mask = PrivacyMask(camera_id=camera_id, areas=areas)
        session.add(mask)
        session.flush()
        mask_id = mask.id
    session.execute(update(Camera).where(Camera.id == camera_id).values(mask_id=mask_id))
    return mask_id


def camera_masks(session: Session, camera_ids: Sequence[int]) -> dict[int, PrivacyMask]:
    """The privacy mask of each of these cameras that has one, by camera id."""
    rows = session.execute(
        select(Camera.id, PrivacyMask)
        .join(PrivacyMask, PrivacyMask.id == Camera.mask_id)
        .where(Camera.id.in_(camera_ids))
    )
    return dict(rows.tuples().all())


def locked_mask_id(session: Session, camera_id: int) -> int | None:
    """Id of the camera's privacy mask, which stays until the transaction ends."""
    return session.scalars(
        select(Camera.mask_id).where(Camera.id == camera_id).with_for_update(read=True)
    ).one()


def frame_masks(session: Session, frame_ids: Sequence[int]) -> dict[int, PrivacyMask]:
    """The privacy mask that each of these frames was painted with, by frame id."""
    rows = session.execute(
        select(Frame.id, PrivacyMask)
        .join(PrivacyMask, PrivacyMask.id == Frame.mask_id)
        .where(Frame.id.in_(frame_ids))
    )
    return dict(rows.tuples().all())


def camera_ids(session: Session) -> set[int]:
    """Every known camera id."""
    return set(session.scalars(select(Camera.id)))


def camera_names(session: Session) -> dict[int, str]:
    """Name of every camera by id."""
    return dict(session.execute(select(Camera.id, Camera.name)).tuples().all())


def summarise_cameras(session: Session) -> list[CameraSummary]:
    """All cameras with their counts and time span, by name."""
    frames = (
        select(
            Frame.camera_id,
            func.count().label("frames"),
            func.min(Frame.t_utc).label("first_utc"),
            func.max(Frame.t_utc).label("last_utc"),
        )
        .group_by(Frame.camera_id)
        .subquery()
    )
    segments = (
        select(VideoSegment.camera_id, func.count().label("segments"))
        .group_by(VideoSegment.camera_id)
        .subquery()
    )
    rows = session.execute(
        select(
            Camera.id,
            Camera.name,
            func.coalesce(segments.c.segments, 0),
            func.coalesce(frames.c.frames, 0),
            frames.c.first_utc,
            frames.c.last_utc,
        )
        .outerjoin(segments, segments.c.camera_id == Camera.id)
        .outerjoin(frames, frames.c.camera_id == Camera.id)
        .order_by(Camera.name)
    )
    return [CameraSummary(*row) for row in rows]


def ensure_segment(session: Session, values: dict[str, Any]) -> tuple[VideoSegment, bool]:
    """The segment of this natural key and whether it is new. ``values`` are its columns."""
    created = session.scalars(
        insert(VideoSegment)
        .values(**values)
        .on_conflict_do_nothing(
            index_elements=["camera_id", "content_sha256", "start_utc", "policy_key"]
        )
        .returning(VideoSegment.id)
    ).one_or_none()
    key = {
        name: values[name] for name in ("camera_id", "content_sha256", "start_utc", "policy_key")
    }
    segment = session.scalars(select(VideoSegment).filter_by(**key).with_for_update()).one()
    return segment, created is not None


def segment_of_content(
    session: Session, camera_id: int, content_sha256: str, policy_key: str
) -> VideoSegment | None:
    """The first segment of a camera made of this content with this policy, whatever its start."""
    return session.scalars(
        select(VideoSegment)
        .filter_by(camera_id=camera_id, content_sha256=content_sha256, policy_key=policy_key)
        .order_by(VideoSegment.id)
        .limit(1)
    ).one_or_none()


def find_segment(session: Session, segment_id: int) -> VideoSegment | None:
    """The segment as it stands."""
    return session.get(VideoSegment, segment_id, populate_existing=True)


def set_segment(session: Session, segment_id: int, **values: Any) -> None:
    """Update columns of one segment."""
    session.execute(
        update(VideoSegment)
        .where(VideoSegment.id == segment_id)
        .values(**values)
        .execution_options(synchronize_session=False)
    )


def renew_segment(session: Session, segment_id: int) -> None:
    """Accept a segment anew: it is ingested from its start, frames it has stay as they are."""
    set_segment(
        session,
        segment_id,
        created_at=func.clock_timestamp(),
        resume_pts=None,
        outcome=None,
        finished_at=None,
        job_id=None,
    )


def finish_segment(session: Session, segment_id: int, outcome: str, **values: Any) -> None:
    """Record how the ingest of a segment ended: complete, partial or failed."""
    set_segment(session, segment_id, outcome=outcome, finished_at=func.now(), **values)


def add_to_segment(
    session: Session,
    segment_id: int,
    *,
    frames: int = 0,
    decoded: int = 0,
    decode_errors: int = 0,
    last_pts: int | None = None,
) -> None:
    """Count what was added to a live segment. In the row: erasures count in it meanwhile."""
    values: dict[str, Any] = {} if last_pts is None else {"resume_pts": last_pts}
    set_segment(
        session,
        segment_id,
        frame_count=VideoSegment.frame_count + frames,
        frames_decoded=VideoSegment.frames_decoded + decoded,
        decode_errors=VideoSegment.decode_errors + decode_errors,
        **values,
    )


def finish_live_segment(session: Session, segment_id: int) -> None:
    """Note that nothing is added to a live segment any more; one that ended stays as it is."""
    session.execute(
        update(VideoSegment)
        .where(VideoSegment.id == segment_id, VideoSegment.outcome.is_(None))
        .values(
            outcome=case((VideoSegment.decode_errors > 0, "partial"), else_="complete"),
            duration_s=func.coalesce(VideoSegment.resume_pts, 0) / 1e6,
            finished_at=func.now(),
        )
        .execution_options(synchronize_session=False)
    )


@dataclass(frozen=True, slots=True)
class InsertedFrames:
    """Ids of frames by pts, and those of them that were recorded before."""

    id_of: dict[int, int]
    known: frozenset[int]


def insert_frames(
    session: Session, segment: VideoSegment, frames: Sequence[NewFrame]
) -> InsertedFrames:
    """Record frames. Those already recorded keep their id."""
    columns: dict[str, list[Any]] = {
        "t_utc": [frame.t_utc for frame in frames],
        "pts": [frame.pts for frame in frames],
        "h_px": [frame.h_px for frame in frames],
        "w_px": [frame.w_px for frame in frames],
        "picture_sha256": [frame.picture_sha256 for frame in frames],
        "mask_id": [frame.mask_id for frame in frames],
    }
    rows = unnested(Frame, columns)
    chosen = select(literal(segment.id, BigInteger), literal(segment.camera_id, BigInteger), *rows)
    names = ["segment_id", "camera_id", *columns]
    made = session.execute(
        insert(Frame)
        .from_select(names, chosen)
        .on_conflict_do_nothing()
        .returning(Frame.pts, Frame.id)
    )
    id_of = dict(made.tuples().all())
    missing = sorted({frame.pts for frame in frames} - id_of.keys())
    if not missing:
        return InsertedFrames(id_of, frozenset())
    found = session.execute(
        select(Frame.pts, Frame.id).where(
            Frame.segment_id == segment.id,
            Frame.pts == func.any(cast(missing, ARRAY(BigInteger))),
        )
    )
    known = dict(found.tuples().all())
    return InsertedFrames(id_of | known, frozenset(known.values()))


def count_at(session: Session, segment_id: int, pts: Sequence[int]) -> int:
    """How many of these frames of a segment are recorded."""
    query = select(func.count()).where(Frame.segment_id == segment_id, Frame.pts.in_(pts))
    return session.scalars(query).one()


def count_frames(session: Session, segment_id: int) -> int:
    """Frames recorded for one segment."""
    return session.scalars(
        select(func.count()).select_from(Frame).where(Frame.segment_id == segment_id)
    ).one()


def find_frame(session: Session, frame_id: int, *, keep: bool = False) -> Frame | None:
    """The frame with its camera. ``keep``: it is not erased until the transaction ends."""
    query = select(Frame).where(Frame.id == frame_id).options(joinedload(Frame.camera))
    if keep:
        query = query.with_for_update(read=True, key_share=True, of=Frame)
    return session.scalars(query).one_or_none()


def frames_with_camera(session: Session, frame_ids: Sequence[int]) -> dict[int, Frame]:
    """Frames by id, each with its camera."""
    rows = session.scalars(
        select(Frame).where(Frame.id.in_(frame_ids)).options(joinedload(Frame.camera))
    )
    return {frame.id: frame for frame in rows}


def picture_hashes(session: Session) -> set[str]:
    """Content hash of every kept picture that a frame refers to."""
    return set(session.scalars(select(Frame.picture_sha256).distinct()))


def nearest_frame(session: Session, camera_name: str, t_utc: datetime) -> Frame | None:
    """The camera's frame whose time is nearest."""
    distance_s = func.abs(func.extract("epoch", Frame.t_utc - t_utc))
    return session.scalars(
        select(Frame)
        .join(Camera, Camera.id == Frame.camera_id)
        .where(Camera.name == camera_name)
        .order_by(distance_s, Frame.id)
        .limit(1)
    ).one_or_none()


def frames_evenly(session: Session, count: int) -> list[int]:
    """Ids of up to ``count`` frames, evenly over all ids, so over cameras and times as they came:
    the same as long as the same frames are there."""
    first, last = session.execute(select(func.min(Frame.id), func.max(Frame.id))).one()
    if first is None:
        return []
    points = [first + (last - first) * at // max(1, count - 1) for at in range(count)]
    found = (
        session.scalars(select(func.min(Frame.id)).where(Frame.id >= point)).one()
        for point in points
    )
    return list(dict.fromkeys(int(frame_id) for frame_id in found if frame_id is not None))


def neighbours_in_time(session: Session, frame: Frame, within_s: float) -> list[int]:
    """Ids of the frames just before and just after one, of its camera and no further away."""
    place, own = tuple_(Frame.t_utc, Frame.id), tuple_(literal(frame.t_utc), literal(frame.id))
    span = timedelta(seconds=within_s)
    same = select(Frame.id).where(Frame.camera_id == frame.camera_id)
    before = same.where(place < own, Frame.t_utc >= frame.t_utc - span).order_by(
        Frame.t_utc.desc(), Frame.id.desc()
    )
    after = same.where(place > own, Frame.t_utc <= frame.t_utc + span).order_by(
        Frame.t_utc, Frame.id
    )
    return [found for query in (before, after) for found in session.scalars(query.limit(1))]
