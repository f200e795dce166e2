"""How long `ris up` takes, what its processes hold, and how soon a killed worker is back.

    .venv/bin/python -m benchmarks.startup

A RIS of its own on a throw-away folder, default settings, nothing indexed. The peer, in the same
run: workers started as programs, as they are where libraries cannot be shared.
Prints one JSON object per figure.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.kill_processes import ris, state_of, wait_until
from benchmarks.machine import machine
from worker.embedded.state import read_state

SERVICES = ("postgres", "redis")
KILLED = ("worker-query", "worker-ingest")
AS_PROGRAMS = """
import sys
from worker.embedded import supervisor
supervisor.preload = lambda modules: False
sys.exit(supervisor.main(["--data-dir", sys.argv[1], "--api"]))
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one start: seconds until ready, MB that all but the services hold, and seconds until a
    killed worker takes jobs again."""

    ready_s: float
    held_mb: float
    back_s: dict[str, float]


@contextmanager
def up(data_dir: Path, *, programs: bool) -> Iterator[None]:
    """RIS on a folder until the end of the block."""
    if not programs:
        ris("up")
        yield
        ris("down")
        return
    command = [sys.executable, "-c", AS_PROGRAMS, str(data_dir)]
    with (data_dir / "supervisor.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    wait_until(lambda: is_ready(data_dir), "RIS to be ready")
    yield
    process.terminate()
    process.wait()


def is_ready(data_dir: Path) -> bool:
    state = read_state(data_dir)
    return state is not None and state.phase == "ready"


def held_mb(pid: int) -> float:
    """A process's share of the memory that is in use (PSS)."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    line = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) / 1024


def measure(*, programs: bool) -> Measured:
    with tempfile.TemporaryDirectory(prefix="ris-start-") as folder:
        data_dir = Path(folder)
        os.environ.update(RIS_DATA_DIR=folder, RIS_API_PORT="0")
        began_s = time.monotonic()
        with up(data_dir, programs=programs):
            ready_s = time.monotonic() - began_s
            state = state_of(data_dir)
            own = [pid for name, pid in state.pids.items() if name not in SERVICES]
            held = sum(held_mb(pid) for pid in (*own, state.supervisor_pid))
            return Measured(ready_s, held, {name: back_s(data_dir, name) for name in KILLED})


def back_s(data_dir: Path, name: str) -> float:
    """Seconds from kill -9 of a worker until the next one takes jobs."""
    ready = data_dir / "run" / f"{name}.ready"
    before_ns = ready.stat().st_mtime_ns
    os.kill(state_of(data_dir).pids[name], signal.SIGKILL)
    began_s = time.monotonic()
    wait_until(lambda: ready.exists() and ready.stat().st_mtime_ns != before_ns, f"{name} again")
    return time.monotonic() - began_s


def figure(name: str, value: float, unit: str, peer_value: float) -> None:
    told = {
        "name": name,
        "value": round(value, 2),
        "unit": unit,
        "peer": "workers started as programs",
        "peer_value": round(peer_value, 2),
        "ratio": round(value / peer_value, 3),
        "n": 1,
        "machine": machine(),
    }
    print(json.dumps(told), flush=True)


def main() -> int:
    """Measure both ways and print the figures."""
    peer, forked = measure(programs=True), measure(programs=False)
    figure("up-ready", forked.ready_s, "s", peer.ready_s)
    figure("up-memory", forked.held_mb, "MB PSS, without Postgres and Redis", peer.held_mb)
    for name in KILLED:
        figure(f"back-after-kill-{name}", forked.back_s[name], "s", peer.back_s[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
