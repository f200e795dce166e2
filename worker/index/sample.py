"""A few frames of many, taken evenly in time: what is learnt of footage is learnt from these."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worker.core.types import FloatArray
from worker.index.store import PinnedShard

GROWTH = 1.05

Sample = tuple[tuple[int, int], ...]
"""(position of the shard, block) of each frame."""


def even_sample(shards: Sequence[PinnedShard], count: int) -> Sample:
    """At most ``count`` frames, evenly spaced in time, as sorted (shard position, block).

    Only the first frames in time are looked at, as many as the last step of a series that grows by
    ``GROWTH`` allows: while a camera records, the sample changes at those steps, not with every
    frame. The same pinned frames always give the same sample.
    """
    shard_of = np.concatenate([np.full(shard.blocks, at) for at, shard in enumerate(shards)])
    block_of = np.concatenate([np.arange(shard.blocks) for shard in shards])
    in_time = np.argsort(np.concatenate([shard.t_epoch_s for shard in shards]), kind="stable")
    known = _last_step(in_time.size)
    steps = np.linspace(0, known - 1, min(count, known)).round().astype(np.int64)
    chosen = in_time[steps]
    return tuple(sorted((int(shard_of[at]), int(block_of[at])) for at in chosen))


def _last_step(frames: int) -> int:
    step = 1
    while (following := max(step + 1, int(step * GROWTH))) <= frames:
        step = following
    return min(step, frames)


def read_sample(shards: Sequence[PinnedShard], sample: Sample) -> FloatArray:
    """Patches of sampled frames, float32 (n, c, d)."""
    blocks: dict[int, list[int]] = {}
    for position, block in sample:
        blocks.setdefault(position, []).append(block)
    return np.concatenate([shards[at].read("patch", b) for at, b in blocks.items()])
