"""Cameras made and changed before anything of them is ingested."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.repositories import videos as video_record
from models.session import Session
from models.video import Camera
from worker.accepting.audit import brief, record_act
from worker.accepting.desk import Actor
from worker.accepting.names import checked_name
from worker.core.geometry import validate_roi
from worker.core.masking import MAX_AREAS, areas_to_json
from worker.core.types import Roi
from worker.errors import AlreadyThere, InputInvalid


def create_camera(
    session: Session, actor: Actor, name: str, retention_days: int | None = None
) -> Camera:
    """Record a camera. Raises :class:`InputInvalid` for a bad name, :class:`AlreadyThere`."""
    name = checked_name("camera name", name)
    camera = video_record.add_camera(session, name, retention_days)
    if camera is None:
        raise AlreadyThere(f"a camera named {name!r} is there already: use it, or another name")
    record_act(session, actor, "camera.create", camera_id=camera.id, retention_days=retention_days)
    return camera


def set_mask(session: Session, actor: Actor, camera_id: int, areas: Sequence[Roi]) -> int | None:
    """Paint these areas of a known camera's pictures black from now on, none: paint nothing.

    Frames recorded before stay as they are. Returns the mask's id. Raises :class:`InputInvalid`
    for more than ``MAX_AREAS``.
    """
    if len(areas) > MAX_AREAS:
        raise InputInvalid(f"a privacy mask has at most {MAX_AREAS} areas, not {len(areas)}")
    told = areas_to_json([validate_roi(area) for area in areas])
    mask_id = video_record.set_mask(session, camera_id, told)
    record_act(
        session, actor, "camera.mask", camera_id=camera_id, mask_id=mask_id, areas=brief(told)
    )
    return mask_id


def change_camera(session: Session, actor: Actor, camera_id: int, changes: dict[str, Any]) -> None:
    """Set ``name`` or ``retention_days`` of a known camera. Raises as :func:`create_camera`."""
    if "name" in changes:
        changes = changes | {"name": checked_name("camera name", changes["name"])}
    if not changes:
        return
    if not video_record.change_camera(session, camera_id, changes):
        raise AlreadyThere(f"a camera named {changes['name']!r} is there already")
    told = {field: value for field, value in changes.items() if field != "name"}
    record_act(
        session,
        actor,
        "camera.change",
        camera_id=camera_id,
        renamed="name" in changes,
        **told,
    )
