"""What the API, the queue and the record add to a search, and what many at once cost.

    .venv/bin/python -m pip install locust
    .venv/bin/python -m benchmarks.api [--seconds 30] [--users 8] [--looks 20] [--queued 10000]

A RIS of its own on the two packaged clips, asked by locust: one user, ``--users`` at once, and as
many while two clips are ingested again and again; at last one again, while another key has
``--queued`` queries waiting. Each query is asked over HTTP, followed by its
events, and its hits are read. The peer of "added" is the search itself, as the worker measured it;
that of the crowds is the single user. Prints one JSON object per figure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kill_processes import ris, rows, running_ris
from benchmarks.machine import machine
from worker.admin.demo import packaged_footage
from worker.embedded.state import api_path

BOX = [0.44, 0.62, 0.68, 0.92]
WARM_S = 5.0
"""The first so many seconds of each run are not counted."""


def main() -> int:
    """Run all and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--every", type=float, default=0.25, help="sample every so many seconds")
    parser.add_argument("--looks", type=int, default=20, help="closer looks of each query")
    parser.add_argument("--queued", type=int, default=2000, help="queries of another key")
    given = parser.parse_args()
    os.environ.update(
        RIS_API_PORT="0", RIS_API_REQUESTS_PER_S="10000", RIS_API_OPEN_QUERIES="100000"
    )
    os.environ.pop("RIS_DATA_DIR", None)
    with running_ris() as data_dir:
        for clip in packaged_footage():
            ingest(clip.path, clip.camera, given.every)
        load = {
            "key": ris("keys", "--create", "load", "--action", "search")["secret"],
            "frames": [row[0] for row in rows(data_dir, "select id from frames order by id")],
            "box": BOX,
            "params": {"close_looks": given.looks},
        }
        url = json.loads(api_path(data_dir).read_text())["url"]
        single = measured(url, load, 1, given.seconds)
        crowd = measured(url, load, given.users, given.seconds)
        with ingesting():
            busy = measured(url, load, given.users, given.seconds)
        flood(url, load, given.queued)
        beside = measured(url, load, 1, given.seconds)
    frames = len(load["frames"])
    added = [one["answered_ms"] - one["search_ms"] for one in single]
    searched = float(np.median([one["search_ms"] for one in single]))
    figure("api-added", float(np.median(added)), "the search itself", searched, single, frames)
    crowds = {
        f"api-{given.users}-at-once-p95": crowd,
        f"api-{given.users}-at-once-while-ingesting-p95": busy,
        f"api-beside-{given.queued}-queued-of-another-key-p95": beside,
    }
    for name, notes in crowds.items():
        figure(name, p95(notes), "one at a time", p95(single), notes)
    first = float(np.median([one["first_ms"] for one in single]))
    whole = float(np.median([one["answered_ms"] for one in single]))
    figure("api-first-hits", first, "all hits", whole, single)
    return 0


def ingest(path: Path, camera: str, every_s: float) -> None:
    """Ingest a clip to its end."""
    ris("ingest", str(path), "--camera", camera, "--every", str(every_s), "--wait")


@contextmanager
def ingesting() -> Iterator[None]:
    """Ingest clips as new cameras, one after the other, until the end."""
    over = threading.Event()

    def go_on() -> None:
        clips, number = list(packaged_footage()), 0
        while not over.is_set():
            ingest(clips[number % len(clips)].path, f"busy-{number}", 0.1)
            number += 1

    with ThreadPoolExecutor(1) as pool:
        ingests = pool.submit(go_on)
        try:
            yield
        finally:
            over.set()
        ingests.result()


def flood(url: str, load: dict[str, Any], count: int) -> None:
    """Have another key wait for so many queries at once."""
    key = ris("keys", "--create", "flood", "--action", "search")["secret"]
    body = {"frame_id": load["frames"][0], "roi": {"box": load["box"]}, "params": load["params"]}

    def ask(_: int) -> None:
        request = urllib.request.Request(
            f"{url}/v1/queries",
            data=json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=60).close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(count)))


def measured(url: str, load: dict[str, Any], users: int, seconds: float) -> list[dict[str, float]]:
    """What each query of a run cost."""
    with tempfile.TemporaryDirectory(prefix="ris-load-") as folder:
        notes = Path(folder) / "notes"
        notes.touch()
        command = [
            *(sys.executable, "-m", "locust", "-f", "benchmarks/api_load.py", "--headless"),
            *("--users", str(users), "--spawn-rate", str(users), "--host", url),
            *("--run-time", f"{WARM_S + seconds:.0f}s", "--stop-timeout", "30", "--only-summary"),
        ]
        env = os.environ | {"RIS_LOAD": json.dumps({**load, "notes": str(notes)})}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if "No module named locust" in done.stderr:
            raise SystemExit("locust is not installed: .venv/bin/python -m pip install locust")
        if done.returncode != 0:
            raise SystemExit(done.stderr[-4000:] + done.stdout[-4000:])
        told = [json.loads(line) for line in notes.read_text().splitlines()]
    begun_s = min(one["begun_s"] for one in told) + WARM_S
    return [one for one in told if one["begun_s"] >= begun_s]


def p95(notes: list[dict[str, float]]) -> float:
    """Of the time to the answer, ms."""
    return float(np.percentile([one["answered_ms"] for one in notes], 95))


def figure(
    name: str,
    value_ms: float,
    peer: str,
    peer_ms: float,
    notes: list[dict[str, float]],
    frames: int | None = None,
) -> None:
    """Print one; ``ratio`` is value to peer."""
    answered = [one["answered_ms"] for one in notes]
    told = {
        "name": name,
        "value": round(value_ms, 2),
        "unit": "ms",
        "peer": peer,
        "peer_value": round(peer_ms, 2),
        "ratio": round(value_ms / peer_ms, 3),
        "n": len(notes),
        "machine": machine(),
        "answered_p50_ms": round(float(np.median(answered)), 1),
        "frames": frames,
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    sys.exit(main())
