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


@dataclass(frozen=True, slots=True)
class CameraScenes:
    """Pinned shards with what is known of their cameras, for one search."""

    shards: Sequence[PinnedShard]
    cache: BackgroundCache
    _found: dict[int, FloatArray | None] = field(default_factory=dict)
    _in_time: dict[int, tuple[IntArray, IntArray]] = field(default_factory=dict)

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
        for position in np.unique(shard_position):
            at = shard_position == position
            t_n[at] = self.shards[position].t_epoch_s[block[at]]
            place_n[at] = self._places(int(position))[block[at]]
        return t_n, place_n

    def _places(self, position: int) -> IntArray:
        """Place in the camera's order of time of every block of a shard."""
        shard_at, block_at = self._order(self.shards[position].camera_id)
        own = np.flatnonzero(shard_at == position)
        places = np.empty(own.size, dtype=np.int64)
        places[block_at[own]] = own
        return places

    def _order(self, camera_id: int) -> tuple[IntArray, IntArray]:
        """Shard positions and blocks of a camera's frames in order of time."""
        if camera_id not in self._in_time:
            own = [at for at, shard in enumerate(self.shards) if shard.camera_id == camera_id]
            t_epoch_s = np.concatenate([self.shards[at].t_epoch_s for at in own])
            shard_at = np.concatenate([np.full(self.shards[at].blocks, at) for at in own])
            block_at = np.concatenate([np.arange(self.shards[at].blocks) for at in own])
            order = np.argsort(t_epoch_s, kind="stable")
            self._in_time[camera_id] = (shard_at[order], block_at[order])
        return self._in_time[camera_id]

    def frames_from(self, start: Place, *, forward: bool, at_most: int) -> Iterator[Place]:
        """The frames of ``start``'s camera after (or before) it, nearest in time first.

        They end where the camera did not record for longer than ``NEIGHBOUR_GAP_S``.
        """
        shard_at, block_at = self._order(self.camera_of(start))
        is_start = (shard_at == start.shard_position) & (block_at == start.block)
        here = int(np.flatnonzero(is_start)[0])
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
