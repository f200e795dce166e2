"""Queries through the API: asked, followed, read page by page, taken back."""

from __future__ import annotations

import io
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from PIL import Image

import api.events as api_events
import api.notices as api_notices
from api.desk import ApiDesk
from api.given import ParamsGiven
from api.notices import QueryNotices
from models.repositories.jobs import ClaimedJob
from tests.api.conftest import BOX, Api, serving
from tests.conftest import psycopg_url
from tests.parts import run_jobs, sql
from worker.context import Context
from worker.core.search_params import SearchParams
from worker.jobs import Handler, Lease, Outcome, run_job
from worker.search import run_query
from worker.verify import verify_index

LISTENERS = """select pid from pg_stat_activity
    where datname = current_database() and query ilike 'listen %%'"""
LATER, EARLIER = "2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"


def test_a_query_on_a_frame_is_accepted_answered_and_read_page_by_page(api: Api):
    key = api.key("search", "view")
    told = api.answered(key, params={"tau": -1.0, "group": "frame"})
    assert told["frame_id"] == api.frame("street")
    assert told["hits"] > 3 and told["stats"]["frames_searched"] > 0
    hits, cursor = [], None
    while True:
        params = {"limit": 3} | ({} if cursor is None else {"cursor": cursor})
        page = api.client.get(
            f"/v1/queries/{told['query_id']}/hits", params=params, headers=key
        ).json()
        hits += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert [hit["rank"] for hit in hits] == list(range(1, told["hits"] + 1))
    recorded = sql(
        api.context,
        "select frame_id, score from search_hits where query_id = %s order by rank",
        told["query_id"],
    )
    assert [(hit["frame_id"], hit["score"]) for hit in hits] == recorded
    assert all(hit["t_utc"].endswith("Z") for hit in hits)
    overlay = api.client.get(hits[0]["overlay"], headers=key)
    assert overlay.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(overlay.content)) as drawn:
        assert drawn.size == (hits[0]["w_px"], hits[0]["h_px"])
    assert {"query_id", "rank", "frame_id"} <= set(api.acts("picture.view")[-1])


def test_a_query_on_an_uploaded_picture(api: Api):
    key = api.key("search", "view")
    picture = api.client.get(f"/v1/frames/{api.frame('car')}/picture", headers=key).content
    reply = api.client.post(
        "/v1/queries",
        files={"picture": ("a.jpg", picture, "image/jpeg")},
        data={"query": json.dumps({"roi": BOX, "params": {"tau": -1.0}})},
        headers=key,
    )
    assert reply.status_code == 202, reply.text
    run_jobs(api.context)
    told = api.client.get(reply.headers["Location"], headers=key).json()
    assert (told["state"], told["frame_id"]) == ("done", None)
    assert told["hits"] > 0


@pytest.mark.parametrize("missing", ["frames_lost", "frames_away"])
def test_an_answer_over_less_than_all_frames_is_told_as_degraded(api: Api, missing: str):
    key = api.key("search")
    told = api.answered(key)
    assert told["degraded"] is False
    sql(
        api.context,
        "update search_queries set stats = stats || jsonb_build_object(%s::text, 3) where id = %s",
        missing,
        told["query_id"],
    )
    again = api.client.get(f"/v1/queries/{told['query_id']}", headers=key).json()
    assert again["degraded"] is True


def body(api: Api, **given: object) -> dict[str, object]:
    return {"frame_id": api.frame("street"), "roi": BOX, "params": {"tau": -1.0}} | given


def test_a_request_sent_twice_makes_one_query(api: Api):
    key, other = api.key("search"), api.key("search")
    named = {"Idempotency-Key": "case-17"}
    before = sql(api.context, "select count(*) from search_queries")[0][0]
    first = api.client.post("/v1/queries", json=body(api), headers=key | named)
    again = api.client.post("/v1/queries", json=body(api), headers=key | named)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert sql(api.context, "select count(*) from search_queries")[0][0] == before + 1
    changed = api.client.post(
        "/v1/queries", json=body(api, roi={"box": [0, 0, 1, 1]}), headers=key | named
    )
    assert (changed.status_code, changed.json()["code"]) == (409, "idempotency_key_reused")
    theirs = api.client.post("/v1/queries", json=body(api), headers=other | named).json()
    assert theirs["query_id"] != first.json()["query_id"]


