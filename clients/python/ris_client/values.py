"""What the API tells, as values; boxes are x0, y0, x1, y1 as shares of the picture, times UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Box = tuple[float, float, float, float]


class RisApiError(Exception):
    """A refusal of the API, or a query that failed. ``code`` is stable (docs/errors.md)."""

    def __init__(self, code: str, detail: str, status: int, request_id: str = "") -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.status = status
        self.request_id = request_id


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


@dataclass(frozen=True, slots=True)
class Camera:
    """A camera with what is indexed of it."""

    camera_id: int
    name: str
    frames: int
    first_utc: datetime | None
    last_utc: datetime | None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Camera:
        """From JSON."""
        first, last = _time(told["first_utc"]), _time(told["last_utc"])
        return cls(told["camera_id"], told["name"], told["frames"], first, last)


@dataclass(frozen=True, slots=True)
class Frame:
    """An indexed frame."""

    frame_id: int
    camera_id: int
    t_utc: datetime
    h_px: int
    w_px: int

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Frame:
        """From JSON."""
        t_utc = datetime.fromisoformat(told["t_utc"])
        return cls(told["frame_id"], told["camera_id"], t_utc, told["h_px"], told["w_px"])


@dataclass(frozen=True, slots=True)
class Hit:
    """A hit. ``overlay``: address of the picture with the matched region; the rest in ``told``."""

    rank: int
    frame_id: int
    camera_id: int
    camera_name: str
    t_utc: datetime
    score: float
    false_matches: float | None
    box: Box | None
    overlay: str
    told: Mapping[str, Any]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Hit:
        """From JSON."""
        box: list[float] | None = told["box"]
        return cls(
            told["rank"],
            told["frame_id"],
            told["camera_id"],
            told["camera_name"],
            datetime.fromisoformat(told["t_utc"]),
            told["score"],
            told["false_matches"],
            None if box is None else (box[0], box[1], box[2], box[3]),
            told["overlay"],
            told,
        )


@dataclass(frozen=True, slots=True)
class Query:
    """A query as it stands: ``queued``, ``running``, ``done`` or ``failed``. ``degraded``: frames
    were not searched, as their vectors are damaged or on storage that is away. ``answer``: what its
    hits are, ``none``, ``early``, ``ranked`` or ``final``."""

    query_id: str
    state: str
    hits: int
    answer: str
    degraded: bool
    told: Mapping[str, Any]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Query:
        """From JSON."""
        return cls(
            told["query_id"],
            told["state"],
            told["hits"],
            told.get("answer", "none"),
            told["degraded"],
            told,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """A query that is done, with its hits by rank."""

    query: Query
    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class BoxState:
    """A stretch in which a box looked the same, by its first and last frame. ``like``: number of
    the first state that looked like it. ``before_utc``: the last frame that still showed something
    else, None for the first state: the change lies between it and ``from_utc``."""

    number: int
    like: int
    from_utc: datetime
    to_utc: datetime
    before_utc: datetime | None
    first_frame_id: int
    last_frame_id: int
    difference: float

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> BoxState:
        """From JSON."""
        return cls(
            told["number"],
            told["like"],
            datetime.fromisoformat(told["from_utc"]),
            datetime.fromisoformat(told["to_utc"]),
            _time(told["before_utc"]),
            told["first_frame_id"],
            told["last_frame_id"],
            told["difference"],
        )


@dataclass(frozen=True, slots=True)
class Changes:
    """The states of a box in order of time; each but the first is a change. ``frames``: how many
    were looked at."""

    change_query_id: str
    frames: int
    states: tuple[BoxState, ...]
    told: Mapping[str, Any]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Changes:
        """From JSON of one that is done."""
        states = tuple(BoxState.of(state) for state in told["states"])
        return cls(told["change_query_id"], told["frames"], states, told)


@dataclass(frozen=True, slots=True)
class Segment:
    """A recorded file and how its ingest stands; ``outcome`` is None until it ended."""

    segment_id: int
    camera_id: int
    state: str | None
    frames: int
    outcome: str | None
    told: Mapping[str, Any]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Segment:
        """From JSON."""
        return cls(
            told["segment_id"],
            told["camera_id"],
            told["state"],
            told["frames"],
            told["outcome"],
            told,
        )


@dataclass(frozen=True, slots=True)
class Webhook:
    """An address that is told of events. ``state``: ``active``, ``paused``, or ``gone`` where its
    receiver said so; ``dead``: events that were given up. ``url`` is without its secrets."""

    webhook_id: int
    name: str
    url: str
    kinds: tuple[str, ...]
    state: str
    pending: int
    dead: int
    told: Mapping[str, Any]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Webhook:
        """From JSON; a secret that comes with it is left out."""
        kept = {name: value for name, value in told.items() if name != "secret"}
        return cls(
            told["webhook_id"],
            told["name"],
            told["url"],
            tuple(told["kinds"]),
            told["state"],
            told["pending"],
            told["dead"],
            kept,
        )


@dataclass(frozen=True, slots=True)
class StandingQuery:
    """What is watched for. ``state``: ``running``, ``paused`` or ``ended``; ``unjudged_frames``:
    new frames of which too little was known to judge them."""

    standing_query_id: int
    name: str
    state: str
    judged_frames: int
    unjudged_frames: int
    alerts: int
    told: Mapping[str, Any]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> StandingQuery:
        """From JSON."""
        return cls(
            told["standing_query_id"],
            told["name"],
            told["state"],
            told["judged_frames"],
            told["unjudged_frames"],
            told["alerts"],
            told,
        )


@dataclass(frozen=True, slots=True)
class Alert:
    """A new frame that may show what is watched for. ``false_per_day``: how many frames of this
    camera's day chance brings to such a likeness; ``overlay``: where the drawn picture is."""

    alert_id: int
    standing_query_id: int
    frame_id: int
    camera_name: str
    t_utc: datetime
    false_per_day: float
    overlay: str
    told: Mapping[str, Any]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Alert:
        """From JSON."""
        return cls(
            told["alert_id"],
            told["standing_query_id"],
            told["frame_id"],
            told["camera_name"],
            datetime.fromisoformat(told["t_utc"]),
            told["false_per_day"],
            told["overlay"],
            told,
        )


@dataclass(frozen=True, slots=True)
class Feed:
    """A camera that is read all the time. ``desired_state``: ``running``, ``paused`` or ``ended``;
    ``phase``: ``waiting``, ``connecting``, ``live`` or ``idle``; ``trouble``: the code of what
    keeps it from being read. ``url`` is without user, password and query."""

    feed_id: int
    camera_id: int
    camera_name: str
    url: str
    desired_state: str
    phase: str
    last_frame_utc: datetime | None
    trouble: str | None
    told: Mapping[str, Any]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Feed:
        """From JSON."""
        return cls(
            told["feed_id"],
            told["camera_id"],
            told["camera_name"],
            told["url"],
            told["desired_state"],
            told["phase"],
            _time(told["last_frame_utc"]),
            None if told["trouble"] is None else told["trouble"]["code"],
            told,
        )


@dataclass(frozen=True, slots=True)
class Gap:
    """A time of which a live camera has no frames, and why; ``to_utc`` None: it lasts."""

    from_utc: datetime
    to_utc: datetime | None
    reason: str

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Gap:
        """From JSON."""
        from_utc = datetime.fromisoformat(told["from_utc"])
        return cls(from_utc, _time(told["to_utc"]), told["reason"])
