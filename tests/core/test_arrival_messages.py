"""What messages tell of: Frigate's, as its documentation has them, and ours; nothing crashes."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.arrival_messages import Arrival, read_message
from worker.errors import InputInvalid

FRIGATE = "http://user:hunter2@frigate:5000/"
EVENT: dict[str, Any] = {
    "type": "end",
    "before": {"id": "1607123955.475377-mxklsc"},
    "after": {
        "id": "1607123955.475377-mxklsc",
        "camera": "front_door",
        "frame_time": 1607123962.082975,
        "label": "person",
        "false_positive": False,
        "start_time": 1607123955.475377,
        "end_time": 1607123970.5,
        "has_clip": True,
        "has_snapshot": False,
    },
}
REVIEW: dict[str, Any] = {
    "type": "end",
    "before": {},
    "after": {
        "id": "1718987129.308396-fqk5ka",
        "camera": "front cam",
        "start_time": 1718987129.308396,
        "end_time": 1718987150.25,
        "severity": "alert",
        "thumb_path": "/media/frigate/clips/review/thumb.webp",
        "data": {"detections": ["1718987128.947436-g92ztx"], "objects": ["person"], "zones": []},
    },
}
OURS: dict[str, Any] = {
    "camera": "yard",
    "url": "http://nvr/clip.mp4",
    "start_utc": "2026-05-01T10:00:00+02:00",
}


def read(message: Any, frigate: str | None = FRIGATE) -> Arrival | None:
    return read_message(json.dumps(message).encode(), frigate)


def with_after(message: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return message | {"after": message["after"] | changes}


def test_an_event_that_ended():
    told = read(EVENT)
    assert told == Arrival(
        "front_door",
        "http://user:hunter2@frigate:5000/api/events/1607123955.475377-mxklsc/clip.mp4",
        datetime(2020, 12, 4, 23, 19, 15, 475377, tzinfo=UTC),
        settles=True,
    )
    assert "hunter2" not in repr(told)


def test_a_review_that_ended():
    told = read(REVIEW)
    assert told is not None
    assert told.url.endswith("/api/front%20cam/start/1718987129.308396/end/1718987150.25/clip.mp4")
    assert (told.camera, told.settles) == ("front cam", True)


def test_ours():
    told = read(OURS, None)
    assert told == Arrival("yard", "http://nvr/clip.mp4", datetime(2026, 5, 1, 8, tzinfo=UTC))
    told = read(OURS | {"policy": "keyframe", "every_s": 5})
    assert told is not None
    assert (told.policy, told.every_s, told.settles) == ("keyframe", 5.0, False)


@pytest.mark.parametrize(
    "message",
    [EVENT | {"type": "new"}, EVENT | {"type": "update"}, REVIEW | {"type": "update"},
     with_after(EVENT, has_clip=False), with_after(EVENT, false_positive=True),
     with_after(REVIEW, end_time=None) | {"type": "new"}],
)  # fmt: skip
def test_what_is_no_recording_yet(message: dict[str, Any]):
    assert read(message) is None


@pytest.mark.parametrize(
    "message",
    [None, [], 1, "x", {}, {"type": "end"}, {"type": "ended", "after": EVENT["after"]},
     {"type": "end", "after": []}, with_after(EVENT, camera=7), with_after(EVENT, camera=""),
     with_after(EVENT, id=None), with_after(EVENT, start_time="soon"),
     with_after(EVENT, start_time=1e300),
     with_after(EVENT, start_time=True), with_after(REVIEW, end_time=None),
     with_after(REVIEW, end_time=1.0), OURS | {"start_utc": "2026-05-01"},
     OURS | {"start_utc": "2026-05-01T08:00:00"}, OURS | {"start_utc": "0001-01-01T00:00:00+14:00"},
     OURS | {"every_s": "1"}, OURS | {"other": 1}, OURS | {"url": None}, OURS | {"camera": None}],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_is_no_message_of_ours(message: Any):
    with pytest.raises(InputInvalid):
        read(message)


@pytest.mark.parametrize(
    "raw", [b"", b"online", b"\xff\xfe", b"[" * 100_000, b'{"url": NaN}', b" " * 300_000]
)
def test_what_is_no_json(raw: bytes):
    with pytest.raises(InputInvalid):
        read_message(raw, FRIGATE)


def test_frigate_without_its_address():
    with pytest.raises(InputInvalid, match="RIS_FRIGATE_URL"):
        read(EVENT, None)


def test_an_id_cannot_leave_its_place():
    told = read(with_after(EVENT, id="../../../x?y#z"))
    assert told is not None
    assert told.url.endswith("/api/events/..%2F..%2F..%2Fx%3Fy%23z/clip.mp4")


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)  # fmt: skip


@given(
    st.sampled_from([EVENT, REVIEW, OURS]),
    st.dictionaries(st.sampled_from([*OURS, *REVIEW, "policy", "every_s"]), VALUES, max_size=3),
    st.dictionaries(st.sampled_from([*EVENT["after"], *REVIEW["after"]]), VALUES, max_size=3),
)
def test_nothing_crashes(base: dict[str, Any], changes: dict[str, Any], after: dict[str, Any]):
    message = base | changes
    if isinstance(message.get("after"), dict):
        message["after"] = message["after"] | after
    with suppress(InputInvalid):
        read(message)
