"""Messages that tell of a recording: Frigate's events and reviews, and a plain shape of our own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from worker.errors import InputInvalid

MOST_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Arrival:
    """A recording to fetch. ``url`` may hold a password. ``settles``: its recorder may still be
    writing the end of it. ``policy``, ``every_s``: how it is sampled."""

    camera: str
    url: str
    start_utc: datetime
    settles: bool = False
    policy: str = "interval"
    every_s: float = 1.0

    def __repr__(self) -> str:
        """Without the address."""
        return f"Arrival({self.camera!r}, {self.start_utc})"


def read_message(raw: bytes, frigate_url: str | None) -> Arrival | None:
    """What a message tells of; None where that is no recording yet, or none that was kept.

    ``frigate_url``: where Frigate's API is, e.g. http://frigate:5000. Raises :class:`InputInvalid`
    for a message of no known shape; its text quotes nothing of the message but names of fields.
    """
    if len(raw) > MOST_BYTES:
        raise InputInvalid(f"a message of {len(raw)} bytes, at most {MOST_BYTES}")
    try:
        given = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputInvalid("the message is no JSON") from error
    if not isinstance(given, dict):
        raise InputInvalid("the message is no JSON object")
    if "url" in given:
        return _own(given)
    if "type" in given and "after" in given:
        return _of_frigate(given, frigate_url)
    raise InputInvalid("the message has neither `url`, nor `type` and `after` as Frigate's have")


def _own(given: Mapping[str, Any]) -> Arrival:
    unknown = given.keys() - {"camera", "url", "start_utc", "policy", "every_s"}
    if unknown:
        raise InputInvalid(f"fields that nobody knows: {ascii(sorted(unknown))[:80]}")
    start = _time(_text(given, "start_utc"))
    every_s = _number(given, "every_s") if "every_s" in given else 1.0
    policy = _text(given, "policy") if "policy" in given else "interval"
    return Arrival(_text(given, "camera"), _text(given, "url"), start, False, policy, every_s)


def _of_frigate(given: Mapping[str, Any], frigate_url: str | None) -> Arrival | None:
    """An event by its id; a review, which joins events, by its camera and times."""
    kind, after = given["type"], given["after"]
    if kind not in ("new", "update", "end"):
        raise InputInvalid("`type` is none of new, update, end")
    if not isinstance(after, dict):
        raise InputInvalid("`after` is no object")
    camera, start_s = _text(after, "camera"), _number(after, "start_time")
    if kind != "end":
        return None
    is_review = "severity" in after
    if not is_review and (after.get("has_clip") is False or after.get("false_positive") is True):
        return None  # nothing was recorded of it
    if frigate_url is None:
        raise InputInvalid("it is Frigate's: set RIS_FRIGATE_URL to where its API is")
    if is_review:
        end_s = _number(after, "end_time")
        if end_s <= start_s:
            raise InputInvalid("`end_time` is not after `start_time`")
        path = f"api/{quote(camera, safe='')}/start/{start_s!r}/end/{end_s!r}/clip.mp4"
    else:
        path = f"api/events/{quote(_text(after, 'id'), safe='')}/clip.mp4"
    try:
        start = datetime.fromtimestamp(start_s, UTC)
    except (ValueError, OverflowError, OSError):
        raise InputInvalid("`start_time` is no time") from None
    return Arrival(camera, f"{frigate_url.rstrip('/')}/{path}", start, settles=True)


def _time(text: str) -> datetime:
    try:
        start = datetime.fromisoformat(text)
        if start.tzinfo is not None:
            return start.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise InputInvalid("`start_utc` is RFC 3339 with an offset, e.g. 2026-05-01T08:00:00Z")


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 4096:
        raise InputInvalid(f"`{name}` is no text, or is missing")
    return value


def _number(given: Mapping[str, Any], name: str) -> float:
    value = given.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputInvalid(f"`{name}` is no number, or is missing")
    return float(value)
