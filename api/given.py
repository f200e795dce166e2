"""Bodies that requests bring."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from api.fields import IdField, Number, Time, Whole
from worker.accepting.events import EventKind
from worker.accepting.evidence import MAX_HITS
from worker.accepting.standing import (
    DEFAULT_COOL_DOWN_S,
    DEFAULT_FALSE_PER_DAY,
    MAX_COOL_DOWN_S,
)
from worker.core.examples import MAX_EXAMPLES
from worker.core.masking import MAX_AREAS
from worker.core.region_growing import CoverageKind
from worker.core.search_params import (
    MAX_CAMERAS,
    Grouping,
    Lever,
    QueryDescriptor,
    Strategy,
    VoteScope,
)

MAX_POINTS = 1000
MAX_QUERY_POINTS = 2000

Share = Annotated[Number, Field(ge=0, le=1)]
XyXy = Annotated[list[Share], Field(min_length=4, max_length=4)]
Xy = Annotated[list[Share], Field(min_length=2, max_length=2)]
Name = Annotated[str, Field(strict=True, min_length=1, max_length=200)]


class Given(BaseModel):
    """A body without fields that nobody knows."""

    model_config = ConfigDict(extra="forbid")


class BoxGiven(Given):
    """A box as shares of the picture, origin top left."""

    box: Annotated[
        XyXy, Field(description="x0, y0, x1, y1, 0 to 1.", examples=[[0.3, 0.2, 0.6, 0.9]])
    ]


class PolygonGiven(Given):
    """A simple polygon as shares of the picture."""

    polygon: Annotated[
        list[Xy], Field(min_length=3, max_length=MAX_POINTS, description="x, y of each corner.")
    ]


RoiGiven = BoxGiven | PolygonGiven


class BoxExample(BoxGiven):
    """A box on an indexed frame."""

    frame_id: IdField


class PolygonExample(PolygonGiven):
    """A polygon on an indexed frame."""

    frame_id: IdField


Examples = Annotated[list[BoxExample | PolygonExample], Field(max_length=MAX_EXAMPLES)]


class ParamsGiven(Given):
    """Parameters of a search; what is left out takes its default (docs/search.md)."""

    strategy: Strategy = Strategy.DEFAULT
    top_n: Annotated[Whole, Field(ge=1, le=10_000)] = 500
    k: Annotated[Whole, Field(ge=1, le=256)] = 5
    k_s: Annotated[Whole, Field(ge=1, le=256)] = 5
    tau: Annotated[Number, Field(ge=-1, le=1)] | None = None
    alpha: Annotated[Number, Field(ge=0, le=8)] = 1.0
    epsilon: Annotated[Number, Field(ge=1e-6, le=1)] = 1e-3
    query_descriptor: QueryDescriptor = "frame"
    coverage: CoverageKind = "distinct"
    vote_scope: VoteScope = "candidates"
    limit: Annotated[Whole, Field(ge=1, le=1000, description="Frames in the answer.")] = 50
    group: Grouping = "appearance"
    appearance_gap_s: Annotated[Number, Field(ge=0, le=3600)] = 5.0
    close_looks: Annotated[Whole, Field(ge=0, le=1000)] = 20
    without: Annotated[list[Lever], Field(max_length=16)] = []
    more: Examples = []
    less: Examples = []
    camera_ids: Annotated[list[IdField] | None, Field(min_length=1, max_length=MAX_CAMERAS)] = None
    t_from_utc: Annotated[Time | None, Field(description="Only frames at or after.")] = None
    t_to_utc: Annotated[Time | None, Field(description="Only frames before.")] = None
    zone: Annotated[
        RoiGiven | None, Field(description="Only matches in this part of the picture.")
    ] = None

    def to_fields(self) -> dict[str, Any]:
        """What was given, as ``search_params_from_json`` reads it."""
        return self.model_dump(mode="json", exclude_unset=True)


class QueryGiven(Given):
    """A query drawn on an indexed frame; beside an uploaded picture `frame_id` is left out. Its
    polygons have at most 2000 points together."""

    frame_id: IdField | None = None
    roi: RoiGiven
    params: ParamsGiven = ParamsGiven()

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "frame_id": 1,
                    "roi": {"box": [0.3, 0.2, 0.6, 0.9]},
                    "params": {"limit": 20, "group": "frame"},
                }
            ]
        },
    )

    @model_validator(mode="after")
    def _bounded(self) -> QueryGiven:
        drawn = (self.roi, self.params.zone, *self.params.more, *self.params.less)
        _require_few_points(drawn, "a query")
        return self


class StandingGiven(QueryGiven):
    """A query that new frames are compared with; beside an uploaded picture `frame_id` is left out.

    Its strategy is `default`, `fused` or one that grows, without `tau`."""

    name: Name
    max_false_per_day: Annotated[
        Number,
        Field(
            ge=1e-6,
            le=1e6,
            description="Alerts where chance brings at most so many frames of a camera's day.",
        ),
    ] = DEFAULT_FALSE_PER_DAY
    cool_down_s: Annotated[
        Number,
        Field(ge=0, le=MAX_COOL_DOWN_S, description="Between two alerts of one camera, at least."),
    ] = DEFAULT_COOL_DOWN_S
    expires_at: Time | None = None
    backfill: Annotated[
        bool, Field(strict=True, description="Search what is there already, as an own query.")
    ] = False

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "name": "red coat",
                    "frame_id": 1,
                    "roi": {"box": [0.3, 0.2, 0.6, 0.9]},
                    "max_false_per_day": 0.1,
                    "backfill": True,
                }
            ]
        },
    )


def _require_few_points(drawn: Iterable[Given | None], where: str) -> None:
    points = sum(len(one.polygon) for one in drawn if isinstance(one, PolygonGiven))
    if points > MAX_QUERY_POINTS:
        raise ValueError(
            f"polygons of {points} points, at most {MAX_QUERY_POINTS} in {where}: draw coarser"
        )


class EvidenceGiven(Given):
    """Hits of a query to export as one signed bundle."""

    ranks: Annotated[
        list[Annotated[Whole, Field(ge=1, le=1000)]], Field(min_length=1, max_length=MAX_HITS)
    ]

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"ranks": [1, 2, 5]}]}
    )


class CameraGiven(Given):
    """A new camera."""

    name: Name
    retention_days: Annotated[Whole, Field(ge=0, le=36_500)] | None = None

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "gate", "retention_days": 30}]}
    )


class CameraChange(Given):
    """What is to change of a camera; what is left out stays. `retention_days` null: as
    RIS_RETENTION_DAYS says."""

    name: Name | None = None
    retention_days: Annotated[Whole, Field(ge=0, le=36_500)] | None = None


class MaskGiven(Given):
    """A camera's privacy mask: areas painted black from now on, in the place of all former ones; an
    empty list paints nothing. Its polygons have at most 2000 points together."""

    areas: Annotated[list[RoiGiven], Field(max_length=MAX_AREAS)]

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "areas": [
                        {"box": [0.0, 0.0, 0.25, 0.4]},
                        {"polygon": [[0.7, 0.1], [1.0, 0.1], [1.0, 0.5]]},
                    ]
                },
                {"areas": []},
            ]
        },
    )

    @model_validator(mode="after")
    def _bounded(self) -> MaskGiven:
        _require_few_points(self.areas, "a mask")
        return self


class RecordingGiven(Given):
    """What is said of a recording that comes beside it: of a camera that is there, by id or by
    name."""

    camera_id: IdField | None = None
    camera: Name | None = None
    start_utc: Annotated[Time, Field(description="When its first picture was taken.")]
    policy: Literal["interval", "keyframe", "change"] = "interval"
    every_s: Annotated[Number, Field(ge=0.001, le=86_400)] = 1.0

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"camera": "yard", "start_utc": "2026-05-01T08:00:00Z"}],
        },
    )

    @model_validator(mode="after")
    def _one_camera(self) -> RecordingGiven:
        if (self.camera_id is None) == (self.camera is None):
            raise ValueError("give either camera_id or camera, not both or neither")
        return self


class SegmentGiven(RecordingGiven):
    """A recorded file to ingest: below the server's RIS_FOOTAGE_DIR, or to be fetched from one of
    its RIS_FETCH_HOSTS."""

    path: Annotated[str | None, Field(strict=True, min_length=1, max_length=4096)] = None
    url: Annotated[
        SecretStr | None,
        Field(min_length=1, max_length=4096, description="http: or https:, without redirects."),
    ] = None

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"path": "yard/0800.mp4", "camera_id": 1, "start_utc": "2026-05-01T08:00:00Z"},
                {
                    "url": "http://frigate:5000/api/events/1777622400.0-abc/clip.mp4",
                    "camera_id": 1,
                    "start_utc": "2026-05-01T08:00:00Z",
                },
            ]
        },
    )

    @model_validator(mode="after")
    def _one_source(self) -> SegmentGiven:
        if (self.path is None) == (self.url is None):
            raise ValueError("give either path or url, not both or neither")
        return self


class FeedGiven(Given):
    """A camera to read from now on: one that is there, by id, or by its name, where a new name is a
    new camera."""

    camera_id: IdField | None = None
    camera: Name | None = None
    url: Annotated[
        SecretStr,
        Field(min_length=1, max_length=4096, description="rtsp:, rtsps:, http:, https: or file:."),
    ]
    policy: Literal["interval", "keyframe", "change"] = "interval"
    every_s: Annotated[Number, Field(ge=0.001, le=86_400)] = 10.0

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "camera": "yard",
                    "url": "rtsp://user:password@10.0.0.7/stream",
                    "policy": "keyframe",
                }
            ]
        },
    )

    @model_validator(mode="after")
    def _one_camera(self) -> FeedGiven:
        if (self.camera_id is None) == (self.camera is None):
            raise ValueError("give either camera_id or camera, not both or neither")
        return self


Kinds = Annotated[list[EventKind], Field(max_length=32)]
WebhookUrl = Annotated[
    SecretStr, Field(min_length=1, max_length=4096, description="http, https, or mqtt:TOPIC.")
]


class WebhookGiven(Given):
    """An address to tell of events; without kinds, of all that the key may read."""

    name: Name
    url: WebhookUrl
    kinds: Kinds = []

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "name": "vms",
                    "url": "https://vms.example/ris-events",
                    "kinds": ["query.done", "feed.down"],
                }
            ]
        },
    )


class WebhookChange(Given):
    """What is to change of a webhook; what is left out stays. An empty list of kinds: all that the
    key may read."""

    name: Name | None = None
    url: WebhookUrl | None = None
    kinds: Kinds | None = None
    state: Literal["active", "paused"] | None = None

    def to_changes(self) -> dict[str, Any]:
        """Columns by name, of what was given."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        if isinstance(given.get("url"), SecretStr):
            given["url"] = given["url"].get_secret_value()
        return {name: value for name, value in given.items() if value is not None}
