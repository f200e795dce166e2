"""What answers about standing queries and their alerts hold."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from api.told import Failure, GridTold, XyXy, failure
from models.standing import Alert, StandingQuery


class StandingTold(BaseModel):
    """A standing query as it stands."""

    standing_query_id: int
    name: str
    frame_id: int | None
    picture_sha256: str | None
    roi: dict[str, Any]
    params: dict[str, Any]
    max_false_per_day: float
    cool_down_s: float
    state: Literal["running", "paused", "ended"]
    ended: Failure | None = Field(description="Why it sees nothing any more.")
    expires_at: datetime | None
    judged_frames: int = Field(description="New frames it was compared with.")
    unjudged_frames: int = Field(
        description="New frames it was not: too little was known of what chance brings, or damage."
    )
    alerts: int
    created_at: datetime
    ended_at: datetime | None

    @classmethod
    def of(cls, standing: StandingQuery, alerts: int) -> StandingTold:
        """From a row."""
        return cls(**_fields(standing, alerts))


class StandingMade(StandingTold):
    """A new standing query, and the query on what is there already, if that was asked for."""

    backfill_query_id: uuid.UUID | None

    @classmethod
    def with_backfill(cls, standing: StandingQuery, query_id: uuid.UUID | None) -> StandingMade:
        """From a row."""
        return cls(**_fields(standing, 0), backfill_query_id=query_id)


def _fields(standing: StandingQuery, alerts: int) -> dict[str, Any]:
    return {
        "standing_query_id": standing.id,
        "name": standing.name,
        "frame_id": standing.frame_id,
        "picture_sha256": standing.picture_sha256,
        "roi": standing.roi,
        "params": standing.params,
        "max_false_per_day": standing.max_false_per_day,
        "cool_down_s": standing.cool_down_s,
        "state": standing.state,
        "ended": failure(standing.ended_code, standing.ended_detail),
        "expires_at": standing.expires_at,
        "judged_frames": standing.judged_frames,
        "unjudged_frames": standing.unjudged_frames,
        "alerts": alerts,
        "created_at": standing.created_at,
        "ended_at": standing.ended_at,
    }


class AlertTold(BaseModel):
    """A new frame that a standing query fired on."""

    alert_id: int
    standing_query_id: int
    name: str = Field(description="Of the standing query.")
    frame_id: int
    camera_id: int
    camera_name: str
    t_utc: datetime
    likeness: float
    false_per_day: float = Field(
        description="How many frames of this camera's day chance brings to such a likeness."
    )
    similarity: float
    coverage: float
    box: XyXy | None = Field(description="x0, y0, x1, y1 of the subject, 0 to 1.")
    grid: GridTold
    region_cells: list[int] = Field(description="Cells of the frame, row * grid.w + col, by pair.")
    region_query_patches: list[int] = Field(description="Query patch of each pair.")
    picture: str
    thumbnail: str
    overlay: str = Field(description="Address of the picture with region and box drawn.")
    created_at: datetime

    @classmethod
    def of(cls, alert: Alert) -> AlertTold:
        """From a row with its frame, camera and standing query."""
        return cls(
            alert_id=alert.id,
            standing_query_id=alert.standing_query_id,
            name=alert.standing_query.name,
            frame_id=alert.frame_id,
            camera_id=alert.camera_id,
            camera_name=alert.frame.camera.name,
            t_utc=alert.t_utc,
            likeness=alert.likeness,
            false_per_day=alert.false_per_day,
            similarity=alert.similarity,
            coverage=alert.coverage,
            box=alert.box,
            grid=GridTold(h=alert.grid_h, w=alert.grid_w),
            region_cells=alert.region_cell_index,
            region_query_patches=alert.region_query_index,
            picture=f"/v1/frames/{alert.frame_id}/picture",
            thumbnail=f"/v1/frames/{alert.frame_id}/thumbnail",
            overlay=f"/v1/alerts/{alert.id}/overlay",
            created_at=alert.created_at,
        )