def test_repeats_at_once_make_one_query(api: Api):
    key = api.key("search")
    named = {"Idempotency-Key": "at-once"}
    with ThreadPoolExecutor(8) as threads:
        replies = list(
            threads.map(
                lambda _: api.client.post("/v1/queries", json=body(api), headers=key | named),
                range(8),
            )
        )
    assert {reply.status_code for reply in replies} == {202}
    assert len({reply.json()["query_id"] for reply in replies}) == 1


def test_a_query_taken_back_is_not_answered(api: Api):
    key = api.key("search")
    asked = api.client.post("/v1/queries", json=body(api), headers=key)
    where = asked.headers["Location"]
    for _ in range(2):
        told = api.client.delete(where, headers=key).json()
        assert (told["state"], told["error"]["code"]) == ("failed", "cancelled")
    run_jobs(api.context)
    told = api.client.get(where, headers=key).json()
    assert (told["state"], told["hits"]) == ("failed", 0)
    assert api.acts("query.cancel")[-1] == {"query_id": told["query_id"]}
    done = api.answered(key)
    kept = api.client.delete(f"/v1/queries/{done['query_id']}", headers=key).json()
    assert (kept["state"], kept["hits"]) == ("done", done["hits"])


def upload(api: Api, key: dict[str, str], colour: int, client: Any = None) -> Any:
    """A query on a picture of one colour."""
    content = io.BytesIO()
    Image.new("RGB", (64, 48), (colour, 0, 0)).save(content, "PNG")
    return (client or api.client).post(
        "/v1/queries",
        files={"picture": ("a.png", content.getvalue(), "image/png")},
        data={"query": json.dumps({"roi": BOX})},
        headers=key,
    )


def test_the_upload_of_a_query_taken_back_goes_unless_another_asks_on_it(api: Api):
    key, other = api.key("search"), api.key("search")
    mine, theirs = upload(api, key, 9), upload(api, other, 9)
    kept = api.desk.uploads.root / mine.json()["picture_sha256"]
    api.client.delete(mine.headers["Location"], headers=key)
    assert kept.is_file()
    api.client.delete(theirs.headers["Location"], headers=other)
    assert not kept.exists()
    shown = api.client.get(theirs.headers["Location"] + "/picture", headers=other)
    assert (shown.status_code, shown.json()["code"]) == (404, "not_found")
    assert not [one for one in verify_index(api.context).problems if kept.name in one]


def test_no_upload_is_kept_below_the_free_space_floor(api: Api):
    with api.with_settings(min_free_bytes=2**62) as client:
        reply = upload(api, api.key("search"), 10, client)
    assert (reply.status_code, reply.json()["code"]) == (503, "storage_full")


def test_the_picture_of_a_frame_needs_the_key_to_view(api: Api):
    """Else a key that only searches could look at any frame, by asking on it."""
    key, both = api.key("search"), api.key("search", "view")
    told = api.answered(key)
    refused = api.client.get(f"/v1/queries/{told['query_id']}/picture", headers=key)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    hit = api.client.get(f"/v1/queries/{told['query_id']}/hits/1/overlay", headers=key)
    assert hit.status_code == 200
    told = api.answered(both)
    shown = api.client.get(f"/v1/queries/{told['query_id']}/picture", headers=both)
    assert shown.status_code == 200
    own = upload(api, key, 11)
    shown = api.client.get(own.headers["Location"] + "/picture", headers=key)
    assert shown.status_code == 200
    api.client.delete(own.headers["Location"], headers=key)


