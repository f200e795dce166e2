"""Latency of the two-stage search over one shard, against plain code on the same vectors.

    .venv/bin/python -m benchmarks.search [--frames 2000] [--queries 20]

Descriptors are random unit vectors: right for speed, meaningless for quality. Prints one JSON
object per figure; the peer is the same search written as loops over core's slow references.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.machine import machine
from worker.core.f_map import FMapRuns
from worker.core.ranking import max_similarity_score, rank
from worker.core.region_growing import grow_from_seed, region_score, select_seeds
from worker.core.search_params import SearchParams, Strategy
from worker.core.similarity import cosine_matrix, global_scores, l2_normalise
from worker.core.types import Descriptors, FloatArray, GridSize, IntArray
from worker.index.codec import codec_named
from worker.index.layout import ShardLayout
from worker.index.shard import append_blocks
from worker.index.store import IndexStore, PinnedShard
from worker.ranked_frame import QueryDescriptors
from worker.two_stage import search_shards

GRID = GridSize(16, 16)
PATCH_DIM, GLOBAL_DIM = 192, 320
TOP_N, QUERY_CELLS, TAU = 200, (4, 6), 0.12


def make_shard(folder: Path, frames: int, rng: np.random.Generator) -> PinnedShard:
    layout = ShardLayout(folder, "random", codec_named("fp16"), GLOBAL_DIM, PATCH_DIM, GRID.cells)
    sums: list[IntArray] = []
    for start in range(0, frames, 100):
        n = min(100, frames - start)
        made = Descriptors(unit(rng, (n, GLOBAL_DIM)), unit(rng, (n, GRID.cells, PATCH_DIM)))
        sums.append(append_blocks(layout, start, made))
    block = np.arange(frames, dtype=np.int64)
    cells = np.full(frames, GRID.cells, dtype=np.int64)
    f_map = FMapRuns(block * GRID.cells, cells, block + 1, np.zeros(frames, dtype=np.int64))
    t_epoch_s = block.astype(np.float64)
    return PinnedShard(1, 1, frames, layout, f_map, t_epoch_s, block, np.concatenate(sums))


def unit(rng: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    return l2_normalise(rng.standard_normal(shape, dtype=np.float32))


def make_query(rng: np.random.Generator) -> QueryDescriptors:
    rows, cols = QUERY_CELLS
    cells = np.argwhere(np.ones((rows, cols))).astype(np.int64) + 4
    return QueryDescriptors(unit(rng, (rows * cols, PATCH_DIM)), cells, unit(rng, (GLOBAL_DIM,)))


def plain_search(
    store: IndexStore, shard: PinnedShard, query: QueryDescriptors, strategy: Strategy
) -> None:
    """The same search as loops: one read, one product, one growth at a time."""
    scores = global_scores(query.global_d, store.global_descriptors(shard))
    chosen = np.argsort(-scores, kind="stable")[:TOP_N]
    score_n = np.zeros(len(chosen))
    for place, block in enumerate(chosen):
        patches_cd = shard.read("patch", [int(block)])[0]
        similarity_qc = cosine_matrix(query.patches_qd, patches_cd)
        if strategy is Strategy.MAX_SIM:
            score_n[place] = max_similarity_score(similarity_qc)
            continue
        seeds = select_seeds(similarity_qc, query.cells, GRID, TAU, k_s=5)
        regions = [
            grow_from_seed(similarity_qc, query.cells, GRID, TAU, seed, mode="rigid")
            for seed in seeds
        ]
        score_n[place] = max(
            (region_score(similarity_qc, region, 1.0, "distinct") for region in regions),
            default=0.0,
        )
    rank(score_n, scores[chosen])


def p50_ms(run: Callable[[int], object], queries: int) -> float:
    run(0)
    times_s = []
    for number in range(queries):
        started_s = time.perf_counter()
        run(number)
        times_s.append(time.perf_counter() - started_s)
    return 1000 * float(np.median(times_s))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--queries", type=int, default=20)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="ris-bench-") as folder:
        shard = make_shard(Path(folder) / "s1", given.frames, rng)
        store = IndexStore(Path(folder))
        queries = [make_query(rng) for _ in range(given.queries)]
        for strategy in (Strategy.MAX_SIM, Strategy.GROW_RIGID):
            params = SearchParams(strategy=strategy, top_n=TOP_N)

            def ours(number: int, params: SearchParams = params) -> object:
                return search_shards(
                    store, [shard], queries[number], params, tau=TAU, grid=GRID, regions_for=0
                )

            def plain(number: int, strategy: Strategy = strategy) -> None:
                plain_search(store, shard, queries[number], strategy)

            value, peer_value = p50_ms(ours, given.queries), p50_ms(plain, given.queries)
            figure = {
                "name": f"search-{strategy.value}-p50-{given.frames}-frames",
                "value": round(value, 3),
                "unit": "ms",
                "peer": "loops over core references, same vectors",
                "peer_value": round(peer_value, 3),
                "ratio": round(peer_value / value, 3),
                "n": given.queries,
                "machine": machine(),
            }
            print(json.dumps(figure))


if __name__ == "__main__":
    main()
