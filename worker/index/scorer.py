"""Patches of candidates for stage 2 (paper section 3.4.3), read shard by shard."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from worker.core.types import IntArray
from worker.index.candidates import Candidates
from worker.index.codec import Codec
from worker.index.store import PinnedShard

READS_AHEAD = 8
"""Chunks that are fetched over the network at a time; each is held in memory."""


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


@dataclass(frozen=True, slots=True, eq=False)
class StoredPatches:
    """Patches of some frames as they are stored, (m, cells, d)."""

    stored_mcd: np.ndarray
    codec: Codec


def read_chunk(shards: Sequence[PinnedShard], chunk: CandidateChunk) -> StoredPatches:
    """Patches of a chunk. Raises :class:`IndexDamaged` when a shard's file does not hold what
    Postgres says."""
    return patches_of(shards[chunk.shard_position], chunk.block)


def read_together(shards: Sequence[PinnedShard], chunks: Sequence[CandidateChunk]) -> StoredPatches:
    """Patches of several chunks of one generation, one behind the other. Raises as above."""
    layout = shards[chunks[0].shard_position].layout
    frames = sum(chunk.block.size for chunk in chunks)
    stored_mcd = np.empty((frames, layout.cells, layout.patch_dim), dtype=layout.codec.dtype)
    start = 0
    for chunk in chunks:
        end = start + chunk.block.size
        shards[chunk.shard_position].stored_patches(chunk.block, out=stored_mcd[start:end])
        start = end
    return StoredPatches(stored_mcd, layout.codec)


def grouped(chunks: Iterable[CandidateChunk], frames: int) -> Iterator[list[CandidateChunk]]:
    """Chunks in order, in groups of about ``frames`` frames; one that has more stands alone."""
    group: list[CandidateChunk] = []
    for chunk in chunks:
        held = sum(member.block.size for member in group)
        if group and held + chunk.block.size / 2 > frames:
            yield group
            group = []
        group.append(chunk)
    if group:
        yield group


def patches_of(shard: PinnedShard, blocks: IntArray) -> StoredPatches:
    """Patches of some blocks. Raises as above."""
    return StoredPatches(shard.stored_patches(blocks), shard.layout.codec)


def reads_at_once(shards: Sequence[PinnedShard], chunks: Iterable[CandidateChunk]) -> int:
    """How many chunks are best read at a time: several where some lie on object storage."""
    return READS_AHEAD if any(shards[chunk.shard_position].moved for chunk in chunks) else 1


def read_chunks(
    shards: Sequence[PinnedShard], candidates: Candidates, frames_per_chunk: int = 64
) -> Iterator[tuple[CandidateChunk, StoredPatches]]:
    """Every chunk with its patches, in file order: memory is bounded by the chunk, not by the
    candidates. Where some lie on object storage, the next are read meanwhile. Raises as above."""
    chunks = list(candidate_chunks(candidates, frames_per_chunk))
    if reads_at_once(shards, chunks) == 1:
        yield from ((chunk, read_chunk(shards, chunk)) for chunk in chunks)
        return
    with ThreadPoolExecutor(READS_AHEAD, thread_name_prefix="parts") as pool:
        waiting = deque[tuple[CandidateChunk, Future[StoredPatches]]]()
        for chunk in chunks:
            waiting.append((chunk, pool.submit(read_chunk, shards, chunk)))
            if len(waiting) == READS_AHEAD:
                first, read = waiting.popleft()
                yield first, read.result()
        for first, read in waiting:
            yield first, read.result()
