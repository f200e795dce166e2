"""Redis wiped and killed, Postgres killed, again and again under load: is anything accepted lost?

    .venv/bin/python -m benchmarks.services_away [--blows 20] [--seed 1]

A RIS of its own. Two askers send queries, one sends recordings, over HTTP and without patience:
each request is timed, and what is accepted is noted. Meanwhile a blow every few seconds: Redis
emptied, Redis killed, Postgres killed. At the end every accepted query must be answered and every
accepted recording ingested, once. Prints one JSON object; exit 1 when anything is lost, refused
otherwise than as documented (503 with Retry-After), or waited for longer than ``--longest`` s.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import redis

from benchmarks.kill_processes import CLIP, ris, rows, running_ris, state_of, wait_until
from benchmarks.machine import machine
from worker.embedded.state import api_path

BOX = [0.3, 0.3, 0.7, 0.9]
BLOWS = ("redis emptied", "redis killed", "postgres killed")
BETWEEN_S = (2.0, 5.0)


@dataclass
class Load:
    """What was asked, and how it went."""

    url: str
    key: str
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    queries: list[str] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    longest_s: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The answer where it was accepted; else it is noted how it was refused."""
        request = urllib.request.Request(
            self.url + path,
            data=json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self.key}",
                "Content-Type": "application/json",
                "Idempotency-Key": uuid.uuid4().hex,
            },
        )
        begun_s = time.monotonic()
        told: dict[str, Any] | None = None
        status, lacks = "", ""
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                told, status = json.loads(reply.read()), str(reply.status)
        except urllib.error.HTTPError as error:
            status = str(error.code)
            if error.code not in (429, 503) or "Retry-After" not in error.headers:
                lacks = f"{path}: {error.code} {error.read()[:200]!r}"
        except (OSError, HTTPException, ValueError) as error:
            status, lacks = "no answer", f"{path}: {error!r}"
        with self.lock:
            self.longest_s = max(self.longest_s, time.monotonic() - begun_s)
            self.statuses[status] += 1
            self.wrong += [lacks] if lacks else []
        return told

    def ask(self, frames: list[int], chance: random.Random) -> None:
        """Send queries until it is over."""
        while not self.over.is_set():
            roi, params = {"box": BOX}, {"close_looks": 0}
            told = self.post(
                "/v1/queries", {"frame_id": chance.choice(frames), "roi": roi, "params": params}
            )
            if told is not None:
                with self.lock:
                    self.queries.append(told["query_id"])
            self.over.wait(1.0)

    def send(self) -> None:
        """Have recordings ingested until it is over."""
        for number in range(10_000):
            if self.over.wait(2.0):
                return
            start_utc = f"2026-05-{1 + number // 24 % 28:02d}T{number % 24:02d}:00:00Z"
            asked = {"path": CLIP.name, "camera": "sent", "start_utc": start_utc, "every_s": 1.0}
            told = self.post("/v1/segments", asked)
            if told is not None:
                self.segments.append(told["segment_id"])


def strike(data_dir: Path, blow: str) -> None:
    """Do it, and wait until what was killed is there again."""
    state = state_of(data_dir)
    if blow == "redis emptied":
        redis.Redis.from_url(str(state.broker_url)).flushall()
        return
    name = blow.split(maxsplit=1)[0]
    pid = state.pids[name]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: state_of(data_dir).pids.get(name, pid) != pid, f"{name} to be back")


def lost(data_dir: Path, load: Load) -> dict[str, int]:
    """What was accepted and did not come to its end, once it had the time."""
    open_jobs = """select kind, state, count(*), max(retry_code) from jobs
        where state in ('queued', 'running') and kind in ('query', 'ingest') group by 1, 2"""
    told_s = 0.0

    def all_ended() -> bool:
        nonlocal told_s
        left = rows(data_dir, open_jobs)
        if left and time.monotonic() - told_s > 10:
            told_s = time.monotonic()
            sys.stderr.write(f"not ended yet: {left}\n")
        return not left

    wait_until(all_ended, "all jobs to end")
    answered = """select q.id::text from search_queries q join jobs j on j.id = q.job_id
        where j.state = 'done'"""
    ended = """select s.id from video_segments s join jobs j on j.id = s.job_id
        where j.state = 'done'"""
    done = {row[0] for row in rows(data_dir, answered)}
    whole = {row[0] for row in rows(data_dir, ended)}
    doubled = """select count(*) from (
        select 1 from frames group by camera_id, t_utc having count(*) > 1) found"""
    return {
        "queries_lost": len(set(load.queries) - done),
        "segments_lost": len(set(load.segments) - whole),
        "frames_doubled": int(rows(data_dir, doubled)[0][0]),
    }


def main() -> int:
    """Run it and print the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blows", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--longest", type=float, default=2.0, help="seconds a request may take")
    given = parser.parse_args()
    chance = random.Random(given.seed)
    os.environ.update(RIS_API_PORT="0", RIS_FOOTAGE_DIR=str(CLIP.parent), RIS_QUERY_WORKERS="2")
    os.environ.update(RIS_API_OPEN_QUERIES="100000", RIS_API_REQUESTS_PER_S="1000")
    os.environ.pop("RIS_DATA_DIR", None)
    with running_ris() as data_dir:
        ris("ingest", str(CLIP), "--camera", "sent", "--every", "0.5", "--wait")
        frames = [row[0] for row in rows(data_dir, "select id from frames order by id")]
        key = ris("keys", "--create", "load", "--action", "admin")["secret"]
        load = Load(json.loads(api_path(data_dir).read_text())["url"], key)
        threads = [
            threading.Thread(target=load.ask, args=[frames, random.Random(given.seed + n)])
            for n in range(2)
        ]
        threads.append(threading.Thread(target=load.send))
        for thread in threads:
            thread.start()
        struck = Counter[str]()
        try:
            for number in range(given.blows):
                time.sleep(chance.uniform(*BETWEEN_S))
                blow = BLOWS[number % len(BLOWS)]
                strike(data_dir, blow)
                struck[blow] += 1
            time.sleep(BETWEEN_S[1])
        finally:
            load.over.set()
            for thread in threads:
                thread.join()
        found = lost(data_dir, load)
        problems = ris("verify")["problems"]
    wrong = (
        (not load.queries or not load.segments)
        + sum(found.values())
        + len(load.wrong)
        + len(problems)
    )
    told = {
        "name": "services-away-lost",
        "value": wrong,
        "unit": "accepted queries and recordings, and refusals that are not documented",
        "n": given.blows,
        "machine": machine(),
        **found,
        "queries": len(load.queries),
        "segments": len(load.segments),
        "longest_request_s": round(load.longest_s, 2),
        "statuses": dict(load.statuses),
        "blows": dict(struck),
        "wrong": load.wrong[:5],
        "verify_problems": len(problems),
        "seed": given.seed,
    }
    print(json.dumps(told), flush=True)
    return int(wrong > 0 or load.longest_s > given.longest)


if __name__ == "__main__":
    sys.exit(main())
