"""What a use case needs: one frozen bundle of adapters, made by the composition root."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

from models.session import Database
from worker.backbones.base import Backbone
from worker.config import Settings
from worker.index.backgrounds import BackgroundCache
from worker.index.compact_cache import CompactCache
from worker.index.damage import KnownDamage
from worker.index.store import IndexStore
from worker.messages import JobKind
from worker.objects.store import ObjectStore
from worker.pinning import FMapCache
from worker.video.frame_store import FrameStore
from worker.video.recording_store import RecordingStore
from worker.video.upload_store import UploadStore

if TYPE_CHECKING:  # compiles kernels
    from worker.fan_out import FanOut
    from worker.kernels.held_codes import HeldCodes

LONGEST_SEARCH_S = 120.0
"""A search that began before an erasure ended has let go of what it read by then."""


class LastErasure:
    """When footage was last erased, as far as this process knows."""

    def __init__(self, again_after_s: float = float("inf")) -> None:
        self._seen: datetime | None = None
        self._again_s = float("inf")
        self._again_after_s = again_after_s
        self._lock = threading.Lock()

    def is_news(self, erased_utc: datetime | None) -> bool:
        """Whether this is another time than the one told last; once more after ``again_after_s``,
        for what was under way when it was news."""
        with self._lock:
            now_s = time.monotonic()
            if erased_utc != self._seen:
                self._seen, self._again_s = erased_utc, now_s + self._again_after_s
                return True
            again, self._again_s = (
                now_s > self._again_s,
                float("inf") if now_s > self._again_s else self._again_s,
            )
            return again


@dataclass(frozen=True, slots=True)
class Context:
    """Adapters of one process.

    ``backbone(name)`` loads once and raises :class:`WeightsMissing` or :class:`NotFound`.
    ``ring(job_id, kind)`` wakes a worker and never raises: the sweeper rings again. False when it
    reached nobody, as far as it is known.
    ``fan_out``: how searches are spread over scan workers; None: they are not.
    ``held_codes``: compact codes that lie on this process's GPU; None: it searches on the CPU.
    ``objects``: where old shards are moved to, if anywhere.
    """

    settings: Settings
    db: Database
    index: IndexStore
    pictures: FrameStore
    uploads: UploadStore
    recordings: RecordingStore
    f_maps: FMapCache
    backbone: Callable[[str], Backbone]
    ring: Callable[[uuid.UUID, JobKind], bool | None]
    objects: ObjectStore | None = None
    backgrounds: BackgroundCache = field(default_factory=BackgroundCache)
    compact: CompactCache = field(default_factory=CompactCache)
    damage: KnownDamage = field(default_factory=KnownDamage)
    erased: LastErasure = field(default_factory=lambda: LastErasure(LONGEST_SEARCH_S))
    swept: LastErasure = field(default_factory=LastErasure)
    fan_out: FanOut | None = None
    held_codes: HeldCodes | None = None

    def let_go_since(self, erased_utc: datetime | None) -> None:
        """Forget what this process read before footage was last erased."""
        if self.erased.is_news(erased_utc):
            for cache in (self.f_maps, self.index, self.backgrounds, self.compact):
                cache.let_go()
            if self.held_codes is not None:
                self.held_codes.let_go()

    def with_own_caches(self) -> Context:
        """The same adapters with nothing read yet: what is read through this is let go with it."""
        compact = self.compact
        return replace(
            self,
            index=IndexStore(self.index.root, self.index.parts),
            f_maps=FMapCache(),
            backgrounds=BackgroundCache(),
            compact=CompactCache(compact.max_bytes, compact.threads, compact.max_mapped),
            damage=KnownDamage(),
            held_codes=None,
            erased=LastErasure(LONGEST_SEARCH_S),
        )
