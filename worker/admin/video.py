"""`ris ingest`, `ris cameras`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from models.repositories import feeds as feed_record
from models.repositories import videos as video_record
from worker.accepting.segments import Submission
from worker.admin.feed import state_of
from worker.admin.interrupts import pause
from worker.admin.output import Json, console, emit_json, notes, parse_time, table, when
from worker.admin.watch import FromFolder, NameOption, Zone
from worker.backfill import Backfill, ingest_folder
from worker.context import Context
from worker.core.sampling import SamplingPolicy, policy_named
from worker.errors import InputInvalid
from worker.ingest import submit_file
from worker.jobs import job_state
from worker.recorder_folders import NameRules, name_rules
from worker.runtime import process_context

_POLL_S = 0.2


def ingest(
    files: Annotated[
        list[Path], typer.Argument(help="Recorded video files, or folders with all below them.")
    ],
    camera: Annotated[
        str | None, typer.Option(help="Name of the camera; a new name is a new camera.")
    ] = None,
    from_folder: FromFolder = False,
    name: NameOption = None,
    time_zone: Zone = "UTC",
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
    """Index recorded video files, or archives of them. Repeating the same changes nothing."""
    context = process_context()
    chosen = policy_named(policy, every)
    rules = name_rules(camera, from_folder, name, time_zone)
    start_utc = parse_time("--start-time", start_time)
    folders = [path for path in files if path.is_dir()]
    alone = [path for path in files if path not in folders]
    if start_utc is not None and (folders or len(alone) > 1):
        raise InputInvalid("--start-time is of one file: ingest several files one by one")
    submitted = [_submit(context, path, rules, chosen, start_utc) for path in alone]
    states = follow_ingest(context, submitted, quiet=as_json) if wait and submitted else []
    archives = [_ingest_folder(context, path, rules, chosen, wait, as_json) for path in folders]
    if as_json:
        told: dict[str, Any] = {"submitted": [asdict(s) for s in submitted], "jobs": states}
        emit_json(told | ({"folders": [asdict(one) for one in archives]} if folders else {}))
    else:
        for path, state in zip(alone, states, strict=False):
            console.print(_outcome(path, state), markup=False)
        for path, archive in zip(folders, archives, strict=True):
            _tell_archive(path, archive, wait)
        if submitted and not wait:
            console.print(f"{len(submitted)} accepted; `ris cameras` shows what is indexed")
    failed = any(archive.failed for archive in archives)
    if failed or any(state["state"] == "failed" for state in states):
        raise SystemExit(1)


def _submit(
    context: Context,
    path: Path,
    rules: NameRules,
    policy: SamplingPolicy,
    start_utc: datetime | None,
) -> Submission:
    if rules.camera is not None and rules.pattern is None:
        return submit_file(context, path, rules.camera, policy, start_utc)
    camera, named_utc = rules.read(path.name)
    return submit_file(context, path, camera, policy, start_utc or named_utc)


def _ingest_folder(
    context: Context,
    folder: Path,
    rules: NameRules,
    policy: SamplingPolicy,
    wait: bool,
    quiet: bool,
) -> Backfill:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=notes,
        transient=True,
        disable=quiet,
    ) as progress:
        line = progress.add_task("looking", total=None)

        def tell(how_far: Backfill) -> None:
            text = f"{how_far.done} of {how_far.files} files, {how_far.frames} frames"
            text += f", {len(how_far.failed)} failed" if how_far.failed else ""
            text += f" (waiting: {how_far.waiting})" if how_far.waiting else ""
            progress.update(
                line,
                description=text,
                total=how_far.byte_count,
                completed=how_far.done_bytes,
            )

        return ingest_folder(context, folder, rules, policy, tell, wait=wait)


def _tell_archive(folder: Path, archive: Backfill, wait: bool) -> None:
    for path, code, detail in archive.failed:
        console.print(f"{path}: failed ({code}): {detail}", markup=False)
    if wait:
        told = f"{archive.files} files, {archive.known} known before, {archive.frames} frames"
    else:
        told = f"{archive.files} files accepted, {archive.known} of them known before"
    console.print(f"{folder}: {told}, {len(archive.failed)} failed", markup=False)


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
        pause(_POLL_S)


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
