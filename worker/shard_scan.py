"""What stage 1 of the default search asks of shards: two likenesses of every one of their frames.

This is what grows with the archive, and so the seam along which it can be spread or replaced: a
:class:`ShardScan` is given shards and says how alike their frames are, wherever it computes that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from worker.core.coarse import CoarseQuery
from worker.core.compact import CODE_DIM, CompactBasis
from worker.core.run_codes import RunCodes
from worker.core.types import BoolArray, FloatArray
from worker.index.candidates import cosines_of_shards
from worker.index.compact_cache import CompactCache
from worker.index.store import IndexStore, PinnedShard
from worker.kernels.coarse import FRAMES_PER_CHUNK, best_similarities
from worker.kernels.directions import direction_cosines
from worker.kernels.run_codes import best_similarities_of_runs
from worker.kernels.threads import thread_pool


@dataclass(frozen=True, slots=True, eq=False)
class ScanQuery:
    """What frames are compared with. ``background_ck``: unit rows float32 (cells, k) in the
    projected space of ``basis``, by camera; None where nothing is known. ``global_d``: the
    whole-frame descriptor, float32 (d,). ``zone_c``: bool (cells,), the cells that are looked at;
    None for all."""

    coarse: CoarseQuery
    basis: CompactBasis
    background_ck: Mapping[int, FloatArray | None]
    global_d: FloatArray
    zone_c: BoolArray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ShardScores:
    """Of every block of one pinned shard, float32 (blocks,): ``appearance_n`` from its codes,
    ``global_n`` the whole-frame cosine."""

    appearance_n: FloatArray
    global_n: FloatArray


class ShardScan(Protocol):
    """Scores of shards for a query, in the order of the shards.

    Whoever implements it says exactly what :class:`LocalScan` says. Raises
    :class:`worker.errors.IndexDamaged`.
    """

    def __call__(self, query: ScanQuery, shards: Sequence[PinnedShard]) -> list[ShardScores]:
        """Each pinned frame of each shard."""
        ...


def warm_up() -> None:
    """Compile or load the kernels now, so that no query waits for it (seconds)."""
    codes_rk = np.zeros((64, CODE_DIM), dtype=np.int8)
    query_qk = np.ones((1, CODE_DIM), dtype=np.float32)
    known_ck = np.zeros((64, CODE_DIM), dtype=np.float32)
    best_similarities(iter([(0, codes_rk[None])]), 1, 1.0, query_qk, known_ck, 1, 64)
    runs = RunCodes(
        frames=1,
        cells=64,
        codes_rk=codes_rk,
        offset_r=np.arange(65, dtype=np.uint32),
        cell_r=np.arange(64, dtype=np.uint16),
        span_m2=np.zeros((64, 2), dtype=np.uint16),
    )
    best_similarities_of_runs(runs, 1.0, query_qk, known_ck)
    direction_cosines([codes_rk], query_qk[0])


@dataclass(frozen=True, slots=True)
class LocalScan:
    """In this process, from the files: the reference of every other :class:`ShardScan`."""

    store: IndexStore
    compact: CompactCache

    def __call__(self, query: ScanQuery, shards: Sequence[PinnedShard]) -> list[ShardScores]:
        """Each pinned frame of each shard. Raises :class:`IndexDamaged`."""
        codes = CodeScan(
            self.compact, query.basis, query.coarse.query_qk, query.background_ck, query.zone_c
        )
        best = codes.best(shards, query.coarse.likeness)
        alike = global_scores(self.store, shards, query.global_d, self.compact.threads)
        return [ShardScores(*scores) for scores in zip(best, alike, strict=True)]


def global_scores(
    store: IndexStore, shards: Sequence[PinnedShard], global_d: FloatArray, threads: int
) -> list[FloatArray]:
    """Whole-frame cosine of every block of each shard, float32 (blocks,)."""
    if shards and all(shard.layout.codec.name == "int8" for shard in shards):
        cosines = partial(direction_cosines, threads=threads)
        return cosines_of_shards(store, shards, global_d, cosines)
    return [store.global_descriptors(shard) @ global_d for shard in shards]


@dataclass(frozen=True, slots=True)
class CodeScan:
    """Query cells, float32 (q, k), over the codes of shards; ``background_ck``: in the projected
    space, by camera; ``zone_c``: bool (cells,), those that are looked at, or None for all."""

    compact: CompactCache
    basis: CompactBasis
    query_qk: FloatArray
    background_ck: Mapping[int, FloatArray | None]
    zone_c: BoolArray | None = None

    def best(
        self, shards: Sequence[PinnedShard], likeness: Callable[[FloatArray], FloatArray]
    ) -> list[FloatArray]:
        """``likeness``, (n, q) to (n,), of :func:`worker.core.coarse.best_similarity` of every
        frame of each shard: float32 (blocks,). Taken shard by shard: all at once are gigabytes."""

        def sealed_of(shard: PinnedShard) -> FloatArray:
            return likeness(self._sealed(shard))

        if self.compact.threads == 1:
            sealed = [sealed_of(shard) for shard in shards]
        else:  # a shard each: one of them is too little to share
            sealed = list(thread_pool(self.compact.threads).map(sealed_of, shards))
        return [
            best_n
            if len(best_n) == shard.blocks
            else np.concatenate([best_n, likeness(self._late(shard, len(best_n)))])
            for shard, best_n in zip(shards, sealed, strict=True)
        ]

    def _sealed(self, shard: PinnedShard) -> FloatArray:
        """Of the shard's first blocks, those that are sealed."""
        first, run_codes = self.compact.sealed(shard, self.basis)
        if run_codes is None:
            return np.empty((0, len(self.query_qk)), dtype=np.float32)
        best_fq = best_similarities_of_runs(
            run_codes,
            self.basis.step,
            self.query_qk,
            self.background_ck[shard.camera_id],
            self.zone_c,
        )
        return best_fq if first == run_codes.frames else best_fq[shard.stored_n[:first]]

    def _late(self, shard: PinnedShard, first: int) -> FloatArray:
        """Of its blocks from ``first`` on."""
        chunks = self.compact.chunks(shard, self.basis, FRAMES_PER_CHUNK, first)
        return best_similarities(
            ((start - first, codes) for start, codes in chunks),
            shard.blocks - first,
            self.basis.step,
            self.query_qk,
            self.background_ck[shard.camera_id],
            self.compact.threads,
            shard.layout.cells,
            self.zone_c,
        )
