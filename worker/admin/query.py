"""`ris query`: ask, wait, show a table and a picture."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from models.repositories import videos as video_record
from models.search import SearchHit
from worker.accepting.audit import record_act
from worker.accepting.desk import COMMAND_LINE
from worker.accepting.queries import QueryState, query_state, submit_query
from worker.admin.interrupts import pause
from worker.admin.output import Json, console, emit_json, notes, table, when
from worker.context import Context
from worker.core.geometry import cells_box, roi_from_xyxy
from worker.core.roi_json import roi_from_json, roi_to_json
from worker.core.search_params import search_params_from_json
from worker.core.types import Box, GridSize, Roi
from worker.errors import (
    InputInvalid,
    NotFound,
    PictureInvalid,
    RoiInvalid,
    Timeout,
    error_of_code,
)
from worker.query_picture import query_picture
from worker.runtime import process_context
from worker.video.picture import HitPicture, draw_hits

PICTURED_HITS = 12
MAX_PICTURE_BYTES = 256 * 1024 * 1024
_POLL_S = 0.05
COLUMNS = (
    *("#", "camera", "time", "span", "frame"),
    *("score", "similarity", "coverage", "by chance"),
)


def query(
    image: Annotated[Path | None, typer.Option(help="Picture to search from.")] = None,
    frame: Annotated[int | None, typer.Option(help="Indexed frame to search from.")] = None,
    roi: Annotated[
        str | None, typer.Option(help="Box X0,Y0,X1,Y1 as shares of the picture, 0 to 1.")
    ] = None,
    polygon: Annotated[
        str | None, typer.Option(help="Polygon X,Y X,Y X,Y ... instead of a box.")
    ] = None,
    camera: Annotated[list[str] | None, typer.Option(help="Only these cameras.")] = None,
    from_time: Annotated[str | None, typer.Option("--from", help="Only at or after.")] = None,
    to_time: Annotated[str | None, typer.Option("--to", help="Only before.")] = None,
    zone: Annotated[
        str | None,
        typer.Option(
            help="Only matches in this part of the picture: X0,Y0,X1,Y1 or 'X,Y X,Y X,Y ...'."
        ),
    ] = None,
    strategy: Annotated[str, typer.Option(help="How candidates are ranked.")] = "default",
    top_n: Annotated[int, typer.Option(help="Candidates kept by the global filter.")] = 500,
    k: Annotated[int, typer.Option(help="Nearest neighbours per query patch.")] = 5,
    tau: Annotated[float | None, typer.Option(help="Match level; default: calibrated.")] = None,
    alpha: Annotated[float, typer.Option(help="Exponent of the coverage.")] = 1.0,
    query_descriptor: Annotated[
        str, typer.Option(help="Global filter by: frame, roi-crop or roi-mean.")
    ] = "frame",
    vote_scope: Annotated[
        str, typer.Option(help="Votes look in the candidates or in the whole index.")
    ] = "candidates",
    limit: Annotated[int, typer.Option(help="Frames in the answer.")] = 50,
    group: Annotated[
        str, typer.Option(help="List every appearance once (appearance), or every frame (frame).")
    ] = "appearance",
    appearance_gap: Annotated[
        float, typer.Option(help="Seconds between hits of one appearance, at most.")
    ] = 5.0,
    close_looks: Annotated[
        int, typer.Option(help="Hits whose box is found by a closer look at their pictures.")
    ] = 20,
    without: Annotated[
        list[str] | None,
        typer.Option(help="Leave out: background, trail, exemplars, time or whole-frame."),
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Option(help="FRAME:X0,Y0,X1,Y1 where the subject is too; repeatable."),
    ] = None,
    less: Annotated[
        list[str] | None,
        typer.Option(help="FRAME:X0,Y0,X1,Y1 where something else is; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Result picture.")] = Path("ris-query.png"),
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 120.0,
    as_json: Json = False,
) -> None:
    """Search for what is inside a box or polygon of a picture or of an indexed frame."""
    context = process_context()
    drawn = parse_roi(roi, polygon)
    params = search_params_from_json(
        {
            "strategy": strategy,
            "top_n": top_n,
            "k": k,
            "tau": tau,
            "alpha": alpha,
            "query_descriptor": query_descriptor,
            "vote_scope": vote_scope,
            "limit": limit,
            "group": group,
            "appearance_gap_s": appearance_gap,
            "close_looks": close_looks,
            "without": without or [],
            "more": [_example(text) for text in more or []],
            "less": [_example(text) for text in less or []],
            "camera_ids": camera_ids_of(context, camera),
            "t_from_utc": from_time,
            "t_to_utc": to_time,
            "zone": None if zone is None else roi_to_json(_zone(zone)),
        }
    )
    picture = _read_picture(image) if image is not None else None
    query_id = submit_query(context, drawn, params, frame_id=frame, picture=picture)
    state = wait_for_query(context, query_id, timeout)
    path = draw_result(context, state, drawn, out)
    show_result(state, path, as_json=as_json)


def wait_for_query(context: Context, query_id: uuid.UUID, timeout_s: float) -> QueryState:
    """Poll until done. A failed query raises its typed error; the wait ends after ``timeout_s``."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        state = query_state(context, query_id)
        if state.state == "done":
            return state
        if state.state == "failed":
            raise error_of_code(state.error_code or "internal", state.error_detail or "")
        if time.monotonic() > deadline_s:
            why = f" ({state.retry_detail})" if state.retry_detail else ""
            raise Timeout(
                f"query {query_id} is {state.state} after {timeout_s:.0f} s{why}: it is kept and"
                " will be answered; are the workers up (`ris doctor`)?"
            )
        pause(_POLL_S)


