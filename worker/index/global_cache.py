"""Whole-frame descriptors of shards: mapped from their files, and decoded within a bound."""

from __future__ import annotations

import mmap
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from worker.core.types import FloatArray
from worker.errors import IndexDamaged
from worker.index.layout import HEADER_BYTES, ShardLayout, mapping_errors
from worker.index.shard import read_blocks

if TYPE_CHECKING:
    from worker.index.store import Contents, PinnedShard

_BLOCKS_PER_CHECK = 4096


@dataclass(frozen=True, slots=True)
class GlobalCache:
    """Files mapped last, at most ``max_mapped``, each of which takes a file descriptor; and what
    was decoded of them last, at most ``max_bytes``. Safe to share between threads.

    Mapped pages are shared with every process and reclaimable. A block is read against its checksum
    once, before it is used.
    """

    max_bytes: int = 256 * 1024 * 1024
    max_mapped: int = 256
    _mapped: OrderedDict[str, tuple[Path, np.ndarray]] = field(default_factory=OrderedDict)
    _checked: dict[str, tuple[Contents, int]] = field(default_factory=dict)
    _decoded: OrderedDict[Contents, FloatArray] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def let_go(self) -> None:
        """Forget everything."""
        with self._lock:
            self._mapped.clear()
            self._checked.clear()
            self._decoded.clear()

    def stored(self, shard: PinnedShard) -> np.ndarray:
        """Descriptors as they are stored, (blocks, global_dim). Raises :class:`IndexDamaged`."""
        if shard.blocks == 0:
            return np.empty((0, shard.layout.global_dim), dtype=shard.layout.codec.dtype)
        # By shard: what was mapped of an earlier revision makes way, and its disk space with it.
        name, need = f"{shard.layout.folder.parent}/{shard.shard_id}", int(shard.stored_n[-1]) + 1
        with self._lock:
            contents, checked = self._checked.get(name, (None, 0))
            folder, mapped = self._mapped.get(name, (None, None))
        if contents != shard.contents:
            checked = 0  # blocks that were passed over as lost may be back
        if folder != shard.layout.folder:
            mapped = None
        if checked < need:
            fresh = np.flatnonzero(shard.stored_n >= checked)
            for start in range(0, fresh.size, _BLOCKS_PER_CHECK):
                at = fresh[start : start + _BLOCKS_PER_CHECK]
                read_blocks(shard.layout, "global", shard.stored_n[at], shard.sums_n2[at])
        if mapped is None or len(mapped) < need:
            mapped = _map(shard.layout, need)
        with self._lock:
            self._checked[name] = (shard.contents, max(need, checked))
            self._mapped[name] = (shard.layout.folder, mapped)
            self._mapped.move_to_end(name)
            while len(self._mapped) > self.max_mapped:
                self._mapped.popitem(last=False)
        return mapped[:need] if need == shard.blocks else mapped[shard.stored_n]

    def decoded(self, shard: PinnedShard) -> FloatArray:
        """float32 (blocks, global_dim), unit rows."""
        with self._lock:
            known = self._decoded.get(shard.contents)
            if known is not None and len(known) >= shard.blocks:
                self._decoded.move_to_end(shard.contents)
                return known[: shard.blocks]
        made = shard.layout.codec.decode(self.stored(shard))
        with self._lock:
            self._decoded[shard.contents] = made
            self._decoded.move_to_end(shard.contents)
            while sum(rows.nbytes for rows in self._decoded.values()) > self.max_bytes:
                self._decoded.popitem(last=False)
        return made


def _map(layout: ShardLayout, blocks: int) -> np.ndarray:
    """The first blocks of a file that was read as far. Raises :class:`IndexDamaged`, naming them,
    when they are not there any more, and :class:`StorageFailed`."""
    end = HEADER_BYTES + blocks * layout.block_bytes("global")
    path = layout.path("global")
    try:
        with mapping_errors(path):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                mapped = mmap.mmap(descriptor, end, prot=mmap.PROT_READ)
            finally:
                os.close(descriptor)
    except (IndexDamaged, ValueError) as error:  # ValueError: it is shorter by now
        raise IndexDamaged(
            f"{path}: {error}", folder=str(layout.folder), blocks=range(blocks)
        ) from error
    body = np.frombuffer(mapped, dtype=layout.codec.dtype, offset=HEADER_BYTES)
    return body.reshape(blocks, layout.global_dim)
