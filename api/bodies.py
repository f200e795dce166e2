"""Reading a query's body: JSON, or a form with the picture beside it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from api.given import QueryGiven
from api.problems import in_words
from worker.accepting.repeats import NamedRequest
from worker.errors import InputInvalid, MediaUnsupported

JSON_TYPE = "application/json"
FORM_TYPE = "multipart/form-data"
_QUERY_REF = {"$ref": "#/components/schemas/QueryGiven"}
QUERY_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        JSON_TYPE: {"schema": _QUERY_REF},
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
                        "contentSchema": _QUERY_REF,
                        "description": "The same object as JSON text, without frame_id.",
                    },
                },
                "required": ["picture", "query"],
                "additionalProperties": False,
            }
        },
    },
}
"""What OpenAPI says of the body."""


@dataclass(frozen=True, slots=True)
class QueryBody:
    """What was asked, and the picture's bytes where one came."""

    given: QueryGiven
    picture: bytes | None


async def read_query(request: Request) -> QueryBody:
    """Raises :class:`InputInvalid` or :class:`MediaUnsupported`."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == JSON_TYPE:
        return QueryBody(_query(await request.body()), None)
    if kind != FORM_TYPE:
        raise MediaUnsupported(f"Content-Type {kind or 'missing'}: send {JSON_TYPE} or {FORM_TYPE}")
    async with request.form(max_files=1, max_fields=1, max_part_size=1 << 20) as form:
        picture, text = form.get("picture"), form.get("query")
        if not isinstance(picture, UploadFile) or not isinstance(text, str) or len(form) != 2:
            raise InputInvalid("the form has a file `picture` and a text `query`, and nothing else")
        given = _query(text.encode("utf-8", "surrogatepass"))
        if given.frame_id is not None:
            raise InputInvalid("give either a frame id or a picture, not both")
        return QueryBody(given, await picture.read())


def _query(text: bytes) -> QueryGiven:
    try:
        return QueryGiven.model_validate_json(text)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise InputInvalid("; ".join(in_words(one) for one in found[:5])) from None


def named(idempotency_key: str | None, *asked: Any) -> NamedRequest | None:
    """The request by its sender's name. ``asked``: all that it asks for, plain JSON."""
    if idempotency_key is None:
        return None
    text = json.dumps(asked, sort_keys=True, default=str)
    return NamedRequest(idempotency_key, hashlib.sha256(text.encode()).hexdigest())
