"""Types of fields and parameters: bounds, times, cursors."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from fastapi import Header, Path, Query
from pydantic import BeforeValidator, Field

from worker.errors import InputInvalid

MAX_ID = 2**63 - 1
MAX_PAGE = 1000
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")

Made = TypeVar("Made")


def _in_utc(given: Any) -> datetime:
    wanted = "a time is RFC 3339 with an offset, e.g. 2026-05-01T08:00:00Z"
    if isinstance(given, datetime):
        return given
    # An unescaped + of a query string arrives as a blank.
    text = re.sub(r" (\d\d:\d\d)$", r"+\1", given) if isinstance(given, str) else ""
    if not _RFC_3339.fullmatch(text):
        raise ValueError(wanted)
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(wanted) from None


Time = Annotated[datetime, BeforeValidator(_in_utc)]
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Id = Annotated[int, Path(ge=1, le=MAX_ID)]
IdParam = Annotated[int, Field(ge=1, le=MAX_ID)] | None
IdField = Annotated[int, Field(strict=True, ge=1, le=MAX_ID)]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Rows of a page.")]
Cursor = Annotated[
    str | None,
    Query(max_length=400, description="`next_cursor` of the page before; left out: the first."),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=r"^[\x21-\x7e]{1,200}$",
        description="A name of this request, remembered for 24 hours: sent again, it makes"
        " nothing new and is answered as the first time.",
    ),
]


def write_cursor(*place: Any) -> str:
    """The place behind which the next page begins, opaque to clients."""
    values = [part.isoformat() if isinstance(part, datetime) else part for part in place]
    return base64.urlsafe_b64encode(json.dumps(values, default=str).encode()).decode().rstrip("=")


def read_cursor(cursor: str | None, *kinds: Callable[[Any], Any]) -> tuple[Any, ...] | None:
    """The parts of a cursor; None for the first page. Raises :class:`InputInvalid`."""
    if cursor is None:
        return None
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        values = json.loads(raw)
        if not isinstance(values, list) or len(values) != len(kinds):
            raise ValueError(cursor)
        return tuple(kind(value) for kind, value in zip(kinds, values, strict=True))
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise InputInvalid("cursor is not one of this list: take next_cursor as it is") from None


def whole(value: Any) -> int:
    """An id of a cursor. Raises ``ValueError``."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_ID:
        raise ValueError(value)
    return value


def moment(value: Any) -> datetime:
    """A time of a cursor. Raises ``ValueError``."""
    return _in_utc(value)


def next_cursor(
    rows: Sequence[Made], limit: int, place: Callable[[Made], Sequence[Any]]
) -> str | None:
    """The cursor behind the last of ``limit`` rows; None where fewer came: that was the end."""
    return write_cursor(*place(rows[-1])) if rows and len(rows) == limit else None
