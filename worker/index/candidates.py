"""Stage 1: candidate frames by their global descriptor (paper section 3.4.2, eq. 4), with FAISS.

IndexFlatIP semantics: exact inner products. Filters by camera choose shards; filters by time are
exact to the frame and applied before the top-N, so a filter never costs results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import faiss
import numpy as np

from worker.core.ranking import best_positions
from worker.core.types import BoolArray, FloatArray, IntArray
from worker.errors import IndexDamaged
from worker.index.store import IndexStore, PinnedShard


class TimeSpan(TypedDict):
    """The time filter of a search, as keyword arguments; None leaves a side open."""

    t_from_epoch_s: float | None
    t_to_epoch_s: float | None


@dataclass(frozen=True, slots=True)
class Candidates:
    """n frames that passed stage 1, best first; int64 (n,) positions and float32 (n,) eq. 4."""

    shard_position: IntArray
    block: IntArray
    frame_id: IntArray
    score_n: FloatArray

    @property
    def count(self) -> int:
        """Number of candidates."""
        return int(self.block.size)

    def take(self, positions: IntArray) -> Candidates:
        """The candidates at these positions, in that order."""
        return Candidates(
            self.shard_position[positions],
            self.block[positions],
            self.frame_id[positions],
            self.score_n[positions],
        )


SHARDS_AT_ONCE = 128
"""Whose files are mapped together: each takes a file descriptor."""
Int8Cosines = Callable[[Sequence[np.ndarray], FloatArray], FloatArray]
"""Of rows stored as int8, in parts (n, d), with a vector (d,): float32, part after part."""


def global_candidates(
    store: IndexStore,
    shards: Sequence[PinnedShard],
    query_d: FloatArray,
    top_n: int,
    *,
    t_from_epoch_s: float | None = None,
    t_to_epoch_s: float | None = None,
    int8_cosines: Int8Cosines | None = None,
) -> Candidates:
    """The ``top_n`` frames by ``q_g . g_j`` over all shards; ties by lower frame id.

    Without ``int8_cosines`` rows that are stored as int8 are decoded, and kept so, for FAISS.
    """
    query_d = query_d.astype(np.float32)
    parts: list[tuple[IntArray, IntArray, IntArray, FloatArray]] = []
    as_bytes: list[_Span] = []
    for position, shard in enumerate(shards):
        blocks = _blocks_in_time(shard, t_from_epoch_s, t_to_epoch_s)
        if blocks.size == 0:
            continue
        if int8_cosines is not None and shard.layout.codec.name == "int8":
            as_bytes.append(_Span(position, shard, blocks))
            continue
        vectors = store.global_descriptors(shard)
        if blocks.size < len(vectors):  # else nothing is copied
            vectors = vectors[blocks]
        score, found = _best_rows(query_d, vectors, top_n)
        _refuse_lost(found, shard)
        chosen = blocks[found]
        parts.append((np.full(chosen.size, position), chosen, shard.f_map.frame_id[chosen], score))
    if as_bytes and int8_cosines is not None:
        parts.append(_best_of_bytes(store, as_bytes, query_d, top_n, int8_cosines))
    if not parts:
        none = np.empty(0, dtype=np.int64)
        return Candidates(none, none, none, np.empty(0, dtype=np.float32))
    shard_position, block, frame_id, score_n = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    order = np.lexsort((frame_id, -score_n))[:top_n]
    return Candidates(
        shard_position[order].astype(np.int64),
        block[order].astype(np.int64),
        frame_id[order].astype(np.int64),
        score_n[order].astype(np.float32),
    )


def cosines_of_shards(
    store: IndexStore, shards: Sequence[PinnedShard], query_d: FloatArray, cosines: Int8Cosines
) -> list[FloatArray]:
    """Of every block of shards of codec int8, float32 (blocks,) each."""
    spans = [_Span(at, shard, np.arange(shard.blocks)) for at, shard in enumerate(shards)]
    score_n = _span_cosines(store, spans, query_d, cosines)
    return np.split(score_n, np.cumsum([shard.blocks for shard in shards])[:-1])


class _Span(NamedTuple):
    """Blocks of one shard that the filters let in, in ascending order."""

    position: int
    shard: PinnedShard
    blocks: IntArray

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Those of the rows of all blocks; no copy where they lie side by side."""
        if self.blocks.size == 0:
            return rows[:0]
        first, end = int(self.blocks[0]), int(self.blocks[-1]) + 1
        beside = end - first == self.blocks.size
        return rows[first:end] if beside else rows[self.blocks]


def _span_cosines(
    store: IndexStore, spans: Sequence[_Span], query_d: FloatArray, cosines: Int8Cosines
) -> FloatArray:
    """float32, span after span."""
    parts = [np.empty(0, dtype=np.float32)]
    for first in range(0, len(spans), SHARDS_AT_ONCE):
        together = spans[first : first + SHARDS_AT_ONCE]
        stored = [span.of(store.stored_globals(span.shard)) for span in together]
        parts.append(cosines(stored, query_d))
    return np.concatenate(parts)


def _best_of_bytes(
    store: IndexStore,
    spans: Sequence[_Span],
    query_d: FloatArray,
    top_n: int,
    int8_cosines: Int8Cosines,
) -> tuple[IntArray, IntArray, IntArray, FloatArray]:
    """Shard position, block, frame id and score of the best rows of all shards together: to choose
    among a few of each costs more than their products."""
    if np.isnan(query_d).any():
        _refuse_lost(np.array([-1]), spans[0].shard)
    score_n = _span_cosines(store, spans, query_d, int8_cosines)
    frame_id = np.concatenate([span.of(span.shard.f_map.frame_id) for span in spans])
    found = best_positions(score_n, frame_id, top_n)
    ends = np.cumsum([span.blocks.size for span in spans])
    of_span = np.searchsorted(ends, found, side="right")
    starts = np.concatenate([[0], ends[:-1]])
    block = np.empty(found.size, dtype=np.int64)
    for number in np.unique(of_span):
        members = of_span == number
        block[members] = spans[number].blocks[found[members] - starts[number]]
    position = np.array([span.position for span in spans], dtype=np.int64)[of_span]
    return position, block, frame_id[found], score_n[found]


