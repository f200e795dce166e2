"""`ris backbones`, `ris reindex`, `ris verify`, `ris repair`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from worker.admin.output import Json, console, emit_json, notes, size, table
from worker.admin.video import wait_for_jobs
from worker.config import settings
from worker.context import Context
from worker.reindex import submit_reindex
from worker.repair import repair_index
from worker.runtime import process_context
from worker.verify import verify_index


def backbones(as_json: Json = False) -> None:
    """List backbones with licence and size."""
    from worker.backbones.registry import list_backbones

    entries = list_backbones(settings().backbones_dir)
    if as_json:
        emit_json([asdict(entry) for entry in entries])
        return
    table(
        None,
        ["backbone", "family", "licence", "commercial use", "weights", "here", "note"],
        [
            (
                e.name,
                e.family,
                e.licence,
                "yes" if e.commercial_use else "NO",
                size(e.weights_bytes),
                "yes" if e.available else "no",
                e.note,
            )
            for e in entries
        ],
    )


def reindex(
    backbone: Annotated[str, typer.Option(help="Backbone of the new generation.")],
    wait: Annotated[bool, typer.Option(help="Wait for the switch and show progress.")] = True,
    as_json: Json = False,
) -> None:
    """Build a new index generation beside the live one, verify it, switch. Search stays up."""
    context = process_context()
    submission = submit_reindex(context, backbone)
    state = _follow(context, submission.job_id, quiet=as_json) if wait else None
    if as_json:
        emit_json({"generation_id": submission.generation_id, "job": state})
    elif state is None:
        console.print(f"generation {submission.generation_id} is being built")
    elif state["state"] == "done":
        console.print(f"generation {submission.generation_id} ({backbone}) is live")
    else:
        console.print(f"failed ({state['error_code']}): {state['error_detail']}", markup=False)
    if state is not None and state["state"] == "failed":
        raise SystemExit(1)


def _follow(context: Context, job_id: uuid.UUID, *, quiet: bool) -> dict[str, Any]:
    with Progress(
        TextColumn("reindexing"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=notes,
        transient=True,
        disable=quiet,
    ) as progress:
        line = progress.add_task("reindex", total=None)

        def tell(states: Sequence[dict[str, Any]]) -> None:
            told = states[0]["progress"]
            progress.update(line, completed=told.get("frames", 0), total=told.get("of"))

        return wait_for_jobs(context, [job_id], tell)[0]


def verify(
    pictures: Annotated[bool, typer.Option(help="Also check every kept picture.")] = True,
    as_json: Json = False,
) -> None:
    """Check that Postgres, vector files, pictures and FAISS agree; exit 1 and say what does not."""
    report = verify_index(process_context(), pictures=pictures)
    if as_json:
        emit_json(asdict(report))
    else:
        for problem in report.problems:
            console.print(problem, markup=False, soft_wrap=True)
        verdict = f"{len(report.problems)} problems" if report.problems else "clean"
        console.print(
            f"{verdict}: {report.frames} frames, {report.shards} shards, {report.rows} patch rows,"
            f" {report.pictures} pictures"
        )
    if report.problems:
        raise SystemExit(1)


def repair(as_json: Json = False) -> None:
    """Make damaged vectors anew from the kept pictures; exit 1 and say what stays damaged."""
    report = repair_index(process_context())
    if as_json:
        emit_json(asdict(report))
    else:
        for problem in report.problems:
            console.print(problem, markup=False, soft_wrap=True)
        console.print(
            f"{report.shards} shards checked, {report.repaired} written anew,"
            f" {report.frames} frames made anew from their pictures"
        )
    if report.problems:
        raise SystemExit(1)
