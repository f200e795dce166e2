"""Backgrounds of cameras, from their own indexed frames, kept per process."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from worker.core.background import background_descriptors
from worker.core.types import FloatArray
from worker.index.sample import even_sample, read_sample
from worker.index.store import PinnedShard

SAMPLED_FRAMES = 64
MAX_KEPT = 512
"""Backgrounds kept; about 200 kB each with the default backbone."""

_Key = tuple[tuple[tuple[str, tuple[int, ...]], int], ...]
"""(contents, block) of each sampled frame, of which the folder names generation and camera's shard:
blocks never change."""


@dataclass(frozen=True, slots=True)
class BackgroundCache:
    """The backgrounds asked for last: of a camera there are several, as filters and the scene of a
    query's own frame take other shards of it.

    Building one does no I/O; safe to share between threads.
    """

    _made: dict[_Key, FloatArray | None] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def let_go(self) -> None:
        """Forget everything."""
        with self._lock:
            self._made.clear()

    def background(self, shards: Sequence[PinnedShard]) -> FloatArray | None:
        """Background of one camera over its shards, float32 (c, d); None with too few frames.

        Up to ``SAMPLED_FRAMES`` frames, evenly spaced in time, so that the same pinned shards
        always give the same background.
        """
        sample = even_sample(shards, SAMPLED_FRAMES)
        key = tuple((shards[at].contents, block) for at, block in sample)
        with self._lock:
            if key in self._made:
                self._made[key] = found = self._made.pop(key)  # it is the last asked for now
                return found
        made = background_descriptors(read_sample(shards, sample))
        with self._lock:
            self._made[key] = made
            while len(self._made) > MAX_KEPT:
                self._made.pop(next(iter(self._made)))
        return made
