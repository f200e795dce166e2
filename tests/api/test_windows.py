"""Keys that see the footage of some time only: what lies outside changes nothing that they see."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from models.repositories import events as event_record
from models.repositories import standing as standing_record
from models.repositories import videos as video_record
from tests.api.conftest import BOX, CAR_START, STREET_START, Api
from tests.parts import HANDLERS, run_jobs, sql
from worker.accepting.desk import COMMAND_LINE
from worker.accepting.events import tell_alert, tell_feed
from worker.accepting.keys import create_key
from worker.erasure import Span, submit_erasure
from worker.errors import InputInvalid
from worker.jobs import run_job

FROM = STREET_START + timedelta(seconds=3)
TO = STREET_START + timedelta(seconds=9)
WINDOW = {"footage_from_utc": FROM, "footage_to_utc": TO}
DAY = "?from_utc=2026-01-01T00:00:00Z&to_utc=2026-01-02T00:00:00Z"


def inside(api: Api) -> list[int]:
    """Ids of the frames that lie in the window, in order of time; all are of ``street``."""
    statement = "select id from frames where t_utc >= %s and t_utc < %s order by t_utc"
    return [row[0] for row in sql(api.context, statement, FROM, TO)]


def answer(api: Api, key: dict[str, str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Hits, and counts, without what differs from query to query."""
    asked = {"tau": -1.0, "group": "frame", "limit": 1000, "top_n": 1000}
    told = api.answered(key, frame_id=inside(api)[0], params=asked)
    hits = api.client.get(f"/v1/queries/{told['query_id']}/hits?limit=1000", headers=key).json()
    for hit in hits["items"]:
        del hit["overlay"]
        for name in ("score", "similarity", "false_matches"):
            hit[name] = None if hit[name] is None else round(hit[name], 5)
    stats = {name: value for name, value in told["stats"].items() if not name.endswith("_ms")}
    return hits["items"], stats


def test_a_key_counts_and_shows_only_its_own_time(api: Api):
    key, ids = api.key("view", "search", **WINDOW), inside(api)
    every = sql(api.context, "select count(*) from frames")[0][0]
    assert 2 < len(ids) < every - 2
    hits, stats = answer(api, key)
    assert stats["frames_searched"] == len(ids)
    assert {hit["frame_id"] for hit in hits} <= set(ids)
    street = api.camera("street")
    cameras = api.client.get("/v1/cameras", headers=key).json()["items"]
    assert [camera["frames"] for camera in cameras] == [len(ids), 0]
    assert cameras[0]["first_utc"] >= FROM.isoformat()[:19]
    covered = api.client.get(f"/v1/cameras/{street}/coverage{DAY}", headers=key).json()
    assert covered["frames"] == len(ids)
    listed = api.client.get(f"/v1/frames?camera_id={street}", headers=key).json()["items"]
    assert [frame["frame_id"] for frame in listed] == ids
    for asked, nearest in ((STREET_START, ids[0]), (CAR_START, ids[-1])):
        params: Any = {"camera_id": street, "t_utc": asked.isoformat()}
        found = api.client.get("/v1/frames/nearest", params=params, headers=key).json()
        assert found["frame_id"] == nearest
    made = api.client.post("/v1/changes", json={"camera_id": street, "roi": BOX}, headers=key)
    run_jobs(api.context)
    changes = api.client.get(made.headers["Location"], headers=key).json()
    assert changes["frames"] == len(ids)
    proposed = api.client.get(f"/v1/frames/{ids[0]}/proposals", headers=key).json()
    assert proposed["compared"] == len(ids) - 1
    assert changes["t_from_utc"] == FROM.isoformat().replace("+00:00", "Z")


