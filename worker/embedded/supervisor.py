"""The process behind `ris up`: owns Postgres, Redis and the Celery children of one data folder.

``python -m worker.embedded.supervisor --data-dir DIR`` runs until SIGTERM or SIGINT. Everything
it starts ends with it, also when it is killed.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TypedDict

from worker.config import Settings
from worker.embedded.child_process import (
    ServiceHandle,
    kill_group,
    log_tail,
    spawn,
    trim_logs,
)
from worker.embedded.children import (
    MIGRATE_COMMAND,
    READY_FILE_VARIABLE,
    REPO_ROOT,
    ChildProcess,
    ChildSpec,
    Supervised,
    api_child,
    celery_children,
    listener_children,
)
from worker.embedded.forking import fork_module, module_of, preload
from worker.embedded.postgres import start_postgres, stop_postgres
from worker.embedded.redis_server import start_redis, stop_redis
from worker.embedded.schema import migrate
from worker.embedded.state import (
    EXIT_ALREADY_RUNNING,
    Phase,
    ServiceState,
    holding_lock,
    refuse_unfinished_restore,
    write_state,
)
from worker.errors import AlreadyRunning, RisError, SetupFailed
from worker.secret_keys import ensure_key_file

log = logging.getLogger("ris.supervisor")

EXIT_FAILED = 1
READY_TIMEOUT_S = 180.0
CHILD_GRACE_S = 10.0
DEATHS_BEFORE_GIVING_UP = 3
_TICK_S = 0.1
TRIM_EVERY_S = 60.0
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run on which folder. Given URLs replace the embedded services."""

    data_dir: Path
    children: tuple[ChildSpec, ...]
    migrate: tuple[str, ...] | None = MIGRATE_COMMAND
    database_url: str | None = None
    broker_url: str | None = None
    threads: int = 0


def plan_from(
    settings: Settings, data_dir: Path, *, with_workers: bool = True, with_api: bool = False
) -> Plan:
    """The plan of `ris up`; without workers and API only the services and the schema."""
    data_dir = data_dir.resolve()
    return Plan(
        data_dir=data_dir,
        children=(
            *(celery_children(settings, data_dir) if with_workers else ()),
            *(listener_children(settings) if with_workers else ()),
            *((api_child(),) if with_api else ()),
        ),
        database_url=settings.database_url,
        broker_url=settings.broker_url,
        threads=settings.threads,
    )


def supervise(plan: Plan) -> None:
    """Start everything of ``plan``, keep it running until SIGTERM or SIGINT, leave nothing.

    Raises :class:`AlreadyRunning`, and :class:`SetupFailed` when something does not come up.
    """
    plan.data_dir.mkdir(parents=True, exist_ok=True)
    with holding_lock(plan.data_dir):
        refuse_unfinished_restore(plan.data_dir)
        supervisor = _Supervisor(plan)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, supervisor.request_stop)
        try:
            supervisor.bring_up()
            supervisor.watch()
        finally:
            supervisor.tear_down()


class _Start(TypedDict):
    """How a child is started, by whichever way."""

    log_path: Path
    cwd: Path
    env: Mapping[str, str]
    death_signal: signal.Signals