def show_result(state: QueryState, picture: Path | None, *, as_json: bool) -> None:
    """The ranked table, or everything as JSON."""
    if as_json:
        emit_json(
            {
                "query_id": str(state.query.id),
                "stats": state.query.stats,
                "degraded": _count(state, "frames_lost") + _count(state, "frames_away") > 0,
                "picture": None if picture is None else str(picture),
                "hits": [_hit_json(hit) for hit in state.hits],
            }
        )
        return
    rows = [
        (
            hit.rank,
            hit.frame.camera.name,
            when(hit.frame.t_utc),
            _span(hit),
            hit.frame_id,
            round(hit.score, 4),
            round(hit.similarity, 3),
            f"{hit.coverage:.0%}",
            in_words(hit),
        )
        for hit in state.hits[:20]
    ]
    table(None, COLUMNS, rows)
    if not any(_convinces(hit) for hit in state.hits):
        why = (
            "chance alone brings frames as alike as these" if rows else "no frame matched anywhere"
        )
        console.print(f"no convincing match: {why}")
    if lost := _count(state, "frames_lost"):
        console.print(
            f"degraded: the vectors of {lost} frames are damaged, they were not searched;"
            " `ris verify` names them, `ris repair` makes them anew"
        )
    if away := _count(state, "frames_away"):
        console.print(
            f"degraded: {away} frames lie on object storage, which could not be reached, they were"
            " not searched; `ris doctor` says why"
        )
    if len(state.hits) > len(rows):
        console.print(f"... and {len(state.hits) - len(rows)} more (--json shows all)")
    if picture is not None:
        console.print(f"picture: {picture}", markup=False, soft_wrap=True)


def _count(state: QueryState, name: str) -> int:
    return int((state.query.stats or {}).get(name, 0))


def _span(hit: SearchHit) -> str:
    """How long the appearance lasts and how many of its frames are hits."""
    if hit.appearance_from_utc is None or hit.appearance_to_utc is None:
        return ""
    lasts_s = (hit.appearance_to_utc - hit.appearance_from_utc).total_seconds()
    return f"{lasts_s:.0f} s, {hit.appearance_frames}"


def in_words(hit: SearchHit) -> str:
    """Expected false matches at this likeness, for a person; see docs/search.md."""
    if hit.on_trail:
        return "followed"
    if hit.false_matches is None:
        return ""
    return f"{hit.false_matches:.1f}" if hit.false_matches >= 0.1 else "< 0.1"


def _convinces(hit: SearchHit) -> bool:
    """Followed, better than chance, or not said by the strategy."""
    return hit.on_trail or hit.false_matches is None or hit.false_matches <= 1


