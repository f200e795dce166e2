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
    for chunk in candidate_chunks(candidates, frames_per_chunk):
        patches = read_chunk(shards, chunk)
        flat = query_qd @ patches.reshape(-1, patches.shape[2]).T
        similarity = flat.reshape(q, chunk.position.size, patches.shape[1]).transpose(1, 0, 2)
        yield ScoredChunk(chunk.position, np.ascontiguousarray(similarity))


@dataclass(frozen=True, slots=True)
class CandidateChunk:
    """Candidates of one shard, in file order: ``position`` int64 (m,) into the candidate list, and
    ``block`` int64 (m,)."""

    shard_position: int
    position: IntArray
    block: IntArray


def candidate_chunks(
    candidates: Candidates, frames_per_chunk: int = 64
) -> Iterator[CandidateChunk]:
    """Every candidate once, shard by shard."""
    for shard_position in np.unique(candidates.shard_position):
        members = np.flatnonzero(candidates.shard_position == shard_position)
        members = members[np.argsort(candidates.block[members], kind="stable")]
        for start in range(0, members.size, frames_per_chunk):
            part = members[start : start + frames_per_chunk]
            yield CandidateChunk(int(shard_position), part.astype(np.int64), candidates.block[part])


def read_chunk(shards: Sequence[PinnedShard], chunk: CandidateChunk) -> FloatArray:
    """Patches of a chunk, float32 (m, cells, d). Raises as above."""
    return shards[chunk.shard_position].read("patch", chunk.block)
