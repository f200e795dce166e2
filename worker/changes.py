"""When did this box change? Answered from the compact codes of a camera's frames alone."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.index import IndexGeneration
from models.repositories import changes as changes_record
from models.repositories import videos as video_record
from models.repositories.jobs import ClaimedJob
from models.session import Session
from worker.accepting.changes import KEPT_S
from worker.accepting.events import tell_changes
from worker.compacting import learn_basis
from worker.context import Context
from worker.core.changes import BoxHistory, box_history
from worker.core.geometry import roi_cells, validate_roi
from worker.core.roi_json import roi_from_json
from worker.core.search_params import SearchParams
from worker.core.similarity import l2_normalise
from worker.core.types import FloatArray, IntArray, Roi
from worker.errors import (
    ErasedMeanwhile,
    IndexDamaged,
    InputInvalid,
    NotFound,
    ServiceUnavailable,
)
from worker.generations import require_live_generation
from worker.index.candidates import in_time
from worker.index.store import PinnedShard
from worker.jobs import Lease, Outcome
from worker.pinning import pin_shards, spec_of

_FRAMES_AT_ONCE = 256
MAX_BYTES = 1 << 30
"""Of the box's cells in memory; some four times as much is taken while they are worked on."""
_NOTHING = (
    np.empty(0),
    np.empty(0, dtype=np.int64),
    np.empty((0, 0, 0), dtype=np.float32),
)
_ALONE = threading.Lock()
"""One change query at a time in a process: of its memory, and of its threads, which live queries
need."""


@dataclass(frozen=True, slots=True)
class StateSpan:
    """A stretch in which the box looked the same: its first and last frame and their times.

    ``number`` counts from 1; ``like`` is the number of the first state that looked like it.
    ``before_utc``: the last frame that still showed something else, None for the first state. The
    change lies between it and ``from_utc``.
    """

    number: int
    like: int
    from_utc: datetime
    to_utc: datetime
    first_frame_id: int
    last_frame_id: int
    before_utc: datetime | None
    difference: float


@dataclass(frozen=True, slots=True)
class BoxChanges:
    """States of a box in order; ``level`` is the difference that counts, ``frames`` looked at."""

    states: tuple[StateSpan, ...]
    level: float
    frames: int


def find_changes(
    context: Context,
    camera_name: str,
    roi: Roi,
    from_utc: datetime | None = None,
    to_utc: datetime | None = None,
    *,
    hold: int = 3,
) -> BoxChanges:
    """The states of a box of one camera in ``[from_utc, to_utc)``, on the live generation.

    Raises :class:`NotFound` for an unknown camera or a span without frames, :class:`RoiInvalid`,
    and :class:`InputInvalid` for times without a zone or more frames than ``MAX_BYTES`` holds.
    """
    with context.db.transaction() as session:
        camera = video_record.camera_named(session, camera_name)
    if camera is None:
        raise NotFound(f"camera {camera_name!r} is not known; `ris cameras` lists them")
    looked = _look(context, camera.id, roi, from_utc, to_utc, hold)
    if not looked.changes.frames:
        raise NotFound(f"camera {camera_name!r} has no frames in that time")
    return looked.changes


@dataclass(frozen=True, slots=True)
class _Looked:
    """An answer, and times and ids of the frames that it is from: (n,), in order of time."""

    changes: BoxChanges
    t_n: NDArray[np.float64]
    frame_id_n: IntArray


def _look(
    context: Context,
    camera_id: int,
    roi: Roi,
    from_utc: datetime | None,
    to_utc: datetime | None,
    hold: int,
) -> _Looked:
    if hold < 1:
        raise InputInvalid(f"a state holds for at least 1 frame, not {hold}")
    generation = require_live_generation(context)
    cells = roi_cells(validate_roi(roi), spec_of(generation).grid)
    patch_ids = cells[:, 0] * spec_of(generation).grid.w + cells[:, 1]
    params = SearchParams(camera_ids=(camera_id,), t_from_utc=from_utc, t_to_utc=to_utc)
    shards = _pinned(context, generation, params)
    while True:
        try:
            t_n, frame_id_n, cells_nrk = _gathered(context, shards, patch_ids, from_utc, to_utc)
            break
        except IndexDamaged as error:
            # Files that were erased or written anew since they were pinned are pinned anew.
            now = _pinned(context, generation, params)
            if error.folder is None or _has(now, error.folder) or not _has(shards, error.folder):
                raise
            shards = now
    if not t_n.size:
        return _Looked(BoxChanges((), 0.0, 0), t_n, frame_id_n)
    order = np.argsort(t_n, kind="stable")
    t_n, frame_id_n = t_n[order], frame_id_n[order]
    history = box_history(cells_nrk[order], hold)
    changes = BoxChanges(_spans(history, t_n, frame_id_n), history.level, int(t_n.size))
    return _Looked(changes, t_n, frame_id_n)


