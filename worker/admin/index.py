"""`ris backbones`, `ris reindex`, `ris generations`, `ris seal`, `ris offload`,
`ris verify`, `ris repair`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from models.index import IndexGeneration
from models.repositories import index as index_record
from worker.accepting.desk import COMMAND_LINE
from worker.admin.output import Json, console, emit_json, notes, size, table, when
from worker.admin.video import wait_for_jobs
from worker.config import settings
from worker.context import Context
from worker.core.comparison import DEFAULT_GATE, Gate
from worker.errors import InputInvalid
from worker.generations import require_live_generation
from worker.offloading import bring_back, moved_cameras, require_objects
from worker.offloading import submit_due as submit_offload
from worker.reindex import (
    HowFar,
    ReindexSubmission,
    how_far,
    remove_generation,
    submit_reindex,
    submit_return,
)
from worker.repair import repair_index
from worker.runtime import process_context
from worker.sealing import sealed_cameras, submit_due
from worker.verify import verify_index

_MAX_ID = 2**63 - 1  # ids are Postgres bigints; a larger number would be an error of its own


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
    backbone: Annotated[str | None, typer.Option(help="Backbone of a new generation.")] = None,
    generation: Annotated[
        int | None,
        typer.Option(min=1, max=_MAX_ID, help="Instead: return to this retired or failed one."),
    ] = None,
    compare: Annotated[
        bool | None,
        typer.Option(
            "--compare/--no-compare",
            help="Compare with the live one before the switch; default: unless it was live before.",
        ),
    ] = None,
    recall_margin: Annotated[
        float, typer.Option(min=0, max=1, help="Self recall the new one may lack, at most.")
    ] = DEFAULT_GATE.recall_margin,
    min_overlap: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Refuse the switch below this mean overlap."),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the switch and show progress.")] = True,
    as_json: Json = False,
) -> None:
    """Build a new index generation beside the live one, verify it, compare, switch."""
    context = process_context()
    gate = Gate(recall_margin, min_overlap)
    if min_overlap is not None and compare is False:
        raise InputInvalid("--min-overlap needs the comparison: leave out --no-compare")
    compare = True if min_overlap is not None else compare
    if backbone is not None and generation is None:
        submission = submit_reindex(context, backbone, compare=compare is not False, gate=gate)
    elif generation is not None and backbone is None:
        submission = submit_return(context, generation, compare=compare, gate=gate)
    else:
        raise InputInvalid("give either --backbone or --generation")
    state = _follow(context, submission.job_id, quiet=as_json) if wait else None
    comparison = None if state is None else _comparison(context, submission)
    if as_json:
        generation_id = submission.generation_id
        emit_json({"generation_id": generation_id, "job": state, "comparison": comparison})
    else:
        _show(submission.generation_id, state, comparison)
    if state is not None and state["state"] == "failed":
        raise SystemExit(1)


def _comparison(context: Context, submission: ReindexSubmission) -> dict[str, Any] | None:
    """What this job has compared; an earlier job's comparison says nothing of this one."""
    with context.db.transaction() as session:
        found = index_record.find_generation(session, submission.generation_id)
    noted = None if found is None else found.comparison
    return noted if noted is not None and noted["job_id"] == str(submission.job_id) else None


def _show(
    generation_id: int, state: dict[str, Any] | None, comparison: dict[str, Any] | None
) -> None:
    if comparison is not None:
        _show_comparison(comparison["figures"])
    if state is None:
        console.print(f"generation {generation_id} is being built")
    elif state["state"] == "done":
        console.print(f"generation {generation_id} is live")
    else:
        failed = f"failed ({state['error_code']}): {state['error_detail']}"
        console.print(failed, markup=False, soft_wrap=True)


def _show_comparison(found: dict[str, Any]) -> None:
    columns = ["asked of both", "count", "skipped", "failing", "figure", "live", "new"]
    canaries = (found["canaries"], found["canaries_skipped"], None)
    queries = (found["queries"], found["queries_skipped"], found["queries_failing"])
    rows = [
        ("canary frames", *canaries, "find themselves",
         _share(found["live_self_recall"]), _share(found["new_self_recall"])),
        ("", None, None, None, "find their neighbours",
         _share(found["live_neighbour_recall"]), _share(found["new_neighbour_recall"])),
        ("recent queries", *queries, "overlap, mean", None, _share(found["overlap_mean"])),
        ("", None, None, None, "overlap, worst", None, _share(found["overlap_worst"])),
        ("", None, None, None, "same order", None, _share(found["agreement_mean"])),
    ]  # fmt: skip
    table("comparison with the live generation, best 10 frames", columns, rows)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _in_short(comparison: dict[str, Any] | None) -> str:
    """A comparison in a cell of a table."""
    if comparison is None:
        return ""
    found = comparison["figures"]
    recall = f"{_share(found['live_self_recall'])} -> {_share(found['new_self_recall'])}"
    refused = ", refused" if comparison["refused"] else ""
    return f"recall {recall}, overlap {_share(found['overlap_mean'])}{refused}"


