"""What a request for a key gives."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from api.fields import IdField, Time
from api.given import Given, Name
from worker.accepting.keys import Action
from worker.core.search_params import MAX_CAMERAS


class KeyGiven(Given):
    """A new key. One that sees the footage of some time only may neither `ingest` nor `admin`."""

    name: Name
    actions: Annotated[list[Action], Field(min_length=1, max_length=5)]
    camera_ids: Annotated[list[IdField] | None, Field(min_length=1, max_length=MAX_CAMERAS)] = None
    footage_from_utc: Annotated[Time | None, Field(description="Only frames at or after.")] = None
    footage_to_utc: Annotated[Time | None, Field(description="Only frames before.")] = None
    expires_at: Time | None = None
    role: Annotated[Name | None, Field(description="No secret: for tokens with this role.")] = None

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"name": "desk 3", "actions": ["view", "search"]},
                {"name": "desks", "actions": ["view", "search"], "role": "ris-desk"},
                {
                    "name": "case 17",
                    "actions": ["view", "search", "export"],
                    "footage_from_utc": "2026-05-01T06:00:00Z",
                    "footage_to_utc": "2026-05-01T18:00:00Z",
                },
            ]
        },
    )