def _pinned(
    context: Context, generation: IndexGeneration, params: SearchParams
) -> list[PinnedShard]:
    """Shards of the camera that hold frames of the span."""
    with context.db.snapshot() as session:
        learn_basis(context, session, generation)
        given = (session, context.index, context.f_maps, generation)
        pinned = pin_shards(*given, params, context.damage)
    return [shard for shard in pinned if shard.blocks]


def _has(shards: list[PinnedShard], folder: str) -> bool:
    return any(str(shard.layout.folder) == folder for shard in shards)


def _gathered(
    context: Context,
    shards: list[PinnedShard],
    patch_ids: IntArray,
    from_utc: datetime | None,
    to_utc: datetime | None,
) -> tuple[NDArray[np.float64], IntArray, FloatArray]:
    """Time, id and the box's cells of every frame: (n,), (n,), float32 (n, r, k) unit rows."""
    if not shards:
        return _NOTHING
    basis = context.compact.basis(shards)
    span = (from_utc.timestamp() if from_utc else None, to_utc.timestamp() if to_utc else None)
    insides = [in_time(shard, *span) for shard in shards]
    frames = sum(int(inside.sum()) for inside in insides)
    at_most = MAX_BYTES // (4 * patch_ids.size * basis.code_dim)
    if frames > at_most:
        raise InputInvalid(
            f"{frames} frames; of a box of {patch_ids.size} cells {at_most} can be compared at a"
            " time: ask for a shorter time or a smaller box"
        )
    if not frames:
        return _NOTHING
    times, frame_ids, parts = [], [], []
    for shard, inside in zip(shards, insides, strict=True):
        for start, codes in context.compact.chunks(shard, basis, _FRAMES_AT_ONCE):
            cells_nrk = codes[:, patch_ids]
            # Codes of vectors that are damaged are zeros.
            known_n = (cells_nrk != 0).any(axis=2).all(axis=1)
            kept = np.flatnonzero(inside[start : start + len(codes)] & known_n)
            times.append(shard.t_epoch_s[start + kept])
            frame_ids.append(shard.f_map.frame_id[start + kept])
            parts.append(basis.decode(cells_nrk[kept]))
    cells_nrk = np.concatenate(parts)
    return np.concatenate(times), np.concatenate(frame_ids), l2_normalise(cells_nrk)


def _spans(
    history: BoxHistory, t_n: NDArray[np.float64], frame_id_n: IntArray
) -> tuple[StateSpan, ...]:
    return tuple(
        StateSpan(
            number=number,
            like=state.like + 1,
            from_utc=_utc(t_n[state.first]),
            to_utc=_utc(t_n[state.last]),
            first_frame_id=int(frame_id_n[state.first]),
            last_frame_id=int(frame_id_n[state.last]),
            before_utc=None if number == 1 else _utc(t_n[state.first - 1]),
            difference=state.difference,
        )
        for number, state in enumerate(history.states, start=1)
    )


def _utc(epoch_s: float) -> datetime:
    return datetime.fromtimestamp(float(epoch_s), UTC)


def run_changes(context: Context, job: ClaimedJob, lease: Lease) -> Outcome:
    """Answer one recorded change query."""
    with context.db.transaction() as session:
        asked = changes_record.of_job(session, job.id)
    if asked is None:
        raise NotFound(f"job {job.id} has no change query: it was taken back, or is too old")
    if not _ALONE.acquire(blocking=False):
        raise ServiceUnavailable("this worker answers another question about changes: soon")
    try:
        given = (asked.camera_id, roi_from_json(asked.roi), asked.from_utc, asked.to_utc)
        looked = _look(context, *given, asked.hold)
    finally:
        _ALONE.release()
    with context.db.transaction() as session:
        lease.hold(session)  # job, then change query: the order of all that lock both
        now = changes_record.lock(session, asked.id)
        if now is None:
            raise NotFound(f"change query {asked.id} was taken back")
        if changes_record.count_frames(session, looked.frame_id_n.tolist()) != looked.t_n.size:
            raise ErasedMeanwhile("frames that were looked at are erased by now: once more")
        found = looked.changes
        now.frames, now.states = found.frames, [_state_json(state) for state in found.states]
        if found.frames:
            now.level = found.level
            now.first_utc, now.last_utc = _utc(looked.t_n[0]), _utc(looked.t_n[-1])
        tell_changes(session, "changes.done", now)
        lease.finish(session, {"frames": found.frames, "states": len(found.states)})
    return "finished"


def fail_changes(session: Session, job: ClaimedJob, code: str) -> None:
    """Tell that a change query was not answered."""
    asked = changes_record.of_job(session, job.id)
    if asked is not None:
        tell_changes(session, "changes.failed", asked, code=code)


def drop_old(context: Context) -> int:
    """Forget answers that were kept for their time; returns how many."""
    with context.db.transaction() as session:
        return changes_record.remove_old(session, KEPT_S)


def _state_json(state: StateSpan) -> dict[str, Any]:
    times = {
        name: None if (at := getattr(state, name)) is None else at.isoformat()
        for name in ("from_utc", "to_utc", "before_utc")
    }
    return {**asdict(state), **times}