def _hit_json(hit: SearchHit) -> dict[str, Any]:
    grid = GridSize(hit.grid_h, hit.grid_w)
    cells = np.array(hit.region_cell_index, dtype=np.int64)
    box = cells_box(cells, grid) if cells.size else None
    if hit.box is not None:
        box = Box(*hit.box)
    return {
        "rank": hit.rank,
        "frame_id": hit.frame_id,
        "camera": hit.frame.camera.name,
        "t_utc": hit.frame.t_utc.isoformat(),
        "score": hit.score,
        "similarity": hit.similarity,
        "coverage": hit.coverage,
        "false_matches": hit.false_matches,
        "on_trail": hit.on_trail,
        "appearance": {
            "from_utc": hit.appearance_from_utc and hit.appearance_from_utc.isoformat(),
            "to_utc": hit.appearance_to_utc and hit.appearance_to_utc.isoformat(),
            "frames": hit.appearance_frames,
        },
        "grid": list(grid),
        "region_cells": cells.tolist(),
        "box": None if box is None else [box.x0, box.y0, box.x1, box.y1],
        "box_px": None if box is None else _in_pixels(box, hit.frame.h_px, hit.frame.w_px),
    }


def _in_pixels(box: Box, h_px: int, w_px: int) -> list[int]:
    """The box on the kept picture: x0, y0, x1, y1, half-open."""
    return [
        round(box.x0 * w_px),
        round(box.y0 * h_px),
        round(box.x1 * w_px),
        round(box.y1 * h_px),
    ]


def draw_result(context: Context, state: QueryState, roi: Roi, out: Path) -> Path:
    """Draw query and hits to a PNG; a picture that was removed meanwhile is left out."""
    hits = []
    for hit in state.hits[:PICTURED_HITS]:
        try:
            img_hwc = context.pictures.load(hit.frame.picture_sha256)
        except NotFound:
            notes.print(f"the picture of frame {hit.frame_id} is gone; not drawn", style="dim")
            continue
        hits.append(
            HitPicture(
                img_hwc=img_hwc,
                rank=hit.rank,
                camera=hit.frame.camera.name,
                t_utc=hit.frame.t_utc,
                score=hit.score,
                cell_index=np.array(hit.region_cell_index, dtype=np.int64),
                grid=GridSize(hit.grid_h, hit.grid_w),
                box=None if hit.box is None else Box(*hit.box),
            )
        )
    out = out.resolve()
    with context.db.transaction() as session:
        record_act(
            session,
            COMMAND_LINE,
            "picture.view",
            what="result picture",
            query_id=str(state.query.id),
            ranks=[hit.rank for hit in hits],
        )
    query_img_hwc = query_picture(context, state.query.frame_id, state.query.picture_sha256)
    draw_hits(query_img_hwc, roi, hits, out)
    return out


def parse_roi(roi: str | None, polygon: str | None) -> Roi:
    """The ROI of a command line. Raises :class:`InputInvalid` or :class:`RoiInvalid`."""
    if (roi is None) == (polygon is None):
        raise InputInvalid("give either --roi X0,Y0,X1,Y1 or --polygon 'X,Y X,Y X,Y'")
    try:
        if roi is not None:
            return roi_from_xyxy([float(part) for part in roi.split(",")])
        assert polygon is not None
        points = [[float(v) for v in pair.split(",")] for pair in polygon.split()]
    except ValueError as error:
        raise RoiInvalid(f"{roi or polygon!r} is not a list of numbers in 0..1") from error
    return roi_from_json({"polygon": points})


def _zone(text: str) -> Roi:
    return parse_roi(None, text) if " " in text.strip() else parse_roi(text, None)


def _example(text: str) -> dict[str, Any]:
    frame, _, box = text.partition(":")
    try:
        return {"frame_id": int(frame), "box": [float(part) for part in box.split(",")]}
    except ValueError as error:
        raise InputInvalid(f"an example is FRAME:X0,Y0,X1,Y1, got {text!r}") from error


def _read_picture(path: Path) -> bytes:
    try:
        if path.exists() and (not path.is_file() or path.stat().st_size > MAX_PICTURE_BYTES):
            raise PictureInvalid(f"{path}: not a regular file of at most {MAX_PICTURE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise PictureInvalid(f"{path}: {error.strerror or error}") from error


def camera_ids_of(context: Context, names: list[str] | None) -> list[int] | None:
    """Ids of cameras by name, None without names. Raises :class:`NotFound`."""
    if not names:
        return None
    with context.db.transaction() as session:
        found = {name: video_record.camera_named(session, name) for name in names}
    unknown = sorted(name for name, camera in found.items() if camera is None)
    if unknown:
        raise NotFound(f"cameras {unknown} are not known; `ris cameras` lists them")
    return [camera.id for camera in found.values() if camera is not None]
