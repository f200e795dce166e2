"""The Celery processes and the API of one box, and one supervised child with its back-off."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from worker.config import Settings
from worker.embedded.child_process import kill_group
from worker.embedded.forking import OF_API, OF_WORKERS, ForkedProcess
from worker.messages import INGEST_QUEUES, scan_queue

REPO_ROOT = Path(__file__).resolve().parents[2]
MIGRATE_COMMAND = (
    sys.executable, "-m", "alembic", "-c", str(REPO_ROOT / "alembic.ini"), "upgrade", "head",
)  # fmt: skip
READY_FILE_VARIABLE = "WORKER_READY_FILE"

ChildProcess = subprocess.Popen[bytes] | ForkedProcess

_FIRST_RETRY_S = 0.25
_LONGEST_RETRY_S = 30.0
_HEALTHY_AFTER_S = 30.0


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A process to keep running. ``says_ready``: it touches the file WORKER_READY_FILE names.
    ``preloads``: what it imports that others may share."""

    name: str
    command: tuple[str, ...]
    says_ready: bool = False
    preloads: tuple[str, ...] = ()


def celery_children(settings: Settings, data_dir: Path) -> tuple[ChildSpec, ...]:
    """The workers of the ingest, query, feed and watch queues, scan workers where asked for, and
    beat.

    Pools that never fork: a forked child of a process that has computed with torch or FAISS hangs.
    """
    celery = (sys.executable, "-m", "celery", "-A", "worker.app")
    level = ("--loglevel", settings.log_level)
    worker = ("-I", "worker.embedded.ready", "--without-gossip", "--without-mingle", *level)
    ingest = ("worker", "-Q", ",".join(INGEST_QUEUES), "--pool=solo", "-n", "ingest@%h", *worker)
    threads = ("--pool=threads", f"--concurrency={settings.query_workers}")
    query = ("worker", "-Q", "query,admin", *threads, "-n", "query@%h", *worker)
    slots = ("--pool=threads", f"--concurrency={settings.feed_slots}")
    feed = ("worker", "-Q", "feed", *slots, "-n", "feed@%h", *worker)
    feeds = (ChildSpec("worker-feed", (*celery, *feed), True, OF_WORKERS),)
    behind = ("--pool=threads", f"--concurrency={settings.watch_slots}")
    watch = ("worker", "-Q", "watch", *behind, "-n", "watch@%h", *worker)
    watches = (ChildSpec("worker-watch", (*celery, *watch), True, OF_WORKERS),)
    beat = ("beat", "--schedule", str(data_dir / "run" / "beat-schedule"), *level)
    queues = ",".join(scan_queue(group) for group in range(settings.scan_groups))
    scanners = (
        ChildSpec(
            f"worker-scan-{number}",
            (*celery, "worker", "-Q", queues, "--pool=solo", "-n", f"scan{number}@%h", *worker),
            says_ready=True,
            preloads=OF_WORKERS,
        )
        for number in range(1, 1 + settings.scan_workers if queues else 1)
    )
    return (
        ChildSpec("worker-ingest", (*celery, *ingest), True, OF_WORKERS),
        ChildSpec("worker-query", (*celery, *query), True, OF_WORKERS),
        *(feeds if settings.feed_slots else ()),
        *(watches if settings.watch_slots else ()),
        *scanners,
        ChildSpec("beat", (*celery, *beat)),
    )


def listener_children(settings: Settings) -> tuple[ChildSpec, ...]:
    """What listens to an MQTT broker, where one is set."""
    if settings.mqtt_url is None:
        return ()
    return (ChildSpec("listener", (sys.executable, "-m", "worker.listener"), says_ready=True),)


def api_child() -> ChildSpec:
    """The HTTP API; it says where it listens in the file ``run/api.json``."""
    return ChildSpec("api", (sys.executable, "-m", "api"), says_ready=True, preloads=OF_API)


@dataclass(slots=True)
class Supervised:
    """A child that is started again when it dies: at once, then ever later (30 s at most).

    ``leads_group``: what it started itself must not outlive it.
    """

    name: str
    start: Callable[[], ChildProcess]
    leads_group: bool = False
    process: ChildProcess | None = None
    deaths: int = 0
    started_at: float = 0.0
    retry_at: float = 0.0

    def launch(self) -> None:
        """Start it. An error of ``start`` counts as a death and is raised."""
        self.started_at = time.monotonic()
        try:
            self.process = self.start()
        except Exception:
            self._died()
            raise

    def note_death(self) -> int | None:
        """The exit status when it has died since the last look, else None."""
        if self.process is None:
            return None
        status = self.process.poll()
        if status is not None:
            if self.leads_group:
                kill_group(self.process.pid)
            self.process = None
            self._died()
        return status

    def due(self) -> bool:
        """Whether it is down and its back-off is over."""
        return self.process is None and time.monotonic() >= self.retry_at

    def _died(self) -> None:
        now = time.monotonic()
        self.deaths = 1 if now - self.started_at > _HEALTHY_AFTER_S else self.deaths + 1
        self.retry_at = now + min(_FIRST_RETRY_S * 2 ** (self.deaths - 1), _LONGEST_RETRY_S)
