"""One embedder per process and device: batches across callers, the three stages overlapped.

Three threads, two bounded queues between them: *prepare* copies pictures of all callers into
page-locked memory, *forward* uploads them and queues the pass, *finish* brings back descriptors,
already normalised and in the codec's type. While the device computes one batch, the next is
uploaded and the one before comes back.

A batch that does not fit the device's memory is halved, and so are those that follow. Pictures with
NaN descriptors, and everything once the device is lost, are embedded by the fallback, on the CPU.
Works on any torch device; on the CPU nothing is page-locked and nothing overlaps a device.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.backbones.base import Backbone, StoredType, check_pictures
from worker.backbones.faults import CpuFallback, device_is_lost, fail_all, first_line
from worker.backbones.preprocess import as_tensor, stretched, to_levels
from worker.backbones.staged import StagedBackbone, stored_rows, unit_rows
from worker.backbones.waiting import Item, Request, WaitingLine
from worker.core.backbone_spec import BackboneSpec
from worker.core.types import Descriptors, ImageArray
from worker.errors import DescriptorInvalid, DeviceFailed, InputInvalid

log = logging.getLogger("ris.embedder")

IN_FLIGHT = 2
"""Batches that wait between two stages."""
CALM_BATCHES = 500
"""Batches without a lack of memory after which twice as large ones are tried again."""


@dataclass(frozen=True, slots=True)
class Batching:
    """``largest``: pictures of one pass at most. ``deadline_s``: how long a picture waits for
    others. ``buckets``: sizes that a pass is filled up to, ascending, for compiled networks, each
    of which is made for one size; empty: as many as there are."""

    largest: int
    deadline_s: float = 0.005
    buckets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.largest < 1 or self.deadline_s < 0:
            raise InputInvalid(f"{self}: at least one picture, and no negative deadline")
        if self.buckets and (
            list(self.buckets) != sorted(set(self.buckets))
            or self.buckets[0] < 1
            or self.buckets[-1] < self.largest
        ):
            raise InputInvalid(f"{self}: buckets ascend, from 1, and the last holds the largest")

    def filled(self, count: int) -> int:
        """How many pictures a pass of ``count`` has."""
        return next((size for size in self.buckets if size >= count), count)


def bucket_sizes(largest: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to ``largest``, which is the last."""
    sizes = [1]
    while 2 * sizes[-1] < largest:
        sizes.append(2 * sizes[-1])
    return tuple(dict.fromkeys([*sizes, largest]))


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Pictures of a batch, in host memory: uint8 (filled, h, w, 3), or one by one where they are
    to be resized on the device."""

    items: Sequence[Item]
    levels_nhwc: Tensor | None


@dataclass(frozen=True, slots=True)
class _Computed:
    """A batch whose pass is queued. ``sound_n`` as in ``UnitRows``; ``of_type``: global and patch
    rows in each type that is asked for; ``done`` is recorded behind it, None on the CPU."""

    items: Sequence[Item]
    sound_n: Tensor
    of_type: Mapping[StoredType, tuple[Tensor, Tensor]]
    done: torch.cuda.Event | None


class OverlappedBackbone:
    """A ``Backbone`` for any number of threads; :meth:`start` once, :meth:`close` at the end.

    ``fallback``: loads the same backbone for the CPU when it is first needed; None: there is none,
    and what it would have embedded fails. ``resize_on_device``: whether pictures of other than the
    input size are uploaded as they are.
    """

    def __init__(
        self,
        backbone: StagedBackbone,
        batching: Batching,
        fallback: Callable[[], Backbone] | None = None,
        resize_on_device: bool | None = None,
    ) -> None:
        self._backbone = backbone
        self._batching = batching
        self._fallback = CpuFallback(fallback)
        self._cuda = backbone.device.type == "cuda"
        self._resize_on_device = self._cuda if resize_on_device is None else resize_on_device
        self._line = WaitingLine(capacity=4 * batching.largest)
        self._prepared: queue.Queue[_Prepared | None] = queue.Queue(IN_FLIGHT)
        self._computed: queue.Queue[_Computed | None] = queue.Queue(IN_FLIGHT)
        self._uploads = _stream(backbone.device) if self._cuda else None
        self._downloads = _stream(backbone.device) if self._cuda else None
        self._lost: Exception | None = None
        self._limit = batching.largest
        self._calm = 0
        self._threads = [
            threading.Thread(target=stage, name=f"embed-{name}", daemon=True)
            for name, stage in (
                ("prepare", self._prepare_all),
                ("forward", self._forward_all),
                ("finish", self._finish_all),
            )
        ]

    @property
    def spec(self) -> BackboneSpec:
        """See :class:`worker.backbones.base.Backbone`."""
        return self._backbone.spec

    @property
    def limit(self) -> int:
        """Pictures of one pass at most, now: less than asked for where memory was lacking."""
        return self._limit

    def start(self) -> float:
        """Warm up, then take pictures; the seconds of the warm-up, which are logged too."""
        started_s = time.perf_counter()
        sizes = self._batching.buckets or (1, self._batching.largest)
        for size in sizes:
            if size <= self._limit:
                self._try_out(size)
        warm_up_s = time.perf_counter() - started_s
        log.info(
            "%s on %s warmed up in %.1f s: batches of %s",
            self.spec.name, self._backbone.device, warm_up_s, ", ".join(map(str, sizes)),
        )  # fmt: skip
        for thread in self._threads:
            thread.start()
        return warm_up_s

    def close(self) -> None:
        """Stop; callers that still wait get ``DeviceFailed``."""
        for item in self._line.close():
            item.request.fail(DeviceFailed("the embedder of this process has been closed"))
        for thread in self._threads:
            thread.join()

    def submit(self, imgs_hwc: Sequence[ImageArray], stored: StoredType = "fp32") -> Request:
        """Queue pictures; ``answer`` of the request gets what :meth:`embed` returns. Waits where
        too many are queued already. The pictures must not change until then."""
        check_pictures(imgs_hwc)
        request = Request(list(imgs_hwc), stored)
        self._line.join(request)
        return request

    def embed(self, imgs_hwc: Sequence[ImageArray]) -> Descriptors:
        """See :class:`worker.backbones.base.Backbone`. Raises ``DeviceFailed`` too."""
        return self.submit(imgs_hwc).answer.result()

    def embed_stored(self, imgs_hwc: Sequence[ImageArray], stored: StoredType) -> Descriptors:
        """The same in the type of that codec: what ``codec.encode`` would make of them."""
        return self.submit(imgs_hwc, stored).answer.result()

    # Prepare.

    def _prepare_all(self) -> None:
        while items := self._line.take(self._limit, self._batching.deadline_s):
            try:
                self._prepared.put(self._prepare(items))
            except Exception as error:
                fail_all(items, error)
        self._prepared.put(None)

    def _prepare(self, items: Sequence[Item]) -> _Prepared:
        spec = self.spec
        fits = [item.img_hwc.shape[:2] == tuple(spec.input_size) for item in items]
        if self._resize_on_device and not all(fits):
            return _Prepared(items, None)
        filled = self._batching.filled(len(items))
        levels_nhwc = torch.empty(
            (filled, *spec.input_size, 3), dtype=torch.uint8, pin_memory=self._cuda
        )
        levels_nhwc[len(items) :] = 0
        host_nhwc = levels_nhwc.numpy()
        for at, (item, fit) in enumerate(zip(items, fits, strict=True)):
            if fit:
                np.copyto(host_nhwc[at], item.img_hwc)
            else:
                resized = to_levels([item.img_hwc], spec.input_size, spec.resize)
                levels_nhwc[at] = resized[0].permute(1, 2, 0)
        return _Prepared(items, levels_nhwc)

    # Forward.

    def _forward_all(self) -> None:
        while (prepared := self._prepared.get()) is not None:
            if self._lost is not None:
                self._fallback.embed(prepared.items, self._lost)
                continue
            try:
                for computed in self._forward(prepared):
                    self._computed.put(computed)
            except Exception as error:
                self._failed(prepared.items, error)
        self._computed.put(None)

    def _forward(self, prepared: _Prepared) -> list[_Computed]:
        """Queue the pass; in parts where it does not fit."""
        count = len(prepared.items)
        if count <= self._limit:
            try:
                computed = self._pass(prepared)
            except torch.OutOfMemoryError as error:
                if count == 1:
                    raise self._too_large(error) from error
                self._shrink(count)
            else:
                self._stay_calm()
                return [computed]
            # Outside of the handler, whose traceback holds the tensors that were too many.
            if self._cuda:
                torch.cuda.empty_cache()
        size = self._limit
        return [
            computed
            for start in range(0, count, size)
            for computed in self._forward(self._prepare(prepared.items[start : start + size]))
        ]

    def _too_large(self, error: Exception) -> DeviceFailed:
        return DeviceFailed(
            f"Backbone {self.spec.name}: no memory on {self._backbone.device} for one picture "
            f"({first_line(error)}); give this process more of it (RIS_DEVICE_SHARE), or use "
            "RIS_DEVICE=cpu."
        )

    def _shrink(self, count: int) -> None:
        sizes = [size for size in self._batching.buckets if size <= count // 2]
        self._limit = min(self._limit, sizes[-1] if sizes else max(1, count // 2))
        self._calm = 0
        log.warning(
            "no memory on %s for a batch of %d: batches of %d from now on",
            self._backbone.device, count, self._limit,
        )  # fmt: skip

    def _stay_calm(self) -> None:
        self._calm += 1
        if self._limit < self._batching.largest and self._calm >= CALM_BATCHES:
            self._limit, self._calm = min(self._batching.largest, 2 * self._limit), 0

    def _pass(self, prepared: _Prepared) -> _Computed:
        types = dict.fromkeys(item.request.stored for item in prepared.items)
        with torch.inference_mode():
            rows = unit_rows(self._backbone, self._upload(prepared))
            of_type = {
                stored: (
                    stored_rows(rows.global_nd, stored),
                    stored_rows(rows.patches_ncd, stored),
                )
                for stored in types
            }
        done = None
        if self._cuda:
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(torch.cuda.current_stream(self._backbone.device))
        return _Computed(prepared.items, rows.sound_n, of_type, done)

    def _upload(self, prepared: _Prepared) -> Tensor:
        """uint8 (filled, 3, input_size) on the device, for the stream that computes."""
        device = self._backbone.device
        with self._on(self._uploads):
            if prepared.levels_nhwc is not None:
                moved = prepared.levels_nhwc.to(device, non_blocking=True)
                levels_nchw = moved.permute(0, 3, 1, 2)
            else:
                levels_nchw = self._upload_and_resize(prepared.items)
        if self._uploads is not None:
            current = torch.cuda.current_stream(device)
            current.wait_stream(self._uploads)
            levels_nchw.record_stream(current)
        return levels_nchw

    def _upload_and_resize(self, items: Sequence[Item]) -> Tensor:
        spec, device = self.spec, self._backbone.device
        filled = self._batching.filled(len(items))
        levels_nchw = torch.zeros((filled, 3, *spec.input_size), dtype=torch.uint8, device=device)
        for at, item in enumerate(items):
            picture = as_tensor(item.img_hwc)
            if self._cuda:
                picture = picture.pin_memory()
            moved = picture.to(device, non_blocking=True).permute(2, 0, 1)[None]
            levels_nchw[at] = stretched(moved, spec.input_size, spec.resize)[0]
        return levels_nchw

    def _try_out(self, size: int) -> None:
        """A pass of that size, waited for, its result thrown away."""
        request = Request([np.zeros((*self.spec.input_size, 3), dtype=np.uint8)] * size, "fp32")
        items = [Item(request, at, 0.0) for at in range(size)]
        for computed in self._forward(self._prepare(items)):
            if computed.done is not None:
                computed.done.synchronize()

    # Finish.

    def _finish_all(self) -> None:
        while (computed := self._computed.get()) is not None:
            try:
                self._finish(computed)
            except Exception as error:
                self._failed(computed.items, error)

    def _finish(self, computed: _Computed) -> None:
        items = computed.items
        with torch.inference_mode(), self._on(self._downloads):
            if self._downloads is not None and computed.done is not None:
                self._downloads.wait_event(computed.done)
            sound_n = self._download(computed.sound_n)
            of_type = {
                stored: (self._download(global_nd), self._download(patches_ncd))
                for stored, (global_nd, patches_ncd) in computed.of_type.items()
            }
        if self._downloads is not None:
            self._downloads.synchronize()
        sound = sound_n.numpy()
        for at, item in enumerate(items):
            if sound[at]:
                global_nd, patches_ncd = of_type[item.request.stored]
                item.request.give(item.position, global_nd[at].numpy(), patches_ncd[at].numpy())
        quarantined = [item for at, item in enumerate(items) if not sound[at]]
        if quarantined:
            self._fallback.embed(
                quarantined,
                DescriptorInvalid(
                    f"Backbone {self.spec.name} gave NaN, infinite or zero descriptors on "
                    f"{self._backbone.device}; check the weights, or use RIS_DTYPE=float32."
                ),
            )

    def _download(self, rows: Tensor) -> Tensor:
        if not self._cuda:
            return rows
        host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
        host.copy_(rows, non_blocking=True)
        rows.record_stream(torch.cuda.current_stream(rows.device))
        return host

    # What goes wrong.

    def _failed(self, items: Sequence[Item], error: Exception) -> None:
        """A batch that ended with an error: of the device, or of something in it."""
        if device_is_lost(error) and self._lost is None:
            self._lost = error
            log.error(
                "%s was lost (%s): %s; restart this process once it is back",
                self._backbone.device,
                first_line(error),
                "embedding on the CPU" if self._fallback else "nothing can be embedded",
            )
        if isinstance(error, DeviceFailed) or device_is_lost(error):
            self._fallback.embed(items, error)
        else:
            fail_all(items, error)

    def _on(self, stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
        return nullcontext() if stream is None else torch.cuda.stream(stream)


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