@pytest.mark.parametrize(
    ("code", "detail", "told"),
    [
        ("storage_full", "/srv/ris/index: disk full; free space", "index: disk full; free space"),
        ("index_damaged", "s3://bucket/a/g1/s2 is lost; repair", "s2 is lost; repair"),
        ("object_store_unavailable", "https://s3.example/b refuses", "object storage that holds"),
        ("service_unavailable", "Postgres is away or busy", "Postgres is away or busy"),
    ],
)
def test_where_files_lie_is_for_the_operator(api: Api, code: str, detail: str, told: str):
    key = api.key("search")
    asked = api.client.post("/v1/queries", json=body(api), headers=key)
    waits = "update jobs set retry_code = %s, retry_detail = %s where id = %s"
    sql(api.context, waits, code, detail, asked.json()["job_id"])
    where = asked.headers["Location"]
    assert api.client.get(where, headers=key).json()["waiting"]["detail"].startswith(told)
    job = f"/v1/jobs/{asked.json()['job_id']}"
    shown = api.client.get(job, headers=api.key("admin")).json()
    assert shown["waiting"] == {"code": code, "detail": detail}
    api.client.delete(where, headers=key)


def test_a_query_taken_back_waits_for_nothing(api: Api):
    key = api.key("search")
    asked = api.client.post("/v1/queries", json=body(api), headers=key)
    waits = "update jobs set retry_code = 'storage_full', retry_detail = 'x' where id = %s"
    sql(api.context, waits, asked.json()["job_id"])
    where = asked.headers["Location"]
    assert api.client.get(where, headers=key).json()["waiting"]["code"] == "storage_full"
    assert api.client.delete(where, headers=key).json()["waiting"] is None


def test_a_frame_is_not_erased_between_the_look_at_it_and_the_query(api: Api):
    key, frame_id = api.key("search"), api.frame("street")
    url = psycopg_url(str(api.context.settings.database_url))
    with psycopg.connect(url) as eraser, ThreadPoolExecutor(1) as threads:
        eraser.execute("select 1 from frames where id = %s for update", [frame_id])
        asked = threads.submit(api.client.post, "/v1/queries", json=body(api), headers=key)
        held = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
        while not sql(api.context, held)[0][0]:
            assert not asked.done()
            time.sleep(0.02)
        waiting = "select query from pg_stat_activity where wait_event_type = 'Lock'"
        assert sql(api.context, waiting)[0][0].startswith("SELECT frames.id")
        eraser.rollback()
        assert asked.result(60).status_code == 202
    run_jobs(api.context)


def test_a_query_taken_back_while_it_runs_records_nothing(api: Api):
    """The worker has lost its lease: what it found is thrown away."""
    key = api.key("search")
    asked = api.client.post("/v1/queries", json=body(api), headers=key).json()
    where = f"/v1/queries/{asked['query_id']}"

    def run(context: Context, job: ClaimedJob, lease: Lease) -> Outcome:
        assert api.client.get(where, headers=key).json()["state"] == "running"
        assert api.client.delete(where, headers=key).status_code == 200
        return run_query(context, job, lease)

    run_job(api.context, uuid.UUID(asked["job_id"]), {"query": Handler(run)})
    told = api.client.get(where, headers=key).json()
    assert (told["state"], told["error"]["code"], told["hits"]) == ("failed", "cancelled", 0)
    rows = "select count(*) from search_hits where query_id = %s"
    assert sql(api.context, rows, asked["query_id"]) == [(0,)]


def test_events_tell_each_state_and_end(api: Api):
    key = api.key("search")
    asked = api.client.post("/v1/queries", json=body(api), headers=key)
    with ThreadPoolExecutor(1) as threads:
        stream = threads.submit(api.client.get, asked.headers["Location"] + "/events", headers=key)
        run_jobs(api.context)
        text = stream.result(timeout=60).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    states = [event["state"] for event in events]
    assert states[-1] == "done"
    assert states == sorted(states, key=["queued", "running", "done"].index)
    told = [(event["state"], event["answer"]) for event in events]
    assert len(set(told)) == len(told)  # only changes are told
    assert {event["query_id"] for event in events} == {asked.json()["query_id"]}