def test_frames_outside_are_as_unknown_as_those_that_never_were(api: Api):
    key = api.key("view", "search", **WINDOW)
    outside, never = api.frame("street"), 999_999
    assert outside not in inside(api)

    def told(frame_id: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        reply = api.client.request(method, path, json=body, headers=key)
        document = reply.json()
        del document["request_id"]
        return reply.status_code, {
            name: str(value).replace(str(frame_id), "?") for name, value in document.items()
        }

    query: Any = {"frame_id": inside(api)[0], "roi": BOX}
    for method, path, body in (
        ("GET", "/v1/frames/{}", lambda _: None),
        ("GET", "/v1/frames/{}/picture", lambda _: None),
        ("GET", "/v1/frames/{}/thumbnail", lambda _: None),
        ("GET", "/v1/frames/{}/proposals", lambda _: None),
        ("POST", "/v1/queries", lambda id: query | {"frame_id": id}),
        ("POST", "/v1/queries", lambda id: query | {"params": {"more": [{"frame_id": id, **BOX}]}}),
        ("POST", "/v1/standing-queries", lambda id: query | {"frame_id": id, "name": "a"}),
    ):
        one, other = (told(id, method, path.format(id), body(id)) for id in (outside, never))
        assert one == other
        assert one[0] == 404


def test_gaps_reach_no_further_than_the_key_sees(api: Api):
    key, admin, car = api.key("view", **WINDOW), api.key("admin"), api.camera("car")
    for begin, end in ((-60, -30), (-20, 4), (5, 6), (8, 40), (100, None)):
        times = [None if s is None else STREET_START + timedelta(seconds=s) for s in (begin, end)]
        sql(
            api.context,
            "insert into feed_gaps (camera_id, from_utc, to_utc, reason)"
            " values (%s, %s, %s, 'stalled')",
            car,
            *times,
        )
    path = f"/v1/cameras/{car}/gaps"
    assert len(api.client.get(path, headers=admin).json()["items"]) == 5
    found, cursor = [], ""
    while cursor is not None:
        page = api.client.get(f"{path}?limit=1{cursor and '&cursor=' + cursor}", headers=key).json()
        found += page["items"]
        cursor = page["next_cursor"]
    told = [[datetime.fromisoformat(gap[name]) for name in ("from_utc", "to_utc")] for gap in found]
    second = [STREET_START + timedelta(seconds=s) for s in range(10)]
    assert told == [[second[8], TO], [second[5], second[6]], [FROM, second[4]]]


def test_a_key_is_told_of_alerts_of_its_own_time_and_of_nothing_now(api: Api):
    key = api.key("notify", "search", "view", **WINDOW)
    made = api.client.post(
        "/v1/standing-queries",
        json={"name": "a", "frame_id": inside(api)[0], "roi": BOX},
        headers=key,
    ).json()
    hook = api.client.post(
        "/v1/webhooks", json={"name": "a", "url": "https://vms.example/"}, headers=key
    ).json()
    with api.context.db.transaction() as session:
        standing = standing_record.find(session, made["standing_query_id"], None)
        assert standing is not None
        for alert_id, frame_id in enumerate((api.frame("street"), *inside(api)[:2]), start=1):
            frame = video_record.find_frame(session, frame_id)
            assert frame is not None
            tell_alert(session, standing, alert_id, frame)
        tell_feed(session, "feed.live", api.camera("street"), "street", since_utc=FROM)
        found = event_record.list_deliveries(session, hook["webhook_id"], None, None, 10)
        told = [(one.event.kind, one.event.data["frame_id"]) for one in found]
    assert sorted(told) == [("alert.raised", frame_id) for frame_id in inside(api)[:2]]


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"actions": ["view", "ingest"], **WINDOW}, "only reads"),
        ({"actions": ["admin"], "footage_to_utc": TO}, "only reads"),
        ({"footage_from_utc": TO, "footage_to_utc": FROM}, "must be before"),
        ({"footage_from_utc": FROM.replace(tzinfo=None)}, "no time zone"),
    ],
)
def test_keys_that_cannot_be_made(api: Api, given: dict[str, Any], wrong: str):
    wanted = {"name": "a", "actions": ["view"], **given}
    with api.context.db.transaction() as session, pytest.raises(InputInvalid, match=wrong):
        create_key(session, COMMAND_LINE, **wanted)


def test_what_a_key_sees_is_told(api: Api):
    admin = api.key("admin")
    times = {"footage_from_utc": "2026-01-01T12:00:03Z", "footage_to_utc": None}
    body = {"name": "case 17", "actions": ["view"], **times}
    made = api.client.post("/v1/keys", json=body, headers=admin)
    assert made.status_code == 201, made.text
    assert made.json() | times == made.json()
    own = {"Authorization": f"Bearer {made.json()['secret']}"}
    for path, headers in ((made.headers["Location"], admin), ("/v1/me", own)):
        told = api.client.get(path, headers=headers).json()
        assert told | times == told
    assert api.acts("key.create")[-1]["footage_from_utc"] == FROM.isoformat()


def test_an_answer_is_the_same_once_all_else_is_erased(api: Api):
    """Nothing outside is searched, counted or learnt from. Last: there is less footage then."""
    key = api.key("search", **WINDOW)
    before = answer(api, key)
    assert len(before[0]) == len(inside(api)) - 1  # its own frame is no hit
    assert answer(api, api.key("search")) != before
    for camera, start, end in (
        ("street", None, FROM),
        ("street", TO, None),
        ("car", None, None),
    ):
        span = Span(api.camera(camera), start, end)
        run_job(api.context, submit_erasure(api.context, span), HANDLERS)
    assert sql(api.context, "select count(*) from frames")[0][0] == len(inside(api))
    assert answer(api, key) == before
    everything = answer(api, api.key("search"))
    assert everything == before
