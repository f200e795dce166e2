"""/healthz, /readyz: for whoever watches the process. No key, nothing told."""

from __future__ import annotations

from fastapi import APIRouter

from api.desk import Here
from api.problems import refusals
from api.told import Health

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> Health:
    """The process answers."""
    return Health(status="ok")


@router.get("/readyz", responses=refusals(503))
def readyz(desk: Here) -> Health:
    """Postgres answers too, so requests can be served."""
    desk.db.ping()
    return Health(status="ok")
