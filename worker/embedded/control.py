"""Starting a supervisor as a process of its own, and stopping it, from any other process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from worker.embedded.child_process import LOG_TAIL_LINES, end_process, log_tail, spawn
from worker.embedded.children import REPO_ROOT
from worker.embedded.state import EXIT_ALREADY_RUNNING, ServiceState, read_state, running_pid
from worker.errors import AlreadyRunning, RisError, SetupFailed, error_of_code

_STOP_STEPS = ((signal.SIGTERM, 60.0), (signal.SIGKILL, 5.0))
_POLL_S = 0.05


def start_supervisor(
    data_dir: Path,
    *,
    env: Mapping[str, str],
    detach: bool,
    on_progress: Callable[[str], None],
    with_workers: bool = True,
    with_api: bool = False,
) -> ServiceState:
    """Start a supervisor process on ``data_dir`` and wait until it is ready.

    ``env`` is added to this process's environment. Unless ``detach``, the supervisor also stops
    when the calling process ends. ``on_progress`` gets the steps in words; one
    that passes quickly may be left out.

    Raises :class:`AlreadyRunning`, and :class:`SetupFailed` with the end of the log. Whatever is
    raised here, also by ``on_progress`` or Ctrl-C, the supervisor has been stopped before.
    """
    data_dir = data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    log_path = data_dir / "logs" / "supervisor.log"
    command = [sys.executable, "-m", "worker.embedded.supervisor", "--data-dir", str(data_dir)]
    command += [] if with_workers else ["--no-workers"]
    command += ["--api"] if with_api else []
    process = spawn(
        command,
        log_path=log_path,
        cwd=REPO_ROOT,
        env=dict(os.environ) | dict(env),
        death_signal=None if detach else signal.SIGTERM,
    )
    try:
        return _wait_ready(process, data_dir, log_path, on_progress)
    except BaseException:
        if process.poll() is None:
            end_process(psutil.Process(process.pid), _STOP_STEPS)
        raise


def _wait_ready(
    process: subprocess.Popen[bytes],
    data_dir: Path,
    log_path: Path,
    on_progress: Callable[[str], None],
) -> ServiceState:
    told = ""
    while process.poll() is None:
        state = read_state(data_dir)
        if state is not None and state.supervisor_pid == process.pid:
            if state.step != told:
                told = state.step
                on_progress(told)
            if state.phase == "ready":
                return state
        time.sleep(_POLL_S)
    said = log_tail(log_path, lines=3 * LOG_TAIL_LINES)
    if process.returncode == EXIT_ALREADY_RUNNING:
        raise AlreadyRunning(said.splitlines()[-1])
    code, _, detail = said.rpartition("\n")[2].partition(": ")
    refused = error_of_code(code, detail)
    if type(refused) not in (RisError, SetupFailed):  # those quote a log, this is one line
        raise refused
    # Our own last word with the log it quotes; all of the tail after a crash.
    reason = said.rpartition(f"{SetupFailed.code}: ")[2]
    raise SetupFailed(f"RIS did not start on {data_dir}: {reason}")


def stop_supervisor(data_dir: Path) -> bool:
    """Stop the supervisor of ``data_dir`` and wait until it is gone. False when none ran."""
    pid = running_pid(data_dir)
    if pid is None:
        return False
    try:
        end_process(psutil.Process(pid), _STOP_STEPS)
    except psutil.NoSuchProcess:
        return False
    return True
