"""The supervisor as a real process: ready, restarts, one per folder, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from worker.embedded.child_process import is_alive
from worker.embedded.children import REPO_ROOT
from worker.embedded.control import start_supervisor, stop_supervisor
from worker.embedded.state import ServiceState, read_state, state_path
from worker.errors import AlreadyRunning, SetupFailed

PATIENCE_S = 60.0

# A child that becomes ready, and has a helper process of its own as a decoding worker has.
SLEEPER = """
import os, subprocess, sys, time
from pathlib import Path
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path(os.environ["RIS_DATA_DIR"], "helper.pid").write_text(str(helper.pid))
Path(os.environ["WORKER_READY_FILE"]).touch()
time.sleep(600)
"""


def eventually(found: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not found():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.05)


def run_plan(data_dir: Path, child_source: str) -> subprocess.Popen[str]:
    """A supervisor with one child of our own and no migration."""
    script = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from worker.embedded.children import ChildSpec
        from worker.embedded.supervisor import Plan, supervise
        child = ChildSpec("sleeper", (sys.executable, "-c", {child_source!r}), says_ready=True)
        supervise(Plan(Path({str(data_dir)!r}), (child,), migrate=None))
    """)
    return subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPO_ROOT, stderr=subprocess.PIPE, text=True
    )


def pids_of(data_dir: Path) -> dict[str, int]:
    state = read_state(data_dir)
    return dict(state.pids) if state else {}


def has_new_pid(data_dir: Path, name: str, old_pid: int) -> bool:
    return pids_of(data_dir).get(name, old_pid) != old_pid


def is_ready(data_dir: Path) -> bool:
    state = read_state(data_dir)
    return state is not None and state.phase == "ready"


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


@pytest.fixture
def data_dir(tmp_path) -> Iterator[Path]:
    folder = tmp_path / "var"
    yield folder
    stop_supervisor(folder)


@pytest.fixture
def up(data_dir) -> Iterator[subprocess.Popen[str]]:
    process = run_plan(data_dir, SLEEPER)
    eventually(lambda: is_ready(data_dir) or process.poll() is not None)
    assert process.poll() is None, process.communicate()[1]
    yield process
    if process.poll() is None:
        process.terminate()
    process.communicate()


def postgres_rows(state: ServiceState | None, statement: str) -> list[tuple[object, ...]]:
    assert state is not None
    assert state.database_url is not None
    with psycopg.connect(state.database_url.replace("+psycopg", ""), autocommit=True) as db:
        cursor = db.execute(statement)
        return cursor.fetchall() if cursor.description else []


@pytest.mark.slow
def test_everything_killed_comes_back_with_its_data_and_sigterm_leaves_nothing(data_dir, up):
    state = read_state(data_dir)
    assert state is not None
    assert set(state.pids) == {"postgres", "redis", "sleeper"}
    assert stat.S_IMODE(state_path(data_dir).stat().st_mode) == 0o600
    postgres_rows(state, "create table seen as select 7 as n")
    with redis.Redis.from_url(str(state.broker_url)) as client:
        client.set("bell", "1")

    helper_pid = int((data_dir / "helper.pid").read_text())
    for name in ("postgres", "redis", "sleeper"):
        old_pid = state.pids[name]
        os.kill(old_pid, signal.SIGKILL)
        eventually(partial(has_new_pid, data_dir, name, old_pid))
    eventually(lambda: not is_alive(helper_pid))

    restarted = read_state(data_dir)
    assert restarted is not None
    assert restarted.database_url == state.database_url
    assert postgres_rows(restarted, "select n from seen") == [(7,)]
    with redis.Redis.from_url(str(restarted.broker_url)) as client:
        assert client.ping()

    eventually((data_dir / "run" / "sleeper.ready").exists)
    family = descendants(up.pid)
    assert len(family) >= 4
    up.terminate()
    assert up.wait(PATIENCE_S) == 0
    eventually(lambda: not [p for p in family if p.is_running() and is_alive(p.pid)])
    assert read_state(data_dir) is None


