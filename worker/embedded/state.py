"""What a running supervisor tells others: one JSON file, believed only while its lock is held."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from worker.embedded.service_folder import first_line_as_pid, write_private
from worker.errors import AlreadyRunning, BackupInvalid

Phase = Literal["starting", "ready", "stopping"]
EXIT_ALREADY_RUNNING = 3
"""Exit status of a supervisor that another one on its folder left no room for."""

# A reader holds the lock for an instant to see whether it is free; a starter waits that out.
_LOCK_TRIES = 20
_LOCK_RETRY_S = 0.02


@dataclass(frozen=True, slots=True)
class ServiceState:
    """One supervisor at one moment. URLs hold passwords, so they stay out of ``repr``.

    ``step`` says in words what is being done. ``pids`` maps the name of every running child
    (``postgres``, ``redis``, ``worker-ingest``, ...) to its process id.
    """

    phase: Phase
    step: str
    supervisor_pid: int
    data_dir: str
    database_url: str | None = field(default=None, repr=False)
    broker_url: str | None = field(default=None, repr=False)
    pids: Mapping[str, int] = field(default_factory=dict)


def lock_path(data_dir: Path) -> Path:
    """The file whose lock says that a supervisor runs on ``data_dir``."""
    return data_dir / "ris.lock"


def state_path(data_dir: Path) -> Path:
    """Where the supervisor of ``data_dir`` writes its state."""
    return data_dir / "run" / "state.json"


def api_path(data_dir: Path) -> Path:
    """Where the API of ``data_dir`` writes its address, ``{"url", "pid"}``."""
    return data_dir / "run" / "api.json"


def restoring_path(data_dir: Path) -> Path:
    """There while a restore into ``data_dir`` is under way: what lies here is not whole."""
    return data_dir / "restoring"


def refuse_unfinished_restore(data_dir: Path) -> None:
    """Raise :class:`BackupInvalid` where a restore has begun and not ended."""
    if restoring_path(data_dir).exists():
        raise BackupInvalid(
            f"a restore into {data_dir} has not ended: run `ris restore` again, or empty the folder"
        )


@contextmanager
def holding_lock(data_dir: Path) -> Iterator[None]:
    """Hold ``data_dir`` for this process; the kernel lets go when the process ends.

    Raises :class:`AlreadyRunning` naming the folder and the holder's pid.
    """
    path = lock_path(data_dir)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for attempt in range(_LOCK_TRIES):
            if _try_lock(descriptor, fcntl.LOCK_EX):
                break
            if attempt + 1 == _LOCK_TRIES:
                raise AlreadyRunning(
                    f"RIS already runs on {data_dir.resolve()} (pid {first_line_as_pid(path)}):"
                    " use it, stop it with `ris down`, or set RIS_DATA_DIR to another folder"
                )
            time.sleep(_LOCK_RETRY_S)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def running_pid(data_dir: Path) -> int | None:
    """The pid of the supervisor that holds ``data_dir``, None when nobody does."""
    path = lock_path(data_dir)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        # Shared, so that two readers do not see each other.
        return None if _try_lock(descriptor, fcntl.LOCK_SH) else first_line_as_pid(path)
    finally:
        os.close(descriptor)


def write_state(state: ServiceState) -> None:
    """Replace the state file of ``state.data_dir`` in one step, mode 0600."""
    path = state_path(Path(state.data_dir))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, json.dumps(asdict(state), indent=1))


def read_state(data_dir: Path) -> ServiceState | None:
    """The state of the supervisor running on ``data_dir``; None when none runs."""
    pid = running_pid(data_dir)
    if pid is None:
        return None
    try:
        fields = json.loads(state_path(data_dir).read_text())
    except FileNotFoundError:
        return None
    # A state file that a killed predecessor left says another pid.
    return ServiceState(**fields) if fields["supervisor_pid"] == pid else None


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True
