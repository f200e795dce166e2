"""Refusals as RFC 9457 problem documents with the stable codes of docs/errors.md."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import structlog
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from models.session import DatabaseUnavailable
from worker import errors
from worker.errors import Forbidden, RisError, Unauthenticated

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
_RETRY_AFTER_S: Final = {"issuer_unavailable": 5}

STATUS_OF_CODE: Final[Mapping[str, int]] = {
    "internal": 500,
    "input_invalid": 422,
    "roi_invalid": 422,
    "picture_invalid": 422,
    "video_unreadable": 422,
    "video_invalid": 422,
    "video_killed_decoder": 422,
    "video_too_slow": 422,
    "not_found": 404,
    "backbone_mismatch": 409,
    "weights_missing": 409,
    "descriptor_invalid": 500,
    "index_damaged": 500,
    "format_newer": 503,
    "backup_invalid": 503,
    "storage_full": 503,
    "storage_failed": 503,
    "service_unavailable": 503,
    "generation_switched": 503,
    "shadow_mismatch": 409,
    "address_refused": 422,
    "secret_key_missing": 503,
    "feed_failed": 503,
    "fetch_failed": 503,
    "object_store_unavailable": 503,
    "device_failed": 503,
    "issuer_unavailable": 503,
    "erased_meanwhile": 409,
    "evidence_invalid": 500,
    "lease_lost": 409,
    "already_running": 409,
    "setup_failed": 503,
    "timeout": 504,
    "cancelled": 409,
    "unauthenticated": 401,
    "forbidden": 403,
    "idempotency_key_reused": 409,
    "already_there": 409,
    "method_not_allowed": 405,
    "media_unsupported": 415,
    "body_too_large": 413,
    "body_too_slow": 408,
    "too_many_requests": 429,
}
_CODE_OF_STATUS = {
    400: "input_invalid",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "media_unsupported",
    422: "input_invalid",
}
_OF_THE_MACHINE: Final = frozenset(
    {"index_damaged", "storage_full", "storage_failed", "weights_missing", "secret_key_missing"}
    | {"video_unreadable", "video_invalid", "video_killed_decoder", "video_too_slow"}
)
"""Codes whose details may name files: of those only the last part of each is told."""
_IN_GENERAL: Final[Mapping[str, str]] = {
    "object_store_unavailable": "object storage that holds part of the index is away",
    "internal": "an error that nobody foresaw; the log says more",
}
_PART: Final = r"[^\s/:;,'\"()]+"
_ABSOLUTE: Final = re.compile(rf"(?:\b[a-z][a-z0-9+]*:/)?(?<![\w.])/(?:{_PART}/)*({_PART})")


class Problem(BaseModel):
    """A refusal (RFC 9457). Programs read `code`, people read `detail`."""

    type: str = Field(description="`urn:ris:error:` and the code.")
    title: str = Field(description="What the code means.")
    status: int = Field(description="HTTP status.")
    code: str = Field(description="Stable code, see docs/errors.md.")
    detail: str = Field(description="What was refused, and what to do.")
    request_id: str = Field(description="As in the header X-Request-ID.")


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of these statuses."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": _MEANING[status], "content": content} for status in sorted(statuses)
    }


_MEANING = {
    401: "No key or token, or one that is unknown, invalid, expired or revoked.",
    403: "The key, or that of the token's role, does not allow this action.",
    404: "Not known, or not for this key.",
    408: "The body did not arrive in time.",
    409: "It contradicts what is there already.",
    413: "The body is too large.",
    415: "The body's Content-Type is not read here.",
    422: "A field is outside its bounds.",
    429: "The key asks too often, or has too many open queries.",
    500: "A stored file is damaged.",
    503: "Postgres, the disk or the token's issuer is away; try again after Retry-After seconds.",
}
READING = refusals(401, 403, 404, 422, 429, 503)
WRITING = refusals(401, 403, 404, 408, 409, 413, 415, 422, 429, 503)
SHOWING = refusals(401, 403, 404, 422, 429, 500, 503)


def problem(
    code: str,
    detail: str,
    request_id: str,
    status: int | None = None,
    challenge: str | None = None,
) -> Response:
    """The problem document of a code. ``challenge``: what is wrong with the key or token that was
    presented, as RFC 6750 names it."""
    status = STATUS_OF_CODE[code] if status is None else status
    kinds = {kind.code: kind for kind in RisError.__subclasses__()}
    title = " ".join((kinds.get(code, RisError).__doc__ or "").split("\n\n")[0].split())
    body = {
        "type": f"urn:ris:error:{code}",
        "title": title,
        "status": status,
        "code": code,
        "detail": detail,
        "request_id": request_id,
    }
    headers = {"Cache-Control": "no-store"}
    if status in (429, 503):
        headers["Retry-After"] = str(_RETRY_AFTER_S.get(code, RETRY_AFTER_S))
    if status in (401, 403):
        wrong = "" if challenge is None else f', error="{challenge}"'
        headers["WWW-Authenticate"] = f'Bearer realm="ris"{wrong}'
    text = json.dumps(body).encode()
    return Response(text, status, headers=headers, media_type=MEDIA_TYPE)


def shown_detail(code: str, detail: str) -> str:
    """What whoever asked may know of an error: files by name, not by where they lie. The whole is
    the operator's: the log tells it, and of jobs `/v1/jobs` to a key for administration."""
    if code in _OF_THE_MACHINE:
        return _ABSOLUTE.sub(r"\1", detail)
    return _IN_GENERAL.get(code, detail)


