"""A few frames of many, taken evenly in time: what is learnt of footage is learnt from these."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worker.core.types import FloatArray
from worker.index.shard import read_patches
from worker.index.store import PinnedShard


def sampled_patches(shards: Sequence[PinnedShard], count: int) -> FloatArray:
    """Patches of at most ``count`` frames, float32 (n, c, d), in no particular order.

    The same pinned frames always give the same sample, however they are cut into shards.
    """
    shard_of = np.concatenate([np.full(shard.blocks, at) for at, shard in enumerate(shards)])
    block_of = np.concatenate([np.arange(shard.blocks) for shard in shards])
    in_time = np.argsort(np.concatenate([shard.t_epoch_s for shard in shards]), kind="stable")
    steps = np.linspace(0, in_time.size - 1, min(count, in_time.size)).round().astype(np.int64)
    chosen = in_time[steps]
    parts = [
        read_patches(shards[at].layout, np.sort(block_of[chosen[shard_of[chosen] == at]]).tolist())
        for at in np.unique(shard_of[chosen])
    ]
    return np.concatenate(parts)
