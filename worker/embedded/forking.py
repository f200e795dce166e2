"""Children that are copies of this process: what they import is in memory already, and shared.

A worker imports some 300 MB of libraries, which takes seconds of a processor. One process imports
them once and forks, which costs a child milliseconds, also when it is started again after a crash.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import setproctitle

from worker.config import settings
from worker.embedded.child_process import dying_with_parent, rotate_log
from worker.errors import SetupFailed

log = logging.getLogger("ris.supervisor")

OF_WORKERS = (
    "celery.apps.worker", "celery.bin.celery", "celery.concurrency.solo",
    "celery.concurrency.thread", "kombu.transport.redis", "torch",
    "worker.compacting", "worker.delivering", "worker.erasure", "worker.evidence", "worker.feeds",
    "worker.feed_host", "worker.ingest", "worker.offloading", "worker.rebuilding",
    "worker.retention", "worker.sealing", "worker.search", "worker.standing_watch",
    "worker.watching",
)  # fmt: skip
OF_API = ("api.app", "uvicorn")
"""What children use. None of it reads settings, starts a thread or computes when it is imported:
a copy of a process whose threads have worked would wait for them for ever."""

setproctitle.getproctitle()  # finds where the title lies, before the environment changes

_POLL_S = 0.02
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def preload(modules: Sequence[str]) -> bool:
    """Import what children are going to use; False, and a line in the log, where that fails."""
    try:
        for module in modules:
            importlib.import_module(module)
    except Exception as error:  # a package that is broken says so in the child's own log
        log.warning("children start without shared memory: %r", error)
        return False
    if threading.active_count() > 1:
        log.warning("children start without shared memory: a library has started a thread")
        return False
    gc.collect()
    gc.freeze()  # else the first collection of each child copies every page
    return True


def module_of(command: Sequence[str]) -> list[str] | None:
    """Module and arguments of ``python -m module ...``; None for other commands."""
    is_module = len(command) > 2 and command[0] == sys.executable and command[1] == "-m"
    return list(command[2:]) if is_module else None


@dataclass(slots=True)
class ForkedProcess:
    """A child made by :func:`fork_module`, to be waited for as ``subprocess.Popen`` is."""

    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # reaped by somebody else
                pid, status = self.pid, 0
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The same once it has ended. Raises ``subprocess.TimeoutExpired``."""
        until_s = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if until_s is not None and time.monotonic() >= until_s:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(_POLL_S)
        return status

    def terminate(self) -> None:
        """Ask it to end."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


def fork_module(
    module: Sequence[str],
    *,
    title: str,
    log_path: Path,
    cwd: Path,
    env: Mapping[str, str],
    death_signal: signal.Signals,
) -> ForkedProcess:
    """``python -m module ...`` as a copy of this process, in a session of its own, its output
    appended to ``log_path``; ``title`` is what lists of processes show.

    Returns once the child has nothing of ours any more: files, signals, environment. Call it from
    the main thread of a process without other threads. Raises :class:`SetupFailed`.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    rotate_log(log_path)
    dies_with_us = dying_with_parent(death_signal)
    begun, begin = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal between the fork and its end would be answered by the parent's handler.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        with log_path.open("ab") as out:
            try:
                pid = os.fork()
            except OSError as error:
                raise SetupFailed(f"cannot start {title}: {error}") from error
            if pid == 0:
                for own in (1, 2):
                    os.dup2(out.fileno(), own)
                _live(module, lambda: _become(begin, title, cwd, env, dies_with_us))
    except BaseException:
        os.close(begun)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.close(begin)
    with os.fdopen(begun, "rb") as pipe:
        pipe.read()  # until the child closes it
    return ForkedProcess(pid)


def _become(
    begin: int, title: str, cwd: Path, env: Mapping[str, str], dies_with_us: Callable[[], None]
) -> None:
    """Let go of what is the parent's."""
    dies_with_us()
    os.setsid()
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    settings.cache_clear()
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    setproctitle.setproctitle(title)
    os.closerange(3, begin)
    os.closerange(begin + 1, os.sysconf("SC_OPEN_MAX"))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    os.close(begin)


def _live(module: Sequence[str], become: Callable[[], None]) -> NoReturn:
    """The child's life: as the interpreter's own, and nothing of the parent's is gone back to."""
    status = 1
    try:
        become()
        sys.argv = list(module)
        runpy.run_module(module[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing's children do
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
