"""`ris keys`: who may use the API."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from models.access import ApiKey
from models.repositories import access as access_record
from models.repositories import videos as video_record
from worker.accepting.desk import COMMAND_LINE
from worker.accepting.keys import create_key, revoke_key
from worker.admin.output import Json, console, emit_json, parse_time, table, when
from worker.errors import InputInvalid, NotFound
from worker.runtime import process_context

_MOST_KEYS = 100_000


def keys(
    create: Annotated[str | None, typer.Option(help="Make a key of this name.")] = None,
    action: Annotated[
        list[str] | None,
        typer.Option(help="What it allows: view, search, export, ingest, notify or admin."),
    ] = None,
    camera: Annotated[list[str] | None, typer.Option(help="Only these cameras.")] = None,
    from_time: Annotated[
        str | None, typer.Option("--from", help="Only footage from this time on (ISO 8601).")
    ] = None,
    to_time: Annotated[
        str | None, typer.Option("--to", help="Only footage before this time (ISO 8601).")
    ] = None,
    expires: Annotated[str | None, typer.Option(help="Until this time (ISO 8601).")] = None,
    days: Annotated[float | None, typer.Option(help="For this many days.")] = None,
    role: Annotated[
        str | None,
        typer.Option(help="No secret: the key of whoever has an access token with this role."),
    ] = None,
    revoke: Annotated[int | None, typer.Option(help="Id of a key that opens nothing more.")] = None,
    as_json: Json = False,
) -> None:
    """List the keys of the API, make one, or revoke one."""
    if create is not None and revoke is not None:
        raise InputInvalid("give either --create or --revoke")
    limits = (action, camera, from_time, to_time, expires, days, role)
    if create is None and any(given is not None for given in limits):
        raise InputInvalid(
            "--action, --camera, --from, --to, --expires, --days and --role belong to --create NAME"
        )
    if create is not None:
        window = parse_time("--from", from_time), parse_time("--to", to_time)
        expires_at = _expiry(expires, days)
        _create(create, action or [], camera, window, expires_at, role, as_json=as_json)
        return
    with process_context().db.transaction() as session:
        if revoke is not None:
            revoke_key(session, COMMAND_LINE, revoke)
        listed = access_record.list_keys(session, 0, _MOST_KEYS)
        names = video_record.camera_names(session)
    if as_json:
        emit_json([_key_json(key) for key in listed])
        return
    rows = [
        (
            key.id,
            key.name,
            key.role or "",
            ", ".join(key.actions),
            "all" if key.camera_ids is None else ", ".join(names[one] for one in key.camera_ids),
            when(key.footage_from_utc),
            when(key.footage_to_utc),
            when(key.expires_at),
            when(key.revoked_at),
        )
        for key in listed
    ]
    columns = ["id", "name", "role", "actions", "cameras", "from", "to", "expires", "revoked"]
    table(None, columns, rows)


def _create(
    name: str,
    actions: list[str],
    cameras: list[str] | None,
    window: tuple[datetime | None, datetime | None],
    expires_at: datetime | None,
    role: str | None,
    *,
    as_json: bool,
) -> None:
    with process_context().db.transaction() as session:
        known = {
            camera: camera_id for camera_id, camera in video_record.camera_names(session).items()
        }
        unknown = [camera for camera in cameras or [] if camera not in known]
        if unknown:
            raise NotFound(f"camera {unknown[0]!r} is not known; `ris cameras` lists them")
        key, secret = create_key(
            session,
            COMMAND_LINE,
            name=name,
            actions=actions,
            camera_ids=[known[camera] for camera in cameras] if cameras else None,
            footage_from_utc=window[0],
            footage_to_utc=window[1],
            expires_at=expires_at,
            role=role,
        )
    if as_json:
        emit_json({**_key_json(key), "secret": secret})
        return
    if secret is None:
        told = f"key {key.id}, for access tokens with the role {key.role!r}"
        console.print(told, markup=False, soft_wrap=True)
        return
    console.print(f"key {key.id}, shown this once: {secret}", markup=False, soft_wrap=True)


def _expiry(expires: str | None, days: float | None) -> datetime | None:
    if days is None:
        return parse_time("--expires", expires)
    if expires is not None:
        raise InputInvalid("give either --expires or --days")
    try:
        return datetime.now(UTC) + timedelta(days=days)
    except (OverflowError, ValueError) as error:
        raise InputInvalid(f"--days {days} is outside what a date can say") from error


def _key_json(key: ApiKey) -> dict[str, Any]:
    return {
        "key_id": key.id,
        "name": key.name,
        "role": key.role,
        "actions": key.actions,
        "camera_ids": key.camera_ids,
        "footage_from_utc": key.footage_from_utc,
        "footage_to_utc": key.footage_to_utc,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    }
