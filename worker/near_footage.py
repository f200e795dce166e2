"""Which footage a query of very much of it looks through first."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from models.index import IndexGeneration
from models.repositories import index as index_record
from models.repositories import videos as video_record
from models.repositories.index import ShardFilter
from models.search import SearchQuery
from models.session import Session
from worker.core.search_params import SearchParams

_AROUND = timedelta(hours=3)
_NEWEST = (timedelta(hours=6), timedelta(hours=1), timedelta(minutes=10))


def near_footage(
    session: Session,
    generation: IndexGeneration,
    query: SearchQuery,
    params: SearchParams,
    over_frames: int,
) -> SearchParams | None:
    """``params`` narrowed to what lies nearest to the query's frame, or for an upload to the newest
    footage; None where all of it is at most ``over_frames``, or none of that lies in it."""
    within = ShardFilter(params.camera_ids, params.t_from_utc, params.t_to_utc)
    frames, last_utc = index_record.extent(session, generation.id, within)
    if frames <= over_frames or last_utc is None:
        return None
    if query.frame_id is not None:
        return _around(session, query.frame_id, params)
    for length in _NEWEST:
        near = _narrowed(params, last_utc - length, None)
        if near is None:
            return None
        newest = ShardFilter(near.camera_ids, near.t_from_utc, near.t_to_utc)
        if 0 < index_record.extent(session, generation.id, newest)[0] <= over_frames:
            return near
    return None


def _around(session: Session, frame_id: int, params: SearchParams) -> SearchParams | None:
    frame = video_record.find_frame(session, frame_id)
    if frame is None or (params.camera_ids and frame.camera_id not in params.camera_ids):
        return None
    near = _narrowed(params, frame.t_utc - _AROUND, frame.t_utc + _AROUND)
    return None if near is None else replace(near, camera_ids=(frame.camera_id,))


def _narrowed(
    params: SearchParams, from_utc: datetime, to_utc: datetime | None
) -> SearchParams | None:
    """``params`` with times that lie in both spans; None where there is none."""
    begin = max(from_utc, params.t_from_utc) if params.t_from_utc else from_utc
    ends = [end for end in (to_utc, params.t_to_utc) if end is not None]
    end = min(ends, default=None)
    if end is not None and begin >= end:
        return None
    return replace(params, t_from_utc=begin, t_to_utc=end)