def _best_rows(
    query_d: FloatArray, vectors_nd: FloatArray, top_n: int
) -> tuple[FloatArray, IntArray]:
    """Scores and rows of the ``top_n`` best and of all that tie with the last of them."""
    n, asked = vectors_nd.shape[0], top_n + 1
    while True:
        score, row = faiss.knn(
            query_d.reshape(1, -1),
            np.ascontiguousarray(vectors_nd),
            min(asked, n),
            metric=faiss.METRIC_INNER_PRODUCT,
        )
        # FAISS takes any of the rows that tie; the lowest frame id is found among all of them.
        if asked >= n or score[0, -1] < score[0, top_n - 1]:
            return score[0], row[0]
        asked *= 2


def _refuse_lost(found: IntArray, shard: PinnedShard) -> None:
    """FAISS answers -1 for a row that compares with nothing: a NaN in the file or the query."""
    if (found < 0).any():
        raise IndexDamaged(f"{shard.layout.folder}: a descriptor is NaN; run `ris verify`")


def in_time(
    shard: PinnedShard,
    t_from_epoch_s: float | None = None,
    t_to_epoch_s: float | None = None,
) -> BoolArray:
    """Which frames of a shard the filters let in, those in [t_from, t_to): bool (blocks,)."""
    inside = np.full(shard.blocks, shard.searched, dtype=np.bool_)
    if t_from_epoch_s is not None:
        inside &= shard.t_epoch_s >= t_from_epoch_s
    if t_to_epoch_s is not None:
        inside &= shard.t_epoch_s < t_to_epoch_s
    return inside


def _blocks_in_time(
    shard: PinnedShard, t_from_epoch_s: float | None, t_to_epoch_s: float | None
) -> IntArray:
    return np.flatnonzero(in_time(shard, t_from_epoch_s, t_to_epoch_s)).astype(np.int64)


def patch_neighbours(
    shards: Sequence[PinnedShard],
    query_qd: FloatArray,
    k: int,
    blocks_per_read: int = 64,
    *,
    t_from_epoch_s: float | None = None,
    t_to_epoch_s: float | None = None,
    exclude_frame_id: int | None = None,
    inside_c: BoolArray | None = None,
) -> tuple[FloatArray, IntArray]:
    """k nearest patches of the *whole* index per query patch (table 1 without a global gate).

    Returns similarity float32 (q, k), best first, and frame id int64 (q, k), -1 where fewer than
    k patches are there. Rows become frames through f_map (eq. 3). Filters are exact; ``inside_c``,
    bool (cells,), are the cells that are looked at.
    """
    q = query_qd.shape[0]
    best = np.full((q, k), -np.inf, dtype=np.float32)
    frames = np.full((q, k), -1, dtype=np.int64)
    for shard in shards:
        cells = np.arange(shard.layout.cells) if inside_c is None else np.flatnonzero(inside_c)
        inside = _blocks_in_time(shard, t_from_epoch_s, t_to_epoch_s)
        inside = inside[shard.f_map.frame_id[inside] != exclude_frame_id]
        for start in range(0, inside.size, blocks_per_read):
            blocks = inside[start : start + blocks_per_read]
            patches = shard.read("patch", blocks)
            if inside_c is not None:
                patches = np.ascontiguousarray(patches[:, cells])
            score, row = faiss.knn(
                query_qd,
                patches.reshape(-1, shard.layout.patch_dim),
                min(k, patches.shape[0] * patches.shape[1]),
                metric=faiss.METRIC_INNER_PRODUCT,
            )
            _refuse_lost(row, shard)
            place, cell = np.divmod(row.ravel(), cells.size)
            start_row = shard.f_map.start_row[blocks[place]]
            frame_id, _, _ = shard.f_map.resolve(start_row + cells[cell])
            best, frames = _merge(best, frames, score, frame_id.reshape(row.shape), k)
    return best, frames


def candidates_of_frames(
    store: IndexStore, shards: Sequence[PinnedShard], query_d: FloatArray, frame_ids: IntArray
) -> Candidates:
    """The given frames (distinct) as candidates with their eq. 4 score, in order of frame id."""
    parts = []
    for position, shard in enumerate(shards):
        block = np.flatnonzero(np.isin(shard.f_map.frame_id[: shard.blocks], frame_ids))
        score = store.global_descriptors(shard)[block] @ query_d
        parts.append((np.full(block.size, position), block, shard.f_map.frame_id[block], score))
    shard_position, block, frame_id, score_n = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    order = np.argsort(frame_id, kind="stable")
    return Candidates(
        shard_position[order].astype(np.int64),
        block[order].astype(np.int64),
        frame_id[order].astype(np.int64),
        score_n[order].astype(np.float32),
    )


def _merge(
    best: FloatArray, frames: IntArray, score: FloatArray, frame_id: IntArray, k: int
) -> tuple[FloatArray, IntArray]:
    score_all = np.concatenate([best, score], axis=1)
    frame_all = np.concatenate([frames, frame_id], axis=1)
    order = np.argsort(-score_all, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(score_all, order, 1), np.take_along_axis(frame_all, order, 1)
