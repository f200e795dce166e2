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

_AROUND = (timedelta(hours=3), timedelta(minutes=30), timedelta(minutes=5))
_NEWEST = (timedelta(hours=6), timedelta(hours=1), timedelta(minutes=10))
"""Tried in turn, until it is little enough."""


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
    for near in _candidates(session, query, params, last_utc):
        inside = ShardFilter(near.camera_ids, near.t_from_utc, near.t_to_utc)
        if 0 < index_record.extent(session, generation.id, inside)[0] <= over_frames:
            return near
    return None


def _candidates(
    session: Session, query: SearchQuery, params: SearchParams, last_utc: datetime
) -> list[SearchParams]:
    """Narrower and narrower."""
    if query.frame_id is None:
        end_utc = min(last_utc, params.t_to_utc) if params.t_to_utc else last_utc
        newest = [_narrowed(params, end_utc - length, None) for length in _NEWEST]
        return [near for near in newest if near is not None]
    frame = video_record.find_frame(session, query.frame_id)
    if frame is None or (params.camera_ids and frame.camera_id not in params.camera_ids):
        return []
    around = [_narrowed(params, frame.t_utc - half, frame.t_utc + half) for half in _AROUND]
    return [replace(near, camera_ids=(frame.camera_id,)) for near in around if near is not None]


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
