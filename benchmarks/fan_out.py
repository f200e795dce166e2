"""The default search in one process, and with its scan spread over scan worker processes.

    .venv/bin/python -m benchmarks.fan_out [--frames 20000] [--queries 10] [--workers 4]
        [--folder DIR]

On an archive of made-up fixed cameras, sealed (benchmarks/index.py), over everything, without the
query's embedding. Scan workers are those that `ris up` starts, one thread each; the answers must be
equal to the bit. Prints one JSON line; exit 1 where answers differ or a group was not answered.
``value`` is the median of the whole search with scan workers, ``peer_value`` in one process with
all cores. With as many cores as busy workers it tells what spreading costs, not what it gains.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from benchmarks.bench import Bench
from benchmarks.index import prepare
from benchmarks.machine import machine
from benchmarks.scratch import scratch_context
from worker.config import settings
from worker.context import Context
from worker.core.search_params import SearchParams
from worker.embedded.children import READY_FILE_VARIABLE, REPO_ROOT, celery_children
from worker.embedded.state import read_state
from worker.fan_out import FanOut
from worker.index.store import PinnedShard
from worker.logs import configure_logging
from worker.pinning import spec_of
from worker.runtime import ask_scan_workers
from worker.scan_message import Json
from worker.search import search_generation
from worker.shard_scan import LocalScan, ScanQuery, ShardScan, ShardScores
from worker.two_stage import search_shards

WAIT_S = 60.0
READY_S = 180.0


@dataclass
class Asked:
    """Counts what is sent and answered, and how large it is."""

    groups: int = 0
    answered: int = 0
    sent_bytes: list[int] = field(default_factory=list)
    answer_bytes: list[int] = field(default_factory=list)

    def __call__(
        self, messages: Sequence[tuple[str, Json]], wait_s: float
    ) -> Iterator[tuple[int, Json]]:
        self.groups += len(messages)
        self.sent_bytes.append(len(json.dumps(messages)))
        came = 0
        for position, answer in ask_scan_workers(messages, wait_s):
            self.answered += 1
            came += len(json.dumps(answer))
            yield position, answer
        self.answer_bytes.append(came)


@contextmanager
def scan_workers(context: Context, count: int) -> Iterator[None]:
    """``count`` scan workers of as many groups, on the context's services."""
    state = read_state(context.settings.data_dir)
    assert state is not None
    os.environ.update(
        RIS_DATABASE_URL=str(state.database_url),
        RIS_BROKER_URL=str(state.broker_url),
        RIS_DATA_DIR=str(context.settings.data_dir),
        RIS_SCAN_GROUPS=str(count),
        RIS_THREADS="1",
    )
    settings.cache_clear()  # the Celery application of this process reads them too
    asked = context.settings.model_copy(update={"scan_groups": count, "scan_workers": count})
    with tempfile.TemporaryDirectory(prefix="ris-scan-") as folder:
        specs = [s for s in celery_children(asked, Path(folder)) if "scan" in s.name]
        processes, ready = [], []
        for spec in specs:
            ready.append(Path(folder) / f"{spec.name}.ready")
            with (Path(folder) / f"{spec.name}.log").open("wb") as log:
                env = {**os.environ, READY_FILE_VARIABLE: str(ready[-1])}
                processes.append(
                    subprocess.Popen(spec.command, env=env, cwd=REPO_ROOT, stdout=log, stderr=log)
                )
        try:
            deadline_s = time.monotonic() + READY_S
            while not all(path.exists() for path in ready):
                if time.monotonic() > deadline_s:
                    raise SystemExit("scan workers did not start")
                time.sleep(0.1)
            yield
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()


def searched(bench: Bench, context: Context) -> tuple[float, list[list[tuple[int, float]]]]:
    """Median milliseconds over the queries, all asked once before, and what they found."""
    times, found = [], []
    for turn in range(2):
        for frame_id, query in bench.queries:
            began_s = time.perf_counter()
            answer = search_generation(
                context, bench.generation, query, SearchParams(), exclude_frame_id=frame_id
            )
            if turn:
                times.append(1000 * (time.perf_counter() - began_s))
                found.append([(one.frame_id, one.score) for one in answer.ranked])
    return float(np.median(times)), found


@dataclass
class Timed:
    """A scan, and how long it took each time."""

    scan: ShardScan
    times_ms: list[float] = field(default_factory=list)

    def __call__(self, query: ScanQuery, shards: Sequence[PinnedShard]) -> list[ShardScores]:
        began_s = time.perf_counter()
        found = self.scan(query, shards)
        self.times_ms.append(1000 * (time.perf_counter() - began_s))
        return found


def scan_ms(bench: Bench) -> float:
    """Median milliseconds of the scan alone, as the default search asks for it, on all cores."""
    context, spec = bench.context, spec_of(bench.generation)
    timed = Timed(LocalScan(context.index, context.compact))
    for frame_id, query in bench.queries:
        search_shards(
            context.index,
            bench.shards,
            query,
            SearchParams(),
            tau=spec.tau,
            grid=spec.grid,
            exclude_frame_id=frame_id,
            backgrounds=context.backgrounds,
            compact=context.compact,
            scan=timed,
        )
    return float(np.median(timed.times_ms))


def compare(bench: Bench, workers: int) -> int:
    context = bench.context
    alone_ms, alone = searched(bench, context)
    scan_alone_ms = scan_ms(bench)
    one_thread = replace(context, compact=replace(context.compact, threads=1))
    one_thread_ms, _ = searched(bench, one_thread)
    asked = Asked()
    with scan_workers(context, workers):
        fan_out = FanOut(asked, workers, WAIT_S, 1)
        spread_ms, spread = searched(bench, replace(context, fan_out=fan_out))
    line = {
        "name": f"fan-out-{workers}-of-{bench.frames}",
        "value": round(spread_ms, 1),
        "unit": "ms",
        "peer": "one process, all cores",
        "peer_value": round(alone_ms, 1),
        "ratio": round(alone_ms / spread_ms, 2),
        "n": len(bench.queries),
        "machine": machine(),
        "scan_alone_ms": round(scan_alone_ms, 1),
        "one_thread_ms": round(one_thread_ms, 1),
        "same_answers": spread == alone,
        "groups": asked.groups,
        "answered": asked.answered,
        "sent_bytes": int(np.median(asked.sent_bytes)),
        "answer_bytes": int(np.median(asked.answer_bytes)),
    }
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if spread == alone and asked.answered == asked.groups else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=10)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="keep the archive there, and use what it holds")
    given = parser.parse_args()
    given.footage, given.sealed = "fixed", True
    configure_logging("ERROR")
    with scratch_context(given.folder, job_slice_s=600.0) as context:
        return compare(prepare(context, given, tell=False), given.workers)


if __name__ == "__main__":
    sys.exit(main())