@dataclass(slots=True)
class _Supervisor:
    plan: Plan
    phase: Phase = "starting"
    step: str = "starting"
    database_url: str | None = None
    broker_url: str | None = None
    services: dict[str, Supervised] = field(default_factory=dict)
    children: dict[str, Supervised] = field(default_factory=dict)
    stopping: bool = False
    preloaded: bool = False

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True

    def bring_up(self) -> None:
        self.database_url = self.plan.database_url
        self.broker_url = self.plan.broker_url
        if self.database_url is None:
            ensure_key_file(self.plan.data_dir)  # where Postgres is given, RIS_SECRET_KEY is
            self._begin("postgres", "starting Postgres", self._start_postgres, self.services)
        if self.broker_url is None:
            self._begin("redis", "starting Redis", self._start_redis, self.services)
        self._migrate()
        self._preload()
        for spec in self.plan.children:
            self._begin(spec.name, f"starting {spec.name}", self._starter(spec), self.children)
        self._wait_until_ready()
        if not self.stopping:
            self.phase = "ready"
            self._publish("ready")

    def watch(self) -> None:
        trim_at_s = time.monotonic()
        while not self.stopping:
            self._tick()
            if time.monotonic() >= trim_at_s:
                trim_logs(self.plan.data_dir)
                trim_at_s = time.monotonic() + TRIM_EVERY_S
            time.sleep(_TICK_S)

    def tear_down(self) -> None:
        """Workers first, so that they can still record what they finished; Postgres last."""
        self.phase = "stopping"
        self._publish("stopping")
        processes = [child.process for child in self.children.values() if child.process]
        _end_all(processes, CHILD_GRACE_S)
        if "redis" in self.services:
            stop_redis(self.plan.data_dir / "redis")
        if "postgres" in self.services:
            stop_postgres(self.plan.data_dir / "postgres")
        log.info("stopped")

    def _begin(
        self,
        name: str,
        step: str,
        start: Callable[[], ChildProcess],
        group: dict[str, Supervised],
    ) -> None:
        if self.stopping:
            return
        self._publish(step)
        # Postgres winds its own backends down; a worker's helpers are ours to end.
        group[name] = Supervised(name, start, leads_group=group is self.children)
        group[name].launch()

    def _start_postgres(self) -> subprocess.Popen[bytes]:
        handle = start_postgres(self.plan.data_dir / "postgres")
        self._adopt_url("database_url", handle)
        return handle.process

    def _start_redis(self) -> subprocess.Popen[bytes]:
        handle = start_redis(self.plan.data_dir / "redis")
        self._adopt_url("broker_url", handle)
        return handle.process

    def _adopt_url(self, name: str, handle: ServiceHandle) -> None:
        before = getattr(self, name)
        setattr(self, name, handle.url)
        if before not in (None, handle.url):
            log.warning("the port of a service changed to %d: restarting workers", handle.port)
            _end_all([child.process for child in self.children.values() if child.process], 0.0)

    def _starter(self, spec: ChildSpec) -> Callable[[], ChildProcess]:
        module = module_of(spec.command)

        def start() -> ChildProcess:
            ready_file = _ready_file(self.plan.data_dir, spec)
            ready_file.unlink(missing_ok=True)
            log_path = self.plan.data_dir / "logs" / f"{spec.name}.log"
            env = self._child_env() | {READY_FILE_VARIABLE: str(ready_file)}
            given = _Start(log_path=log_path, cwd=REPO_ROOT, env=env, death_signal=signal.SIGKILL)
            if self.preloaded and module is not None:
                return fork_module(module, title=f"ris {spec.name}", **given)
            return spawn(spec.command, **given)

        return start

    def _preload(self) -> None:
        """Import what several children use, once for all."""
        modules = [name for spec in self.plan.children for name in spec.preloads]
        if modules and not self.stopping:
            self._publish("loading libraries")
            if self.plan.threads:  # libraries look at these when they are imported
                os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(self.plan.threads)))
            self.preloaded = preload(modules)

    def _child_env(self) -> dict[str, str]:
        env = dict(os.environ) | {
            "RIS_DATABASE_URL": self.database_url or "",
            "RIS_BROKER_URL": self.broker_url or "",
            "RIS_DATA_DIR": str(self.plan.data_dir),
        }
        if self.plan.threads:
            env |= dict.fromkeys(_THREAD_VARIABLES, str(self.plan.threads))
        return env

    def _migrate(self) -> None:
        if self.plan.migrate is None or self.stopping:
            return
        self._publish("migrating the database")
        log_path = self.plan.data_dir / "logs" / "migrate.log"
        migrate(self.plan.migrate, log_path=log_path, env=self._child_env())

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        for spec in self.plan.children:
            self._publish(f"waiting for {spec.name}")
            while not self.stopping and not self._is_up(spec):
                self._tick()
                for child in self.children.values():
                    if child.deaths >= DEATHS_BEFORE_GIVING_UP:
                        self._give_up(child.name, f"died {child.deaths} times")
                if time.monotonic() > deadline:
                    self._give_up(spec.name, f"was not ready after {READY_TIMEOUT_S:.0f} s")
                time.sleep(_TICK_S)

    def _is_up(self, spec: ChildSpec) -> bool:
        if self.children[spec.name].process is None:
            return False
        return not spec.says_ready or _ready_file(self.plan.data_dir, spec).exists()

    def _give_up(self, name: str, why: str) -> None:
        tail = log_tail(self.plan.data_dir / "logs" / f"{name}.log")
        raise SetupFailed(f"{name} {why}:\n{tail}")

    def _tick(self) -> None:
        """Note who died and start whoever's back-off is over, services before workers."""
        changed = False
        for child in (*self.services.values(), *self.children.values()):
            status = child.note_death()
            if status is not None:
                changed = True
                log.warning("%s ended with status %s", child.name, status)
            if not child.due() or self.stopping:
                continue
            try:
                child.launch()
            except (SetupFailed, OSError) as error:  # OSError: a full disk; tried again later
                log.error("%s: %s", child.name, error)
            else:
                log.info("%s started again", child.name)
                changed = True
        if changed:
            self._publish(self.step)

    def _publish(self, step: str) -> None:
        if step != self.step:
            log.info(step)
        self.step = step
        running = (*self.services.values(), *self.children.values())
        try:
            write_state(
                ServiceState(
                    phase=self.phase,
                    step=step,
                    supervisor_pid=os.getpid(),
                    data_dir=str(self.plan.data_dir),
                    database_url=self.database_url,
                    broker_url=self.broker_url,
                    pids={child.name: child.process.pid for child in running if child.process},
                )
            )
        except OSError as error:  # a full disk must not end what still runs
            log.error("the state file was not written: %s", error)


def _ready_file(data_dir: Path, spec: ChildSpec) -> Path:
    return data_dir / "run" / f"{spec.name}.ready"


def _end_all(processes: Sequence[ChildProcess], grace_s: float) -> None:
    """TERM all at once, KILL what is left after ``grace_s``, and whatever they had started."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + grace_s
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("killing %d after %.0f s of grace", process.pid, grace_s)
        kill_group(process.pid)
        process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m worker.embedded.supervisor``."""
    parser = argparse.ArgumentParser(prog="ris-supervisor", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--no-workers", action="store_true", help="services and schema only")
    parser.add_argument("--api", action="store_true", help="serve the HTTP API as well")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        wanted = {"with_workers": not given.no_workers, "with_api": given.api}
        supervise(plan_from(Settings(), given.data_dir, **wanted))
    except AlreadyRunning as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_ALREADY_RUNNING
    except RisError as error:
        sys.stderr.write(f"{error.code}: {error}\n")
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
