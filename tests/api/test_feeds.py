"""Feeds over the API: ordered, shown, paused, removed; passwords come out nowhere."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.api.conftest import Api
from tests.api.test_reading import pages
from tests.parts import sql
from worker.secret_keys import secret_keys

SECRET = "hunter2"
URL = f"rtsp://user:{SECRET}@10.0.0.7:554/live?token={SECRET}"
SHOWN = "rtsp://***@10.0.0.7:554/live?..."


@pytest.fixture(autouse=True)
def none_left(api: Api) -> Iterator[None]:
    yield
    sql(api.context, "delete from feeds")
    sql(api.context, "delete from jobs where kind = 'feed'")


@pytest.fixture
def admin(api: Api) -> dict[str, str]:
    return api.key("admin")


def add(api: Api, headers: dict[str, str], **given: Any) -> Any:
    body = {"camera": "live", "url": URL} | given
    return api.client.post("/v1/feeds", json=body, headers=headers)


def feed_jobs(api: Api) -> list[tuple[str]]:
    return sql(api.context, "select state from jobs where kind = 'feed' order by created_at")


def test_an_ordered_feed_has_a_job_and_the_same_order_again_changes_nothing(
    api: Api, admin: dict[str, str]
):
    acts = len(api.acts("feed.add"))
    first, again = add(api, admin), add(api, admin)
    assert (first.status_code, again.status_code) == (201, 201)
    told = first.json()
    assert again.json() == told
    assert api.client.get(first.headers["Location"], headers=api.key("view")).json() == told
    assert (told["camera_name"], told["camera_id"]) == ("live", api.camera("live"))
    assert (told["desired_state"], told["phase"], told["trouble"]) == ("running", "waiting", None)
    assert told["policy"] == {"kind": "interval", "every_s": 10.0}
    assert SECRET not in str(sql(api.context, "select * from feeds"))
    ((sealed,),) = sql(api.context, "select sealed_url from feeds")
    assert secret_keys(api.context.settings).open(sealed) == URL
    assert feed_jobs(api) == [("queued",)]
    assert len(api.acts("feed.add")) == acts + 1


def test_a_feed_of_a_camera_by_id_and_one_feed_a_camera(api: Api, admin: dict[str, str]):
    street = api.camera("street")
    told = add(api, admin, camera=None, camera_id=street, policy="keyframe", every_s=2.0).json()
    assert (told["camera_id"], told["policy"]) == (
        street,
        {"kind": "keyframe", "min_gap_s": 2.0},
    )
    other = add(api, admin, camera="street", url="rtsp://10.0.0.8/")
    assert (other.status_code, other.json()["code"]) == (409, "already_there")
    assert SECRET not in other.text


def test_pause_resume_and_removal(api: Api, admin: dict[str, str]):
    feed = f"/v1/feeds/{add(api, admin).json()['feed_id']}"
    sql(api.context, "update jobs set state = 'done', finished_at = now() where kind = 'feed'")
    paused = [api.client.post(f"{feed}/pause", headers=admin).json() for _ in range(2)]
    assert [told["desired_state"] for told in paused] == ["paused", "paused"]
    running = [api.client.post(f"{feed}/resume", headers=admin).json() for _ in range(2)]
    assert [told["desired_state"] for told in running] == ["running", "running"]
    assert feed_jobs(api) == [("done",), ("queued",)]
    gone = api.client.delete(feed, headers=admin)
    assert (gone.status_code, gone.content) == (204, b"")
    for method, path in (("GET", ""), ("POST", "/pause"), ("POST", "/resume"), ("DELETE", "")):
        assert api.client.request(method, feed + path, headers=admin).status_code == 404
    acts = [entry for entry in _audit(api) if entry[0].startswith("feed.")]
    assert [act for act, _, _ in acts[-4:]] == [
        "feed.add",
        "feed.pause",
        "feed.resume",
        "feed.remove",
    ]
    mine = api.client.get("/v1/me", headers=admin).json()["key_id"]
    assert {actor for _, actor, _ in acts[-4:]} == {f"key {mine}"}


def test_how_a_feed_is(api: Api, admin: dict[str, str]):
    told = add(api, admin).json()
    camera, feed = told["camera_id"], told["feed_id"]
    sql(
        api.context,
        "update feed_status set phase = 'live', last_frame_utc = '2026-03-01T08:00:00Z',"
        " error_code = 'feed_failed', error_detail = 'no answer', behind_frames = 2",
    )
    for start, end in (("08:00", "'2026-03-01T08:05:00Z'"), ("09:00", "null")):
        sql(
            api.context,
            "insert into feed_gaps (camera_id, from_utc, to_utc, reason)"
            f" values ({camera}, '2026-03-01T{start}:00Z', {end}, 'stalled')",
        )
    for hour in (8, 9):
        sql(
            api.context,
            "insert into feed_drops values"
            f" ({camera}, '2026-03-01T0{hour}:00:00Z', 'busy', {hour})",
        )
    shown = api.client.get(f"/v1/feeds/{feed}", headers=admin).json()
    assert shown | told == shown | told
    assert {name: shown[name] for name in ("phase", "gaps", "dropped_frames", "behind_frames")} == {
        "phase": "live",
        "gaps": 2,
        "dropped_frames": 17,
        "behind_frames": 2,
    }
    assert shown["last_frame_utc"] == "2026-03-01T08:00:00Z"
    assert shown["trouble"] == {"code": "feed_failed", "detail": "no answer"}
    assert shown["open_gap"] == {"from_utc": "2026-03-01T09:00:00Z", "reason": "stalled"}
    path = f"/v1/cameras/{camera}/gaps"
    for limit in (1, 2, 100):
        gaps = pages(api, path, api.key("view", camera_ids=[camera]), limit=limit)
        assert [(gap["from_utc"][11:16], gap["to_utc"]) for gap in gaps] == [
            ("09:00", None),
            ("08:00", "2026-03-01T08:05:00Z"),
        ]
    paused = api.client.post(f"/v1/feeds/{feed}/pause", headers=admin).json()
    assert paused["trouble"] is None


def test_a_limited_key_pages_through_feeds_of_its_own_cameras(api: Api, admin: dict[str, str]):
    told = [add(api, admin, camera=name).json() for name in ("a", "b", "c")]
    wanted = [told[0]["feed_id"], told[2]["feed_id"]]
    limited = api.key("view", camera_ids=[told[0]["camera_id"], told[2]["camera_id"]])
    for limit in (1, 2, 50):
        found = pages(api, "/v1/feeds", limited, limit=limit)
        assert [feed["feed_id"] for feed in found] == wanted
    assert api.client.get(f"/v1/feeds/{told[1]['feed_id']}", headers=limited).status_code == 404


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"url": f"user:{SECRET}@10.0.0.7/live"},
        {"url": f"{SECRET}:user@10.0.0.7/live"},
        {"url": f"rtsp://user:{SECRET}/x@10.0.0.7/live"},
        {"url": f"rtsp://user:{SECRET}@127.0.0.1/live"},
        {"url": f"rtsp://user:{SECRET} @10.0.0.7/live"},
        {"url": f"rtsp://user:{SECRET}\ud800@10.0.0.7/live".encode("utf-8", "replace").decode()},
        {"url": f"rtsp://user:{SECRET}@10.0.0.7/" + "a" * 4096},
        {"url": [f"rtsp://user:{SECRET}@10.0.0.7/"]},
        {"url": URL, "policy": "sometimes"},
        {"url": URL, "camera_id": 1},
        {"url": URL, "camera": None},
        {"url": URL, "camera": None, "camera_id": 10**12},
        {"url": URL, "camera": "street\0"},
        {"url": URL, "other": 1},
    ],
    ids=str,
)
def test_a_password_comes_out_nowhere(
    api: Api, admin: dict[str, str], given: dict[str, Any], capfd: pytest.CaptureFixture[str]
):
    name = uuid.uuid4().hex
    with capture_logs() as logs:
        replies = [add(api, admin, **{"camera": name} | given)]
        for path in ("/v1/feeds", "/v1/audit?limit=20", "/v1/jobs"):
            replies.append(api.client.get(path, headers=admin))
        replies.append(add(api, admin, camera=name, url=URL.replace("live", "other")))
    assert replies[0].status_code == (422 if given and given.get("camera_id") != 10**12 else
                                      404 if given else 201)  # fmt: skip
    if not given:
        assert replies[0].json()["url"] == SHOWN
        assert api.acts("feed.add")[-1]["url"] == SHOWN
        assert replies[-1].status_code == 409
    said = [*(reply.text for reply in replies), str(logs), str(_audit(api)), *capfd.readouterr()]
    assert [text for text in said if SECRET in text] == []
    assert any(entry["event"] == "request" for entry in logs)


def _audit(api: Api) -> list[tuple[str, str, Any]]:
    return sql(api.context, "select act, actor, details from audit_entries order by seq")
