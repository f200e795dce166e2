"""Four real scan worker processes behind one query: whole, killed, hung, and not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from celery import Celery

from tests.conftest import Services, psycopg_url
from tests.parts import HANDLERS, backbones_folder, fresh_context, ingested, run_jobs, sql
from tests.processes.harness import REPO, clean_env
from tests.searching import fresh
from worker import compacting, sealing
from worker.accepting.queries import query_state, submit_query
from worker.context import Context
from worker.core.search_params import SearchParams
from worker.core.types import Box
from worker.embedded.children import READY_FILE_VARIABLE, celery_children
from worker.jobs import run_job

pytestmark = pytest.mark.slow

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
WAIT_S = 20.0
SHORT_WAIT_S = 4.0


@dataclass(frozen=True)
class Scanners:
    """Four scan workers, an index of six shards, and the environment of who asks."""

    context: Context
    env: dict[str, str]
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]]

    def start(self) -> None:
        """What `ris up` would start with four scan workers, where it does not run already."""
        asked = self.context.settings.model_copy(update={"scan_groups": 4, "scan_workers": 4})
        specs = [
            spec
            for spec in celery_children(asked, self.folder)
            if spec.name.startswith("worker-scan")
        ]
        assert len(specs) == 4
        for spec in specs:
            if spec.name in self.processes and self.processes[spec.name].poll() is None:
                continue
            ready = self.folder / f"{spec.name}.ready"
            ready.unlink(missing_ok=True)
            with (self.folder / f"{spec.name}.log").open("ab") as log:
                self.processes[spec.name] = subprocess.Popen(
                    spec.command,
                    env={**self.env, READY_FILE_VARIABLE: str(ready)},
                    cwd=REPO,
                    stdout=log,
                    stderr=log,
                )
        files = [self.folder / f"{spec.name}.ready" for spec in specs]
        until(lambda: all(path.exists() for path in files), "scan workers are ready")

    def ask(self, wait_s: float = WAIT_S, **changes: str) -> subprocess.Popen[str]:
        """Start a query worker's search; it says `asking` before it sends."""
        frame_id = sql(self.context, "select min(id) from frames")[0][0]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.processes.fanned_search", str(frame_id)],
            env={**self.env, "RIS_SCAN_WAIT_S": str(wait_s), **changes},
            cwd=REPO,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self, asking: subprocess.Popen[str]) -> dict[str, Any]:
        """Let it send; what it found, which must be what it found alone, to the bit."""
        out, _ = asking.communicate("go\n", timeout=120)
        sys.stderr.write(out)
        assert asking.returncode == 0
        said: dict[str, Any] = json.loads(out.splitlines()[-1])
        assert said["spread"] == said["alone"] and len(said["alone"]) > 3
        return said


@pytest.fixture(scope="module")
def indexed(
    services: Services,
    template_database: str,
    footage: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Context]:
    """Six shards of two cameras, coded and sealed."""
    folder = tmp_path_factory.mktemp("fan") / "ris"
    given = (services.database_url, template_database, folder)
    with (
        pytest.MonkeyPatch.context() as patch,
        fresh_context(
            *given,
            backbone="tiny-a",
            seal_after_s=0.0,
            job_slice_s=600.0,
            broker_url=services.broker_url,
        ) as made,
    ):
        patch.setattr(compacting, "MIN_FRAMES", 8)
        patch.setattr(compacting, "MIN_LAG", 1)
        patch.setattr(sealing, "MIN_FRAMES", 4)
        for hour in range(6):
            start = START + timedelta(hours=hour)
            ingested(made, footage["car"], f"call-{hour % 2}", 0.4, start_utc=start)
        assert compacting.submit_due(made)
        run_jobs(made)
        assert sealing.submit_due(made)
        run_jobs(made)
        yield made


@pytest.fixture(scope="module")
def pool(indexed: Context, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scanners]:
    env = clean_env(
        {
            "RIS_DATABASE_URL": str(indexed.settings.database_url),
            "RIS_BROKER_URL": str(indexed.settings.broker_url),
            "RIS_DATA_DIR": str(indexed.settings.data_dir),
            "RIS_BACKBONE": "tiny-a",
            "RIS_SCAN_GROUPS": "4",
            "RIS_SCAN_MIN_FRAMES": "1",
            "RIS_THREADS": "1",
        }
    )
    scanners = Scanners(indexed, env, tmp_path_factory.mktemp("scan"), {})
    try:
        yield scanners
    finally:
        for process in scanners.processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


@pytest.fixture
def scanners(pool: Scanners) -> Scanners:
    """All four alive."""
    pool.start()
    return pool


