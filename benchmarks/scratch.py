"""Own services and a throw-away folder for a benchmark."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from worker.config import Settings
from worker.context import Context
from worker.embedded.control import start_supervisor, stop_supervisor
from worker.index.runs_file import let_go_of_runs
from worker.runtime import make_context


@contextmanager
def scratch_context(kept: Path | None = None, **changes: Any) -> Iterator[Context]:
    """A context on an embedded Postgres without workers; jobs are run by whoever has it. ``kept``:
    a folder that stays, with what an earlier run left in it."""
    with ExitStack() as held:
        folder = kept or held.enter_context(tempfile.TemporaryDirectory(prefix="ris-benchmark-"))
        os.environ.update(RIS_DATABASE_URL="", RIS_BROKER_URL="")
        state = start_supervisor(
            Path(folder), env={}, detach=False, on_progress=lambda _step: None, with_workers=False
        )
        try:
            url = str(state.database_url)
            settings = Settings(data_dir=Path(folder), database_url=url, **changes)
            made = make_context(settings, url, application_name="ris benchmark")
            yield replace(made, ring=lambda _job_id, _kind: None)
            made.db.close()
        finally:
            stop_supervisor(Path(folder))


def reader(context: Context) -> Context:
    """As a process that starts now sees it: nothing read before, nothing known to be damaged."""
    let_go_of_runs()
    return context.with_own_caches()
