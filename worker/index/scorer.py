"""Stage 2: patch similarities of candidates (paper section 3.4.3), read shard by shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from worker.core.types import FloatArray, IntArray
from worker.index.candidates import Candidates
from worker.index.store import PinnedShard


@dataclass(frozen=True, slots=True)
class ScoredChunk:
    """Cosines of some candidates: ``position`` int64 (m,) into the candidate list, and
    ``similarity_mqc`` float32 (m, q, cells)."""

    position: IntArray
    similarity_mqc: FloatArray


def candidate_similarities(
    shards: Sequence[PinnedShard],
    candidates: Candidates,
    query_qd: FloatArray,
    frames_per_chunk: int = 64,
) -> Iterator[ScoredChunk]:
    """Cosines of q query patches with every cell of every candidate, in chunks.

    Patches are read in file order; memory is bounded by the chunk, not by the candidates.
    Raises :class:`IndexDamaged` when a shard's file does not hold what Postgres says.
    """
    q = query_qd.shape[0]
    for _, part, patches in candidate_patches(shards, candidates, frames_per_chunk):
        flat = query_qd @ patches.reshape(-1, patches.shape[2]).T
        similarity = flat.reshape(q, part.size, patches.shape[1]).transpose(1, 0, 2)
        yield ScoredChunk(part, np.ascontiguousarray(similarity))


def candidate_patches(
    shards: Sequence[PinnedShard], candidates: Candidates, frames_per_chunk: int = 64
) -> Iterator[tuple[int, IntArray, FloatArray]]:
    """Patches of every candidate in chunks of one shard: shard position, positions int64 (m,) in
    the candidate list, and float32 (m, cells, d). Reads and errors as above."""
    for shard_position in np.unique(candidates.shard_position):
        members = np.flatnonzero(candidates.shard_position == shard_position)
        members = members[np.argsort(candidates.block[members], kind="stable")]
        for start in range(0, members.size, frames_per_chunk):
            part = members[start : start + frames_per_chunk]
            patches = shards[shard_position].read("patch", candidates.block[part])
            yield int(shard_position), part.astype(np.int64), patches
