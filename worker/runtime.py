"""Composition root: builds the adapters of one process from its settings."""

from __future__ import annotations

import os
import resource
import threading
from functools import cache

from models.session import connect
from worker.backbones.base import Backbone
from worker.bell import ring
from worker.config import Settings, settings
from worker.context import Context
from worker.embedded.state import refuse_unfinished_restore
from worker.index.compact_cache import CompactCache
from worker.index.store import IndexStore
from worker.pinning import FMapCache
from worker.services import database_url
from worker.video.frame_store import FrameStore
from worker.video.upload_store import UploadStore

MAX_FILES = 32_768
"""A mapped file of compact codes is an open one; a process has some 65,000 mappings at most."""


class BackboneCache:
    """Loads each backbone once per process; torch is imported on first use only."""

    def __init__(self, configured: Settings) -> None:
        self._settings = configured
        self._lock = threading.Lock()
        self._loaded: dict[str, Backbone] = {}

    def __call__(self, name: str) -> Backbone:
        """The backbone of that name. Raises :class:`NotFound` or :class:`WeightsMissing`."""
        from worker.backbones.registry import load_backbone

        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = load_backbone(
                    name,
                    device=self._settings.device,
                    dtype=self._settings.dtype,
                    threads=self._settings.threads,
                    backbones_dir=self._settings.backbones_dir,
                )
            return self._loaded[name]


def make_context(configured: Settings, database: str, *, application_name: str) -> Context:
    """A context on the given database; connects to nothing yet."""
    return Context(
        settings=configured,
        db=connect(
            database,
            application_name=application_name,
            statement_timeout_ms=configured.statement_timeout_ms,
            lock_timeout_ms=configured.lock_timeout_ms,
        ),
        index=IndexStore(configured.data_dir.resolve() / "index"),
        pictures=FrameStore(configured.data_dir.resolve() / "pictures", configured.picture_quality),
        uploads=UploadStore(configured.data_dir.resolve() / "uploads"),
        f_maps=FMapCache(),
        backbone=BackboneCache(configured),
        ring=ring,
        compact=CompactCache(
            configured.compact_max_bytes,
            configured.threads or os.cpu_count() or 1,
            _file_limit() // 4,
        ),
    )


def _file_limit() -> int:
    """How many files this process may have open, raised as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)


@cache
def process_context() -> Context:
    """This process's context, made on first use.

    Raises :class:`ServiceUnavailable` when no database is configured or running, and
    :class:`BackupInvalid` in the middle of a restore.
    """
    configured = settings()
    refuse_unfinished_restore(configured.data_dir)
    return make_context(configured, database_url(configured), application_name="ris")
