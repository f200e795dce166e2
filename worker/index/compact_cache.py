"""Compact codes of shards, kept in memory within a bound; derived from the vector files."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from worker.core.compact import CODE_DIM, Codes, CompactBasis, fit_basis
from worker.index.sample import even_sample, read_sample
from worker.index.store import PinnedShard

BASIS_FRAMES = 64
FRAMES_PER_READ = 64

_Key = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class CompactCache:
    """Codes of the shards searched last, at most ``max_bytes``. Safe to share between threads.

    Building one does no I/O. The first search of a generation fits its basis and codes what it
    reads; later searches code only frames that are new.
    """

    max_bytes: int = 512 * 1024 * 1024
    _bases: dict[str, CompactBasis] = field(default_factory=dict)
    _codes: OrderedDict[_Key, Codes] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def let_go(self) -> None:
        """Forget all codes, and the bases, which were fitted on them."""
        with self._lock:
            self._codes.clear()
            self._bases.clear()

    def fits(self, shards: Sequence[PinnedShard]) -> bool:
        """Whether the codes of all these shards may lie in memory together."""
        frames_cells = sum(shard.blocks * shard.layout.cells for shard in shards)
        return 0 < frames_cells * CODE_DIM <= self.max_bytes

    def basis(self, shards: Sequence[PinnedShard]) -> CompactBasis:
        """The generation's basis, fitted on frames taken evenly from the shards of first use."""
        generation = str(shards[0].layout.folder.parent)
        with self._lock:
            known = self._bases.get(generation)
        if known is not None:
            return known
        sample = even_sample(shards, BASIS_FRAMES)
        fitted = fit_basis(read_sample(shards, sample).reshape(-1, shards[0].layout.patch_dim))
        with self._lock:
            return self._bases.setdefault(generation, fitted)

    def codes(self, shard: PinnedShard, basis: CompactBasis) -> Codes:
        """int8 (blocks, cells, k) of a shard; only blocks that are new since are read."""
        key = shard.contents
        with self._lock:
            known = self._codes.get(key)
        have = 0 if known is None else known.shape[0]
        if known is None or have < shard.blocks:
            fresh = [
                basis.encode(
                    shard.read(
                        "patch", np.arange(start, min(start + FRAMES_PER_READ, shard.blocks))
                    )
                )
                for start in range(have, shard.blocks, FRAMES_PER_READ)
            ]
            known = np.concatenate(fresh if known is None else [known, *fresh])
        with self._lock:
            held = self._codes.get(key)
            if held is None or held.shape[0] < known.shape[0]:
                self._codes[key] = known
            self._codes.move_to_end(key)
            while sum(codes.nbytes for codes in self._codes.values()) > self.max_bytes:
                self._codes.popitem(last=False)
        return known[: shard.blocks]
