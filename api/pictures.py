"""Pictures in answers: cached by the browser, but asked for again each time."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import Response

from api.problems import refusals

PICTURE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The picture.",
        "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}},
        "headers": {"ETag": {"schema": {"type": "string"}}},
    },
    304: {"description": "The browser's copy is still right (If-None-Match)."},
    **refusals(401, 403, 404, 422, 429, 500, 503),
}
OVERLAY_RESPONSES: dict[int | str, dict[str, Any]] = PICTURE_RESPONSES | {
    200: {
        "description": "The picture.",
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("image/jpeg", "image/png")
        },
        "headers": {"ETag": {"schema": {"type": "string"}}},
    }
}


def unchanged(request: Request, etag: str) -> Response | None:
    """304 where the client has this very picture; nothing is shown then."""
    given = [
        tag.strip().removeprefix("W/")
        for tag in request.headers.get("if-none-match", "").split(",")
    ]
    if f'"{etag}"' not in given:
        return None
    return Response(status_code=304, headers=_headers(etag))


def picture_response(content: bytes, etag: str, media_type: str = "image/jpeg") -> Response:
    """A picture with its tag."""
    return Response(content, media_type=media_type, headers=_headers(etag))


def _headers(etag: str) -> dict[str, str]:
    # Kept by the browser, shown only after it asked: the footage may be erased, the key revoked.
    return {"ETag": f'"{etag}"', "Cache-Control": "private, no-cache"}