def events_of(api: Api, key: dict[str, str], desk: ApiDesk) -> list[str]:
    """What events say of a query that is run once its stream is open."""
    with serving(desk) as client:
        asked = client.post("/v1/queries", json=body(api), headers=key)
        with ThreadPoolExecutor(1) as threads:
            where = asked.headers["Location"] + "/events"
            stream = threads.submit(client.get, where, headers=key)
            while not sql(api.context, LISTENERS):
                time.sleep(0.02)
            run_jobs(api.context)
            text = stream.result(timeout=60).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    return [f"{event['state']} {event['answer']}" for event in events]


def test_events_come_without_looking_again_and_again(api: Api, monkeypatch):
    """Postgres tells of changes; looking by the clock would be too late here."""
    for name in ("_FIRST_POLL_S", "_SLOWEST_POLL_S"):
        monkeypatch.setattr(api_events, name, 300.0)
    desk = replace(api.desk, notices=QueryNotices(api.desk.db))
    told = events_of(api, api.key("search"), desk)
    desk.notices.close()
    assert told[0] in ("queued none", "running none")
    assert told[-1] == "done final"


def test_events_come_where_notices_are_lost(api: Api, monkeypatch):
    monkeypatch.setattr(QueryNotices, "_wake", lambda *_: None)
    desk = replace(api.desk, notices=QueryNotices(api.desk.db))
    assert events_of(api, api.key("search"), desk)[-1] == "done final"
    desk.notices.close()


def test_notices_are_heard_again_behind_a_lost_connection(api: Api, monkeypatch):
    for name in ("_FIRST_POLL_S", "_SLOWEST_POLL_S"):
        monkeypatch.setattr(api_events, name, 300.0)
    monkeypatch.setattr(api_notices, "_AGAIN_S", 0.05)
    desk = replace(api.desk, notices=QueryNotices(api.desk.db))
    before = set(sql(api.context, LISTENERS))
    events_of(api, api.key("search"), desk)
    (lost,) = set(sql(api.context, LISTENERS)) - before
    sql(api.context, "select pg_terminate_backend(%s)", *lost)
    while lost in sql(api.context, LISTENERS):
        time.sleep(0.02)
    assert events_of(api, api.key("search"), desk)[-1] == "done final"
    desk.notices.close()


def test_events_end_by_themselves(api: Api):
    key = api.key("search")
    with api.with_settings(api_events_s=0.2) as client:
        asked = client.post("/v1/queries", json=body(api), headers=key)
        reply = client.get(asked.headers["Location"] + "/events", headers=key)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert '"queued"' in reply.text
    api.client.delete(asked.headers["Location"], headers=key)


