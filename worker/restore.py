"""Restore: a backup's files and database into an empty place, checked before anything is written.

The database comes last, in one transaction: until then nothing speaks of the files. A mark in the
data folder says that a restore is under way; nothing starts there until it is gone, and a restore
that was interrupted goes on from it.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.repositories import backups as backup_record
from models.repositories import offloading as offload_record
from worker.accepting.audit import record_act
from worker.accepting.desk import COMMAND_LINE
from worker.backup_folder import Copier, Manifest, check_folder, read_manifest
from worker.context import Context
from worker.embedded.children import MIGRATE_COMMAND
from worker.embedded.postgres_tools import has_tables, restore_database
from worker.embedded.schema import known_revisions, migrate
from worker.embedded.service_folder import write_private
from worker.embedded.state import restoring_path
from worker.erasure import order_again, ordered_spans, run_erase
from worker.errors import (
    BackupInvalid,
    FormatNewer,
    InputInvalid,
    error_of_code,
)
from worker.index.layout import fsync_folder, storage_errors
from worker.jobs import Handler, job_state, run_job

_SHOWN = 20
_FILES_ARE_IN = ("index", "pictures", "uploads", "recordings")


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What was restored. ``erasures``: how many were ordered and carried out again."""

    taken_utc: str
    frames: int
    files: int
    byte_count: int
    erasures: int


def require_restorable(folder: Path, data_dir: Path) -> Manifest:
    """The manifest of a backup that can be restored into this data folder.

    Raises :class:`BackupInvalid`, :class:`FormatNewer` for a backup of a newer RIS, and
    :class:`InputInvalid` where the data folder is not empty, or another restore has begun there.
    """
    manifest = read_manifest(folder)
    known = known_revisions()
    if manifest.schema_revision not in known:
        raise FormatNewer(
            f"{folder} holds a database of schema revision {manifest.schema_revision}, made by RIS"
            f" {manifest.ris_version}; this RIS knows up to {known[0]}: update RIS"
        )
    begun = _begun(data_dir)
    if begun is None:
        held = [name for name in _FILES_ARE_IN if any((data_dir / name).glob("*"))]
        if held:
            raise InputInvalid(
                f"{data_dir / held[0]} is not empty: restore into a fresh folder (RIS_DATA_DIR)"
            )
    elif begun != manifest.database:
        raise InputInvalid(
            f"a restore of another backup ({begun}) has begun in {data_dir}: end that one, or"
            " empty the folder"
        )
    return manifest


def restore(
    context: Context,
    folder: Path,
    database: str,
    orders: Sequence[dict[str, Any]] = (),
    on_progress: Callable[[str], None] = lambda _step: None,
) -> RestoreReport:
    """Restore a backup; nothing else may use the data folder and the database meanwhile.

    ``orders``: receipts of erasures, ordered after the backup perhaps, which are carried out before
    this ends. Raises what :func:`require_restorable` raises, :class:`BackupInvalid` naming files
    that do not hold their bytes, and :class:`InputInvalid` for a database with tables.
    """
    data_dir = context.settings.data_dir.resolve()
    manifest = require_restorable(folder, data_dir)
    ordered_spans(orders)
    given = context.settings.database_url is not None
    if _begun(data_dir) is None and has_tables(database):
        raise InputInvalid(
            "the database is not empty: restore into a new one (RIS_DATABASE_URL)"
            if given
            else f"the database in {data_dir} is not empty: restore into a fresh RIS_DATA_DIR"
        )
    on_progress(f"checking {len(manifest.files)} files")
    _require_sound(check_folder(folder, manifest).wrong, folder)
    with storage_errors(data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
        write_private(restoring_path(data_dir), manifest.database)
        fsync_folder(data_dir)
    on_progress("copying files")
    _copy_files(context, folder, manifest)
    on_progress("restoring the database")
    restore_database(database, folder / manifest.database, given=given)
    if manifest.schema_revision != known_revisions()[0]:
        migrate(
            MIGRATE_COMMAND,
            log_path=data_dir / "logs" / "migrate.log",
            env=os.environ | {"RIS_DATABASE_URL": database},
        )
    with context.db.transaction() as session:
        backup_record.forget_codes(session)  # made again behind ingest; not in the backup
        offload_record.forget_objects(session)  # all files are here
        taken = {"taken_utc": manifest.taken_utc, "dump": manifest.database}
        record_act(session, COMMAND_LINE, "backup.restore", **taken)
    again = order_again(context, orders)
    if again:
        on_progress(f"carrying out {len(again)} erasures again")
    _carry_out(context, again)
    with storage_errors(data_dir):
        restoring_path(data_dir).unlink()
        fsync_folder(data_dir)
    return RestoreReport(
        taken_utc=manifest.taken_utc,
        frames=manifest.frames,
        files=len(manifest.files),
        byte_count=sum(entry.byte_count for entry in manifest.files.values()),
        erasures=len(again),
    )


def _begun(data_dir: Path) -> str | None:
    """Which backup's restore has begun here and not ended, by the name of its dump."""
    try:
        return restoring_path(data_dir).read_text()
    except FileNotFoundError:
        return None


def _require_sound(wrong: Sequence[str], folder: Path) -> None:
    if wrong:
        shown = "; ".join(wrong[:_SHOWN]) + ("; ..." if len(wrong) > _SHOWN else "")
        raise BackupInvalid(
            f"{folder}: {len(wrong)} files do not hold what was backed up: {shown}. Nothing was"
            " restored; use another backup"
        )


def _copy_files(context: Context, folder: Path, manifest: Manifest) -> None:
    data_dir = context.settings.data_dir.resolve()
    copier = Copier()
    for path, entry in manifest.files.items():
        target = data_dir / path
        if path == manifest.database or _is_there(target, entry.byte_count):
            continue
        copier.copy(folder / path, target, entry.sha256, entry.byte_count)
    copier.flush(data_dir)
    _require_sound([f"{path}: changed since it was checked" for path in _sorted(copier)], folder)


def _is_there(target: Path, byte_count: int) -> bool:
    """Whether an interrupted restore has copied it: files get their names when they are whole."""
    try:
        return target.stat().st_size == byte_count
    except OSError:
        return False


def _sorted(copier: Copier) -> Iterable[Path]:
    return sorted(copier.missing | copier.damaged)


def _carry_out(context: Context, job_ids: Sequence[uuid.UUID]) -> None:
    """Run erasures to their end here: no worker is there, and nobody shall see what they erase."""
    for job_id in job_ids:
        while (job := job_state(context, job_id))["state"] != "done":
            code = job["error_code"] or job["retry_code"]
            if code:
                raise error_of_code(code, job["error_detail"] or job["retry_detail"])
            run_job(context, job_id, {"erase": Handler(run_erase)})
            time.sleep(0.01)