def problem_of(error: Exception, request_id: str) -> Response | None:
    """The answer to an error that we know; None for one that nobody foresaw."""
    if isinstance(error, RisError):
        detail = shown_detail(error.code, str(error))
        if detail != str(error):
            log.warning("request_failed", request_id=request_id, code=error.code, detail=str(error))
        return problem(error.code, detail, request_id, challenge=_challenge(error))
    if isinstance(error, DatabaseUnavailable):
        # Where it is, and what it says, is for the log: /readyz answers without a key.
        log.warning("database_unavailable", request_id=request_id, detail=str(error))
        code = errors.ServiceUnavailable.code
        return problem(code, "Postgres is away or busy: ask again soon", request_id)
    return None


def _challenge(error: RisError) -> str | None:
    if isinstance(error, Unauthenticated) and error.presented:
        return "invalid_token"
    return "insufficient_scope" if isinstance(error, Forbidden) else None


async def refuse_known(request: Request, error: Exception) -> Response:
    """Handler of typed errors."""
    answer = problem_of(error, request_id_of(request))
    assert answer is not None
    return answer


async def refuse_fields(request: Request, error: Exception) -> Response:
    """Handler of fields that pydantic refuses: the first few, by name and without their values."""
    assert isinstance(error, RequestValidationError)
    detail = "; ".join(in_words(found) for found in error.errors()[:5])
    return problem("input_invalid", detail, request_id_of(request))


def in_words(found: Mapping[str, Any]) -> str:
    """One of pydantic's findings."""
    place = ".".join(str(part) for part in found["loc"]) or "body"
    return f"{place}: {found['msg']}"


async def refuse_http(request: Request, error: Exception) -> Response:
    """Handler of what the framework itself refuses: unknown addresses, methods."""
    assert isinstance(error, HTTPException)
    code = _CODE_OF_STATUS.get(error.status_code, "internal")
    detail = {
        "not_found": f"there is nothing at {request.url.path}; /openapi.json lists what is",
        "method_not_allowed": f"{request.method} is not possible at {request.url.path}",
    }.get(code, str(error.detail))
    answer = problem(code, detail, request_id_of(request))
    for name, value in (error.headers or {}).items():
        answer.headers[name] = value
    return answer


def request_id_of(request: Request) -> str:
    """The id that the front gave to a request."""
    return str(request.scope.get("request_id", ""))
