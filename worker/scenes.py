"""Pinned shards seen as cameras: their backgrounds, and their frames in time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from worker.core.ranking import NEIGHBOUR_GAP_S
from worker.core.types import FloatArray, IntArray
from worker.index.backgrounds import BackgroundCache
from worker.index.store import PinnedShard

FloatArray64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a frame lies: position of its shard in the pinned list, and its block there."""

    shard_position: int
    block: int


@dataclass(frozen=True, slots=True, eq=False)
class _TimeOrder:
    """Shard positions and blocks of a camera's frames in order of time, int64 (n,) each, and for
    each of its shards the place in that order of every block."""

    shard_at: IntArray
    block_at: IntArray
    place_of: dict[int, IntArray]


@dataclass(frozen=True, slots=True)
class CameraScenes:
    """Pinned shards with what is known of their cameras, for one search."""

    shards: Sequence[PinnedShard]
    cache: BackgroundCache
    _found: dict[int, FloatArray | None] = field(default_factory=dict)
    _in_time: dict[int, _TimeOrder] = field(default_factory=dict)

    def camera_of(self, place: Place) -> int:
        """The camera that recorded the frame."""
        return self.shards[place.shard_position].camera_id

    def frame_id(self, place: Place) -> int:
        """The frame's id."""
        return int(self.shards[place.shard_position].f_map.frame_id[place.block])

    def find(self, frame_id: int | None) -> Place | None:
        """Where a frame lies; None for None, or when the filters left it out."""
        for position, shard in enumerate(self.shards):
            found = np.flatnonzero(shard.f_map.frame_id[: shard.blocks] == frame_id)
            if found.size:
                return Place(position, int(found[0]))
        return None

    def background(self, camera_id: int) -> FloatArray | None:
        """float32 (c, d), or None with too few frames."""
        if camera_id not in self._found:
            own = [shard for shard in self.shards if shard.camera_id == camera_id]
            self._found[camera_id] = self.cache.background(own)
        return self._found[camera_id]

    def times(self, shard_position: IntArray, block: IntArray) -> tuple[FloatArray64, IntArray]:
        """Time in seconds, and place in the camera's order of time, of frames: each (n,)."""
        t_n = np.zeros(block.size)
        place_n = np.zeros(block.size, dtype=np.int64)
        by_shard = np.argsort(shard_position, kind="stable")
        first = np.flatnonzero(np.diff(shard_position[by_shard])) + 1
        for at in np.split(by_shard, first) if by_shard.size else ():
            position = int(shard_position[at[0]])
            shard = self.shards[position]
            t_n[at] = shard.t_epoch_s[block[at]]
            place_n[at] = self._order(shard.camera_id).place_of[position][block[at]]
        return t_n, place_n

    def _order(self, camera_id: int) -> _TimeOrder:
        if camera_id not in self._in_time:
            own = [at for at, shard in enumerate(self.shards) if shard.camera_id == camera_id]
            blocks = [self.shards[at].blocks for at in own]
            t_epoch_s = np.concatenate([self.shards[at].t_epoch_s for at in own])
            block_at = np.concatenate([np.arange(count) for count in blocks])
            order = np.argsort(t_epoch_s, kind="stable")
            place = np.empty(order.size, dtype=np.int64)
            place[order] = np.arange(order.size)
            places = np.split(place, np.cumsum(blocks)[:-1])
            self._in_time[camera_id] = _TimeOrder(
                np.repeat(own, blocks)[order], block_at[order], dict(zip(own, places, strict=True))
            )
        return self._in_time[camera_id]

    def frames_from(self, start: Place, *, forward: bool, at_most: int) -> Iterator[Place]:
        """The frames of ``start``'s camera after (or before) it, nearest in time first.

        They end where the camera did not record for longer than ``NEIGHBOUR_GAP_S``.
        """
        order = self._order(self.camera_of(start))
        shard_at, block_at = order.shard_at, order.block_at
        here = int(order.place_of[start.shard_position][start.block])
        step = 1 if forward else -1
        before_s = self.time(start)
        for at in range(here + step, here + step * (at_most + 1), step):
            if not 0 <= at < shard_at.size:
                return
            place = Place(int(shard_at[at]), int(block_at[at]))
            if abs(self.time(place) - before_s) > NEIGHBOUR_GAP_S:
                return
            before_s = self.time(place)
            yield place

    def time(self, place: Place) -> float:
        """When the frame was recorded, in seconds."""
        return float(self.shards[place.shard_position].t_epoch_s[place.block])
