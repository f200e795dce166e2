"""The application: routes, refusals, the OpenAPI document."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from api.bodies import BODIES
from api.desk import ApiDesk
from api.front import BodyBounds, Front
from api.problems import Problem, refuse_fields, refuse_http, refuse_known
from api.routes import (
    admin,
    cameras,
    changes,
    evidence,
    feeds,
    frames,
    health,
    hits,
    page,
    proposals,
    queries,
    segments,
    standing,
    webhooks,
)
from models.session import DatabaseUnavailable
from worker.errors import RisError

VERSION = "1"
_DESCRIPTION = (
    "Region-to-Image Search: draw a box on one camera picture, find every other appearance."
    " Times are RFC 3339 in UTC, boxes x0, y0, x1, y1 as shares of the picture. Every refusal is"
    " a problem document (RFC 9457) with a stable `code`."
)


def make_app(desk: ApiDesk) -> FastAPI:
    """An application on a desk. Connects to nothing before the first request."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()

    app = FastAPI(
        title="RIS",
        version=VERSION,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # the pages of FastAPI load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        # Of its own FastAPI would tell more than is good: queries of addresses, texts of errors.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.desk = desk
    for module in (
        health, cameras, frames, proposals, queries, hits, evidence, changes, segments, standing,
        feeds, webhooks, admin, page,
    ):  # fmt: skip
        app.include_router(module.router)
    app.add_middleware(
        Front,
        bounds=BodyBounds.of_requests(desk.settings),
        recordings=BodyBounds.of_recordings(desk.settings),
        recordings_path=segments.router.prefix,
        metrics=desk.metrics,
    )
    app.add_exception_handler(RisError, refuse_known)
    app.add_exception_handler(DatabaseUnavailable, refuse_known)
    app.add_exception_handler(RequestValidationError, refuse_fields)
    app.add_exception_handler(HTTPException, refuse_http)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    return app


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the schemas that routes name themselves."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
        )
        _, named = models_json_schema(
            [*((kind, "validation") for kind in BODIES), (Problem, "serialization")],
            ref_template="#/components/schemas/{model}",
        )
        schemas = made.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(named["$defs"])
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        made["components"]["schemas"] = dict(sorted(schemas.items()))
        app.openapi_schema = made
    return app.openapi_schema
