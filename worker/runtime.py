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
from worker.installed import require_one_faiss
from worker.kernels.threads import keep_products_single
from worker.messages import SCAN_TASK
from worker.objects.store import ObjectStore, open_store
from worker.pinning import FMapCache
from worker.services import database_url
from worker.video.frame_store import FrameStore
from worker.video.recording_store import RecordingStore
from worker.video.upload_store import UploadStore

if TYPE_CHECKING:  # compiles kernels, loads torch
    from worker.backbones.accelerated import DeviceShare
    from worker.fan_out import FanOut
    from worker.kernels.held_codes import HeldCodes
    from worker.scan_message import Json

log = structlog.get_logger()

MAX_FILES = 32_768
"""A mapped file of compact codes is an open one; a process has some 65,000 mappings at most."""


CODES_SHARE = 0.5
"""Of what a process may have of a GPU, for codes that search holds there."""


class Accelerator:
    """The GPU of this process, if ``RIS_DEVICE`` says so and one works: found, and its share of
    memory claimed, when it is first used."""

    def __init__(self, configured: Settings) -> None:
        self._settings = configured
        self._lock = threading.Lock()
        self._share: DeviceShare | None = None

    def find(self) -> tuple[str, int] | None:
        """torch's name of it, and how many bytes of it are this process's; None: the CPU. Raises
        :class:`InputInvalid` for a device that does not work, :class:`DeviceFailed` where other
        processes have it."""
        if self._settings.device.startswith("cpu"):
            return None
        from worker.backbones.accelerated import DeviceShare
        from worker.backbones.devices import usable_device

        device = usable_device(self._settings.device)
        if device.startswith("cpu"):
            return None
        with self._lock:
            if self._share is None:
                folder = self._settings.data_dir.resolve() / "devices"
                self._share = DeviceShare(folder, self._settings.device_share)
        return device, self._share.take(device)

    def place_for_codes(self) -> tuple[str, int] | None:
        """The same, with the bytes that search may fill."""
        found = self.find()
        return None if found is None else (found[0], int(CODES_SHARE * found[1]))


class BackboneCache:
    """Loads each backbone once per process; torch is imported on first use only. On a GPU the
    threads of the process share its batches."""

    def __init__(self, configured: Settings, accelerator: Accelerator | None = None) -> None:
        self._settings = configured
        self._accelerator = accelerator or Accelerator(configured)
        self._lock = threading.Lock()
        self._loaded: dict[str, Backbone] = {}

    def __call__(self, name: str) -> Backbone:
        """The backbone of that name. Raises :class:`NotFound` or :class:`WeightsMissing`, and as
        :meth:`Accelerator.find`."""
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = self._load(name)
            return self._loaded[name]

    def _load(self, name: str) -> Backbone:
        given, found = self._settings, self._accelerator.find()
        if found is None:
            from worker.backbones.registry import load_backbone

            return load_backbone(
                name,
                device=given.device if given.device.startswith("cpu") else "cpu",
                dtype=given.dtype,
                threads=given.threads,
                backbones_dir=given.backbones_dir,
            )
        from worker.backbones.accelerated import Acceleration, load_overlapped

        return load_overlapped(
            name,
            device=found[0],
            dtype=given.dtype,
            threads=given.threads,
            backbones_dir=given.backbones_dir,
            acceleration=Acceleration(given.embed_batch, given.embed_wait_s, given.compile),
        )


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
    accelerator = Accelerator(configured)
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
        backbone=BackboneCache(configured, accelerator),
        ring=ring,
        fan_out=_fan_out(configured),
        held_codes=_held_codes(configured, accelerator),
        objects=objects,
        compact=CompactCache(
            configured.compact_max_bytes,
            configured.threads or os.cpu_count() or 1,
            _file_limit() // 4,
        ),
    )


def _held_codes(configured: Settings, accelerator: Accelerator) -> HeldCodes | None:
    if configured.device.startswith("cpu"):
        return None
    from worker.kernels.held_codes import HeldCodes

    return HeldCodes(accelerator.place_for_codes)


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

    Raises :class:`ServiceUnavailable` when no database is configured or running,
    :class:`BackupInvalid` in the middle of a restore, and :class:`SetupFailed` where packages are
    installed that overwrite each other.
    """
    require_one_faiss()
    configured = settings()
    refuse_unfinished_restore(configured.data_dir)
    return make_context(configured, database_url(configured), application_name="ris")
