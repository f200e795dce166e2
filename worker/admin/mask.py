"""`ris mask`: parts of a camera's picture that are painted black."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from models.repositories import videos as video_record
from worker.accepting.cameras import create_camera, set_mask
from worker.accepting.desk import COMMAND_LINE
from worker.admin.output import Json, console, emit_json
from worker.core.geometry import roi_from_xyxy, validate_roi
from worker.core.types import Point, Polygon, Roi
from worker.errors import InputInvalid, NotFound, RoiInvalid
from worker.runtime import process_context


def mask(
    camera: Annotated[str, typer.Argument(help="Name of the camera.")],
    box: Annotated[
        list[str] | None, typer.Option(help="x0,y0,x1,y1 as shares of the picture; repeatable.")
    ] = None,
    polygon: Annotated[
        list[str] | None, typer.Option(help="x,y x,y x,y ... as shares; repeatable.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Paint nothing from now on.")] = False,
    new: Annotated[bool, typer.Option("--new", help="Make the camera if there is none.")] = False,
    as_json: Json = False,
) -> None:
    """Show or set a camera's privacy mask: areas painted black before anything is made of a frame.

    What is given takes the place of all former areas. Frames that are indexed already stay as they
    are: erase them, and ingest the footage again.
    """
    areas: list[Roi] = [_box(text) for text in box or []]
    areas += [_polygon(text) for text in polygon or []]
    if areas and clear:
        raise InputInvalid("give areas, or --clear, not both")
    context = process_context()
    with context.db.transaction() as session:
        known = video_record.camera_named(session, camera)
        if known is None and not new:
            raise NotFound(f"camera {camera!r} is not known (`ris cameras`); --new makes it")
        if known is None:
            known = create_camera(session, COMMAND_LINE, camera)
        if areas or clear:
            set_mask(session, COMMAND_LINE, known.id, areas)
    with context.db.transaction() as session:
        row = video_record.camera_masks(session, [known.id]).get(known.id)
    if as_json:
        told: dict[str, Any] = {"camera": camera, "mask_id": None, "areas": []}
        emit_json(told if row is None else told | {"mask_id": row.id, "areas": row.areas})
        return
    if row is None:
        console.print(f"camera {camera!r} has no privacy mask", markup=False)
        return
    console.print(f"camera {camera!r}: privacy mask {row.id}", markup=False)
    for area in row.areas:
        console.print(f"  {area}", markup=False)


def _box(text: str) -> Roi:
    return roi_from_xyxy(_numbers(text))


def _polygon(text: str) -> Roi:
    points = [_numbers(pair) for pair in text.split()]
    if any(len(pair) != 2 for pair in points):
        raise RoiInvalid(f"--polygon takes x,y pairs with blanks between, got {text!r}")
    return validate_roi(Polygon(tuple(Point(x, y) for x, y in points)))


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise RoiInvalid(f"{text!r} is not numbers with commas between") from error
