"""The two-stage search of an archive against a plain loop, its limit, and other engines."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from benchmarks.bench import Bench, figure, median_ms
from benchmarks.peers import GATE, TOP, Search, forget_pgvector, lancedb, pgvector, qdrant
from models.session import connect
from worker.core.search_params import SearchParams, Strategy
from worker.index.candidates import Candidates, global_candidates
from worker.kernels.directions import direction_cosines
from worker.patch_cosines import max_similarities
from worker.pinning import spec_of
from worker.ranked_frame import QueryDescriptors
from worker.two_stage import search_shards


def two_stage(bench: Bench, query: QueryDescriptors) -> list[tuple[int, float]]:
    params = SearchParams(strategy=Strategy.MAX_SIM, top_n=GATE, limit=TOP)
    spec = spec_of(bench.generation)
    ranked = search_shards(
        bench.context.index,
        bench.shards,
        query,
        params,
        tau=spec.tau,
        grid=spec.grid,
        regions_for=0,
        compact=bench.context.compact,
    )
    return [(frame.frame_id, frame.score) for frame in ranked[:TOP]]


def plain_loop(bench: Bench, query: QueryDescriptors) -> list[tuple[int, float]]:
    """The same in a loop over frames, as it is first written."""
    chosen = global_candidates(bench.context.index, bench.shards, query.global_d, GATE)
    scored = []
    for at in range(chosen.count):
        shard = bench.shards[int(chosen.shard_position[at])]
        patches_cd = shard.read("patch", [int(chosen.block[at])])[0]
        best = [max(float(q @ p) for p in patches_cd) for q in query.patches_qd]
        scored.append((int(chosen.frame_id[at]), float(np.mean(best))))
    return sorted(scored, key=lambda pair: -pair[1])[:TOP]


def stage_1(bench: Bench, query: QueryDescriptors) -> Candidates:
    """The candidates, chosen as the search chooses them."""
    return global_candidates(
        bench.context.index,
        bench.shards,
        query.global_d,
        GATE,
        int8_cosines=partial(direction_cosines, threads=bench.context.compact.threads),
    )


def read_once(bench: Bench, chosen: Candidates) -> None:
    """The limit: the candidates' stored patches, read and not looked at."""
    for at in range(chosen.count):
        layout = bench.shards[int(chosen.shard_position[at])].layout
        size = layout.block_bytes("patch")
        with layout.path("patch").open("rb", buffering=0) as file:
            file.seek(4096 + int(chosen.block[at]) * size)
            file.read(size)


def compare(bench: Bench, pgvector_url: str | None = None) -> None:
    """Print every figure; ``pgvector_url``: a Postgres that has it, else the benchmark's own."""
    ours_ms, ours_95_ms = median_ms(lambda query: two_stage(bench, query), bench)
    name = f"two-stage-{bench.frames}"
    agreed = [
        [f for f, _ in two_stage(bench, query)] == [f for f, _ in plain_loop(bench, query)]
        for _, query in bench.queries[:3]
    ]
    loop_ms, _ = median_ms(
        lambda query: plain_loop(bench, query), replace(bench, queries=bench.queries[:3])
    )
    same = {"same_top_10": all(agreed), "peer_n": len(agreed)}
    figure(name, ours_ms, "ms", "plain loop", loop_ms, p95=ours_95_ms, **same)
    compare_stage_2(bench)
    compare_engines(bench, pgvector_url or str(bench.context.settings.database_url))


def compare_stage_2(bench: Bench) -> None:
    """Stage 2 alone, of candidates chosen before, against reading their bytes once."""
    chosen = {id(query): stage_1(bench, query) for _, query in bench.queries}

    def stage_2(query: QueryDescriptors) -> object:
        threads = bench.context.compact.threads
        return max_similarities(bench.shards, chosen[id(query)], query.patches_qd, None, threads)

    read_ms, _ = median_ms(lambda query: read_once(bench, chosen[id(query)]), bench)
    ours_ms, ours_95_ms = median_ms(stage_2, bench)
    peer = "reading the candidates once"
    figure(f"stage-2-{bench.frames}", ours_ms, "ms", peer, read_ms, p95=ours_95_ms)
    first_ms, _ = median_ms(lambda query: stage_1(bench, query), bench)
    figure(f"stage-1-{bench.frames}", first_ms, "ms", None, None)


def compare_engines(bench: Bench, pgvector_url: str) -> None:
    """Each that is installed: how long it takes, ours minutes beside it, and whether it answers the
    same."""
    name = f"two-stage-{bench.frames}"
    shards, spec, folder = bench.shards, spec_of(bench.generation), bench.context.settings.data_dir
    other = connect(pgvector_url, application_name="ris benchmark", statement_timeout_ms=3_600_000)
    peers: dict[str, Callable[[], Search]] = {
        "Qdrant Edge": lambda: qdrant(shards, spec, f"{folder}/qdrant", quantised=False),
        "Qdrant Edge int8": lambda: qdrant(shards, spec, f"{folder}/qdrant-int8", quantised=True),
        "LanceDB gated": lambda: lancedb(shards, spec, f"{folder}/lance-gated", gated=True),
        "LanceDB multivector": lambda: lancedb(shards, spec, f"{folder}/lance", gated=False),
        "pgvector": lambda: pgvector(shards, spec, other),
    }
    for peer, made in peers.items():
        try:
            search = made()
        except ImportError as error:
            sys.stderr.write(f"{peer}: not here ({error})\n")
            continue
        peer_ms, _ = median_ms(search, bench)
        ours_ms, _ = median_ms(lambda query: two_stage(bench, query), bench)
        found = [(search(query), two_stage(bench, query)) for _, query in bench.queries]
        same_first = [theirs[0][0] == own[0][0] for theirs, own in found]
        same_top = [[f for f, _ in theirs] == [f for f, _ in own] for theirs, own in found]
        figure(
            name,
            ours_ms,
            "ms",
            peer,
            peer_ms,
            same_first=float(np.mean(same_first)),
            same_top_10=float(np.mean(same_top)),
        )
    forget_pgvector(other)
