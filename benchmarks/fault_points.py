"""Faults at every step of an ingest that touches disk or database: is a frame lost or doubled?

    .venv/bin/python -m benchmarks.fault_points [--kind kill|ENOSPC|EIO] [--faults 100] [--seed 1]
    .venv/bin/python -m benchmarks.fault_points --erase ...

A process of its own ingests a short clip. At its n-th step it kills itself (-9), or the disk says
that it is full or broken: before a file is opened, written (or half written), cut, synced, renamed,
a folder made; kills also come before and just after a commit. Other processes then take the job
over and end it. The next job is disturbed at step n + 1; when one ends undisturbed, counting starts
over. The peer is an undisturbed ingest. With ``--erase`` the disturbed job is the erasure of the
middle of a clip that was ingested before: is a frame left, a neighbour lost, a file forgotten?
Everything runs on own services and a throw-away folder,
with the default backbone. Prints one JSON object; exit 1 when anything is wrong.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import io
import json
import os
import random
import shutil
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg

from benchmarks.machine import machine
from benchmarks.scratch import scratch_context
from models.repositories import jobs as job_record
from worker.admin.demo import packaged_footage
from worker.context import Context
from worker.core.sampling import IntervalPolicy
from worker.erasure import camera_span, run_erase, submit_erasure
from worker.generations import ensure_live_generation
from worker.ingest import fail_ingest, run_ingest, submit_file
from worker.jobs import Handler, run_job
from worker.logs import configure_logging
from worker.runtime import make_context
from worker.verify import verify_index

CLIP = next(clip.path for clip in packaged_footage() if clip.camera == "street")
EVERY_S = 2.5
HANDLERS = {"ingest": Handler(run_ingest, fail_ingest), "erase": Handler(run_erase)}
STEPS = (
    "open",
    "pread",
    "pwrite",
    "ftruncate",
    "fsync",
    "replace",
    "mkdir",
    "unlink",
    "rmdir",
    "sync",
)
FRAMES = """
    select f.pts, f.picture_sha256, count(r.frame_id) from frames f
    join cameras c on c.id = f.camera_id left join f_map_runs r on r.frame_id = f.id
    where c.name = %s group by f.id order by f.pts
"""


class Fault:
    """Counts steps of this process; at the chosen one it dies, or the disk answers with an error.

    ``kind``: ``kill``, or the name of an errno. Commits, and sync, which cannot
    fail, count for kills only.
    """

    def __init__(self, kind: str, step: int, half: bool, said: int) -> None:
        self.kind, self.step, self.half, self.said = kind, step, half, said
        self.counted = 0

    def count(self, name: str, first: Callable[[], object] = lambda: None) -> None:
        if self.kind != "kill" and name in ("commit", "committed", "sync"):
            return
        self.counted += 1
        if self.counted == self.step:
            first()
            os.write(self.said, name.encode())
            if self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            number = int(getattr(errno, self.kind))
            raise OSError(number, os.strerror(number))

    def watch(self) -> None:
        """From here on every step of this process counts."""
        for name in STEPS:
            setattr(os, name, self._watched(name, getattr(os, name)))
        builtins.open = io.open = self._watched("file", io.open)
        commit = psycopg.Connection.commit

        def watched(connection: Any) -> None:
            self.count("commit")
            commit(connection)
            self.count("committed")

        psycopg.Connection.commit = watched  # type: ignore[method-assign, assignment]

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*given: Any, **named: Any) -> Any:
            def half() -> None:
                descriptor, body, offset = given
                call(descriptor, body[: len(body) // 2], offset)

            self.count(name, half if name == "pwrite" and self.half else lambda: None)
            return call(*given, **named)

        return watched


def in_child(work: Callable[[int], None]) -> str:
    """Run ``work`` in a forked process until it ends or dies; what it said."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work(writing)
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
    os.close(writing)
    said = os.read(reading, 64).decode()
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise SystemExit("an ingest process failed; see above")
    return said


