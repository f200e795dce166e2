"""The page at `/`: packaged files by name, none of which tells anything of footage."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from worker.errors import NotFound

router = APIRouter(include_in_schema=False)

_INDEX = "index.html"
_KINDS: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


@dataclass(frozen=True, slots=True)
class _PageFile:
    content: bytes
    media_type: str
    etag: str


@cache
def page_files() -> dict[str, _PageFile]:
    """Every file of the page by name. Read once; nothing else is served."""
    found = {}
    for entry in (files("api") / "page").iterdir():
        kind = entry.name.rpartition(".")[2]
        if kind in _KINDS:
            content = entry.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[entry.name] = _PageFile(content, _KINDS[kind], etag)
    return found


@router.api_route("/", methods=["GET", "HEAD"])
async def get_index(request: Request) -> Response:
    """The page."""
    return _served(request, _INDEX)


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def get_page_file(request: Request, name: str) -> Response:
    """A style, script or symbol of the page."""
    return _served(request, name)


def _served(request: Request, name: str) -> Response:
    found = page_files().get(name)
    if found is None:
        raise NotFound(f"the page has no file {name[:80]!r}")
    headers = {
        "ETag": found.etag,
        "Cache-Control": "no-cache",  # kept by the browser, asked for after each update of RIS
        "Content-Security-Policy": _POLICY,
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }
    given = request.headers.get("if-none-match", "").split(",")
    if found.etag in [tag.strip().removeprefix("W/") for tag in given]:
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)
