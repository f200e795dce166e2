"""Standing queries and alerts over the API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.api.conftest import BOX, Api
from tests.api.test_reading import pages
from tests.parts import run_jobs, sql

ALERT = """insert into alerts (standing_query_id, frame_id, camera_id, t_utc, generation_id,
    likeness, false_per_day, similarity, coverage, grid_h, grid_w, region_query_index,
    region_cell_index, box)
    select %s, f.id, f.camera_id, f.t_utc, (select min(id) from index_generations), 0.8, 0.01, 0.9,
    0.5, 4, 4, '{0,1}', '{5,6}', '{0.25,0.25,0.75,0.5}'
    from frames f where f.id = %s returning id"""


@pytest.fixture(autouse=True)
def none_left(api: Api) -> Iterator[None]:
    yield
    sql(api.context, "truncate standing_queries, new_frames cascade")


def add(api: Api, headers: dict[str, str], **given: Any) -> Any:
    body = {"name": "coat", "frame_id": api.frame("street"), "roi": BOX} | given
    return api.client.post("/v1/standing-queries", json=body, headers=headers)


def raised(api: Api, standing_id: int, frame_id: int) -> int:
    return int(sql(api.context, ALERT, standing_id, frame_id)[0][0])


def test_one_is_made_paused_resumed_and_forgotten(api: Api):
    key = api.key("search")
    made = add(api, key, max_false_per_day=0.5, cool_down_s=10)
    assert made.status_code == 201, made.text
    told = made.json()
    assert told.pop("backfill_query_id") is None
    path = made.headers["Location"]
    assert api.client.get(path, headers=key).json() == told
    assert (told["state"], told["alerts"], told["ended"]) == ("running", 0, None)
    for verb, state in (("pause", "paused"), ("pause", "paused"), ("resume", "running")):
        assert api.client.post(f"{path}/{verb}", headers=key).json()["state"] == state
    assert pages(api, "/v1/standing-queries", key, limit=1) == [told]
    assert api.client.delete(path, headers=key).status_code == 204
    assert api.client.get(path, headers=key).status_code == 404
    acts = [sql(api.context, "select act from audit_entries order by seq desc limit 4")]
    assert [row[0] for row in acts[0]] == [
        "standing.remove", "standing.resume", "standing.pause", "standing.create"]  # fmt: skip


def test_one_on_an_uploaded_picture(api: Api):
    key = api.key("search", "view")
    picture = api.client.get(f"/v1/frames/{api.frame('street')}/picture", headers=key).content
    made = api.client.post(
        "/v1/standing-queries",
        files={"picture": ("a.jpg", picture)},
        data={"query": json.dumps({"name": "coat", "roi": BOX})},
        headers=key,
    )
    assert made.status_code == 201, made.text
    sha256 = made.json()["picture_sha256"]
    assert made.json()["frame_id"] is None
    assert api.context.uploads.load(sha256) == picture
    assert api.client.delete(made.headers["Location"], headers=key).status_code == 204
    assert sql(api.context, "select 1 from search_queries where picture_sha256 = %s", sha256) == []
    with pytest.raises(Exception, match=sha256[:8]):
        api.context.uploads.load(sha256)


def test_backfill_is_an_ordinary_query_and_the_same_request_again_makes_nothing(api: Api):
    key = api.key("search") | {"Idempotency-Key": "a"}
    made = add(api, key, backfill=True)
    query_id = made.json()["backfill_query_id"]
    again = add(api, key, backfill=True)
    assert (again.status_code, again.json()["backfill_query_id"]) == (201, query_id)
    assert again.headers["Location"] == made.headers["Location"]
    other = add(api, key, backfill=True, name="hat")
    assert other.json()["code"] == "idempotency_key_reused"
    run_jobs(api.context)
    told = api.client.get(f"/v1/queries/{query_id}", headers=key).json()
    assert (told["state"], told["frame_id"]) == ("done", made.json()["frame_id"])


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"name": ""}, "input_invalid"),
        ({"frame_id": None}, "input_invalid"),
        ({"frame_id": 10**9}, "not_found"),
        ({"params": {"tau": 0.5}}, "input_invalid"),
        ({"params": {"strategy": "max-sim"}}, "input_invalid"),
        ({"max_false_per_day": 0}, "input_invalid"),
        ({"cool_down_s": -1}, "input_invalid"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "input_invalid"),
        ({"roi": {"box": [0.5, 0.5, 0.5, 0.5]}}, "roi_invalid"),
        ({"params": {"camera_ids": [10**9]}}, "not_found"),
        ({"more": 1}, "input_invalid"),
    ],
    ids=str,
)
def test_what_is_refused(api: Api, given: dict[str, Any], code: str):
    assert add(api, api.key("search"), **given).json()["code"] == code
    assert sql(api.context, "select count(*) from standing_queries") == [(0,)]


def test_a_limited_key_watches_its_own_cameras(api: Api):
    street, car = api.camera("street"), api.camera("car")
    limited = api.key("search", camera_ids=[street])
    assert add(api, limited).json()["params"]["camera_ids"] == [street]
    assert add(api, limited, params={"camera_ids": [car]}).json()["code"] == "not_found"
    assert add(api, limited, frame_id=api.frame("car")).json()["code"] == "not_found"
    assert add(api, api.key("search")).json()["params"]["camera_ids"] is None


def test_alerts_page_by_page_with_their_pictures(api: Api):
    key, others = api.key("search"), api.key("search")
    standing_id = add(api, key).json()["standing_query_id"]
    other_id = add(api, others).json()["standing_query_id"]
    street = [api.frame("street", place) for place in range(3)]
    ids = [raised(api, standing_id, frame_id) for frame_id in street]
    car = raised(api, standing_id, api.frame("car"))
    theirs = raised(api, other_id, street[0])
    for limit in (1, 3, 10):
        found = pages(api, "/v1/alerts", key, limit=limit)
        assert [one["alert_id"] for one in found] == [car, *reversed(ids)]
    first = api.client.get(f"/v1/alerts/{ids[0]}", headers=key).json()
    assert first == found[-1]
    assert (first["name"], first["camera_name"], first["false_per_day"]) == ("coat", "street", 0.01)
    by = {"standing_query_id": standing_id, "camera_id": api.camera("car")}
    assert [one["alert_id"] for one in pages(api, "/v1/alerts", key, limit=5, **by)] == [car]
    assert api.client.get("/v1/alerts?standing_query_id=0", headers=key).status_code == 422
    shown = api.client.get(first["overlay"], headers=key)
    assert (shown.status_code, shown.headers["content-type"]) == (200, "image/jpeg")
    again = api.client.get(first["overlay"], headers=key | {"If-None-Match": shown.headers["etag"]})
    assert again.status_code == 304
    assert api.acts("picture.view")[-1]["alert_id"] == ids[0]
    for path in (f"/v1/alerts/{theirs}", f"/v1/alerts/{theirs}/overlay",
                 f"/v1/alerts?standing_query_id={other_id}"):  # fmt: skip
        assert api.client.get(path, headers=key).status_code == 404
    everything = pages(api, "/v1/alerts", api.key("admin"), limit=10)
    assert len(everything) == 5
    listed = api.client.get(f"/v1/standing-queries/{standing_id}", headers=key).json()
    assert listed["alerts"] == 4


def test_one_that_ended_says_why_and_cannot_be_resumed(api: Api):
    key = api.key("search")
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    path = add(api, key, expires_at=later).headers["Location"]
    sql(
        api.context,
        "update standing_queries set state = 'ended', ended_code = 'expired',"
        " ended_detail = 'its time is over', ended_at = now()",
    )
    told = api.client.get(path, headers=key).json()
    assert told["ended"] == {"code": "expired", "detail": "its time is over"}
    refused = api.client.post(path + "/resume", headers=key)
    assert (refused.status_code, refused.json()["code"]) == (409, "already_there")
