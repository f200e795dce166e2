"""Backbones on an accelerator: loaded, compiled where asked for, warmed up, within their budget."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worker.backbones.compiled import compile_blocks
from worker.backbones.device_claim import DeviceClaim, claim_device
from worker.backbones.faults import first_line
from worker.backbones.overlapped import Batching, OverlappedBackbone, bucket_sizes
from worker.backbones.registry import DtypeName, load_backbone
from worker.backbones.vision_transformer import VitBackbone

log = logging.getLogger("ris.embedder")


@dataclass(frozen=True, slots=True)
class Acceleration:
    """``largest_batch``: pictures of one pass at most; ``wait_s``: how long one waits for others;
    ``compiled``: whether vision transformers are compiled, for fixed sizes of batches."""

    largest_batch: int
    wait_s: float
    compiled: bool


def load_overlapped(
    name: str,
    *,
    device: str,
    dtype: DtypeName,
    threads: int,
    backbones_dir: Path | None,
    acceleration: Acceleration,
) -> OverlappedBackbone:
    """A started backbone for all threads of a process; the CPU's takes its place where the device
    fails. One that cannot be compiled is run as it is. Raises as
    :func:`worker.backbones.registry.load_backbone`."""

    def load() -> Any:
        return load_backbone(
            name, device=device, dtype=dtype, threads=threads, backbones_dir=backbones_dir
        )

    def started(loaded: Any, buckets: tuple[int, ...]) -> OverlappedBackbone:
        made = OverlappedBackbone(
            loaded,
            Batching(acceleration.largest_batch, acceleration.wait_s, buckets),
            fallback=lambda: load_backbone(name, threads=threads, backbones_dir=backbones_dir),
        )
        made.start()
        return made

    loaded = load()
    if acceleration.compiled and isinstance(loaded, VitBackbone):
        try:
            compile_blocks(loaded.network)
            return started(loaded, bucket_sizes(acceleration.largest_batch))
        except Exception as error:  # a compiler that is missing or fails does so in many ways
            log.warning("%s is not compiled: %s", name, first_line(error))
            loaded = load()
    return started(loaded, ())


class DeviceShare:
    """This process's share of a CUDA device, claimed when it is first used. Safe to share between
    threads."""

    def __init__(self, folder: Path, share: float) -> None:
        self._folder = folder
        self._share = share
        self._claims: dict[str, DeviceClaim] = {}
        self._lock = threading.Lock()

    def take(self, device: str) -> int:
        """Bytes of the device that this process may have, which cannot take more from then on; 0
        for other than CUDA's. Raises ``DeviceFailed`` where others have too much of it."""
        chosen = torch.device(device)
        if chosen.type != "cuda":
            return 0
        index = torch.cuda.current_device() if chosen.index is None else chosen.index
        properties = torch.cuda.get_device_properties(index)
        name = f"{properties.name} {properties.uuid}"
        with self._lock:
            if name not in self._claims:
                self._claims[name] = claim_device(self._folder, name, self._share)
                torch.cuda.set_per_process_memory_fraction(self._share, index)
                log.info("%.0f %% of %s are this process's", 100 * self._share, properties.name)
        return int(self._share * properties.total_memory)
