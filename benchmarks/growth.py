"""Time to grow the regions of many candidates, compiled, against the core's reference.

    .venv/bin/python -m benchmarks.growth [--candidates 1000] [--peer-candidates 50]

Descriptors are random fields, smoothed over the grid so that neighbours look alike and regions
exist; tau lets a tenth of all pairs match. One thread. Prints one JSON object per figure; the
peer's time is scaled up from fewer candidates. The last figure is the first call of a new process
with the kernel kept on disk, against one that compiles it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from benchmarks.machine import machine
from worker.core.region_growing import GrowthMode, grow_seedless
from worker.core.similarity import l2_normalise
from worker.core.types import FloatArray, GridSize
from worker.kernels.region_growing import grow_seedless_chunk

GRID = GridSize(16, 16)
PATCH_DIM, CHUNK, MATCHING_SHARE = 192, 64, 0.1
QUERY_CELLS = np.argwhere(np.ones((6, 8))).astype(np.int64) + 4
MODES: tuple[GrowthMode, ...] = ("rigid", "elastic")

FIRST_CALL = """
import time
import numpy as np
from worker.core.types import GridSize
from worker.kernels.region_growing import grow_seedless_chunk
similarity, cells = np.ones((1, 1, 1), dtype=np.float32), np.zeros((1, 2), dtype=np.int64)
started_s = time.perf_counter()
grow_seedless_chunk(similarity, cells, GridSize(1, 1), 0.5, "rigid")
print(time.perf_counter() - started_s)
"""


def smooth_patches(rng: np.random.Generator, frames: int) -> FloatArray:
    """Unit patch descriptors, alike among neighbours: float32 (frames, cells, PATCH_DIM)."""
    field = rng.standard_normal((frames, GRID.h, GRID.w, PATCH_DIM), dtype=np.float32)
    for axis in (1, 2):
        for _ in range(2):
            field = field + np.roll(field, 1, axis) + np.roll(field, -1, axis)
    field += field.std() * rng.standard_normal(field.shape[-1], dtype=np.float32) / 2
    return l2_normalise(field.reshape(frames, GRID.cells, PATCH_DIM))


def similarities(rng: np.random.Generator, candidates: int) -> FloatArray:
    """Cosines of one query with every candidate: float32 (candidates, q, cells)."""
    patch_id = QUERY_CELLS[:, 0] * GRID.w + QUERY_CELLS[:, 1]
    query_qd = smooth_patches(rng, 1)[0, patch_id]
    made = np.empty((candidates, len(query_qd), GRID.cells), dtype=np.float32)
    for start in range(0, candidates, CHUNK):
        patches = smooth_patches(rng, min(CHUNK, candidates - start))
        patches[:, patch_id] += (
            rng.uniform(0, 2, (len(patches), 1, 1)).astype(np.float32) * query_qd
        )
        made[start : start + CHUNK] = query_qd @ l2_normalise(patches).transpose(0, 2, 1)
    return made


def seconds(run: Callable[[], object], repeats: int = 1) -> float:
    """Median wall time."""
    times_s = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        run()
        times_s.append(time.perf_counter() - started_s)
    return float(np.median(times_s))


def first_call_s(cache: str) -> float:
    """Seconds of the first call in a new process that keeps its kernel in ``cache``."""
    env = dict(os.environ, NUMBA_CACHE_DIR=cache)
    ran = subprocess.run(
        [sys.executable, "-c", FIRST_CALL], env=env, capture_output=True, text=True, check=True
    )
    return float(ran.stdout)


def report(name: str, value: float, peer: str, peer_value: float, n: int) -> None:
    figure = {
        "name": name,
        "value": round(value, 3),
        "unit": "s",
        "peer": peer,
        "peer_value": round(peer_value, 3),
        "ratio": round(peer_value / value, 3),
        "n": n,
        "machine": machine(),
    }
    print(json.dumps(figure), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--peer-candidates", type=int, default=50)
    given = parser.parse_args()
    similarity = similarities(np.random.default_rng(0), given.candidates)
    tau = float(np.quantile(similarity, 1 - MATCHING_SHARE))
    few = similarity[: given.peer_candidates]
    for mode in MODES:

        def ours(mode: GrowthMode = mode) -> None:
            for start in range(0, len(similarity), CHUNK):
                chunk = similarity[start : start + CHUNK]
                grow_seedless_chunk(chunk, QUERY_CELLS, GRID, tau, mode)

        def plain(mode: GrowthMode = mode) -> None:
            for similarity_qc in few:
                grow_seedless(similarity_qc, QUERY_CELLS, GRID, tau, mode)

        grow_seedless_chunk(similarity[:1], QUERY_CELLS, GRID, tau, mode)
        value, peer_value = seconds(ours, 5), seconds(plain, 3) * len(similarity) / len(few)
        name = f"growth-{mode}-{len(similarity)}-candidates"
        report(name, value, "core grow_seedless one by one, scaled", peer_value, len(similarity))
    with tempfile.TemporaryDirectory(prefix="ris-bench-") as cache:
        compiling_s, loading_s = first_call_s(cache), first_call_s(cache)
    report("growth-first-call", loading_s, "compiling the kernel", compiling_s, 1)


if __name__ == "__main__":
    main()