class Bench:
    """Kills jobs of one database, and what came of it."""

    def __init__(self, context: Context, kind: str, seed: int, *, erase: bool) -> None:
        self.context, self.kind, self.erase = context, kind, erase
        self.chance = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.jobs = self.missing = self.doubled = self.other = 0
        self.recovery_s: list[float] = []

    def own(self) -> Context:
        """A context with connections of this process; the loaded backbone is inherited."""
        url = str(self.context.settings.database_url)
        made = make_context(self.context.settings, url, application_name="ris fault_points")
        return replace(made, backbone=self.context.backbone, ring=self.context.ring)

    def submit(self, camera: str) -> uuid.UUID:
        return uuid.UUID(submit_file(self.context, CLIP, camera, IntervalPolicy(EVERY_S)).job_id)

    def order(self, camera: str) -> uuid.UUID:
        """The erasure of a camera's frames but its first and its last."""
        span, found = camera_span(self.context, camera, None, None)
        assert found.first_utc is not None
        return submit_erasure(
            self.context,
            replace(span, from_utc=found.first_utc + timedelta(seconds=0.1), to_utc=found.last_utc),
        )

    def end(self, job_id: uuid.UUID) -> None:
        """Let undisturbed processes take the job over until it is done."""
        began_s = time.monotonic()
        while True:
            in_child(lambda _said: run_job(self.own(), job_id, HANDLERS))
            with self.context.db.transaction() as session:
                job = job_record.find(session, job_id)
                assert job is not None
                if job.state in ("done", "failed"):
                    break
            time.sleep(0.02)  # the dead worker's lease is still running
        self.recovery_s.append(time.monotonic() - began_s)

    def fault_at(self, step: int) -> bool:
        """One job, disturbed at its ``step``-th step; False when it had fewer."""
        # Every job keeps the same pictures: without this only the first would write any.
        shutil.rmtree(self.context.settings.data_dir / "pictures", ignore_errors=True)
        job_id = self.submit(camera := f"disturbed-{self.jobs}")
        if self.erase:
            self.end(job_id)
            self.recovery_s.pop()
            job_id = self.order(camera)
        self.jobs += 1
        half = self.chance.random() < 0.5

        def work(said: int) -> None:
            own = self.own()
            Fault(self.kind, step, half, said).watch()
            run_job(own, job_id, HANDLERS)

        name = in_child(work)
        if not name:
            return False
        self.faults[name] += 1
        with self.context.db.transaction() as session:
            job = job_record.find(session, job_id)
            assert job is not None
            self.answers[job.retry_code or job.error_code or job.state] += 1
        self.end(job_id)
        self.compare(camera)
        return True

    def rows(self, camera: str) -> list[tuple[Any, ...]]:
        url = str(self.context.settings.database_url).replace("+psycopg", "")
        with psycopg.connect(url) as connection:
            return connection.execute(FRAMES, (camera,)).fetchall()

    def forgotten(self) -> int:
        """Folders of vector files that no shard has, and pictures that no frame has."""
        url = str(self.context.settings.database_url).replace("+psycopg", "")
        with psycopg.connect(url) as connection:
            shards = connection.execute("select id, revision from shards").fetchall()
            pictures = connection.execute("select picture_sha256 from frames").fetchall()
        known = {f"s{shard_id}.{revision}".removesuffix(".0") for shard_id, revision in shards}
        found = {path.name for path in self.context.index.root.glob("g*/s*")}
        stored = {path.stem for path in self.context.pictures.root.rglob("*.jpg")}
        return len(found - known) + len(stored - {sha256 for (sha256,) in pictures})

    def compare(self, camera: str) -> None:
        found = self.rows(camera)
        frames = {(pts, sha256) for pts, sha256, _ in found}
        whole = [(pts, sha256) for pts, sha256, _ in self.rows("undisturbed")]
        expected = {whole[0], whole[-1]} if self.erase else set(whole)
        self.missing += len(expected - frames) + sum(runs == 0 for _, _, runs in found)
        self.other += len(frames - expected)
        self.doubled += len(found) - len(frames) + sum(max(0, runs - 1) for _, _, runs in found)


def measure(bench: Bench, faults: int, seconds: float) -> None:
    bench.end(bench.submit("undisturbed"))
    bench.recovery_s.clear()
    step = 0
    end_s = time.monotonic() + seconds
    while bench.faults.total() < faults and time.monotonic() < end_s:
        step += 1
        if not bench.fault_at(step):
            sys.stderr.write(f"a job has {step - 1} steps; {bench.faults.total()} faults so far\n")
            step = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after that")
    parser.add_argument("--kind", choices=("kill", "ENOSPC", "EIO"), default="kill")
    parser.add_argument("--erase", action="store_true", help="disturb erasures, not ingests")
    parser.add_argument("--seed", type=int, default=None, help="of the half-written blocks")
    given = parser.parse_args()
    seed = random.randrange(2**32) if given.seed is None else given.seed
    began_s = time.monotonic()
    configure_logging("ERROR")
    with scratch_context(
        threads=1,  # forked processes must find no half of a thread pool
        commit_batch=2,
        job_lease_s=0.3,
        job_max_attempts=100,
        job_retry_base_s=0.05,
    ) as context:
        ensure_live_generation(context)
        bench = Bench(context, given.kind, seed, erase=given.erase)
        measure(bench, given.faults, given.seconds)
        # An ingest's dead writers leave bytes that the next one writes over; an erasure nothing.
        forgotten = bench.forgotten() if given.erase else 0
        problems = verify_index(context).problems
    wrong = bench.missing + bench.doubled + bench.other + forgotten
    figure = {
        "name": f"fault_points_{'erase_' * given.erase}{given.kind}_frames_wrong",
        "value": wrong,
        "unit": "frames",
        "peer": "undisturbed ingest of the same clip",
        "peer_value": 0,
        "ratio": None,
        "n": bench.faults.total(),
        "machine": machine(),
        "faults": dict(bench.faults),
        "answers": dict(bench.answers),
        "frames_missing": bench.missing,
        "frames_doubled": bench.doubled,
        "frames_other": bench.other,
        "files_forgotten": forgotten,
        "verify_problems": len(problems),
        "slowest_recovery_s": round(max(bench.recovery_s), 2),
        "seconds": round(time.monotonic() - began_s, 1),
        "seed": seed,
    }
    sys.stdout.write(json.dumps(figure) + "\n")
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    return int(bool(wrong or problems))


if __name__ == "__main__":
    sys.exit(main())
