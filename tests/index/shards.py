"""Vector files made on the spot from random or hand-picked descriptors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worker.core.f_map import FMapRuns
from worker.core.similarity import l2_normalise
from worker.core.types import Descriptors, FloatArray
from worker.index import shard
from worker.index.codec import codec_named
from worker.index.layout import FileKind, ShardLayout
from worker.index.shard import append_blocks
from worker.index.store import PinnedShard

CELLS, GLOBAL_DIM, PATCH_DIM = 6, 5, 4


def layout_in(folder: Path, codec: str = "fp32", spec_hash: str = "a" * 64) -> ShardLayout:
    return ShardLayout(folder, spec_hash, codec_named(codec), GLOBAL_DIM, PATCH_DIM, CELLS)


def random_descriptors(n: int, seed: int = 0) -> Descriptors:
    rng = np.random.default_rng(seed)
    return Descriptors(
        l2_normalise(rng.standard_normal((n, GLOBAL_DIM))),
        l2_normalise(rng.standard_normal((n, CELLS, PATCH_DIM))),
    )


def few_valued(n: int, seed: int) -> Descriptors:
    """Eighths from a small range: sums are exact, ties are many, and products are those of cosines,
    -1 to 1."""
    rng = np.random.default_rng(seed)
    return Descriptors(
        rng.integers(-1, 2, (n, GLOBAL_DIM)).astype(np.float32) / np.float32(8),
        rng.integers(-1, 2, (n, CELLS, PATCH_DIM)).astype(np.float32) / np.float32(8),
    )


def pinned(
    layout: ShardLayout,
    descriptors: Descriptors,
    frame_ids: Sequence[int],
    t_epoch_s: Sequence[float] | None = None,
    shard_id: int = 1,
    camera_id: int = 1,
) -> PinnedShard:
    """Write a shard and pin all of it."""
    sums_n2 = append_blocks(layout, 0, descriptors)
    n = len(frame_ids)
    f_map = FMapRuns(
        np.arange(n, dtype=np.int64) * CELLS,
        np.full(n, CELLS, dtype=np.int64),
        np.array(frame_ids, dtype=np.int64),
        np.zeros(n, dtype=np.int64),
    )
    times = np.array(range(n) if t_epoch_s is None else t_epoch_s, dtype=np.float64)
    return PinnedShard(shard_id, camera_id, n, layout, f_map, times, np.arange(n), sums_n2[:n])


def read_blocks(layout: ShardLayout, kind: FileKind, start: int, count: int) -> FloatArray:
    """Neighbouring blocks as float32, not checked against checksums."""
    unknown_n2 = np.full((count, 2), -1, dtype=np.int64)
    return shard.read_blocks(layout, kind, range(start, start + count), unknown_n2)
