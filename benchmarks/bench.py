"""An archive with queries on it, and how a figure of it is taken and printed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.machine import machine
from models.index import IndexGeneration
from worker.context import Context
from worker.index.store import PinnedShard
from worker.ranked_frame import QueryDescriptors


@dataclass(frozen=True, slots=True)
class Bench:
    """An archive, and queries drawn on frames of it."""

    context: Context
    generation: IndexGeneration
    shards: list[PinnedShard]
    queries: list[tuple[int, QueryDescriptors]]

    @property
    def frames(self) -> int:
        return sum(shard.blocks for shard in self.shards)


def median_ms(call: Callable[[QueryDescriptors], object], bench: Bench) -> tuple[float, float]:
    """Median and 95th percentile over the queries, the first of which warms up."""
    times = []
    for _, query in (bench.queries[0], *bench.queries):
        began_s = time.perf_counter()
        call(query)
        times.append(1000 * (time.perf_counter() - began_s))
    return float(np.median(times[1:])), float(np.percentile(times[1:], 95))


def figure(
    name: str, value: float, unit: str, peer: str | None, peer_value: float | None, **more: Any
) -> None:
    ratio = None if not peer_value or not value else round(peer_value / value, 2)
    fields = {
        "name": name,
        "value": round(value, 3),
        "unit": unit,
        "peer": peer,
        "peer_value": None if peer_value is None else round(peer_value, 3),
        "ratio": ratio,
        "machine": machine(),
        **more,
    }
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()
