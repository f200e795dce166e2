"""`ris watch`: folders that recorders write to."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from models.repositories import watching as watch_record
from worker.admin.output import Json, console, emit_json, table, when
from worker.core.sampling import policy_named
from worker.recorder_folders import name_rules
from worker.runtime import process_context
from worker.watching import add_watch, remove_watch

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Folders that recorders write to: what is finished there is ingested.",
)

Camera = Annotated[str | None, typer.Option(help="Name of the camera; a new name is a new camera.")]
FromFolder = Annotated[
    bool,
    typer.Option("--camera-from-folder", help="The first folder below is the camera's name."),
]
NameOption = Annotated[
    str | None,
    typer.Option(
        "--name",
        help="How files are named: %Y %m %d %H %M %S %f, %s, {camera}, *, e.g."
        " %Y-%m-%d/%H/{camera}/%M.%S.mp4. Default: times are the files' own.",
    ),
]
Zone = Annotated[str, typer.Option("--time-zone", help="Of times in names, e.g. Europe/Berlin.")]


@app.command()
def add(
    folder: Annotated[Path, typer.Argument(help="Looked at with all folders below.")],
    camera: Camera = None,
    from_folder: FromFolder = False,
    name: NameOption = None,
    time_zone: Zone = "UTC",
    every: Annotated[float, typer.Option(help="Seconds between sampled frames.")] = 1.0,
    policy: Annotated[
        str, typer.Option(help="interval, keyframe (cheapest) or change (when it moves).")
    ] = "interval",
    as_json: Json = False,
) -> None:
    """Ingest what is there and what comes, each file once. The same again changes nothing."""
    rules = name_rules(camera, from_folder, name, time_zone)
    watch_id, is_new = add_watch(process_context(), folder, rules, policy_named(policy, every))
    if as_json:
        emit_json({"watch_id": watch_id, "is_new": is_new})
    else:
        console.print(
            f"{folder.resolve()} is watched; `ris watch ls` shows how it is", markup=False
        )


@app.command(name="ls")
def list_watches(
    failed: Annotated[bool, typer.Option("--failed", help="List files that failed.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many files.")] = 100,
    as_json: Json = False,
) -> None:
    """List watched folders and what became of the files in them."""
    with process_context().db.transaction() as session:
        watches = watch_record.summarise(session)
        files = watch_record.failed_files(session, limit) if failed else []
    if as_json:
        told = [asdict(watch) for watch in watches]
        emit_json({"folders": told, "failed": [asdict(file) for file in files]} if failed else told)
        return
    table(
        None,
        ["folder", "camera", "looked at", "waiting", "taken", "failed", "trouble"],
        [
            (
                watch.folder,
                watch.camera or watch.name_pattern or "by folder",
                when(watch.looked_at),
                watch.waiting,
                watch.taken - watch.ingest_failed,
                watch.failed + watch.ingest_failed,
                "" if watch.error_code is None else f"{watch.error_code}: {watch.error_detail}",
            )
            for watch in watches
        ],
    )
    if failed:
        table(
            "Failed files",
            ["file", "why"],
            [(f"{file.folder}/{file.path}", f"{file.code}: {file.detail}") for file in files],
        )


@app.command()
def rm(folder: Annotated[Path, typer.Argument(help="As it was added.")]) -> None:
    """Watch a folder no more. What was ingested stays; its files are forgotten."""
    remove_watch(process_context(), folder)
    console.print(f"{folder.resolve()}: not watched any more; its footage stays", markup=False)
