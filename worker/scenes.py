"""Pinned shards seen as cameras: their backgrounds, and their frames in time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from worker.core.types import FloatArray
from worker.index.backgrounds import BackgroundCache
from worker.index.store import PinnedShard


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

    def frames_from(self, start: Place, *, forward: bool, at_most: int) -> Iterator[Place]:
        """The frames of ``start``'s camera after (or before) it, nearest in time first."""
        own = [at for at, s in enumerate(self.shards) if s.camera_id == self.camera_of(start)]
        t_epoch_s = np.concatenate([self.shards[at].t_epoch_s for at in own])
        shard_at = np.concatenate([np.full(self.shards[at].blocks, at) for at in own])
        block_at = np.concatenate([np.arange(self.shards[at].blocks) for at in own])
        in_time = np.argsort(t_epoch_s, kind="stable")
        is_start = (shard_at == start.shard_position) & (block_at == start.block)
        here = int(np.flatnonzero(is_start[in_time])[0])
        following = in_time[here + 1 :] if forward else in_time[:here][::-1]
        for at in following[:at_most]:
            yield Place(int(shard_at[at]), int(block_at[at]))
