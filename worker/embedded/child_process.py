"""Starting and ending one operating-system process that must not outlive us."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from worker.errors import SetupFailed

LOOPBACK = "127.0.0.1"
LOG_TAIL_LINES = 15
MAX_LOG_BYTES = 10 * 1024 * 1024

_PR_SET_PDEATHSIG = 1
_NOBODY_UID = 65534
# Bits of CapPrm in /proc/self/status; either lets a process walk through folders it may not read.
_TRAVERSE_CAPABILITIES = (("dac_read_search", 2), ("dac_override", 1))


@dataclass(frozen=True, slots=True)
class ServiceHandle:
    """A started service. ``url`` holds the password, so it stays out of ``repr``."""

    url: str = field(repr=False)
    pid: int
    port: int
    process: subprocess.Popen[bytes] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class RunAs:
    """The unprivileged user that a service runs as when we are root."""

    uid: int
    gid: int


def unprivileged_owner(folder: Path) -> RunAs | None:
    """Who should own ``folder`` and run its service: None unless we are root.

    A folder that a plain user made before keeps its owner; else it is ``nobody``.
    """
    if os.geteuid() != 0:
        return None
    owner = folder.stat()
    if owner.st_uid != 0:
        return RunAs(owner.st_uid, owner.st_gid)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        return RunAs(_NOBODY_UID, _NOBODY_UID)
    return RunAs(nobody.pw_uid, nobody.pw_gid)


def without_root(
    command: Sequence[str], run_as: RunAs, *, death_signal: signal.Signals
) -> list[str]:
    """``command`` run as ``run_as`` through ``setpriv``, still able to walk to its own files.

    The checkout may lie below a folder that only root may enter. Rather than change that folder's
    mode, the child keeps the one capability that lets it pass; ``no_setuid_fixup`` makes the
    kernel honour it in ``access(2)`` too. Raises :class:`SetupFailed` without ``setpriv``.
    """
    if shutil.which("setpriv") is None:
        raise SetupFailed(
            "Postgres refuses to run as root and `setpriv` (util-linux) is missing:"
            " run RIS as a normal user, install util-linux, or set RIS_DATABASE_URL"
        )
    prefix = ["setpriv", f"--reuid={run_as.uid}", f"--regid={run_as.gid}", "--clear-groups"]
    capability = _own_traverse_capability()
    if capability is not None:
        prefix += [
            "--securebits=+no_setuid_fixup",
            f"--inh-caps=-all,+{capability}",
            f"--ambient-caps=-all,+{capability}",
        ]
    return [*prefix, "--no-new-privs", f"--pdeathsig={death_signal.name[3:]}", "--", *command]


def spawn(
    command: Sequence[str],
    *,
    log_path: Path,
    cwd: Path,
    env: Mapping[str, str],
    death_signal: signal.Signals | None,
    run_as: RunAs | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``command`` in a session of its own, its output appended to ``log_path``.

    The kernel sends it ``death_signal`` when the *thread* that called this ends, however it
    ends; call from a main thread. Raises :class:`SetupFailed` when it cannot be executed.
    """
    before_exec: Callable[[], None] | None = None
    if run_as is not None and death_signal is not None:
        # A change of user clears the death signal, so setpriv sets it after the change.
        command = without_root(command, run_as, death_signal=death_signal)
    elif death_signal is not None:
        before_exec = dying_with_parent(death_signal)
    log_path.parent.mkdir(parents=True, exist_ok=True)
    rotate_log(log_path)
    with log_path.open("ab") as log:
        try:
            return subprocess.Popen(  # noqa: S603 - our own command lists, no shell
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd,
                env=dict(env),
                start_new_session=True,  # a Ctrl-C in the terminal is the supervisor's to handle
                preexec_fn=before_exec,  # noqa: PLW1509 - callers are single-threaded
            )
        except OSError as error:
            raise SetupFailed(f"cannot start {command[0]}: {error}") from error


def free_port(preferred: int | None = None) -> int:
    """A loopback TCP port nobody listens on: ``preferred`` if it is free, else any."""
    for port in (preferred, 0):
        if port is None:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SetupFailed(f"no free TCP port on {LOOPBACK}")


