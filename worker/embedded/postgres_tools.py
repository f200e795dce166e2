"""Dumps of a database, made and read by Postgres's own programs."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from worker.embedded.postgres import clean_env, postgres_binary
from worker.errors import ServiceUnavailable, SetupFailed, StorageFull

_LOCK_WAIT_MS = 10_000


def dump_database(url: str, snapshot: str, target: Path, *, given: bool) -> None:
    """Dump what a snapshot sees, in Postgres's custom format, synced to disk.

    ``given``: the database is not the embedded one. Raises :class:`SetupFailed` without a pg_dump
    that is new enough, :class:`StorageFull`, and :class:`ServiceUnavailable`.
    """
    _run(
        url,
        [
            str(_program("pg_dump", url, given=given)),
            "--format=custom",
            f"--snapshot={snapshot}",
            f"--lock-wait-timeout={_LOCK_WAIT_MS}",
            "--no-owner",
            "--no-privileges",
            f"--file={target}",
        ],
        target,
    )


def restore_database(url: str, dump: Path, *, given: bool) -> None:
    """Make a database what a dump says, in one transaction; what the dump names is replaced."""
    _run(
        url,
        [
            str(_program("pg_restore", url, given=given)),
            "--single-transaction",
            "--exit-on-error",
            "--clean",
            "--if-exists",
            "--no-owner",
            "--no-privileges",
            str(dump),
        ],
        dump,
    )


def has_tables(url: str) -> bool:
    """Whether a database holds any table. Raises :class:`ServiceUnavailable`."""
    with _connected(url) as connection:
        found = connection.execute(
            "select 1 from pg_tables where schemaname not in ('pg_catalog', 'information_schema')"
        ).fetchone()
    return found is not None


def _connected(url: str) -> psycopg.Connection:
    try:
        return psycopg.connect(_libpq(url), connect_timeout=5)
    except psycopg.OperationalError as error:
        raise ServiceUnavailable(f"Postgres: {error}; `ris doctor` shows what runs") from error


def _libpq(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


def _program(name: str, url: str, *, given: bool) -> Path:
    """The program that suits the server: for a given database the one on PATH, where it is new
    enough; else the bundled one, if that is."""
    with _connected(url) as connection:
        server = connection.info.server_version // 10_000
    on_path = shutil.which(name) if given else None
    found = []
    for path in ([Path(on_path)] if on_path else []) + [postgres_binary(name)]:
        version = _version(path)
        if version >= server:
            return path
        found.append(f"{path} is version {version}")
    raise SetupFailed(
        f"{name} {server} or newer is needed for this Postgres; {', '.join(found)}: install"
        " Postgres's client programs of that version and put them on PATH"
    )


def _version(path: Path) -> int:
    said = subprocess.run(  # noqa: S603 - a program we found, no shell
        [str(path), "--version"], capture_output=True, text=True, check=False
    )
    number = re.search(r"(\d+)(\.\d+|devel|beta\d+|rc\d+)", said.stdout)
    return int(number[1]) if number else 0


def _run(url: str, command: Sequence[str], place: Path) -> None:
    """Run a program on the database; its password is in the environment, where nobody sees it."""
    parts = {name: str(value) for name, value in conninfo_to_dict(_libpq(url)).items() if value}
    password = parts.pop("password", "")
    words = [*command[:1], f"--dbname={make_conninfo(**parts)}", *command[1:]]
    ended = subprocess.run(  # noqa: S603 - our own command lists, no shell
        words,
        env=clean_env() | ({"PGPASSWORD": password} if password else {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if ended.returncode == 0:
        return
    said = ended.stderr.strip()
    if "No space left on device" in said or "Disk quota exceeded" in said:
        raise StorageFull(f"{place}: disk full; free space and run it again")
    raise ServiceUnavailable(f"{Path(command[0]).name} failed: {said[-2000:]}")
