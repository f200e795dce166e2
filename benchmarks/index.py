"""How fast the index answers, against peers on the same vectors and against limits of the machine.

    .venv/bin/python -m benchmarks.index [--frames 20000] [--queries 20] [--part default]
        [--footage varied|fixed] [--sealed]

Makes an archive of real descriptors, moved and varied or as fixed cameras see them
(benchmarks/archive.py), with compact codes on disk, in a throw-away folder: 66 kB a frame, sealed a
fraction. Then, warm, in this process:

- two-stage: the paper's search, 50 candidates by global descriptor, then MaxSim; its peers are the
  same search in a plain loop, reading the candidates' bytes once, and, where they are installed,
  Qdrant Edge (`qdrant-edge-py`: prefetch 50, MaxSim over multivectors; fp32, and int8 beside it),
  LanceDB (`lancedb`: gated by the whole frame, and its multivector search alone) and pgvector (of
  the Postgres here, or of the one that `--pgvector URL` names);
- every-cell: MaxSim over the codes of every frame; its peers are the plain loop over 50 frames, and
  the slow reference; how many of the exact best are among its best (the made-up frames come in
  families of nearly equal ones, whose order only the full descriptors tell);
- times: only how long these two take, for large archives;
- default: the whole default search without the query's embedding, over everything, and over one
  camera's hour;
- cold: what the first query of a process pays for opening the index.

Prints one JSON line per figure. Only the search of the vectors is timed: no task, no row.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.archive import (
    START,
    embed_footage,
    fixed_footage,
    make_archive,
    varied_footage,
)
from benchmarks.bench import Bench, figure, median_ms
from benchmarks.peers import GATE
from benchmarks.scratch import reader, scratch_context
from benchmarks.two_stage import compare, plain_loop, two_stage
from models.index import IndexGeneration
from models.repositories import codes as codes_record
from models.repositories import index as index_record
from models.repositories import jobs as job_record
from worker import compacting, sealing
from worker.context import Context
from worker.core.backbone_spec import BackboneSpec
from worker.core.coarse import best_similarity
from worker.core.compact import CODE_DIM
from worker.core.search_params import SearchParams
from worker.core.types import Box, FloatArray
from worker.describe import describe_query
from worker.generations import ensure_live_generation
from worker.jobs import Handler, run_job
from worker.kernels import cosines, region_growing, trail
from worker.logs import configure_logging
from worker.pinning import pin_shards, spec_of
from worker.ranked_frame import QueryDescriptors
from worker.sealing import sealed_cameras
from worker.search import search_generation
from worker.shard_scan import CodeScan
from worker.shard_scan import warm_up as scan_warm_up

ROI = Box(0.3, 0.3, 0.6, 0.6)


def every_cell(bench: Bench, query: QueryDescriptors) -> FloatArray:
    """Coarse MaxSim of every frame, float32 (frames,)."""
    compact = bench.context.compact
    basis = compact.basis(bench.shards)
    plain = {shard.camera_id: None for shard in bench.shards}
    scan = CodeScan(compact, basis, basis.project(query.patches_qd), plain)
    return np.concatenate(scan.best(bench.shards, lambda best_nq: best_nq.mean(axis=1)))


def every_cell_slowly(bench: Bench, query: QueryDescriptors) -> None:
    basis = bench.context.compact.basis(bench.shards)
    query_qk = basis.project(query.patches_qd)
    for shard in bench.shards:
        for _, codes in bench.context.compact.chunks(shard, basis, 64):
            best_similarity(codes[:, : shard.layout.cells], basis.step, query_qk, None)


def exact(bench: Bench, query: QueryDescriptors) -> FloatArray:
    """MaxSim of every frame from the full descriptors, float32 (frames,)."""
    parts = []
    for shard in bench.shards:
        for start in range(0, shard.blocks, 64):
            patches = shard.read("patch", np.arange(start, min(start + 64, shard.blocks)))
            n, c, d = patches.shape
            cosines = (patches.reshape(-1, d) @ query.patches_qd.T).reshape(n, c, -1)
            parts.append(cosines.max(axis=1).mean(axis=1))
    return np.concatenate(parts)


def recall(bench: Bench, best: int, among: int) -> float:
    """Share of the exact ``best`` frames that are among so many by codes."""
    shares = []
    for _, query in bench.queries[:5]:
        coarse = set(np.argsort(-every_cell(bench, query))[:among].tolist())
        shares.append(len(coarse & set(np.argsort(-exact(bench, query))[:best].tolist())) / best)
    return float(np.mean(shares))


def scan(bench: Bench) -> None:
    name = f"every-cell-{bench.frames}"
    ours_ms, _ = median_ms(lambda query: every_cell(bench, query), bench)
    few = replace(bench, queries=bench.queries[:2])
    loop_ms, _ = median_ms(lambda query: plain_loop(bench, query), few)
    figure(name, ours_ms, "ms", f"plain loop over {GATE} frames", loop_ms)
    slow_ms, _ = median_ms(lambda query: every_cell_slowly(bench, query), few)
    rate = 1000 * bench.frames / ours_ms
    figure(name, ours_ms, "ms", "slow reference", slow_ms, frames_per_s=round(rate))
    for best, among in ((10, 50), (50, 50), (50, 500)):
        share = recall(bench, best, among)
        figure(f"every-cell-recall-{best}-among-{among}", share, "share", None, None)


def times(bench: Bench) -> None:
    """The two searches below the default one alone, for archives on which no peer would end."""
    searches: dict[str, Callable[[QueryDescriptors], object]] = {
        "every-cell": lambda query: every_cell(bench, query),
        "two-stage": lambda query: two_stage(bench, query),
    }
    for name, search in searches.items():
        ours_ms, ours_95_ms = median_ms(search, bench)
        rate = round(1000 * bench.frames / ours_ms)
        figure(
            f"{name}-{bench.frames}", ours_ms, "ms", None, None, p95=ours_95_ms, frames_per_s=rate
        )


def whole(bench: Bench) -> None:
    hour = SearchParams(
        camera_ids=(bench.shards[0].camera_id,),
        t_from_utc=START,
        t_to_utc=START + timedelta(hours=1),
    )
    for name, params in (("default", SearchParams()), ("default-camera-hour", hour)):
        times = []
        for frame_id, query in (bench.queries[0], *bench.queries):
            began_s = time.perf_counter()
            found = search_generation(
                bench.context, bench.generation, query, params, exclude_frame_id=frame_id
            )
            times.append(1000 * (time.perf_counter() - began_s))
        figure(
            f"{name}-{bench.frames}",
            float(np.median(times[1:])),
            "ms",
            None,
            None,
            p95=round(float(np.percentile(times[1:], 95)), 1),
            frames_searched=found.frames,
            first_ms=round(times[0], 1),
        )
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    figure(f"process-peak-{bench.frames}", peak_mb, "MB, mapped pages included", None, None)


def cold(bench: Bench) -> None:
    """What a process that starts now pays once: its first query, less the same one again. Kernels
    are compiled or loaded before, as a query worker does before it takes any."""
    for warm_up in (cosines.warm_up, region_growing.warm_up, trail.warm_up, scan_warm_up):
        warm_up()
    frame_id, query = bench.queries[0]
    fresh = reader(bench.context)
    times = []
    for _ in range(4):
        began_s = time.perf_counter()
        search_generation(fresh, bench.generation, query, SearchParams(), exclude_frame_id=frame_id)
        times.append(1000 * (time.perf_counter() - began_s))
    again_ms = float(np.median(times[1:]))
    name = f"cold-start-{bench.frames}"
    figure(name, times[0] - again_ms, "ms", "the same query again", again_ms, first_ms=times[0])


def prepare(context: Context, given: argparse.Namespace, *, tell: bool = True) -> Bench:
    """Make the archive and its queries; ``tell``: print what a frame takes."""
    generation = ensure_live_generation(context)
    began_s = time.monotonic()
    with context.db.transaction() as session:
        held = index_record.count_indexed(session, generation.id)
    kind = fixed_footage if given.footage == "fixed" else varied_footage

    def after_shard() -> None:
        if given.sealed:  # what is sealed takes a fraction of the disk
            run_now(context, compacting.submit_due(context))
            run_now(context, sealing.submit_due(context, after_s=0.0) is not None)

    if held < given.frames:
        originals = embed_footage(context, generation, 0.1)
        make_archive(
            context, generation, given.frames, lambda rng: kind(originals, rng), after_shard
        )
    run_now(context, compacting.submit_due(context))
    took_s = time.monotonic() - began_s
    with context.db.transaction() as session:
        lag = sum(lag for _, _, lag in codes_record.lag_by_generation(session))
    sys.stderr.write(f"{given.frames} frames: {took_s:.0f} s, {lag} without codes\n")
    if tell:
        tell_bytes(context, generation, given)
    with context.db.snapshot() as session:
        compacting.learn_basis(context, session, generation)
        shards = pin_shards(session, context.index, context.f_maps, generation, SearchParams())
    rng = np.random.default_rng(1)
    asked = []
    for _ in range(given.queries):
        shard = shards[int(rng.integers(0, len(shards)))]
        frame_id = int(shard.f_map.frame_id[int(rng.integers(0, shard.blocks))])
        described = describe_query(
            context, generation, ROI, SearchParams(), frame_id=frame_id, picture_sha256=None
        )
        asked.append((frame_id, described))
    return Bench(context, generation, shards, asked)


def tell_bytes(context: Context, generation: IndexGeneration, given: argparse.Namespace) -> None:
    figure(
        f"bytes-a-frame-{given.footage}-{'sealed' if given.sealed else 'open'}",
        context.index.bytes_of(generation.id) / given.frames,
        "bytes, codes included",
        "not sealed, with codes",
        float(sum(layout_bytes(spec_of(generation)))),
        cells_a_row=[
            round(camera.cells / camera.rows, 2) for camera in sealed_cameras(context, generation)
        ],
    )


def run_now(context: Context, ordered: bool) -> None:
    """Run what was just ordered."""
    if ordered:
        with context.db.transaction() as session:
            due = job_record.take_due(session, 0.0)
        for job in due:
            run_job(context, job.id, HANDLERS)


def layout_bytes(spec: BackboneSpec) -> tuple[int, int, int]:
    """Bytes of a frame in int8 that is not sealed: global, patches, codes."""
    return spec.global_dim, spec.grid.cells * spec.patch_dim, (spec.grid.cells + 1) * CODE_DIM


HANDLERS = {
    "compact": Handler(compacting.run_compact),
    "seal": Handler(sealing.run_seal),
}
PARTS: dict[str, Callable[[Bench], None]] = {
    "cold": cold,
    "default": whole,
    "times": times,
    "every-cell": scan,
    "two-stage": compare,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--footage", choices=("varied", "fixed"), default="varied")
    parser.add_argument("--sealed", action="store_true", help="seal every shard")
    parser.add_argument("--folder", type=Path, help="keep the archive there, and use what it holds")
    parser.add_argument("--pgvector", metavar="URL", help="a Postgres with it, to hold two tables")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this; repeatable")
    given = parser.parse_args()
    configure_logging("ERROR")
    with scratch_context(given.folder, job_slice_s=600.0) as context:
        bench = prepare(context, given)
        parts = PARTS | {"two-stage": partial(compare, pgvector_url=given.pgvector)}
        for part in given.part or ("cold", "default", "every-cell", "two-stage"):
            parts[part](bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())
