"""`ris ingest`, `ris cameras`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from models.repositories import feeds as feed_record
from models.repositories import videos as video_record
from worker.accepting.segments import Submission
from worker.admin.feed import state_of
from worker.admin.output import Json, console, emit_json, notes, parse_time, table, when
from worker.context import Context
from worker.core.sampling import policy_named
from worker.errors import InputInvalid
from worker.ingest import submit_file
from worker.jobs import job_state
from worker.runtime import process_context

_POLL_S = 0.2


def ingest(
    files: Annotated[list[Path], typer.Argument(help="Recorded video files of one camera.")],
    camera: Annotated[str, typer.Option(help="Name of the camera; a new name is a new camera.")],
    start_time: Annotated[
        str | None,
        typer.Option(help="ISO 8601 time of the first picture; default: the file's own."),
    ] = None,
    every: Annotated[float, typer.Option(help="Seconds between sampled frames.")] = 1.0,
    policy: Annotated[
        str, typer.Option(help="interval, keyframe (cheapest) or change (when it moves).")
    ] = "interval",
    wait: Annotated[bool, typer.Option(help="Wait for the end and show progress.")] = True,
    as_json: Json = False,
) -> None:
    """Index recorded video files as one camera. Repeating the same command changes nothing."""
    context = process_context()
    chosen = policy_named(policy, every)
    start_utc = parse_time("--start-time", start_time)
    if start_utc is not None and len(files) > 1:
        raise InputInvalid("--start-time is of one file: ingest several files one by one")
    submitted = [submit_file(context, path, camera, chosen, start_utc) for path in files]
    states = follow_ingest(context, submitted, quiet=as_json) if wait else []
    if as_json:
        emit_json({"submitted": [asdict(s) for s in submitted], "jobs": states})
    else:
        for path, state in zip(files, states, strict=False):
            console.print(_outcome(path, state), markup=False)
        if not wait:
            console.print(f"{len(submitted)} accepted; `ris cameras` shows what is indexed")
    if any(state["state"] == "failed" for state in states):
        raise SystemExit(1)


def follow_ingest(
    context: Context, submitted: Sequence[Submission], *, quiet: bool = False
) -> list[dict[str, Any]]:
    """Wait for ingest jobs, telling how far they are; their final states in order."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=notes,
        transient=True,
        disable=quiet,
    ) as progress:
        line = progress.add_task("ingesting", total=None)

        def tell(states: Sequence[dict[str, Any]]) -> None:
            frames = sum(state["progress"].get("frames", 0) for state in states)
            done = sum(state["state"] in ("done", "failed") for state in states)
            trouble = next((s["retry_detail"] for s in states if s["retry_detail"]), None)
            text = f"ingesting: {done} of {len(states)} files done, {frames} frames"
            progress.update(line, description=text + (f" (waiting: {trouble})" if trouble else ""))

        return wait_for_jobs(context, [uuid.UUID(s.job_id) for s in submitted], tell)


def wait_for_jobs(
    context: Context,
    job_ids: Sequence[uuid.UUID],
    tell: Callable[[Sequence[dict[str, Any]]], None] = lambda _states: None,
) -> list[dict[str, Any]]:
    """Poll Postgres until every job is done or failed."""
    while True:
        states = [job_state(context, job_id) for job_id in job_ids]
        tell(states)
        if all(state["state"] in ("done", "failed") for state in states):
            return states
        time.sleep(_POLL_S)


def _outcome(path: Path, state: dict[str, Any]) -> str:
    if state["state"] == "failed":
        return f"{path}: failed ({state['error_code']}): {state['error_detail']}"
    progress = state["progress"]
    told = f"{path}: {progress.get('frames', 0)} frames indexed"
    if "expected" not in progress:
        return told
    return f"{told}; it should hold {progress['expected']} pictures, and held {progress['decoded']}"


def cameras(as_json: Json = False) -> None:
    """List cameras with what is indexed of them, and how live ones are."""
    with process_context().db.transaction() as session:
        summaries = video_record.summarise_cameras(session)
        feeds = {feed.camera: state_of(feed) for feed in feed_record.summarise(session)}
    if as_json:
        emit_json([asdict(summary) | {"feed": feeds.get(summary.name)} for summary in summaries])
        return
    table(
        None,
        ["id", "camera", "segments", "frames", "from", "to", "feed"],
        [
            (
                *(c.id, c.name, c.segments, c.frames, when(c.first_utc), when(c.last_utc)),
                feeds.get(c.name, ""),
            )
            for c in summaries
        ],
    )
