"""Parameters of a search: bounds, defaults and their JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal, get_args

from worker.core.bounds import check_float, check_int
from worker.core.examples import Example, check_examples, example_from_json
from worker.core.geometry import validate_roi
from worker.core.region_growing import CoverageKind
from worker.core.roi_json import roi_from_json, roi_to_json
from worker.core.types import Box, Polygon, Roi
from worker.errors import InputInvalid, RoiInvalid

QueryDescriptor = Literal["frame", "roi-crop", "roi-mean"]
"""What q_g of eq. 4 is taken from: the whole query picture, the ROI cut out and embedded anew, or
the mean of the ROI's patch descriptors. The paper leaves it open (design, section 4.3)."""


VoteScope = Literal["candidates", "index"]
"""Where votes look for the nearest patches: in the candidates of stage 1, or in the whole index.
The paper's figure 1 shows the first, its section 3.5.1 reads like the second."""


Grouping = Literal["appearance", "frame"]
"""Whether an answer lists appearances, each by its best frame, or every frame."""


Lever = Literal["background", "trail", "exemplars", "time", "whole-frame"]
"""What the default strategy and growth add to plain comparison; each can be left out."""


class Strategy(StrEnum):
    """How candidates are scored. ``paper-*`` fix the paper's own parameters (4.1)."""

    DEFAULT = "default"
    FUSED = "fused"
    MAX_SIM = "max-sim"
    VOTE_MAJORITY = "vote-majority"
    VOTE_UNIQUE = "vote-unique"
    VOTE_WEIGHTED = "vote-weighted"
    VOTE_WEIGHTED_UNIQUE = "vote-weighted-unique"
    GROW_RIGID = "grow-rigid"
    GROW_ELASTIC = "grow-elastic"
    WHOLE_FRAME = "whole-frame"
    PAPER_MAJORITY = "paper-majority"
    PAPER_UNIQUE = "paper-unique"
    PAPER_WEIGHTED = "paper-weighted"
    PAPER_WEIGHTED_UNIQUE = "paper-weighted-unique"
    PAPER_RIGID = "paper-rigid"
    PAPER_ELASTIC = "paper-elastic"

    @property
    def is_paper(self) -> bool:
        """Whether the strategy is a literal reading of the paper."""
        return self.value.startswith("paper-")


DEFAULT_STRATEGY = Strategy.FUSED
"""What ``default`` stands for."""

MAX_CAMERAS = 10_000


@dataclass(frozen=True, slots=True)
class SearchParams:
    """Parameters of one search; a value that exists is valid.

    ``top_n``: candidates kept by stage 1. ``k``: nearest neighbours per query patch. ``k_s``:
    seeds. ``tau``: match level, cosine; None takes the backbone's calibrated one. ``alpha``:
    exponent of the coverage (eq. 6). ``epsilon``: of the weighted votes (table 1). ``vote_scope``:
    where votes look. ``limit``: frames in the answer. ``group``: what a hit is;
    ``appearance_gap_s``: hits of one camera at most this far apart are one appearance.
    ``close_looks``: hits, from the first, whose box comes from a closer look at their pictures;
    none with ``paper-*``. ``without``: levers left out. ``more``, ``less``: examples of the
    subject, and of what it is not. ``camera_ids``, ``t_from_utc`` (inclusive), ``t_to_utc``
    (exclusive), ``zone`` (the part of the picture a match must lie in): filters; None is no filter.
    Times are aware. Raises ``InputInvalid`` naming field,
    bounds and value.
    """

    strategy: Strategy = Strategy.DEFAULT
    top_n: int = 500
    k: int = 5
    k_s: int = 5
    tau: float | None = None
    alpha: float = 1.0
    epsilon: float = 1e-3
    query_descriptor: QueryDescriptor = "frame"
    coverage: CoverageKind = "distinct"
    vote_scope: VoteScope = "candidates"
    limit: int = 50
    group: Grouping = "appearance"
    appearance_gap_s: float = 5.0
    close_looks: int = 20
    without: tuple[Lever, ...] = ()
    more: tuple[Example, ...] = ()
    less: tuple[Example, ...] = ()
    camera_ids: tuple[int, ...] | None = None
    t_from_utc: datetime | None = None
    t_to_utc: datetime | None = None
    zone: Roi | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.strategy, Strategy):
            raise _not_one_of("strategy", list(Strategy), self.strategy)
        check_int("top_n", self.top_n, 1, 10_000)
        check_int("k", self.k, 1, 256)
        check_int("k_s", self.k_s, 1, 256)
        if self.tau is not None:
            check_float("tau", self.tau, -1.0, 1.0)
        check_float("alpha", self.alpha, 0.0, 8.0)
        check_float("epsilon", self.epsilon, 1e-6, 1.0)
        if self.query_descriptor not in get_args(QueryDescriptor):
            raise _not_one_of("query_descriptor", get_args(QueryDescriptor), self.query_descriptor)
        if self.coverage not in get_args(CoverageKind):
            raise _not_one_of("coverage", get_args(CoverageKind), self.coverage)
        if self.vote_scope not in get_args(VoteScope):
            raise _not_one_of("vote_scope", get_args(VoteScope), self.vote_scope)
        check_int("limit", self.limit, 1, 1000)
        if self.group not in get_args(Grouping):
            raise _not_one_of("group", get_args(Grouping), self.group)
        check_float("appearance_gap_s", self.appearance_gap_s, 0.0, 3600.0)
        check_int("close_looks", self.close_looks, 0, 1000)
        if not isinstance(self.without, tuple):
            raise InputInvalid(f"without must be a list of levers, got {self.without!r}")
        for lever in self.without:
            if lever not in get_args(Lever):
                raise _not_one_of("without", get_args(Lever), lever)
        check_examples("more", self.more)
        check_examples("less", self.less)
        _check_cameras(self.camera_ids)
        _check_times(self.t_from_utc, self.t_to_utc)
        _check_zone(self.zone)

    def resolved(self) -> SearchParams:
        """These parameters with ``default`` replaced and a ``paper-*`` strategy's values set.

        Paper, 4.1: N = 50, K = 5, tau = 0.6, alpha = 1, coverage as eq. 6 writes it. K_s and
        epsilon are not stated there and stay as given.
        """
        if self.strategy is Strategy.DEFAULT:
            return replace(self, strategy=DEFAULT_STRATEGY)
        if self.strategy.is_paper:
            return replace(self, top_n=50, k=5, tau=0.6, alpha=1.0, coverage="literal")
        return self

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object of all fields; :func:`search_params_from_json` reads it back."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "strategy": self.strategy.value,
            "without": list(self.without),
            "more": [example.to_json() for example in self.more],
            "less": [example.to_json() for example in self.less],
            "camera_ids": None if self.camera_ids is None else list(self.camera_ids),
            "t_from_utc": _time_to_json(self.t_from_utc),
            "t_to_utc": _time_to_json(self.t_to_utc),
            "zone": None if self.zone is None else roi_to_json(self.zone),
        }


