"""Blocks that were found damaged, remembered per process so that searches go on without them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from worker.core.types import BoolArray
from worker.index.shard import damaged_blocks
from worker.index.store import PinnedShard

FORGET_AFTER_S = 600.0
"""A file that was put back by hand counts again after this time."""


@dataclass(frozen=True, slots=True)
class KnownDamage:
    """Damaged file blocks per folder of vector files. A repair writes a new folder."""

    forget_after_s: float = FORGET_AFTER_S
    _lost: dict[Path, tuple[float, frozenset[int]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def lost(self, folder: Path) -> frozenset[int]:
        """File blocks of a folder that are known to be damaged."""
        with self._lock:
            examined_s, lost = self._lost.get(folder, (0.0, frozenset[int]()))
            if lost and time.monotonic() - examined_s > self.forget_after_s:
                del self._lost[folder]
                return frozenset()
            return lost

    def examine(self, shard: PinnedShard, blocks: Sequence[int] = ()) -> int:
        """Check every block of a shard against its checksum and remember the damaged ones, and
        ``blocks``, file blocks that a reader met.

        Returns how many were not known before.
        """
        sums_n2 = np.full((int(shard.stored_n.max()) + 1, 2), -1, dtype=np.int64)
        sums_n2[shard.stored_n] = shard.sums_n2
        # What this very search could not read counts, even if it can be read a moment later.
        found = frozenset(damaged_blocks(shard.layout, sums_n2)) | frozenset(blocks)
        found &= frozenset(shard.stored_n.tolist())
        known = self.lost(shard.layout.folder)
        with self._lock:
            self._lost[shard.layout.folder] = (time.monotonic(), known | found)
        return len(found - known)


def sound(folder_lost: frozenset[int], blocks: int) -> BoolArray:
    """Which of the first ``blocks`` blocks are not known to be damaged: bool (blocks,)."""
    kept = np.ones(blocks, dtype=np.bool_)
    kept[[block for block in folder_lost if block < blocks]] = False
    return kept
