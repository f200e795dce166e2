"""`ris keys`: who may use the API."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

import typer

from models.access import ApiKey
from models.repositories import access as access_record
from models.repositories import videos as video_record
from worker.admin.output import Json, console, emit_json, parse_time, table, when
from worker.desk import COMMAND_LINE
from worker.errors import InputInvalid, NotFound
from worker.keys import create_key, revoke_key
from worker.runtime import process_context

MAX_LISTED = 10_000


def keys(
    create: Annotated[str | None, typer.Option(help="Make a key of this name.")] = None,
    action: Annotated[
        list[str] | None,
        typer.Option(help="What it may do: read, search, ingest, admin; repeatable."),
    ] = None,
    camera: Annotated[
        list[str] | None, typer.Option(help="Only this camera; repeatable; default all.")
    ] = None,
    expires: Annotated[str | None, typer.Option(help="ISO 8601 time; default never.")] = None,
    revoke: Annotated[str | None, typer.Option(help="End the key of this id.")] = None,
    as_json: Json = False,
) -> None:
    """List the keys of the API, or make or end one."""
    if create is not None and revoke is not None:
        raise InputInvalid("give either --create or --revoke")
    if create is None and (action or camera or expires):
        raise InputInvalid("--action, --camera and --expires are of a new key: give --create NAME")
    if create is not None:
        _create(create, action or [], camera, expires, as_json=as_json)
        return
    if revoke is not None:
        _revoke(revoke)
    _show(as_json=as_json)


def _create(
    name: str, actions: list[str], cameras: list[str] | None, expires: str | None, *, as_json: bool
) -> None:
    key, secret = create_key(
        process_context(),
        name=name,
        actions=actions,
        camera_ids=_camera_ids(cameras),
        expires_at=parse_time("--expires", expires),
        by=COMMAND_LINE,
    )
    if as_json:
        emit_json(_said(key) | {"secret": secret})
        return
    console.print(f"key {key.id}, shown this once: {secret}", soft_wrap=True, markup=False)


def _revoke(key_id: str) -> None:
    try:
        revoke_key(process_context(), uuid.UUID(key_id), COMMAND_LINE)
    except ValueError as error:
        raise InputInvalid(f"--revoke {key_id!r} is no id; `ris keys` lists them") from error


def _show(*, as_json: bool) -> None:
    with process_context().db.transaction() as session:
        found = access_record.list_keys(session, MAX_LISTED, None)
    if as_json:
        emit_json([_said(key) for key in found])
        return
    columns = ["id", "name", "actions", "cameras", "expires", "revoked"]
    rows = [
        (
            key.id,
            key.name,
            ", ".join(key.actions),
            "all" if key.camera_ids is None else ", ".join(map(str, key.camera_ids)),
            when(key.expires_at),
            when(key.revoked_at),
        )
        for key in found
    ]
    table(None, columns, rows)


def _said(key: ApiKey) -> dict[str, Any]:
    return {
        "id": str(key.id),
        "name": key.name,
        "actions": key.actions,
        "camera_ids": key.camera_ids,
        "created_at": key.created_at.isoformat(),
        "expires_at": key.expires_at and key.expires_at.isoformat(),
        "revoked_at": key.revoked_at and key.revoked_at.isoformat(),
    }


def _camera_ids(names: list[str] | None) -> list[int] | None:
    if not names:
        return None
    with process_context().db.transaction() as session:
        known = {name: camera_id for camera_id, name in video_record.camera_names(session).items()}
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise NotFound(f"cameras {unknown} are not known; `ris cameras` lists them")
    return [known[name] for name in names]
