"""Cameras, frames, pictures, coverage and segments as the API shows them."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from PIL import Image

from api.fields import write_cursor
from api.routes.cameras import gaps
from tests.api.conftest import BOX, CAR_START, STREET_START, Api
from tests.parts import ingested, run_jobs, sql, with_settings

LATER = "2026-03-01T08:00:00Z"


def pages(api: Api, path: str, key: dict[str, str], **params: Any) -> list[Any]:
    rows: list[Any] = []
    cursor = None
    while True:
        asked: Any = params if cursor is None else params | {"cursor": cursor}
        reply = api.client.get(path, params=asked, headers=key)
        assert reply.status_code == 200, reply.text
        rows += reply.json()["items"]
        cursor = reply.json()["next_cursor"]
        if cursor is None:
            return rows


def test_frames_of_a_camera_page_by_page_in_both_orders(api: Api):
    key, street = api.key("view"), api.camera("street")
    wanted = [
        row[0]
        for row in sql(
            api.context, "select id from frames where camera_id = %s order by t_utc, id", street
        )
    ]
    for limit in (1, 2, 3, 1000):
        found = pages(api, "/v1/frames", key, camera_id=street, limit=limit)
        assert [frame["frame_id"] for frame in found] == wanted
    newest = pages(api, "/v1/frames", key, camera_id=street, limit=2, order="newest")
    assert [frame["frame_id"] for frame in newest] == wanted[::-1]
    span = {"from_utc": found[1]["t_utc"], "to_utc": found[3]["t_utc"]}
    inside = pages(api, "/v1/frames", key, camera_id=street, **span)
    assert [frame["frame_id"] for frame in inside] == wanted[1:3]


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        (STREET_START - timedelta(days=9), 0),
        (STREET_START + timedelta(seconds=2.9), 1),
        (STREET_START + timedelta(seconds=3.1), 2),
        (STREET_START + timedelta(days=9), -1),
    ],
)
def test_the_nearest_frame(api: Api, asked: datetime, place: int):
    key, street = api.key("view"), api.camera("street")
    frames = pages(api, "/v1/frames", key, camera_id=street)
    params: Any = {"camera_id": street, "t_utc": asked.isoformat()}
    found = api.client.get("/v1/frames/nearest", params=params, headers=key).json()
    assert found == frames[place]


def test_an_unescaped_plus_of_an_offset_is_understood(api: Api):
    key, street = api.key("view"), api.camera("street")
    path = f"/v1/frames/nearest?camera_id={street}&t_utc=2026-01-01T13:00:00+01:00"
    assert api.client.get(path, headers=key).json()["t_utc"] == "2026-01-01T12:00:00Z"


def test_a_cursor_of_another_list_is_refused(api: Api):
    key, street = api.key("view"), api.camera("street")
    for cursor in ("x", "!", write_cursor(1), write_cursor("a", "b"), write_cursor(STREET_START)):
        reply = api.client.get(
            "/v1/frames", params={"camera_id": street, "cursor": cursor}, headers=key
        )
        assert (reply.status_code, reply.json()["code"]) == (422, "input_invalid"), cursor


def test_pictures_are_those_stored_and_are_not_sent_twice(api: Api):
    key, frame_id = api.key("view"), api.frame("street")
    sha256 = sql(api.context, "select picture_sha256 from frames where id = %s", frame_id)[0][0]
    reply = api.client.get(f"/v1/frames/{frame_id}/picture", headers=key)
    assert hashlib.sha256(reply.content).hexdigest() == sha256
    assert reply.headers["etag"] == f'"{sha256}"'
    assert reply.headers["cache-control"] == "private, no-cache"
    seen = len(api.acts("picture.view"))
    again = api.client.get(
        f"/v1/frames/{frame_id}/picture", headers=key | {"If-None-Match": reply.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")
    assert len(api.acts("picture.view")) == seen  # nothing was shown
    small = api.client.get(f"/v1/frames/{frame_id}/thumbnail?max_side_px=100", headers=key)
    assert small.headers["etag"] != reply.headers["etag"]
    with Image.open(io.BytesIO(small.content)) as picture:
        assert (picture.format, max(picture.size)) == ("JPEG", 100)
    assert api.acts("picture.view")[-1] == {"frame_id": frame_id, "what": "thumbnail"}


def test_boxes_are_proposed_around_what_the_frames_around_do_not_show(api: Api):
    key, frame_id = api.key("view"), api.frame("street", 2)
    told = api.client.get(f"/v1/frames/{frame_id}/proposals", headers=key).json()
    statement = "select count(*) from frames where camera_id = %s"
    frames = sql(api.context, statement, api.camera("street"))[0][0]
    assert (told["frame_id"], told["compared"]) == (frame_id, frames - 1)  # not with itself
    for x0, y0, x1, y1 in told["boxes"]:
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1
    assert api.acts("picture.view")[-1] == {"frame_id": frame_id, "what": "proposals"}


def test_a_damaged_picture_is_told_and_not_shown(api: Api):
    key, frame_id = api.key("view"), api.frame("street", 1)
    sha256 = sql(api.context, "select picture_sha256 from frames where id = %s", frame_id)[0][0]
    path = api.context.pictures.path(sha256)
    sound = path.read_bytes()
    path.write_bytes(sound[:-1])
    seen = len(api.acts("picture.view"))
    try:
        reply = api.client.get(f"/v1/frames/{frame_id}/picture", headers=key)
        assert (reply.status_code, reply.json()["code"]) == (500, "index_damaged")
        assert str(path.parent) not in reply.text  # nothing of this machine
        assert path.name in reply.json()["detail"]
        path.unlink()
        reply = api.client.get(f"/v1/frames/{frame_id}/picture", headers=key)
        assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
        assert str(path.parent) not in reply.text
    finally:
        path.write_bytes(sound)
    assert len(api.acts("picture.view")) == seen


@pytest.mark.parametrize("bucket_s", [1, 2, 3, 60, 3600, 7200, None])
def test_coverage_counts_every_frame(api: Api, bucket_s: int | None):
    """By frames, and by shards where buckets are whole hours."""
    key, street = api.key("view"), api.camera("street")
    params = {} if bucket_s is None else {"bucket_s": bucket_s}
    told = api.client.get(f"/v1/cameras/{street}/coverage", params=params, headers=key).json()
    times = [
        row[0] for row in sql(api.context, "select t_utc from frames where camera_id = %s", street)
    ]
    length = timedelta(seconds=told["bucket_s"])
    start, end = (datetime.fromisoformat(told[name]) for name in ("from_utc", "to_utc"))
    wanted = Counter(start + (t_utc - start) // length * length for t_utc in times)
    found = {datetime.fromisoformat(one["from_utc"]): one["frames"] for one in told["buckets"]}
    assert found == wanted
    assert told["frames"] == len(times)
    in_gaps = sum(
        (datetime.fromisoformat(gap["to_utc"]) - datetime.fromisoformat(gap["from_utc"])) // length
        for gap in told["gaps"]
    )
    assert in_gaps + len(found) == (end - start) // length


@pytest.mark.parametrize("span_s", [3600, 5000])
def test_coverage_counts_every_frame_of_shards_of_any_span(api: Api, footage: Any, span_s: int):
    """A setting may have been another when footage was indexed; 5000 s are counted from 1970."""
    start = datetime(2026, 5, 1, 9, 59, 56, tzinfo=UTC)
    camera = f"span {span_s}"
    context = with_settings(api.context, shard_span_s=span_s)
    ingested(context, footage["bikes"], camera, 1.0, start_utc=start)
    camera_id = api.camera(camera)
    statement = "select t_utc from frames where camera_id = %s"
    times = [row[0] for row in sql(api.context, statement, camera_id)]
    hours = Counter(t_utc.replace(minute=0, second=0, microsecond=0) for t_utc in times)
    assert len(hours) == 2
    told = api.client.get(
        f"/v1/cameras/{camera_id}/coverage", params={"bucket_s": 3600}, headers=api.key("view")
    ).json()
    found = {datetime.fromisoformat(one["from_utc"]): one["frames"] for one in told["buckets"]}
    assert found == hours
    assert told["gaps"] == []


def test_gaps_between_and_around():
    def at(minutes: int) -> datetime:
        return CAR_START + timedelta(minutes=minutes)

    found = gaps([at(1), at(2), at(5)], at(0), at(8), 60)
    assert [(gap.from_utc, gap.to_utc) for gap in found] == [
        (at(0), at(1)),
        (at(3), at(5)),
        (at(6), at(8)),
    ]
    assert gaps([at(0)], at(0), at(1), 60) == []
    assert [(g.from_utc, g.to_utc) for g in gaps([], at(0), at(2), 60)] == [(at(0), at(2))]


def test_a_coverage_without_end_is_refused(api: Api):
    key, street = api.key("view"), api.camera("street")
    refused: list[Any] = [
        {"from_utc": "0001-01-01T00:00:00Z", "to_utc": "9999-12-31T23:59:59Z", "bucket_s": 1},
        {"from_utc": "2026-01-01T00:00:00Z", "to_utc": "2026-01-01T00:00:00Z"},
    ]
    for params in refused:
        reply = api.client.get(f"/v1/cameras/{street}/coverage", params=params, headers=key)
        assert (reply.status_code, reply.json()["code"]) == (422, "input_invalid")
    ages = {"from_utc": "0001-01-01T00:00:00Z", "to_utc": "9999-12-31T23:59:59Z"}
    reply = api.client.get(f"/v1/cameras/{street}/coverage", params=ages, headers=key)
    assert reply.status_code in (200, 422)


def test_cameras_are_made_renamed_and_kept_apart(api: Api):
    admin = api.key("admin")
    made = api.client.post("/v1/cameras", json={"name": " gate "}, headers=admin)
    assert (made.status_code, made.json()["name"]) == (201, "gate")
    where = made.headers["Location"]
    again = api.client.post("/v1/cameras", json={"name": "gate"}, headers=admin)
    assert (again.status_code, again.json()["code"]) == (409, "already_there")
    taken = api.client.patch(where, json={"name": "street"}, headers=admin)
    assert (taken.status_code, taken.json()["code"]) == (409, "already_there")
    changed = api.client.patch(where, json={"name": "door", "retention_days": 7}, headers=admin)
    assert changed.json() | {"name": "door", "retention_days": 7} == changed.json()
    kept = api.client.patch(where, json={"retention_days": None}, headers=admin).json()
    assert (kept["name"], kept["retention_days"]) == ("door", None)
    for name in ("", " ", "a\nb", "x" * 201):
        reply = api.client.post("/v1/cameras", json={"name": name}, headers=admin)
        assert reply.json()["code"] == "input_invalid", name


def test_a_recording_is_ingested_once(api: Api):
    admin = api.key("admin")
    camera_id = api.client.post("/v1/cameras", json={"name": "yard"}, headers=admin).json()[
        "camera_id"
    ]
    given = {
        "path": "bikes.mp4",
        "camera_id": camera_id,
        "start_utc": "2026-03-01T08:00:00Z",
        "every_s": 5.0,
    }
    first = api.client.post("/v1/segments", json=given, headers=admin)
    again = api.client.post("/v1/segments", json=given, headers=admin)
    assert (first.status_code, first.json()) == (202, again.json())
    run_jobs(api.context)
    told = api.client.get(first.headers["Location"], headers=admin).json()
    assert (told["state"], told["outcome"]) == ("done", "complete")
    assert (
        told["frames"]
        == api.client.get(f"/v1/cameras/{camera_id}", headers=admin).json()["frames"]
        > 0
    )


@pytest.mark.parametrize(
    "path", ["../secret.mp4", "/etc/passwd", "a\0b", "x" * 4096, "gone.mp4", ".", "x/../../../etc"]
)
def test_paths_outside_the_footage_folder_tell_nothing(api: Api, path: str):
    given = {"path": path, "camera_id": api.camera("street"), "start_utc": LATER}
    reply = api.client.post("/v1/segments", json=given, headers=api.key("ingest"))
    assert reply.status_code == 422, reply.text
    assert reply.json()["code"] in ("input_invalid", "video_unreadable")


def test_a_link_out_of_the_footage_folder_is_not_followed(api: Api, tmp_path: Any):
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"x")
    (tmp_path / "inside" / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    given = {
        "path": "link.mp4",
        "camera_id": api.camera("street"),
        "start_utc": "2026-03-01T08:00:00Z",
    }
    for folder, code in ((tmp_path / "inside", "input_invalid"), (None, "input_invalid")):
        with api.with_settings(footage_dir=folder) as client:
            reply = client.post("/v1/segments", json=given, headers=api.key("ingest"))
        assert (reply.status_code, reply.json()["code"]) == (422, code)


def test_when_a_box_changed_is_asked_followed_and_read(api: Api):
    key, named = api.key("search"), {"Idempotency-Key": "gate-box"}
    body = {"camera_id": api.camera("street"), "roi": BOX, "hold": 2}
    first = api.client.post("/v1/changes", json=body, headers=key | named)
    assert first.status_code == 202, first.text
    asked = first.json()
    assert (asked["state"], asked["states"], asked["frames"]) == ("queued", None, None)
    assert api.client.post("/v1/changes", json=body, headers=key | named).json() == asked
    other = api.client.post("/v1/changes", json=body | {"hold": 3}, headers=key | named)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")
    run_jobs(api.context)
    told = api.client.get(first.headers["Location"], headers=key).json()
    per_camera = dict(sql(api.context, "select camera_id, count(*) from frames group by 1"))
    assert (told["state"], told["frames"]) == ("done", per_camera[body["camera_id"]])
    assert told["states"][0]["number"] == 1 and told["states"][0]["before_utc"] is None
    for state in told["states"]:
        frame = api.client.get(f"/v1/frames/{state['first_frame_id']}", headers=api.key("view"))
        assert frame.json()["t_utc"] == state["from_utc"]
    events = api.client.get(f"{first.headers['Location']}/events", headers=key).text
    told_last = json.loads(events.rsplit("data: ", 1)[1])
    assert told_last == {
        "change_query_id": told["change_query_id"],
        "state": "done",
        "error_code": None,
    }
    asks = {"change_query_id", "camera_id", "roi", "from_utc", "to_utc"}
    assert set(api.acts("changes.ask")[-1]) == asks
    for _ in range(2):
        api.client.post("/v1/changes", json=body, headers=key)
    listed = pages(api, "/v1/changes", key, limit=2)
    assert len(listed) == 3 and listed[-1] == told
    assert api.client.delete(first.headers["Location"], headers=key).status_code == 204
    assert api.client.get(first.headers["Location"], headers=key).status_code == 404
    assert api.acts("changes.remove") == [{"change_query_id": told["change_query_id"]}]


def test_what_cannot_be_asked_about_changes_is_told(api: Api):
    key, street = api.key("search"), api.camera("street")
    body = {"camera_id": street, "roi": BOX}
    for wrong, code in (
        ({"t_from_utc": LATER, "t_to_utc": LATER}, "input_invalid"),
        ({"hold": 0}, "input_invalid"),
        ({"roi": {"box": [0.5, 0.5, 0.5, 0.6]}}, "roi_invalid"),
        ({"camera_id": 999_999}, "not_found"),
    ):
        reply = api.client.post("/v1/changes", json=body | wrong, headers=key)
        assert reply.json()["code"] == code, reply.text
    reply = api.client.post("/v1/changes", json=body | {"t_from_utc": LATER}, headers=key)
    queued = api.client.delete(reply.headers["Location"], headers=key)
    run_jobs(api.context)
    assert queued.status_code == 204
    with api.with_settings(api_open_queries=1) as client:
        assert client.post("/v1/changes", json=body, headers=key).status_code == 202
        full = client.post("/v1/changes", json=body, headers=key)
    assert (full.status_code, full.json()["code"]) == (429, "too_many_requests")
