"""When did this box change? Answered from the compact codes of a camera's frames alone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from models.repositories import videos as video_record
from worker.compacting import learn_basis
from worker.context import Context
from worker.core.changes import BoxHistory, box_history
from worker.core.geometry import roi_cells, validate_roi
from worker.core.search_params import SearchParams
from worker.core.similarity import l2_normalise
from worker.core.types import FloatArray, IntArray, Roi
from worker.errors import InputInvalid, NotFound
from worker.generations import require_live_generation
from worker.index.candidates import in_time
from worker.index.store import PinnedShard
from worker.pinning import pin_shards, spec_of

_FRAMES_AT_ONCE = 256
MAX_BYTES = 1 << 30
"""Of the box's cells in memory; some four times as much is taken while they are worked on."""


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
    generation = require_live_generation(context)
    cells = roi_cells(validate_roi(roi), spec_of(generation).grid)
    with context.db.snapshot() as session:
        camera = video_record.camera_named(session, camera_name)
        if camera is None:
            raise NotFound(f"camera {camera_name!r} is not known; `ris cameras` lists them")
        params = SearchParams(camera_ids=(camera.id,), t_from_utc=from_utc, t_to_utc=to_utc)
        learn_basis(context, session, generation)
        pinned = pin_shards(
            session, context.index, context.f_maps, generation, params, context.damage
        )
    shards = [shard for shard in pinned if shard.blocks]
    patch_ids = cells[:, 0] * spec_of(generation).grid.w + cells[:, 1]
    t_n, frame_id_n, cells_nrk = _gathered(context, shards, patch_ids, from_utc, to_utc)
    if not t_n.size:
        raise NotFound(f"camera {camera_name!r} has no frames in that time")
    order = np.argsort(t_n, kind="stable")
    t_n, frame_id_n = t_n[order], frame_id_n[order]
    history = box_history(cells_nrk[order], hold)
    return BoxChanges(_spans(history, t_n, frame_id_n), history.level, int(t_n.size))


def _gathered(
    context: Context,
    shards: list[PinnedShard],
    patch_ids: IntArray,
    from_utc: datetime | None,
    to_utc: datetime | None,
) -> tuple[NDArray[np.float64], IntArray, FloatArray]:
    """Time, id and the box's cells of every frame: (n,), (n,), float32 (n, r, k) unit rows."""
    if not shards:
        return np.empty(0), np.empty(0, dtype=np.int64), np.empty((0, 0, 0), dtype=np.float32)
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
