"""Watching: new frames are compared with every standing query once they are committed.

Each batch of frames is put on a list in its own transaction, so whoever reads the list reads what
is committed, in whatever order ids were given; a batch leaves the list in the transaction that
records its alerts. A worker that is killed in between looks at the batch again, and finds the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import structlog

from models.index import IndexGeneration
from models.repositories import erasures as erasure_record
from models.repositories import index as index_record
from models.repositories import search as search_record
from models.repositories import standing as standing_record
from models.repositories import videos as video_record
from models.repositories.scope import FootageScope
from models.session import Session
from models.standing import NewFrames, StandingQuery
from models.video import Frame
from worker.accepting.events import tell_alert, tell_standing_ended
from worker.accepting.queries import discard_uploads
from worker.context import Context
from worker.core.geometry import cells_box
from worker.core.search_params import SearchParams, search_params_from_json
from worker.errors import IndexDamaged, LeaseLost, RisError
from worker.index.scorer import patches_of
from worker.index.store import PinnedShard
from worker.pinning import spec_of
from worker.standing_scores import CameraReference, Judged, judge
from worker.standing_subjects import (
    StandingSubject,
    WatchMemory,
    references_between,
    shards_between,
)

log = structlog.get_logger()

MOST_TRIES: Final = 5
_BATCHES_AT_ONCE: Final = 4
_FRAMES_AT_ONCE: Final = 64
_HOLD_S: Final = 60.0
_TURN_S: Final = 20.0
_AGAIN_S: Final = 5.0


class Watcher:
    """Compares new frames in one process; one thread of it at a time."""

    def __init__(self) -> None:
        self._memory = WatchMemory()
        self._alone = threading.Lock()

    def watch(self, context: Context) -> int:
        """Look at what is on the list; returns how many frames. Short: what is left after a while
        is for the next ring."""
        if not self._alone.acquire(blocking=False):
            return 0
        try:
            end_over(context)
            until_s, seen = time.monotonic() + _TURN_S, 0
            while time.monotonic() < until_s:
                with context.db.transaction() as session:
                    batches = standing_record.take_frames(session, _HOLD_S, _BATCHES_AT_ONCE)
                for batch in batches:
                    seen += self._see(context, batch)
                if not batches:
                    break
            return seen
        finally:
            self._alone.release()

    def _see(self, context: Context, batch: NewFrames) -> int:
        """One batch; what fails is looked at again later, and given up in the end."""
        try:
            if batch.attempts > MOST_TRIES:
                _give_up(context, batch)
                return 0
            return see_batch(context, self._memory, batch)
        except LeaseLost as error:
            log.warning("new_frames_taken_over", detail=str(error))
        except RisError as error:
            log.warning("new_frames_wait", code=error.code, detail=str(error))
            with context.db.transaction() as session:
                standing_record.let_go(session, batch, _AGAIN_S)
        return 0


def see_batch(context: Context, memory: WatchMemory, batch: NewFrames) -> int:
    """Compare one batch with every standing query that runs, and record what fired, once.

    Raises :class:`LeaseLost`, and what reading the index raises.
    """
    with context.db.snapshot() as session:
        erased_utc = erasure_record.last_finished(session)
        generation = index_record.live_generation(session)
        standing = standing_record.running(session)
        frames = video_record.frames_with_camera(session, batch.frame_ids)
    context.let_go_since(erased_utc)
    if memory.erased.is_news(erased_utc):
        memory.let_go()
    if generation is None or not standing or not frames:
        _record(context, generation, batch, frames, [])
        return len(frames)
    memory.keep_only(generation.id, {one.id for one in standing})
    watched = _subjects(context, memory, generation, standing, batch.camera_id)
    seen = _judged(context, memory, generation, watched, frames)
    _record(context, generation, batch, frames, seen)
    return len(frames)


@dataclass(frozen=True, slots=True)
class _Watched:
    """A standing query that watches the batch's camera."""

    standing: StandingQuery
    subject: StandingSubject


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a standing query makes of a batch: how many frames it was compared with, and how many
    it could not be; and those it fires on, by frame id."""

    standing: StandingQuery
    judged: int
    unjudged: int
    fired: dict[int, Judged]


def _subjects(
    context: Context,
    memory: WatchMemory,
    generation: IndexGeneration,
    standing: Sequence[StandingQuery],
    camera_id: int,
) -> list[_Watched]:
    """Those that watch this camera; one that cannot be described any more ends, and says why."""
    watched = []
    for one in standing:
        cameras = one.params.get("camera_ids")
        if cameras is not None and camera_id not in cameras:
            continue
        try:
            watched.append(_Watched(one, memory.subject_of(context, generation, one)))
        except RisError as error:
            if error.retryable:
                raise
            end_standing(context, one, error.code, str(error))
    return watched


def _judged(
    context: Context,
    memory: WatchMemory,
    generation: IndexGeneration,
    watched: Sequence[_Watched],
    frames: Mapping[int, Frame],
) -> list[_Seen]:
    """All of one camera. Damage that turns up is left out, and what is left looked at again."""
    times = [frame.t_utc for frame in frames.values()]
    camera_id, span_utc = next(iter(frames.values())).camera_id, (min(times), max(times))
    for _ in range(MOST_TRIES):
        shards = shards_between(context, generation, [camera_id], span_utc)
        try:
            reference = memory.reference_of(context, generation, camera_id, span_utc, set(frames))
            if reference is None or not watched:
                return [_Seen(one.standing, 0, len(_inside(one, frames)), {}) for one in watched]
            return _compared(context, memory, generation, watched, reference, shards, frames)
        except IndexDamaged as error:
            log.error("index_damaged", folder=error.folder, detail=str(error))
            if not _left_out(context, [*shards, *memory.shards_of(camera_id)], error):
                raise
            memory.let_go()
    raise IndexDamaged("new frames are damaged again and again; run `ris verify`")


def _left_out(context: Context, shards: Sequence[PinnedShard], error: IndexDamaged) -> bool:
    """Find the damage of a shard; whether a pin of now is without some of its frames."""
    for shard in shards:
        if str(shard.layout.folder) == error.folder:
            context.damage.examine(shard, error.blocks)
            return not context.damage.lost(shard.layout.folder).isdisjoint(shard.stored_n.tolist())
    return False


def _compared(
    context: Context,
    memory: WatchMemory,
    generation: IndexGeneration,
    watched: Sequence[_Watched],
    reference: CameraReference,
    shards: Sequence[PinnedShard],
    frames: Mapping[int, Frame],
) -> list[_Seen]:
    times = [frame.t_utc for frame in frames.values()]
    span_utc = (min(times), max(times))

    def others() -> Sequence[CameraReference]:
        return references_between(context, generation, span_utc, set(frames))

    rules = [
        memory.rule_of(context, one.standing, one.subject, generation, reference, others)
        for one in watched
    ]
    fired: list[dict[int, Judged]] = [{} for _ in watched]
    wanted = [_inside(one, frames) for one in watched]
    judged = [0] * len(watched)
    for shard in shards:
        ids = shard.f_map.frame_id[: shard.blocks]
        inside = np.flatnonzero(np.isin(ids, list(frames)))
        for start in range(0, inside.size, _FRAMES_AT_ONCE):
            blocks = inside[start : start + _FRAMES_AT_ONCE]
            patches = patches_of(shard, blocks)  # once for all that watch
            for at, (one, rule) in enumerate(zip(watched, rules, strict=True)):
                if rule is None:
                    continue
                subject = one.subject
                found = judge(subject.subject, rule, reference, patches, subject.growth)
                for frame_id, seen in zip(ids[blocks].tolist(), found, strict=True):
                    if frame_id not in wanted[at]:
                        continue
                    judged[at] += 1
                    if _fires(one, frames[frame_id], seen):
                        fired[at][frame_id] = seen
    return [
        _Seen(one.standing, judged[at], len(wanted[at]) - judged[at], fired[at])
        for at, one in enumerate(watched)
    ]


def _inside(one: _Watched, frames: Mapping[int, Frame]) -> frozenset[int]:
    """Ids of the frames inside the time asked for: of others nothing is told, not even how many."""
    return _in_span(one.subject.params, frames)


def _in_span(params: SearchParams, frames: Mapping[int, Frame]) -> frozenset[int]:
    span = FootageScope(None, params.t_from_utc, params.t_to_utc)
    return frozenset(frame.id for frame in frames.values() if span.sees_time(frame.t_utc))


def _fires(one: _Watched, frame: Frame, seen: Judged) -> bool:
    """Alike beyond what chance brings, with a region that proves it."""
    return (
        seen.region is not None
        and seen.false_per_day <= one.standing.max_false_per_day
        and frame.id != one.standing.frame_id
    )


def _record(
    context: Context,
    generation: IndexGeneration | None,
    batch: NewFrames,
    frames: Mapping[int, Frame],
    seen: Sequence[_Seen],
) -> None:
    """One transaction: alerts, counts, and the batch off the list. Raises :class:`LeaseLost`."""
    fired = sorted({frame_id for one in seen for frame_id in one.fired})
    with context.db.transaction() as session:
        kept = search_record.frames_kept(session, fired)
        running = standing_record.lock_running(session, [one.standing.id for one in seen])
        for one in seen:
            standing = running.get(one.standing.id)
            if standing is None or generation is None:
                continue
            in_time = sorted(one.fired, key=lambda frame_id: frames[frame_id].t_utc)
            for frame_id in in_time:
                if frame_id in kept:
                    judged = one.fired[frame_id]
                    _raise_alert(session, generation, standing, frames[frame_id], judged)
            standing_record.count_frames(session, standing.id, one.judged, one.unjudged)
        if not standing_record.done_with(session, batch):
            raise LeaseLost(f"new frames {batch.id} were taken over by another worker")


def _raise_alert(
    session: Session,
    generation: IndexGeneration,
    standing: StandingQuery,
    frame: Frame,
    judged: Judged,
) -> None:
    """Record and tell, unless it is within the cool-down of another one of the camera."""
    region, cool_down_s = judged.region, standing.cool_down_s
    place = (standing.id, frame.camera_id, frame.t_utc)
    if region is None or not standing_record.is_cool(session, *place, cool_down_s):
        return
    grid = spec_of(generation).grid
    box = judged.box or cells_box(region.cell_index, grid)
    drawn = [box.x0, box.y0, box.x1, box.y1]
    alert_id = standing_record.add_alert(
        session,
        standing_query_id=standing.id,
        frame_id=frame.id,
        camera_id=frame.camera_id,
        t_utc=frame.t_utc,
        generation_id=generation.id,
        likeness=judged.likeness,
        false_per_day=judged.false_per_day,
        similarity=judged.similarity,
        coverage=judged.coverage,
        grid_h=grid.h,
        grid_w=grid.w,
        region_query_index=region.query_index.tolist(),
        region_cell_index=region.cell_index.tolist(),
        box=drawn,
    )
    if alert_id is not None:
        told = {"likeness": judged.likeness, "false_per_day": judged.false_per_day, "box": drawn}
        tell_alert(session, standing, alert_id, frame, **told)


def _give_up(context: Context, batch: NewFrames) -> None:
    """A batch that ends its worker each time: its frames count as not judged."""
    log.error("new_frames_given_up", batch=batch.id, frames=batch.frame_ids[:20])
    with context.db.transaction() as session:
        frames = video_record.frames_with_camera(session, batch.frame_ids)
        for standing in standing_record.running(session):
            params = search_params_from_json(standing.params)
            if params.camera_ids is None or batch.camera_id in params.camera_ids:
                unjudged = len(_in_span(params, frames))
                standing_record.count_frames(session, standing.id, 0, unjudged)
        standing_record.done_with(session, batch)


def end_over(context: Context) -> None:
    """End standing queries that have expired, and those of keys that open nothing any more."""
    with context.db.transaction() as session:
        over = standing_record.due_to_end(session)
    for standing, code in over:
        detail = {
            "expired": "its time is over",
            "unauthenticated": "the API key that made it is revoked or has expired",
        }[code]
        end_standing(context, standing, code, detail)


def end_standing(context: Context, standing: StandingQuery, code: str, detail: str) -> None:
    """End one, and tell so."""
    log.warning("standing_query_ended", standing_query_id=standing.id, code=code, detail=detail)
    with context.db.transaction() as session:
        if standing_record.end(session, standing.id, code, detail):
            tell_standing_ended(session, standing.id, standing.name, standing.key_id, code)


def clean_up(context: Context) -> None:
    """Forget standing queries that ended long ago, with their alerts and pictures."""
    with context.db.transaction() as session:
        uploads = standing_record.remove_ended(session, context.settings.standing_keep_days)
    if uploads:
        discard_uploads(context, uploads)
