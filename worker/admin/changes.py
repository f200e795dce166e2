"""`ris changes`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from worker.admin.output import Json, console, emit_json, parse_time, table, when
from worker.admin.query import parse_roi
from worker.changes import StateSpan, find_changes
from worker.runtime import process_context


def changes(
    camera: Annotated[str, typer.Option(help="Camera whose box it is.")],
    roi: Annotated[
        str | None, typer.Option(help="Box X0,Y0,X1,Y1, each 0..1 of the picture.")
    ] = None,
    polygon: Annotated[str | None, typer.Option(help="Polygon 'X,Y X,Y X,Y', each 0..1.")] = None,
    from_time: Annotated[
        str | None, typer.Option("--from", help="ISO 8601 time; default: its first frame.")
    ] = None,
    to_time: Annotated[
        str | None, typer.Option("--to", help="ISO 8601 time; default: its last frame.")
    ] = None,
    hold: Annotated[
        int, typer.Option(min=1, help="Frames that a new state must last; fewer only pass.")
    ] = 3,
    as_json: Json = False,
) -> None:
    """Say when a box of a camera changed, and when it was again as before. Decodes nothing."""
    found = find_changes(
        process_context(),
        camera,
        parse_roi(roi, polygon),
        parse_time("--from", from_time),
        parse_time("--to", to_time),
        hold=hold,
    )
    if as_json:
        emit_json(asdict(found))
        return
    table(
        None,
        ["state", "from", "to", "what", "difference", "first frame", "last frame"],
        [
            (
                state.number,
                when(state.from_utc),
                when(state.to_utc),
                _what(state),
                f"{state.difference:.2f}" if state.number > 1 else "",
                state.first_frame_id,
                state.last_frame_id,
            )
            for state in found.states
        ],
    )
    count = len(found.states) - 1
    console.print(
        f"{count or 'no'} change{'s' * (count > 1)} in {found.frames} frames;"
        f" a difference above {found.level:.2f} counts"
    )


def _what(state: StateSpan) -> str:
    if state.number == 1:
        return "as it was"
    if state.like != state.number:
        return f"again as in state {state.like}"
    return f"changed after {when(state.before_utc)}"