def generations(
    remove: Annotated[
        int | None,
        typer.Option(min=1, max=_MAX_ID, help="Remove the vectors of this retired or failed one."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List index generations, or remove the vectors of one that is not in use any more."""
    context = process_context()
    if remove is not None:
        notes.print(f"{remove_generation(context, remove)} shards removed")
    with context.db.transaction() as session:
        found = index_record.list_generations(session)
        frames = [index_record.count_indexed(session, one.id) for one in found]
    bytes_on_disk = [context.index.bytes_of(one.id) for one in found]
    building = how_far(context)
    listed = list(zip(found, frames, bytes_on_disk, strict=True))
    if as_json:
        emit_json(
            [
                {
                    "id": one.id,
                    "backbone": one.backbone,
                    "codec": one.codec,
                    "state": one.state,
                    "frames": count,
                    "bytes": byte_count,
                    "created": one.created_at,
                    "comparison": one.comparison,
                    "building": asdict(building[one.id]) if one.id in building else None,
                }
                for one, count, byte_count in listed
            ]
        )
        return
    table(
        None,
        ["id", "backbone", "codec", "state", "frames", "size", "made", "compared"],
        [
            (
                *(one.id, one.backbone, one.codec, _state(one, building), count, size(n)),
                *(when(one.created_at), _in_short(one.comparison)),
            )
            for one, count, n in listed
        ],
    )


def _state(generation: IndexGeneration, building: Mapping[int, HowFar]) -> str:
    """With how far it is, and how long that will take."""
    far = building.get(generation.id)
    if far is None or far.of == 0:
        return generation.state
    if far.frames >= far.of:
        return f"{generation.state}, {far.verified / far.of:.0%} verified"
    left = "" if far.left_s is None else f", {timedelta(seconds=round(far.left_s))} left"
    return f"{generation.state}, {far.frames / far.of:.0%}{left}"


def _follow(context: Context, job_id: uuid.UUID, *, quiet: bool) -> dict[str, Any]:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=notes,
        transient=True,
        disable=quiet,
    ) as progress:
        line = progress.add_task("embedding", total=None)

        def tell(states: Sequence[dict[str, Any]]) -> None:
            told = states[0]["progress"]
            if "asked" in told:
                asked = {"completed": told["asked"], "total": told["to_ask"]}
                progress.update(line, description="comparing", **asked)
            elif "verified" in told:
                read_back = {"completed": told["verified"], "total": told["of"]}
                progress.update(line, description="verifying", **read_back)
            else:
                embedded = {"completed": told.get("frames", 0), "total": told.get("of")}
                progress.update(line, description="embedding", **embedded)

        return wait_for_jobs(context, [job_id], tell)[0]


def seal(
    everything: Annotated[
        bool, typer.Option("--all", help="Also shards that something was just added to.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Wait until they are sealed.")] = True,
    as_json: Json = False,
) -> None:
    """Seal shards now instead of behind ingest: what a camera goes on showing is stored once."""
    context = process_context()
    job_id = submit_due(context, 0.0 if everything else None, COMMAND_LINE)
    state = wait_for_jobs(context, [job_id])[0] if wait and job_id is not None else None
    cameras = sealed_cameras(context, require_live_generation(context))
    if as_json:
        emit_json({"job": state, "cameras": [asdict(camera) for camera in cameras]})
    else:
        table(
            None,
            ["camera", "sealed frames", "cells a row", "size"],
            [(c.camera, c.frames, f"{c.cells / c.rows:.1f}", size(c.patch_bytes)) for c in cameras],
        )
        if job_id is None:
            notes.print("nothing to seal, or it is under way")
    if state is not None and state["state"] == "failed":
        notes.print(f"failed ({state['error_code']}): {state['error_detail']}", markup=False)
        raise SystemExit(1)


def offload(
    everything: Annotated[
        bool, typer.Option("--all", help="Also shards that were just sealed.")
    ] = False,
    back: Annotated[
        bool, typer.Option("--back", help="Instead: bring everything back from object storage.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Wait until they are moved.")] = True,
    as_json: Json = False,
) -> None:
    """Move sealed shards to object storage (RIS_S3_URL) now, or bring them back."""
    context = process_context()
    require_objects(context)
    if back and everything:
        raise InputInvalid("--all and --back: give one of them")
    job_id = None
    if back:
        notes.print(f"{bring_back(context)} shards brought back")
    else:
        job_id = submit_offload(context, 0.0 if everything else None, COMMAND_LINE)
    state = wait_for_jobs(context, [job_id])[0] if wait and job_id is not None else None
    cameras = moved_cameras(context)
    if as_json:
        emit_json({"job": state, "cameras": [asdict(camera) for camera in cameras]})
    else:
        table(
            None,
            ["camera", "shards away", "frames", "size"],
            [(c.camera, c.shards, c.frames, size(c.object_bytes)) for c in cameras],
        )
        if job_id is None and not back:
            notes.print("nothing to move, or it is under way")
    if state is not None and state["state"] == "failed":
        notes.print(f"failed ({state['error_code']}): {state['error_detail']}", markup=False)
        raise SystemExit(1)


def verify(
    pictures: Annotated[
        bool, typer.Option(help="Also read kept pictures, uploads and recordings.")
    ] = True,
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
            f" {report.pictures} pictures, {report.uploads} uploads, {report.recordings} recordings"
        )
        if report.audit_entries:
            console.print(
                f"audit: {report.audit_entries} entries, the last is {report.audit_sha256}",
                soft_wrap=True,
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
