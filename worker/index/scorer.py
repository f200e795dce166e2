"""Stage 2: patch similarities of candidates (paper section 3.4.3), read shard by shard."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from worker.core.types import FloatArray, IntArray
from worker.index.candidates import Candidates
from worker.index.store import PinnedShard

READS_AHEAD = 8
"""Chunks that are fetched over the network at a time; each is held in memory."""


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
    the candidate list, and float32 (m, cells, d). Reads and errors as above. Where some lie on
    object storage, the next chunks are read meanwhile."""
    chunks: list[tuple[int, IntArray]] = []
    for shard_position in np.unique(candidates.shard_position).tolist():
        members = np.flatnonzero(candidates.shard_position == shard_position)
        members = members[np.argsort(candidates.block[members], kind="stable")]
        starts = range(0, members.size, frames_per_chunk)
        chunks += [(shard_position, members[at : at + frames_per_chunk]) for at in starts]

    def read(shard_position: int, part: IntArray) -> tuple[int, IntArray, FloatArray]:
        patches = shards[shard_position].read("patch", candidates.block[part])
        return shard_position, part.astype(np.int64), patches

    if not any(shards[shard_position].moved for shard_position, _ in chunks):
        yield from (read(*chunk) for chunk in chunks)
        return
    with ThreadPoolExecutor(READS_AHEAD, thread_name_prefix="parts") as pool:
        waiting = deque[Future[tuple[int, IntArray, FloatArray]]]()
        for chunk in chunks:
            waiting.append(pool.submit(read, *chunk))
            if len(waiting) == READS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
