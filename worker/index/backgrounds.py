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
MAX_CAMERAS = 512
"""Backgrounds kept; about 200 kB each with the default backbone."""

_Key = tuple[tuple[tuple[str, tuple[int, ...]], int], ...]
"""(contents, block) of each sampled frame: blocks never change."""


@dataclass(frozen=True, slots=True)
class BackgroundCache:
    """The last background made per camera and generation; made anew when its sample changes.

    Building one does no I/O; safe to share between threads.
    """

    _made: dict[tuple[str, int], tuple[_Key, FloatArray | None]] = field(default_factory=dict)
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
        place = (str(shards[0].layout.folder.parent), shards[0].camera_id)
        sample = even_sample(shards, SAMPLED_FRAMES)
        key = tuple((shards[at].contents, block) for at, block in sample)
        with self._lock:
            found = self._made.get(place)
        if found is None or found[0] != key:
            found = (key, background_descriptors(read_sample(shards, sample)))
            with self._lock:
                self._made[place] = found
                while len(self._made) > MAX_CAMERAS:
                    self._made.pop(next(iter(self._made)))  # the one made first
        return found[1]