def until(probe: Any, what: str, patience_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + patience_s
    while not probe():
        assert time.monotonic() < deadline_s, f"it is not so that {what}"
        time.sleep(0.05)


def test_four_processes_answer_as_one_does_and_leave_nothing(scanners: Scanners) -> None:
    said = scanners.answer(scanners.ask())
    assert said["asked"] == said["answered"] > 1
    assert not kept(scanners, "celery-task-meta-*")
    assert not kept(scanners, "scan.*")


def test_a_real_query_worker_waits_for_them_inside_its_task(scanners: Scanners) -> None:
    context = scanners.context
    (spec,) = [
        one
        for one in celery_children(context.settings, scanners.folder)
        if one.name == "worker-query"
    ]
    ready, log_path = scanners.folder / "query.ready", scanners.folder / "query.log"
    env = {
        **scanners.env,
        READY_FILE_VARIABLE: str(ready),
        "RIS_BACKBONES_DIR": backbones_folder(),
        "RIS_SCAN_WAIT_S": str(WAIT_S),
    }
    with log_path.open("wb") as log:
        worker = subprocess.Popen(spec.command, env=env, cwd=REPO, stdout=log, stderr=log)
    try:
        until(ready.exists, "the query worker is ready")
        frame_id = sql(context, "select min(id) from frames")[0][0]
        params = SearchParams(top_n=4, close_looks=0, group="frame")
        box = Box(0.2, 0.2, 0.8, 0.8)
        query_ids = [submit_query(context, box, params, frame_id=frame_id) for _ in range(2)]
        bell = Celery(broker=context.settings.broker_url)
        for query_id in query_ids:  # two at once, a thread each
            job_id = query_state(context, query_id).query.job_id
            bell.send_task("ris.run_job", args=[str(job_id)], queue="query")
        for query_id in query_ids:
            until(
                lambda query_id=query_id: query_state(context, query_id).state == "done",
                "the query is done",
            )
    finally:
        worker.terminate()
        worker.wait()
    query_ids.append(submit_query(context, box, params, frame_id=frame_id))
    run_job(fresh(context), query_state(context, query_ids[2]).query.job_id, HANDLERS)
    *spread, alone = [
        [(hit.frame_id, hit.score, hit.box) for hit in query_state(context, one).hits]
        for one in query_ids
    ]
    assert alone and spread == [alone, alone]
    told = [line for line in log_path.read_text().splitlines() if "scan_spread" in line]
    counts = [json.loads(line) for line in told]
    assert len(counts) == 2
    assert all(one["answered"] == one["groups"] > 1 for one in counts), counts


def test_two_killed_in_the_middle_of_it_cost_only_time(scanners: Scanners) -> None:
    asking = scanners.ask(SHORT_WAIT_S)
    assert asking.stdout is not None and asking.stdin is not None
    assert asking.stdout.readline() == "asking\n"
    url = psycopg_url(str(scanners.context.settings.database_url))
    with psycopg.connect(url) as holding, psycopg.connect(url, autocommit=True) as looking:
        holding.execute("lock table shards in access exclusive mode")  # they come no further
        asking.stdin.write("go\n")
        asking.stdin.flush()
        waiting = "select pid from pg_locks where not granted and relation = 'shards'::regclass"
        until(lambda: len(looking.execute(waiting).fetchall()) >= 3, "three of them scan")
        for process in list(scanners.processes.values())[:2]:
            os.kill(process.pid, signal.SIGKILL)
        holding.rollback()
    said = scanners.answer(asking)
    assert said["answered"] < said["asked"], "none was in the middle of it"
    again = scanners.answer(scanners.ask())
    assert again["answered"] == again["asked"], "the other two serve every group"


def test_hung_ones_cost_the_wait_and_no_more(scanners: Scanners) -> None:
    for process in scanners.processes.values():
        os.kill(process.pid, signal.SIGSTOP)
    said = scanners.answer(scanners.ask(SHORT_WAIT_S))
    assert said["answered"] == 0 < said["asked"]
    for process in scanners.processes.values():
        os.kill(process.pid, signal.SIGCONT)
    # What they find in their queues now is too old, and they serve the next query.
    again = scanners.answer(scanners.ask())
    assert again["answered"] == again["asked"]
    until(lambda: not kept(scanners, "scan.*"), "old messages are gone")


def test_groups_that_nobody_serves_are_scanned_by_who_asks(scanners: Scanners) -> None:
    said = scanners.answer(scanners.ask(SHORT_WAIT_S, RIS_SCAN_GROUPS="9"))
    assert 0 < said["answered"] < said["asked"], "of nine groups four have workers"


def test_without_a_broker_the_query_worker_scans_itself(scanners: Scanners) -> None:
    said = scanners.answer(scanners.ask(RIS_BROKER_URL="redis://127.0.0.1:9/0"))
    assert said["answered"] == 0 < said["asked"]


def test_workers_that_have_former_files_mapped_serve_the_new_ones(
    scanners: Scanners, footage: dict[str, Path]
) -> None:
    scanners.answer(scanners.ask())
    more = START + timedelta(minutes=30)
    ingested(scanners.context, footage["car"], "call-0", 0.4, start_utc=more)
    assert sealing.submit_due(scanners.context)
    run_jobs(scanners.context)
    said = scanners.answer(scanners.ask())
    assert said["answered"] == said["asked"]


def kept(scanners: Scanners, pattern: str) -> list[bytes]:
    """Keys of Redis that are still there; bindings of queues are."""
    with redis.Redis.from_url(str(scanners.context.settings.broker_url)) as broker:
        return list(broker.keys(pattern))