def search_params_from_json(given: Mapping[str, Any]) -> SearchParams:
    """Parameters from a JSON object; fields left out take their defaults.

    Raises ``InputInvalid`` for an unknown field, and for what :class:`SearchParams` refuses.
    """
    known = [field.name for field in fields(SearchParams)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InputInvalid(f"unknown search fields {unknown}; known are {', '.join(known)}")
    read = dict(given)
    if "strategy" in read:
        read["strategy"] = _strategy(read["strategy"])
    for field in ("camera_ids", "without"):
        if isinstance(read.get(field), list):
            read[field] = tuple(read[field])
    for field in ("more", "less"):
        if isinstance(read.get(field), list):
            read[field] = tuple(example_from_json(example) for example in read[field])
    for field in ("t_from_utc", "t_to_utc"):
        if read.get(field) is not None:
            read[field] = _time_from_json(field, read[field])
    if read.get("zone") is not None:
        read["zone"] = _zone_from_json(read["zone"])
    return SearchParams(**read)


def _strategy(value: Any) -> Strategy:
    try:
        return Strategy(value)
    except ValueError:
        raise _not_one_of("strategy", list(Strategy), value) from None


def _not_one_of(field: str, known: tuple[str, ...] | list[Strategy], value: Any) -> InputInvalid:
    names = ", ".join(str(name) for name in known)
    return InputInvalid(f"{field} must be one of {names}, got {value!r}")


def _check_cameras(camera_ids: Any) -> None:
    if camera_ids is None:
        return
    if not isinstance(camera_ids, tuple) or not 1 <= len(camera_ids) <= MAX_CAMERAS:
        raise InputInvalid(
            f"camera_ids must be 1 to {MAX_CAMERAS} camera ids, or left out for all cameras; got "
            f"{str(camera_ids)[:80]}"
        )
    for camera_id in camera_ids:
        check_int("camera_ids", camera_id, 1, 2**63 - 1)


def _check_times(t_from_utc: Any, t_to_utc: Any) -> None:
    for field, value in (("t_from_utc", t_from_utc), ("t_to_utc", t_to_utc)):
        if value is None:
            continue
        if not isinstance(value, datetime) or value.utcoffset() is None:
            raise InputInvalid(f"{field} must be a time with a UTC offset, got {value!r}")
    if t_from_utc is not None and t_to_utc is not None and t_from_utc >= t_to_utc:
        raise InputInvalid(
            f"t_from_utc must be before t_to_utc, got {t_from_utc.isoformat()} and "
            f"{t_to_utc.isoformat()}"
        )


def _check_zone(zone: Any) -> None:
    if zone is None:
        return
    if not isinstance(zone, Box | Polygon):
        raise InputInvalid(f"zone must be a box or a polygon, got {zone!r}")
    try:
        validate_roi(zone)
    except RoiInvalid as error:
        raise RoiInvalid(f"zone: {error}") from error


def _zone_from_json(given: Any) -> Roi:
    if not isinstance(given, Mapping):
        raise InputInvalid(f"zone must be an object with a box or a polygon, got {given!r}")
    try:
        return roi_from_json(given)
    except RoiInvalid as error:
        raise RoiInvalid(f"zone: {error}") from error


def _time_to_json(value: datetime | None) -> str | None:
    return None if value is None else value.astimezone(UTC).isoformat()


def _time_from_json(field: str, value: Any) -> datetime:
    wanted = f"{field} must be an ISO 8601 time with a UTC offset, got {value!r}"
    if not isinstance(value, str):
        raise InputInvalid(wanted)
    try:
        read = datetime.fromisoformat(value)
    except ValueError:
        raise InputInvalid(wanted) from None
    if read.utcoffset() is None:
        raise InputInvalid(wanted)
    try:
        return read.astimezone(UTC)
    except OverflowError:
        raise InputInvalid(wanted) from None