@pytest.mark.slow
def test_a_second_one_on_the_folder_is_refused_and_the_first_goes_on(data_dir, up):
    with pytest.raises(AlreadyRunning) as refused:
        start_supervisor(data_dir, env={}, detach=False, on_progress=lambda _: None)
    assert str(data_dir) in str(refused.value)
    assert str(up.pid) in str(refused.value)
    assert is_ready(data_dir)
    assert postgres_rows(read_state(data_dir), "select 1") == [(1,)]


@pytest.mark.slow
def test_kill_9_of_the_supervisor_ends_its_family_and_the_next_one_starts(data_dir, up):
    family = descendants(up.pid)
    old = read_state(data_dir)
    assert old is not None
    up.kill()
    up.wait()
    assert read_state(data_dir) is None  # although the state file still says ready
    again = run_plan(data_dir, SLEEPER)
    try:
        eventually(lambda: is_ready(data_dir) or again.poll() is not None)
        assert postgres_rows(read_state(data_dir), "select 1") == [(1,)]
        direct = [p for p in family if p.pid in old.pids.values()]
        eventually(lambda: not [p for p in direct if p.is_running() and is_alive(p.pid)])
    finally:
        helper_pid = int((data_dir / "helper.pid").read_text())
        again.terminate()
        again.communicate()
    assert not is_alive(helper_pid)
    for process in family:  # helpers of the killed child: its own affair, but not the test's
        if process.is_running() and is_alive(process.pid):
            process.kill()


@pytest.mark.slow
def test_a_child_that_keeps_dying_fails_the_start_with_its_log(data_dir):
    process = run_plan(data_dir, "raise SystemExit('no such backbone')")
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    assert "sleeper died 3 times" in said
    assert "no such backbone" in said
    assert read_state(data_dir) is None


@pytest.mark.slow
def test_start_and_stop_as_the_cli_does(data_dir):
    told: list[str] = []
    state = start_supervisor(
        data_dir, env={}, detach=False, on_progress=told.append, with_workers=False
    )
    family = descendants(state.supervisor_pid)
    assert told[0] == "starting Postgres"
    assert told[-2:] == ["migrating the database", "ready"]
    assert state == read_state(data_dir)
    assert "redis://" not in repr(state)
    assert postgres_rows(state, "select count(*) > 0 from alembic_version") == [(True,)]
    assert stop_supervisor(data_dir)
    assert not [p for p in family if p.is_running() and is_alive(p.pid)]
    assert not stop_supervisor(data_dir)


@pytest.mark.slow
def test_an_interrupt_while_starting_leaves_nothing(data_dir):
    seen: list[psutil.Process] = []
    others = psutil.Process().children(recursive=True)  # services of other tests

    def interrupt(_step: str) -> None:
        # The first step told: a later one may be over before anybody looks.
        seen.extend(set(psutil.Process().children(recursive=True)) - set(others))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start_supervisor(data_dir, env={}, detach=False, on_progress=interrupt, with_workers=False)
    assert seen
    eventually(lambda: not [p for p in seen if p.is_running() and is_alive(p.pid)])
    assert read_state(data_dir) is None


def test_given_urls_replace_the_embedded_services_and_a_dead_one_is_named(data_dir):
    env = {
        "RIS_DATABASE_URL": "postgresql://nobody:x@127.0.0.1:9/none",
        "RIS_BROKER_URL": "redis://127.0.0.1:9/0",
    }
    with pytest.raises(SetupFailed, match="could not be migrated"):
        start_supervisor(data_dir, env=env, detach=False, on_progress=lambda _: None)
    assert not (data_dir / "postgres").exists()
    assert not (data_dir / "redis").exists()


def test_no_state_without_a_supervisor(tmp_path):
    assert read_state(tmp_path / "nowhere") is None
    state_path(tmp_path).parent.mkdir()
    state_path(tmp_path).write_text(json.dumps({"supervisor_pid": 1}))
    assert read_state(tmp_path) is None
