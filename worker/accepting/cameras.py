"""Cameras made and changed before anything of them is ingested."""

from __future__ import annotations

from typing import Any

from models.repositories import videos as video_record
from models.session import Session
from models.video import Camera
from worker.accepting.audit import record_act
from worker.accepting.desk import Actor
from worker.accepting.names import checked_name
from worker.errors import AlreadyThere


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