def log_tail(path: Path, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a log, empty when there is none."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def is_alive(pid: int) -> bool:
    """Whether ``pid`` runs. A zombie does not: under a PID 1 that never reaps it stays for ever."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def find_process(pid: int | None, *, name: str, cwd: Path) -> psutil.Process | None:
    """The process ``pid`` if it is alive, called ``name`` and works in ``cwd``; else None.

    A pid read from a file may belong to a stranger by now; the working folder tells.
    """
    if pid is None or not is_alive(pid):
        return None
    try:
        process = psutil.Process(pid)
        ours = process.name() == name and Path(process.cwd()) == cwd.resolve()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    return process if ours else None


def end_process(
    process: psutil.Process, steps: Sequence[tuple[signal.Signals, float]]
) -> signal.Signals | None:
    """Send each signal in turn, waiting its seconds, until the process is gone.

    Returns the signal that ended it, None when it was gone already. The last step should be
    SIGKILL. Reaps the process where it is our own child.
    """
    for number, wait_s in steps:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            return None
        if _gone_within(process, wait_s):
            return number
    raise SetupFailed(f"process {process.pid} does not end, even after {steps[-1][0].name}")


def kill_group(leader_pid: int) -> None:
    """Kill whatever is left of the session that :func:`spawn` began with ``leader_pid``."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader_pid, signal.SIGKILL)


def _gone_within(process: psutil.Process, wait_s: float) -> bool:
    waited_s = 0.0
    while waited_s < wait_s:
        step_s = 0.05
        try:
            process.wait(step_s)
        except psutil.TimeoutExpired:
            waited_s += step_s
        else:
            return True
        if not is_alive(process.pid):
            return True
    return False


def dying_with_parent(death_signal: signal.Signals) -> Callable[[], None]:
    """What a child of this thread calls first, to be sent ``death_signal`` when we end."""
    libc = ctypes.CDLL(None)  # loaded before the fork: the child only makes the call
    parent = os.getpid()

    def before_exec() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(death_signal))
        if os.getppid() != parent:  # the parent died before the line above
            os._exit(1)

    return before_exec


def _own_traverse_capability() -> str | None:
    status = Path("/proc/self/status").read_text()
    permitted = next(line for line in status.splitlines() if line.startswith("CapPrm:"))
    bits = int(permitted.split()[1], 16)
    return next((name for name, bit in _TRAVERSE_CAPABILITIES if bits >> bit & 1), None)


def rotate_log(log_path: Path) -> None:
    """Put a log that has grown long aside; the one before it is gone."""
    if log_path.exists() and log_path.stat().st_size > MAX_LOG_BYTES:
        log_path.replace(_aside(log_path))


def trim_logs(data_dir: Path) -> None:
    """Put the ends of logs of a data folder that have grown long aside while they are written to:
    what is appended meanwhile is lost."""
    logs = [data_dir / one / f"{one}.log" for one in ("postgres", "redis")]
    with contextlib.suppress(OSError):
        logs += (data_dir / "logs").glob("*.log")
    for log_path in logs:
        with contextlib.suppress(OSError):  # a full disk, say; later, then
            _trim(log_path)


def _trim(log_path: Path) -> None:
    """We may be root in a folder of another user: no link is followed."""
    if not log_path.exists():
        return
    descriptor = os.open(log_path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size <= MAX_LOG_BYTES:
            return
        made = log_path.with_suffix(".log.1.tmp")
        made.unlink(missing_ok=True)
        try:
            with open(made, "xb", opener=_opened_for_owner) as copy:
                copy.write(os.pread(descriptor, MAX_LOG_BYTES, found.st_size - MAX_LOG_BYTES))
            made.replace(_aside(log_path))
        finally:
            made.unlink(missing_ok=True)
        os.ftruncate(descriptor, 0)  # who appends goes on at its new end
    finally:
        os.close(descriptor)


def _opened_for_owner(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _aside(log_path: Path) -> Path:
    return log_path.with_suffix(".log.1")
