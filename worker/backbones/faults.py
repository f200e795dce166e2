"""What goes wrong on an accelerator, and who takes its place."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import torch

from worker.backbones.base import Backbone
from worker.backbones.staged import stored_rows
from worker.backbones.waiting import Item
from worker.errors import DeviceFailed, RisError

log = logging.getLogger("ris.embedder")


def device_is_lost(error: BaseException) -> bool:
    """Whether a device answers nothing any more until its process starts anew."""
    if isinstance(error, torch.OutOfMemoryError | RisError):
        return False
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)
    )


def first_line(error: BaseException) -> str:
    """What an error says first; CUDA's go on with advice for developers."""
    return (str(error).splitlines() or [repr(error)])[0]


def fail_all(items: Sequence[Item], error: Exception) -> None:
    """Answer the callers of these pictures with an error; a lost device's with one that is retried
    later."""
    if device_is_lost(error):
        error = DeviceFailed(
            f"the accelerator was lost ({first_line(error)}); restart the worker once `ris doctor` "
            "finds it again"
        )
    for item in items:
        item.request.fail(error)


class CpuFallback:
    """The same backbone on the CPU, loaded when it is first needed; without ``load`` there is none,
    and what it would have embedded fails. Safe to share between threads."""

    def __init__(self, load: Callable[[], Backbone] | None) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._loaded: Backbone | None = None

    def __bool__(self) -> bool:
        return self._load is not None

    def embed(self, items: Sequence[Item], why: Exception) -> None:
        """Answer for these pictures one by one: one that cannot be embedded costs no other."""
        if self._load is None:
            fail_all(items, why)
            return
        log.warning("%d pictures are embedded on the CPU: %s", len(items), first_line(why))
        for item in items:
            try:
                made = self._backbone(self._load).embed([item.img_hwc])
                global_d, patches_cd = (
                    stored_rows(torch.from_numpy(rows[0]), item.request.stored).numpy()
                    for rows in (made.global_nd, made.patches_ncd)
                )
            except Exception as error:
                item.request.fail(error)
            else:
                item.request.give(item.position, global_d, patches_cd)

    def _backbone(self, load: Callable[[], Backbone]) -> Backbone:
        with self._lock:
            if self._loaded is None:
                self._loaded = load()
            return self._loaded
