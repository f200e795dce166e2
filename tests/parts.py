"""What tests of the use cases share: fresh contexts, loaded backbones, running jobs."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import psycopg

from models.jobs import Job
from models.repositories import jobs as job_record
from tests.conftest import psycopg_url, with_database
from worker.backbones.base import Backbone
from worker.changes import fail_changes, run_changes
from worker.compacting import run_compact
from worker.config import Settings
from worker.context import Context
from worker.core.sampling import IntervalPolicy
from worker.erasure import run_erase
from worker.evidence import run_evidence
from worker.fetching import fail_fetch, run_fetch
from worker.ingest import after_failed_ingest, fail_ingest, run_ingest, submit_file
from worker.jobs import Handler, run_job
from worker.offloading import run_offload
from worker.rebuilding import fail_reindex, run_reindex
from worker.runtime import BackboneCache, make_context
from worker.sealing import run_seal
from worker.search import fail_query, run_query
from worker.watching import fail_watch, run_watch

SECRET_KEY = "cmlzIHRlc3RzOiBhIGtleSBvZiAzMiBieXRlcy4uLi4="
HANDLERS: Mapping[str, Handler] = {
    "ingest": Handler(run_ingest, fail_ingest, after_fail=after_failed_ingest),
    "fetch": Handler(run_fetch, fail_fetch),
    "backfill": Handler(run_ingest, fail_ingest, after_fail=after_failed_ingest),
    "watch": Handler(run_watch, fail_watch),
    "query": Handler(run_query, fail_query),
    "reindex": Handler(run_reindex, fail_reindex),
    "erase": Handler(run_erase),
    "compact": Handler(run_compact),
    "seal": Handler(run_seal),
    "offload": Handler(run_offload),
    "evidence": Handler(run_evidence),
    "changes": Handler(run_changes, fail_changes),
}


@contextmanager
def fresh_database(url: str, template: str | None = None) -> Iterator[str]:
    """An own database of a Postgres, empty or a copy of ``template``; dropped at the end."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    copied = "" if template is None else f" template {template}"
    with psycopg.connect(psycopg_url(url), autocommit=True) as connection:
        connection.execute(f"create database {name}{copied}")
    yield with_database(url, name)
    with psycopg.connect(psycopg_url(url), autocommit=True) as connection:
        connection.execute(f"drop database {name} with (force)")


@contextmanager
def fresh_context(url: str, template: str, folder: Path, **changes: Any) -> Iterator[Context]:
    """A context of its own for a whole module; its bells are not sent."""
    with fresh_database(url, template) as database:
        configured = Settings(
            **{
                "database_url": database,
                "data_dir": folder,
                "secret_key": SECRET_KEY,
                "job_retry_base_s": 0.01,
                "commit_batch": 4,
                "embed_batch": 4,
                **changes,
            }
        )
        made = make_context(configured, database, application_name="ris tests")
        yield loaded(replace(made, ring=lambda _job_id, _kind: None))
        made.db.close()


@cache
def _loaded_backbones() -> tuple[BackboneCache, tempfile.TemporaryDirectory[str]]:
    import torch
    from transformers import Dinov2Config, Dinov2Model

    folder = tempfile.TemporaryDirectory(prefix="ris-backbones-")
    for name, width in (("tiny-a", 24), ("tiny-b", 32)):
        torch.manual_seed(width)
        shape = Dinov2Config(
            num_hidden_layers=2,
            num_attention_heads=2,
            hidden_size=width,
            image_size=32,
            patch_size=8,
        )
        Dinov2Model(shape).save_pretrained(Path(folder.name) / name)
    return BackboneCache(Settings(backbones_dir=Path(folder.name))), folder


def loaded_backbone(name: str) -> Backbone:
    """``efficientnet-lite0``, or a real small vision transformer: ``tiny-a``, ``tiny-b``.

    Loaded once per run. The tiny ones have random weights and 4 x 4 cells.
    """
    return _loaded_backbones()[0](name)


def backbones_folder() -> str:
    """Where the tiny ones lie, for a process of its own (``RIS_BACKBONES_DIR``)."""
    return _loaded_backbones()[1].name


def loaded(context: Context) -> Context:
    """The context with backbones that are loaded once per run."""
    return replace(context, backbone=loaded_backbone)


def with_settings(context: Context, **changes: Any) -> Context:
    """The context with other settings, out-of-bounds ones included."""
    return replace(context, settings=context.settings.model_copy(update=changes))


def run_jobs(context: Context, handlers: Mapping[str, Handler] = HANDLERS) -> None:
    """Run jobs in order of submission, again and again, until none is queued."""
    deadline_s = time.monotonic() + 60
    while job_ids := queued_jobs(context):
        assert time.monotonic() < deadline_s, "jobs do not end"
        for job_id in job_ids:
            run_job(context, job_id, handlers)
        if queued_jobs(context) == job_ids:
            time.sleep(0.01)  # put off until run_after


def queued_jobs(context: Context) -> list[uuid.UUID]:
    """Ids of the queued jobs, oldest first; those of feeds and watched folders never end."""
    with context.db.transaction() as session:
        query = (
            session.query(Job).filter_by(state="queued").filter(Job.kind.not_in(["feed", "watch"]))
        )
        query = query.order_by(Job.created_at, Job.id)
        return [job.id for job in query]


def job(context: Context, job_id: uuid.UUID | str) -> Job:
    """A job's record."""
    with context.db.transaction() as session:
        found = job_record.find(session, uuid.UUID(str(job_id)))
    assert found is not None
    return found


def sql(context: Context, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Rows of one statement, committed; ``%s`` for values."""
    url = psycopg_url(str(context.settings.database_url))
    with psycopg.connect(url, options="-c timezone=UTC") as connection:
        cursor = connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def ingested(context: Context, path: Path, camera: str, every_s: float, **given: Any) -> uuid.UUID:
    """Ingest a file to its end and return the job's id; it must succeed."""
    made = submit_file(context, path, camera, IntervalPolicy(every_s), **given)
    for _ in range(10):  # on a busy machine one slice is too short
        run_job(context, uuid.UUID(made.job_id), HANDLERS)
        done = job(context, made.job_id)
        if done.state != "queued":
            break
    assert done.state == "done", (done.error_code, done.error_detail, done.retry_detail)
    return done.id


def acts(context: Context, act: str) -> list[dict[str, Any]]:
    """Details of the audit's entries of one act, oldest first."""
    rows = sql(context, "select details from audit_entries where act = %s order by seq", act)
    return [row[0] for row in rows]
