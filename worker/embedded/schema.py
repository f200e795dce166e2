"""The schema of a database: migrating it, and which revisions this RIS knows."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from models import NEWER_SCHEMA_EXIT
from worker.embedded.child_process import log_tail, spawn
from worker.embedded.children import REPO_ROOT
from worker.errors import FormatNewer, SetupFailed


def migrate(
    command: Sequence[str],
    *,
    log_path: Path,
    env: Mapping[str, str],
) -> None:
    """Migrate the database that ``env`` names to this RIS's schema.

    Raises :class:`FormatNewer` for one that a newer RIS migrated, else :class:`SetupFailed` with
    the end of the log.
    """
    migration = spawn(
        command, log_path=log_path, cwd=REPO_ROOT, env=env, death_signal=signal.SIGKILL
    )
    status = migration.wait()
    if status == NEWER_SCHEMA_EXIT:
        raise FormatNewer(log_tail(log_path, lines=1))
    if status != 0:
        raise SetupFailed(f"the database could not be migrated:\n{log_tail(log_path)}")


def known_revisions() -> list[str]:
    """Schema revisions this RIS knows, newest first."""
    # Here, so that the supervisor starts without it.
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(Config(str(REPO_ROOT / "alembic.ini")))
    return [revision.revision for revision in script.walk_revisions()]
