"""Composition root: builds the adapters of one process from its settings."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import structlog

from models.session import connect
from worker.backbones.base import Backbone
from worker.bell import ring
from worker.config import Settings, settings
from worker.context import Context
from worker.embedded.state import refuse_unfinished_restore
from worker.index.compact_cache import CompactCache
from worker.index.part_cache import PartCache
from worker.index.store import IndexStore
from worker.kernels.threads import keep_products_single
from worker.messages import SCAN_TASK
from worker.objects.store import ObjectStore, open_store
from worker.pinning import FMapCache
from worker.services import database_url
from worker.video.frame_store import FrameStore
from worker.video.recording_store import RecordingStore
from worker.video.upload_store import UploadStore

if TYPE_CHECKING:  # compiles kernels
    from worker.fan_out import FanOut
    from worker.scan_message import Json

log = structlog.get_logger()

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


def ask_scan_workers(
    messages: Sequence[tuple[str, Json]], wait_s: float
) -> Iterator[tuple[int, Json]]:
    """Send scans as one Celery group; answers as they come (:data:`worker.fan_out.AskScanWorkers`).

    A task may wait for these: they are served by workers that serve nothing else and wait for
    nobody, and the wait has an end.
    """
    from celery import group
    from celery.exceptions import TimeoutError as CeleryTimeout

    sent: Any = None
    try:
        from worker.app import app

        sent = group(
            app.signature(SCAN_TASK, args=(message,)).set(
                queue=queue, expires=wait_s, ignore_result=False, retry=False, argsrepr="(...)"
            )
            for queue, message in messages
        ).apply_async(add_to_parent=False)
        places = {result.id: position for position, result in enumerate(sent.results)}
        for task_id, meta in sent.iter_native(timeout=wait_s):
            if meta["status"] == "SUCCESS":
                yield places[task_id], meta["result"]
            else:
                log.warning("scan_failed", detail=f"{meta['status']}: {meta['result']!r}"[:500])
    except CeleryTimeout:
        pass  # the caller counts who is missing
    except Exception as error:  # whatever is wrong with the broker: the caller scans by itself
        log.warning("scan_workers_unreachable", detail=repr(error))
    finally:
        _forget(sent)


def _forget(sent: Any) -> None:
    """Take answers out of Redis; those still to come end with their time."""
    try:
        if sent is not None:
            sent.forget()
    except Exception as error:
        log.warning("scan_results_not_forgotten", detail=repr(error))


def object_store(configured: Settings) -> ObjectStore | None:
    """Where shards are moved to; None without ``RIS_S3_URL``. Raises :class:`SetupFailed`."""
    if configured.s3_url is None:
        return None
    return open_store(
        configured.s3_url,
        configured.data_dir.resolve() / "objects.id",
        endpoint=configured.s3_endpoint,
        region=configured.s3_region,
    )


def make_context(configured: Settings, database: str, *, application_name: str) -> Context:
    """A context on the given database; connects to nothing yet. Raises :class:`SetupFailed` when
    the settings ask for object storage and its package is missing."""
    keep_products_single()
    data_dir, objects = configured.data_dir.resolve(), object_store(configured)
    parts = None
    if objects is not None:
        parts = PartCache(data_dir / "cache" / "objects", configured.s3_cache_bytes, objects.read)
    return Context(
        settings=configured,
        db=connect(
            database,
            application_name=application_name,
            statement_timeout_ms=configured.statement_timeout_ms,
            lock_timeout_ms=configured.lock_timeout_ms,
        ),
        index=IndexStore(data_dir / "index", parts),
        pictures=FrameStore(data_dir / "pictures", configured.picture_quality),
        uploads=UploadStore(data_dir / "uploads"),
        recordings=RecordingStore(data_dir / "recordings"),
        f_maps=FMapCache(),
        backbone=BackboneCache(configured),
        ring=ring,
        fan_out=_fan_out(configured),
        objects=objects,
        compact=CompactCache(
            configured.compact_max_bytes,
            configured.threads or os.cpu_count() or 1,
            _file_limit() // 4,
        ),
    )


def _fan_out(configured: Settings) -> FanOut | None:
    if configured.scan_groups == 0:
        return None
    from worker.fan_out import FanOut

    return FanOut(
        ask_scan_workers,
        configured.scan_groups,
        configured.scan_wait_s,
        configured.scan_min_frames,
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
