"""`ris backup`, `ris restore`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from worker.admin.erase import read_orders
from worker.admin.output import Json, console, emit_json, notes, size
from worker.backup import back_up
from worker.backup_folder import check_folder, read_manifest
from worker.config import Settings, settings
from worker.embedded.postgres import start_postgres, stop_postgres
from worker.embedded.state import holding_lock
from worker.erasure import ordered_spans
from worker.restore import require_restorable
from worker.restore import restore as restore_backup
from worker.runtime import make_context, process_context
from worker.verify import verify_index

_SHOWN = 20


def backup(
    folder: Annotated[Path, typer.Argument(help="Empty, or a backup to bring up to date.")],
    check: Annotated[
        bool, typer.Option("--check", help="Only read a backup and compare with its manifest.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Back up the index into a folder, while everything goes on; or bring a backup up to date."""
    if check:
        _check(folder, as_json=as_json)
        return
    report = back_up(process_context(), folder, _told)
    if as_json:
        emit_json(asdict(report))
    else:
        console.print(
            f"{report.frames} frames as of {report.taken_utc} in {folder}: {report.files} files,"
            f" {size(report.byte_count)}, of which {size(report.new_bytes)} new;"
            f" {report.removed} files removed",
            markup=False,
            soft_wrap=True,
        )
    _end("backed up, but the index itself is not whole", report.problems)


def _check(folder: Path, *, as_json: bool) -> None:
    report = check_folder(folder, read_manifest(folder))
    if as_json:
        emit_json(asdict(report))
    elif not report.wrong:
        console.print(f"sound: {report.files} files, {size(report.byte_count)}", markup=False)
    if report.extra:
        notes.print(
            f"{len(report.extra)} files are not in the manifest, e.g. {report.extra[0]}: a backup"
            " was not finished; run it again",
            markup=False,
        )
    _end(f"{folder} is not what was backed up", report.wrong)


def restore(
    folder: Annotated[Path, typer.Argument(help="A backup.")],
    erasures: Annotated[
        Path | None,
        typer.Option(help="Carry out again what a file of `ris erasures --json` lists."),
    ] = None,
    verify: Annotated[bool, typer.Option(help="Verify what was restored.")] = True,
    as_json: Json = False,
) -> None:
    """Restore a backup into an empty data folder and an empty database."""
    configured = settings()
    orders = [] if erasures is None else read_orders(erasures)
    ordered_spans(orders)
    require_restorable(folder, configured.data_dir.resolve())
    with _database_alone(configured) as database:
        context = make_context(configured, database, application_name="ris restore")
        context = replace(context, ring=lambda _job_id, _kind: None)  # nobody is there to hear it
        report = restore_backup(context, folder, database, orders, _told)
        problems = verify_index(context).problems if verify else ()
        context.db.close()
    if as_json:
        emit_json({**asdict(report), "problems": problems})
    else:
        console.print(
            f"restored {report.frames} frames as of {report.taken_utc} into {configured.data_dir};"
            f" {report.erasures} erasures carried out again. Start: ris up",
            markup=False,
            soft_wrap=True,
        )
    _end("restored, but not whole", problems)


@contextmanager
def _database_alone(configured: Settings) -> Iterator[str]:
    """The database with nobody at work on the data folder. Raises :class:`AlreadyRunning`."""
    data_dir = configured.data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    with holding_lock(data_dir):
        if configured.database_url is not None:
            yield configured.database_url
            return
        handle = start_postgres(data_dir / "postgres")
        try:
            yield handle.url
        finally:
            stop_postgres(data_dir / "postgres")


def _told(step: str) -> None:
    notes.print(f"  {step}", style="dim")


def _end(what: str, problems: tuple[str, ...]) -> None:
    """Exit status 1 with what is wrong, if anything is."""
    if not problems:
        return
    notes.print(f"{what}: {len(problems)} problems", markup=False)
    for problem in problems[:_SHOWN]:
        notes.print(f"  {problem}", markup=False)
    raise SystemExit(1)
