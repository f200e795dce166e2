"""`ris standing`: what new frames are compared with, and the alerts that came of it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from models.repositories import standing as standing_record
from models.repositories.scope import EVERYTHING
from models.session import Session
from models.standing import Alert, StandingQuery
from worker.accepting import standing as accepting
from worker.accepting.desk import COMMAND_LINE
from worker.accepting.queries import checked_order, discard_uploads
from worker.accepting.standing import (
    DEFAULT_COOL_DOWN_S,
    DEFAULT_FALSE_PER_DAY,
    StandingOrder,
)
from worker.admin.output import Json, console, emit_json, table, when
from worker.admin.query import camera_ids_of, parse_roi
from worker.core.search_params import SearchParams
from worker.runtime import process_context

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Queries that new frames are compared with.",
)
_MOST = 100_000

StandingId = Annotated[int, typer.Argument(help="Id, as `ris standing ls` shows it.")]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What is watched for.")],
    frame: Annotated[int, typer.Option(help="Id of the indexed frame that shows it.")],
    roi: Annotated[
        str | None, typer.Option(help="Box X0,Y0,X1,Y1, each 0..1 of the picture.")
    ] = None,
    polygon: Annotated[str | None, typer.Option(help="Polygon 'X,Y X,Y X,Y', each 0..1.")] = None,
    camera: Annotated[list[str] | None, typer.Option(help="Only these cameras.")] = None,
    false_per_day: Annotated[
        float, typer.Option(help="Alert where chance brings at most so many a camera and day.")
    ] = DEFAULT_FALSE_PER_DAY,
    cool_down: Annotated[
        float, typer.Option(help="Seconds between the frames of two alerts of a camera.")
    ] = DEFAULT_COOL_DOWN_S,
    backfill: Annotated[
        bool, typer.Option("--backfill", help="Search what is there as well.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare every new frame with a region from now on."""
    context = process_context()
    cameras = camera_ids_of(context, camera)
    params = SearchParams(camera_ids=None if cameras is None else tuple(cameras))
    query = checked_order(context, parse_roi(roi, polygon), params, frame_id=frame)
    order = StandingOrder(name, query, false_per_day, cool_down, backfill=backfill)
    with context.db.transaction() as session:
        made = accepting.record_standing(context, session, order, COMMAND_LINE)
        told = _json(*_found(session, made.standing_id))
    found = None if made.backfill is None else made.backfill.query_id
    if made.backfill is not None:
        context.ring(made.backfill.job_id, "query")
    if as_json:
        emit_json({**told, "backfill_query_id": found})
        return
    also = "" if found is None else f"; what is there is searched by query {found}"
    console.print(f"standing query {made.standing_id} runs{also}")


@app.command(name="ls")
def list_standing(as_json: Json = False) -> None:
    """List standing queries of all keys and how they go."""
    with process_context().db.transaction() as session:
        found = standing_record.list_all(session, None, 0, _MOST)
    if as_json:
        emit_json([_json(standing, alerts) for standing, alerts in found])
        return
    table(
        None,
        ["id", "name", "state", "compared", "not compared", "alerts", "since", "ended by"],
        [
            (
                standing.id,
                standing.name,
                standing.state,
                standing.judged_frames,
                standing.unjudged_frames,
                alerts,
                when(standing.created_at),
                standing.ended_code or "",
            )
            for standing, alerts in found
        ],
    )


@app.command()
def alerts(
    standing: Annotated[int | None, typer.Option(help="Only of this standing query.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=_MOST, help="At most so many.")] = 50,
    as_json: Json = False,
) -> None:
    """List alerts, newest first."""
    with process_context().db.transaction() as session:
        if standing is not None:
            accepting.known_standing(session, None, standing)
        found = standing_record.list_alerts(
            session, None, EVERYTHING, standing_id=standing, limit=limit
        )
        told = [_alert_json(alert) for alert in found]
    if as_json:
        emit_json(told)
        return
    columns = ("alert_id", "name", "camera", "t_utc", "frame_id", "false_per_day")
    table(
        None,
        ["id", "watched for", "camera", "time", "frame", "by chance a day"],
        [
            tuple(when(one[name]) if name == "t_utc" else one[name] for name in columns)
            for one in told
        ],
    )


@app.command()
def pause(standing_id: StandingId) -> None:
    """Compare new frames with it no more until it is resumed."""
    _set_running(standing_id, running=False)


@app.command()
def resume(standing_id: StandingId) -> None:
    """Compare new frames with it again; not those that came meanwhile."""
    _set_running(standing_id, running=True)


@app.command()
def rm(standing_id: StandingId) -> None:
    """Forget it with its alerts."""
    context = process_context()
    with context.db.transaction() as session:
        upload = accepting.remove_standing(session, COMMAND_LINE, None, standing_id)
    if upload is not None:
        discard_uploads(context, [upload])
    console.print(f"standing query {standing_id}: removed")


def _set_running(standing_id: int, *, running: bool) -> None:
    with process_context().db.transaction() as session:
        accepting.set_running(session, COMMAND_LINE, None, standing_id, running=running)
    console.print(f"standing query {standing_id}: {'running' if running else 'paused'}")


def _found(session: Session, standing_id: int) -> tuple[StandingQuery, int]:
    standing = accepting.known_standing(session, None, standing_id)
    return standing, standing_record.count_alerts(session, standing_id)


def _json(standing: StandingQuery, alert_count: int) -> dict[str, Any]:
    return {
        "standing_query_id": standing.id,
        "name": standing.name,
        "frame_id": standing.frame_id,
        "roi": standing.roi,
        "params": standing.params,
        "max_false_per_day": standing.max_false_per_day,
        "cool_down_s": standing.cool_down_s,
        "key_id": standing.key_id,
        "state": standing.state,
        "ended_code": standing.ended_code,
        "judged_frames": standing.judged_frames,
        "unjudged_frames": standing.unjudged_frames,
        "alerts": alert_count,
        "created_at": standing.created_at,
    }


def _alert_json(alert: Alert) -> dict[str, Any]:
    return {
        "alert_id": alert.id,
        "standing_query_id": alert.standing_query_id,
        "name": alert.standing_query.name,
        "camera": alert.frame.camera.name,
        "t_utc": alert.t_utc,
        "frame_id": alert.frame_id,
        "false_per_day": round(alert.false_per_day, 4),
        "box": alert.box,
    }
