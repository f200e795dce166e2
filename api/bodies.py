"""Reading bodies once the key is known: JSON, or a query's form with the picture beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile

from api.access import Anyone
from api.given import (
    CameraChange,
    CameraGiven,
    EvidenceGiven,
    FeedGiven,
    Given,
    MaskGiven,
    QueryGiven,
    RecordingGiven,
    SegmentGiven,
    StandingGiven,
    WebhookChange,
    WebhookGiven,
)
from api.given_changes import ChangesGiven
from api.given_keys import KeyGiven
from api.problems import in_words
from worker.accepting.repeats import NamedRequest
from worker.errors import BodyTooLarge, InputInvalid, MediaUnsupported

JSON_TYPE = "application/json"
FORM_TYPE = "multipart/form-data"
_MOST_QUERY_TEXT_BYTES = 1024 * 1024
_MOST_TEXT_BYTES = 256 * 1024
Body = TypeVar("Body", bound=Given)
Drawn = TypeVar("Drawn", bound=QueryGiven)


def drawn_body(kind: type[QueryGiven]) -> dict[str, Any]:
    """What OpenAPI says of a body that is JSON, or a form with a picture beside it."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {
        "required": True,
        "content": {
            JSON_TYPE: {"schema": schema},
            FORM_TYPE: {
                "schema": {
                    "type": "object",
                    "properties": {
                        "picture": {
                            "type": "string",
                            "format": "binary",
                            "description": "JPEG, PNG, WEBP, BMP, TIFF or GIF.",
                        },
                        "query": {
                            "type": "string",
                            "contentMediaType": JSON_TYPE,
                            "contentSchema": schema,
                            "description": "The same object as JSON text, without frame_id.",
                        },
                    },
                    "required": ["picture", "query"],
                    "additionalProperties": False,
                }
            },
        },
    }


@dataclass(frozen=True, slots=True)
class DrawnBody(Generic[Drawn]):
    """What was asked, and the picture's bytes where one came."""

    given: Drawn
    picture: bytes | None


async def read_drawn(request: Request, kind: type[Drawn]) -> DrawnBody[Drawn]:
    """A query's body of that kind, drawn on a frame or on the picture beside it.

    Raises :class:`InputInvalid`, :class:`BodyTooLarge` or :class:`MediaUnsupported`.
    """
    media = kind_of(request)
    if media == JSON_TYPE:
        given = await json_of(request, kind, _MOST_QUERY_TEXT_BYTES)
        if given.frame_id is None:
            raise InputInvalid("frame_id: name an indexed frame, or send a form with a picture")
        return DrawnBody(given, None)
    if media != FORM_TYPE:
        wanted = f"send {JSON_TYPE} or {FORM_TYPE}"
        raise MediaUnsupported(f"Content-Type {media or 'missing'}: {wanted}")
    charset = parse_options_header(request.headers["content-type"])[1].get(b"charset", b"utf-8")
    if charset.lower() != b"utf-8":
        raise MediaUnsupported("the form's charset is not utf-8: send it as utf-8, or leave it out")
    most = _MOST_QUERY_TEXT_BYTES
    async with request.form(max_files=1, max_fields=1, max_part_size=most) as form:
        picture, text = form.get("picture"), form.get("query")
        if not isinstance(picture, UploadFile) or not isinstance(text, str) or len(form) != 2:
            raise InputInvalid("the form has a file `picture` and a text `query`, and nothing else")
        raw = text.encode("utf-8", "surrogatepass")
        given = await run_in_threadpool(parsed, kind, raw)
        if given.frame_id is not None:
            raise InputInvalid("give either a frame id or a picture, not both")
        return DrawnBody(given, await picture.read())


def kind_of(request: Request) -> str:
    """Its Content-Type without parameters."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


async def json_of(request: Request, kind: type[Body], most_bytes: int = _MOST_TEXT_BYTES) -> Body:
    """The body as that kind; parsed beside the event loop, which everybody waits for."""
    text = bytearray()
    async for chunk in request.stream():
        text += chunk
        if len(text) > most_bytes:
            raise BodyTooLarge(f"the JSON is larger than {most_bytes} bytes")
    return await run_in_threadpool(parsed, kind, bytes(text))


def parsed(kind: type[Body], text: bytes) -> Body:
    """A body of that kind. Raises :class:`InputInvalid`."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise InputInvalid("; ".join(in_words(one) for one in found[:5])) from None


def _reading(kind: type[Body]) -> Callable[[Request, Anyone], Awaitable[Body]]:
    """A dependency that reads a JSON body. A body that FastAPI itself reads is read before any
    key is checked; routes name this one behind their caller."""

    async def read(request: Request, _: Anyone) -> Body:
        if (given := kind_of(request)) != JSON_TYPE:
            raise MediaUnsupported(f"Content-Type {given or 'missing'}: send {JSON_TYPE}")
        return await json_of(request, kind, _MOST_TEXT_BYTES)

    return read


def json_body(kind: type[Given]) -> dict[str, Any]:
    """What OpenAPI says of a JSON body of that kind: ``openapi_extra`` of its route."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"required": True, "content": {JSON_TYPE: {"schema": schema}}}}


ChangesBody = Annotated[ChangesGiven, Depends(_reading(ChangesGiven))]
CameraBody = Annotated[CameraGiven, Depends(_reading(CameraGiven))]
CameraChangeBody = Annotated[CameraChange, Depends(_reading(CameraChange))]
MaskBody = Annotated[MaskGiven, Depends(_reading(MaskGiven))]
EvidenceBody = Annotated[EvidenceGiven, Depends(_reading(EvidenceGiven))]
FeedBody = Annotated[FeedGiven, Depends(_reading(FeedGiven))]
KeyBody = Annotated[KeyGiven, Depends(_reading(KeyGiven))]
WebhookBody = Annotated[WebhookGiven, Depends(_reading(WebhookGiven))]
WebhookChangeBody = Annotated[WebhookChange, Depends(_reading(WebhookChange))]
BODIES: tuple[type[Given], ...] = (
    QueryGiven,
    EvidenceGiven,
    ChangesGiven,
    StandingGiven,
    CameraGiven,
    CameraChange,
    MaskGiven,
    RecordingGiven,
    SegmentGiven,
    FeedGiven,
    KeyGiven,
    WebhookGiven,
    WebhookChange,
)
"""All kinds of bodies, for the OpenAPI document."""


def named(idempotency_key: str | None, *asked: Any) -> NamedRequest | None:
    """The request by its sender's name. ``asked``: all that it asks for, plain JSON."""
    if idempotency_key is None:
        return None
    text = json.dumps(asked, sort_keys=True, default=str)
    return NamedRequest(idempotency_key, hashlib.sha256(text.encode()).hexdigest())
