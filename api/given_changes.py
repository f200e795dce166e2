"""The body that asks when a box of a camera changed."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from api.fields import IdField, Time, Whole
from api.given import Given, RoiGiven


class ChangesGiven(Given):
    """A box or polygon of a camera's picture, and the time it is asked about."""

    camera_id: IdField
    roi: RoiGiven
    t_from_utc: Annotated[
        Time | None, Field(description="Only frames at or after; left out: from the first.")
    ] = None
    t_to_utc: Annotated[
        Time | None, Field(description="Only frames before; left out: to the last.")
    ] = None
    hold: Annotated[
        Whole,
        Field(ge=1, le=1000, description="Frames that a new state must last; fewer only pass."),
    ] = 3

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "camera_id": 1,
                    "roi": {"box": [0.1, 0.4, 0.3, 0.7]},
                    "t_from_utc": "2026-01-01T06:00:00Z",
                }
            ]
        },
    )
