"""`ris erase`, `ris erasures`, `ris retention`."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from models.repositories import erasures as erasure_record
from worker.admin.output import Json, console, emit_json, notes, parse_time, table, when
from worker.admin.video import wait_for_jobs
from worker.config import settings
from worker.context import Context
from worker.erasure import camera_span, order_again, receipts, submit_erasure
from worker.errors import InputInvalid
from worker.retention import set_retention
from worker.runtime import process_context


def erase(
    camera: Annotated[str | None, typer.Option(help="Camera whose footage is erased.")] = None,
    from_time: Annotated[
        str | None, typer.Option("--from", help="ISO 8601 time; default: from its first frame.")
    ] = None,
    to_time: Annotated[
        str | None, typer.Option("--to", help="ISO 8601 time, itself kept; default: to its last.")
    ] = None,
    note: Annotated[str, typer.Option(help="Kept with the receipt, e.g. a case number.")] = "",
    again: Annotated[
        Path | None,
        typer.Option(help="Order again what a file of `ris erasures --json` lists."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait until all is gone.")] = True,
    as_json: Json = False,
) -> None:
    """Erase frames for good: vectors, pictures, rows, their hits and the queries made from them."""
    context = process_context()
    if (camera is None) == (again is None):
        raise InputInvalid("give either --camera or --again")
    if as_json and not yes:
        raise InputInvalid("--json cannot ask: add --yes")
    if camera is not None:
        span, found = camera_span(
            context, camera, parse_time("--from", from_time), parse_time("--to", to_time)
        )
        times = f", {when(found.first_utc)} to {when(found.last_utc)}" if found.frames else ""
        _confirm(f"erase {found.frames} frames of camera {camera!r}{times}", yes)
        job_ids = [submit_erasure(context, span, note=note)]
    else:
        assert again is not None
        orders = read_orders(again)
        _confirm(f"order up to {len(orders)} erasures again", yes)
        job_ids = order_again(context, orders)
    _show(context, job_ids, wait=wait, as_json=as_json)


def read_orders(path: Path) -> list[dict[str, Any]]:
    """The receipts in a file of `ris erasures --json`. Raises :class:`InputInvalid`."""
    try:
        orders = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputInvalid(f"{path}: {error}; give a file of `ris erasures --json`") from error
    if not isinstance(orders, list):
        raise InputInvalid(f"{path}: not a list; give a file of `ris erasures --json`")
    return orders


def _confirm(what: str, yes: bool) -> None:
    if not yes and not typer.confirm(f"{what}: this cannot be undone. Go on?", err=True):
        raise InputInvalid("nothing was erased")


def _show(context: Context, job_ids: Sequence[uuid.UUID], *, wait: bool, as_json: bool) -> None:
    states = wait_for_jobs(context, job_ids) if wait else []
    ordered = [r for r in receipts(context) if r["job"] in {str(job_id) for job_id in job_ids}]
    if as_json:
        emit_json(ordered)
    else:
        for one in ordered:
            console.print(_in_words(one), markup=False, soft_wrap=True)
        if not ordered:
            console.print("nothing to erase: every order was carried out here already")
    failed = [state for state in states if state["state"] == "failed"]
    for state in failed:
        notes.print(f"failed ({state['error_code']}): {state['error_detail']}", markup=False)
    if failed:
        raise SystemExit(1)


def _in_words(one: dict[str, Any]) -> str:
    if one["state"] != "done":
        return f"erasure {one['id']} of camera {one['camera']!r} is {one['state']}"
    return (
        f"erasure {one['id']}: {one['frames']} frames and {one['pictures']} pictures of camera"
        f" {one['camera']!r} are gone, with {one['hits']} hits and {one['queries']} queries;"
        f" {one['shards_removed']} shards removed, {one['shards_rewritten']} written anew"
    )


def erasures(as_json: Json = False) -> None:
    """List what was erased, by whose rule and when: the receipts."""
    rows = receipts(process_context())
    if as_json:
        emit_json(rows)
        return
    table(
        None,
        ["id", "camera", "from", "to", "reason", "ordered", "state", "frames", "pictures", "note"],
        [
            (
                r["id"],
                r["camera"],
                _shown(r["from"]) or "first",
                _shown(r["to"]) or "last",
                r["reason"],
                _shown(r["ordered"]),
                r["state"],
                r["frames"],
                r["pictures"],
                r["note"],
            )
            for r in rows
        ],
    )


def _shown(text: str | None) -> str:
    return "" if text is None else when(datetime.fromisoformat(text))


def retention(
    camera: Annotated[str | None, typer.Option(help="Camera to set it for.")] = None,
    days: Annotated[int | None, typer.Option(min=0, max=36_500, help="0: for ever.")] = None,
    default: Annotated[bool, typer.Option("--default", help="As RIS_RETENTION_DAYS says.")] = False,
    as_json: Json = False,
) -> None:
    """Show or set how long footage is kept. What is older is erased by itself."""
    context = process_context()
    if (camera is not None) != (days is not None or default) or (days is not None and default):
        raise InputInvalid("give --camera with either --days or --default, or none of them")
    if camera is not None:
        set_retention(context, camera, days)
    with context.db.transaction() as session:
        rules = {c.name: c.retention_days for c in erasure_record.list_cameras(session)}
    fallback = settings().retention_days
    rows = [
        {"camera": name, "days": fallback if own is None else own, "own_rule": own is not None}
        for name, own in rules.items()
    ]
    if as_json:
        emit_json(rows)
        return
    table(
        None,
        ["camera", "kept for", "rule"],
        [
            (
                r["camera"],
                f"{r['days']} days" if r["days"] else "ever",
                "its own" if r["own_rule"] else "RIS_RETENTION_DAYS",
            )
            for r in rows
        ],
    )