def test_appearances_come_in_order_of_time(api: Api):
    key = api.key("search")
    for group in ("frame", "appearance"):
        told = api.answered(key, params={"tau": -1.0, "group": group})
        where = f"/v1/queries/{told['query_id']}/appearances"
        found = api.client.get(where, headers=key).json()["items"]
        assert found == sorted(found, key=lambda one: one["from_utc"])
        assert {one["camera_name"] for one in found} == {"street", "car"}
        assert all(one["from_utc"] <= one["best"]["t_utc"] <= one["to_utc"] for one in found)
        frames = sql(api.context, "select count(*) - 1 from frames")[0][0]
        assert sum(one["frames"] for one in found) == frames
        wide = api.client.get(where, params={"gap_s": 3600}, headers=key).json()["items"]
        assert sum(one["frames"] for one in wide) == frames
        assert len(wide) <= len(found)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"roi": {"box": [0.1, 0.1, 0.1, 0.2]}}, "roi_invalid"),
        ({"roi": {"box": [0.1, 0.1, float("nan"), 0.2]}}, "input_invalid"),
        ({"roi": {"box": [0.1, 0.1, 1e9, 0.2]}}, "input_invalid"),
        ({"roi": {"polygon": [[0.1, 0.1], [0.9, 0.9], [0.9, 0.1], [0.1, 0.9]]}}, "roi_invalid"),
        ({"params": {"limit": 10**9}}, "input_invalid"),
        ({"params": {"limit": True}}, "input_invalid"),
        ({"params": {"strategy": "best"}}, "input_invalid"),
        ({"params": {"t_from_utc": "2026-01-01T00:00:00"}}, "input_invalid"),
        (
            {"params": {"t_from_utc": LATER, "t_to_utc": EARLIER}},
            "input_invalid",
        ),
        ({"frame_id": None}, "input_invalid"),
        ({"frame_id": 2**70}, "input_invalid"),
        ({"frame_id": 10**15}, "not_found"),
        ({"params": {"camera_ids": [10**9]}}, "not_found"),
        ({"unknown": 1}, "input_invalid"),
    ],
)
def test_what_is_wrong_is_named(api: Api, given: dict[str, object], code: str):
    key = api.key("search")
    reply = api.client.post(
        "/v1/queries",
        content=json.dumps(body(api) | given),
        headers=key | {"Content-Type": "application/json"},
    )
    assert reply.headers["content-type"] == "application/problem+json"
    told = reply.json()
    assert (told["code"], told["status"]) == (code, reply.status_code), told
    assert told["detail"] and told["request_id"] == reply.headers["X-Request-ID"]


def test_bodies_that_are_none(api: Api):
    key = api.key("search")
    for content, kind, code in (
        (b"{", "application/json", "input_invalid"),
        (b"[" * 100_000, "application/json", "input_invalid"),
        (b"\xff", "application/json", "input_invalid"),
        (b"roi", "text/plain", "media_unsupported"),
        (b"x", "multipart/form-data", "input_invalid"),
        (b"x", "multipart/form-data; boundary=a", "input_invalid"),
        (b"x", "multipart/form-data; boundary=a; charset=punycode", "media_unsupported"),
        (b"x", "multipart/form-data; boundary=a; charset=undefined", "media_unsupported"),
        (b"--a--", "multipart/form-data; boundary=a; charset=UTF-8", "input_invalid"),
    ):
        reply = api.client.post(
            "/v1/queries", content=content, headers=key | {"Content-Type": kind}
        )
        assert reply.json()["code"] == code, (content[:9], kind, reply.text)


def test_pictures_that_are_none(api: Api):
    key = api.key("search")
    big = io.BytesIO()
    Image.new("L", (20_000, 10_000)).save(big, "PNG")  # 200 megapixels in a few kilobytes
    long = io.BytesIO()
    Image.new("L", (66_000, 20)).save(long, "PNG")  # no JPEG can show it
    for content in (b"", b"no picture", big.getvalue(), long.getvalue()):
        reply = api.client.post(
            "/v1/queries",
            files={"picture": ("a.png", content, "image/png")},
            data={"query": json.dumps({"roi": BOX})},
            headers=key,
        )
        assert (reply.status_code, reply.json()["code"]) == (422, "picture_invalid"), reply.text


def test_every_parameter_of_a_search_can_be_given_and_has_its_default():
    defaults = ParamsGiven().model_dump(mode="json")
    assert defaults == json.loads(json.dumps(SearchParams().to_json()))


def test_a_zone_limits_where_matches_lie(api: Api):
    key = api.key("search", "view")
    zone = {"box": [0.0, 0.0, 0.5, 1.0]}
    told = api.answered(key, params={"tau": -1.0, "group": "frame", "zone": zone})
    assert told["params"]["zone"] == zone
    rows = sql(
        api.context,
        "select region_cell_index, grid_w from search_hits where query_id = %s",
        told["query_id"],
    )
    assert rows and all(cell % w < w / 2 for cells, w in rows for cell in cells)
