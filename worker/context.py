"""What a use case needs: one frozen bundle of adapters, made by the composition root."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from models.session import Database
from worker.backbones.base import Backbone
from worker.config import Settings
from worker.index.backgrounds import BackgroundCache
from worker.index.compact_cache import CompactCache
from worker.index.damage import KnownDamage
from worker.index.store import IndexStore
from worker.messages import JobKind
from worker.pinning import FMapCache
from worker.video.frame_store import FrameStore
from worker.video.upload_store import UploadStore


@dataclass(frozen=True, slots=True)
class Context:
    """Adapters of one process.

    ``backbone(name)`` loads once and raises :class:`WeightsMissing` or :class:`NotFound`.
    ``ring(job_id, kind)`` wakes a worker and never raises: the sweeper rings again.
    """

    settings: Settings
    db: Database
    index: IndexStore
    pictures: FrameStore
    uploads: UploadStore
    f_maps: FMapCache
    backbone: Callable[[str], Backbone]
    ring: Callable[[uuid.UUID, JobKind], None]
    backgrounds: BackgroundCache = field(default_factory=BackgroundCache)
    compact: CompactCache = field(default_factory=CompactCache)
    damage: KnownDamage = field(default_factory=KnownDamage)
