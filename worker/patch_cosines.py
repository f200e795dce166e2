"""Cosines of stored patches with query cells: by products of bytes where the index is int8, by
decoding them otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.core.background import novelty
from worker.core.types import BoolArray, FloatArray, IntArray
from worker.index.candidates import Candidates
from worker.index.scorer import (
    CandidateChunk,
    StoredPatches,
    candidate_chunks,
    grouped,
    read_chunks,
    read_together,
    reads_at_once,
)
from worker.index.store import PinnedShard
from worker.kernels.cosines import (
    best_cosines,
    cell_cosines,
    cosines_of_cells,
)
from worker.kernels.queries import ByteQuery, byte_query
from worker.kernels.threads import thread_pool

_FRAMES_AT_ONCE = 64
"""Two threads that share fewer are no faster than one: reading them is half Python's."""


@dataclass(frozen=True, slots=True, eq=False)
class QueryRows:
    """Unit rows float32 (q, d) that many frames are compared with; made by :func:`query_rows`."""

    rows_qd: FloatArray
    as_bytes: ByteQuery


def query_rows(rows_qd: FloatArray) -> QueryRows:
    """Rows made ready for comparing."""
    return QueryRows(rows_qd, byte_query(rows_qd))


def all_cosines(patches: StoredPatches, query: QueryRows) -> FloatArray:
    """Of every cell with every query row: float32 (m, q, cells)."""
    if patches.codec.name == "int8":
        return cell_cosines(patches.stored_mcd, query.as_bytes)
    decoded = patches.codec.decode(patches.stored_mcd)
    m, cells, d = decoded.shape
    flat = query.rows_qd @ decoded.reshape(-1, d).T
    return np.ascontiguousarray(flat.reshape(-1, m, cells).transpose(1, 0, 2))


def greatest_cosines(
    patches: StoredPatches, query: QueryRows, inside_c: BoolArray | None
) -> FloatArray:
    """The greatest of them over the cells that are looked at (bool (cells,); None: all), float32
    (m, q)."""
    if patches.codec.name == "int8":
        return best_cosines(patches.stored_mcd, query.as_bytes, inside_c)
    cosine_mqc = all_cosines(patches, query)
    looked_at = cosine_mqc if inside_c is None else cosine_mqc[:, :, inside_c]
    greatest: FloatArray = looked_at.max(axis=2)
    return greatest


def patch_novelty(patches: StoredPatches, background_cd: FloatArray | None) -> FloatArray:
    """:func:`worker.core.background.novelty` of stored patches, float32 (m, cells)."""
    if patches.codec.name == "int8" and background_cd is not None:
        return 1 - cosines_of_cells(patches.stored_mcd, background_cd)
    return novelty(patches.codec.decode(patches.stored_mcd), background_cd)


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
    threads: int = 1,
) -> Iterator[ScoredChunk]:
    """Cosines of q query patches with every cell of every candidate, in chunks, each computed by
    one of ``threads``.

    Raises :class:`IndexDamaged` when a shard's file does not hold what Postgres says.
    """
    query = query_rows(query_qd)
    for chunk, patches in read_chunks(shards, candidates, frames_per_chunk):
        computed = thread_pool(threads).submit(all_cosines, patches, query)
        yield ScoredChunk(chunk.position, computed.result())


def max_similarities(
    shards: Sequence[PinnedShard],
    candidates: Candidates,
    query_qd: FloatArray,
    inside_c: BoolArray | None,
    threads: int = 1,
) -> NDArray[np.float64]:
    """:func:`worker.core.ranking.max_similarity_score` of every candidate, float64 (n,), over the
    cells that are looked at. ``threads`` share them. Raises as above."""
    query = query_rows(query_qd)
    chunks = list(candidate_chunks(candidates, _FRAMES_AT_ONCE))
    reads = reads_at_once(shards, chunks)
    # What is fetched over the network is asked for shard by shard, several at a time.
    groups = list(grouped(chunks, _FRAMES_AT_ONCE if reads == 1 else 1))
    score_n = np.zeros(candidates.count)

    def look(group: list[CandidateChunk]) -> FloatArray:
        return greatest_cosines(read_together(shards, group), query, inside_c)

    looked = thread_pool(max(threads, reads)).map(look, groups)
    for group, greatest_mq in zip(groups, looked, strict=True):
        position = np.concatenate([chunk.position for chunk in group])
        score_n[position] = greatest_mq.mean(axis=1, dtype=np.float64)
    return score_n
