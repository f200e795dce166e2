"""What is too much is refused by its documented code; services that are away are a 503."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import structlog
from fastapi.testclient import TestClient

from api.app import make_app
from api.desk import ApiDesk, BackgroundBell, Few, Pace, open_desk
from api.problems import STATUS_OF_CODE
from api.routes import frames, queries, segments
from ris_client import RisApiError, RisClient
from tests.api.conftest import BOX, Api, run_async, serving
from tests.parts import run_jobs, sql
from worker.accepting.queries import checked_order
from worker.accepting.segments import FileContent, read_content
from worker.errors import RisError, TooManyRequests

LATER = "2026-04-01T08:00:00Z"


def test_every_code_has_a_status():
    ours = [kind for kind in RisError.__subclasses__() if kind.__module__.startswith("worker.")]
    assert set(STATUS_OF_CODE) == {kind.code for kind in ours} | {RisError.code}


def test_a_body_that_is_too_large(api: Api):
    key = api.key("search") | {"Content-Type": "application/json"}

    def dribble() -> Iterator[bytes]:  # no Content-Length
        for _ in range(64):
            yield b" " * 1024

    with api.with_settings(api_max_body_bytes=4096) as client:
        for content in (b" " * 5000, dribble()):
            reply = client.post("/v1/queries", content=content, headers=key)
            assert (reply.status_code, reply.json()["code"]) == (413, "body_too_large")
        reply = client.post("/v1/cameras", content=dribble(), headers=key | api.key("admin"))
        assert (reply.status_code, reply.json()["code"]) == (413, "body_too_large")


WRITES = [
    ("POST", "/v1/queries"),
    ("POST", "/v1/cameras"),
    ("PATCH", "/v1/cameras/1"),
    ("POST", "/v1/segments"),
    ("POST", "/v1/keys"),
]


@pytest.mark.parametrize(("method", "path"), WRITES)
def test_no_body_is_read_before_the_key_is_known(api: Api, method: str, path: str):
    """Else anybody could have 32 MiB kept in memory and parsed."""
    pulled = 0
    headers = {"Content-Type": "application/json"}

    async def body() -> dict[str, Any]:
        nonlocal pulled
        pulled += 1
        return {"type": "http.request", "body": b"[[],", "more_body": pulled < 3}

    async def ask(key: dict[str, str]) -> int:
        statuses: list[int] = []
        given = [(k.lower().encode(), v.encode()) for k, v in (headers | key).items()]
        scope: Any = {"type": "http", "method": method, "path": path, "headers": given}
        scope |= {"query_string": b"", "http_version": "1.1", "raw_path": path.encode()}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await make_app(api.desk)(scope, body, send)
        return statuses[0]

    assert (run_async(ask({})), pulled) == (401, 0)
    assert (run_async(ask({"Authorization": "Bearer ris_x"})), pulled) == (401, 0)
    assert (run_async(ask(api.key("view"))), pulled) == (403, 0)
    assert (run_async(ask(api.key("admin"))), pulled) == (422, 3)


def test_a_client_that_goes_away_is_no_failure(api: Api):
    key = api.key("admin") | {"Content-Type": "application/json"}
    given = [(name.lower().encode(), value.encode()) for name, value in key.items()]
    scope: Any = {"type": "http", "method": "POST", "path": "/v1/cameras", "headers": given}
    scope |= {"query_string": b"", "http_version": "1.1", "raw_path": b"/v1/cameras"}
    messages = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    with structlog.testing.capture_logs() as logged:
        run_async(make_app(api.desk)(scope, receive, send))
    assert [one["event"] for one in logged] == ["client_gone", "request"]


@pytest.mark.parametrize(("method", "path"), WRITES)
def test_json_is_smaller_than_pictures(api: Api, method: str, path: str):
    key = api.key("admin") | {"Content-Type": "application/json"}
    most = 1024 * 1024 if path == "/v1/queries" else 256 * 1024
    for extra, code in ((0, "input_invalid"), (1, "body_too_large")):
        content = b" " * (most + extra)
        reply = api.client.request(method, path, content=content, headers=key)
        assert reply.json()["code"] == code
    reply = api.client.request(method, path, content=b"{}", headers=key | {"Content-Type": "a/b"})
    assert (reply.status_code, reply.json()["code"]) == (415, "media_unsupported")


def test_a_key_that_asks_too_often(api: Api):
    key, other = api.key("view"), api.key("view")
    with api.with_settings(api_requests_per_s=0.5) as client:
        statuses = [client.get("/v1/me", headers=key).status_code for _ in range(4)]
        assert statuses == [200, 429, 429, 429]
        refused = client.get("/v1/me", headers=key)
        assert (refused.json()["code"], refused.headers["Retry-After"]) == (
            "too_many_requests",
            "1",
        )
        assert client.get("/v1/me", headers=other).status_code == 200


def test_a_pace_allows_bursts_and_recovers():
    now_s = 0.0
    pace = Pace(2.0, clock=lambda: now_s)
    for _ in range(4):
        pace.take(1)
    with pytest.raises(TooManyRequests):
        pace.take(1)
    pace.take(2)
    now_s = 0.6
    pace.take(1)
    with pytest.raises(TooManyRequests):
        pace.take(1)


def test_a_key_with_too_many_open_queries(api: Api):
    key, other = api.key("search"), api.key("search")
    asked = {"frame_id": api.frame("street"), "roi": BOX}
    with api.with_settings(api_open_queries=2) as client:
        made = [client.post("/v1/queries", json=asked, headers=key) for _ in range(3)]
        assert [reply.status_code for reply in made] == [202, 202, 429]
        assert made[2].json()["code"] == "too_many_requests"
        assert client.post("/v1/queries", json=asked, headers=other).status_code == 202
        client.delete(made[0].headers["Location"], headers=key)
        assert client.post("/v1/queries", json=asked, headers=key).status_code == 202
    sql(
        api.context,
        "update jobs set state = 'failed', error_code = 'cancelled' where state = 'queued'",
    )


class Stuck:
    """Work that does not end before it is let go."""

    def __init__(self) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.begun.set()
        assert self.let_go.wait(120)


def asked_while_stuck(
    desk: ApiDesk, stuck: Stuck, key: dict[str, str], ask: Callable[[TestClient], Any]
) -> set[int]:
    """Statuses of more requests at once than a server has threads, while others are answered."""
    with (
        TestClient(make_app(desk)) as client,
        ThreadPoolExecutor(46) as threads,
    ):
        sent = [threads.submit(ask, client) for _ in range(45)]
        try:
            assert stuck.begun.wait(60)
            for _ in range(10):
                others = threads.submit(client.get, "/v1/me", headers=key)
                assert others.result(60).status_code == 200
                time.sleep(0.05)
        finally:
            stuck.let_go.set()
        return {one.result().status_code for one in sent}


def test_long_recordings_hold_up_nobody_else(api: Api, monkeypatch):
    """Forty threads check keys and read the record: hashing has two of its own."""
    key, stuck = api.key("ingest"), Stuck()

    def slow(path: Path) -> FileContent:
        stuck.wait()
        return read_content(path)

    monkeypatch.setattr(segments, "read_content", slow)
    given = {"path": "bikes.mp4", "camera_id": api.camera("street"), "start_utc": LATER}
    desk = replace(api.desk, hashing=Few(), pace=Pace(1e5))

    def ask(client: TestClient) -> Any:
        return client.post("/v1/segments", json=given, headers=key)

    assert asked_while_stuck(desk, stuck, key, ask) == {202}
    run_jobs(api.context)


def test_large_pictures_hold_up_nobody_else(api: Api, monkeypatch):
    key, stuck = api.key("view"), Stuck()

    def slow(jpeg: bytes, side_px: int) -> bytes:
        stuck.wait()
        return jpeg

    monkeypatch.setattr(frames, "thumbnail", slow)
    path = f"/v1/frames/{api.frame('street')}/thumbnail"
    desk = replace(api.desk, decoding=Few(), pace=Pace(1e5))
    statuses = asked_while_stuck(desk, stuck, key, lambda client: client.get(path, headers=key))
    assert statuses <= {200, 503}


def test_pictures_that_wait_too_long_are_refused(api: Api):
    with serving(replace(api.desk, decoding=Few("pictures", wait_s=-1.0))) as client:
        reply = client.get(f"/v1/frames/{api.frame('street')}/thumbnail", headers=api.key("view"))
    assert (reply.status_code, reply.json()["code"]) == (503, "service_unavailable")


def test_what_is_not_taken_is_not_decoded_first(api: Api, monkeypatch):
    """A key without room, and a request that was answered before, cost next to nothing."""
    key = api.key("search", "view")
    picture = api.client.get(f"/v1/frames/{api.frame('car')}/picture", headers=key).content
    decoded = []

    def counted(desk: Any, *given: Any, **more: Any) -> Any:
        decoded.append(given)
        return checked_order(desk, *given, **more)

    monkeypatch.setattr(queries, "checked_order", counted)
    with api.with_settings(api_open_queries=1) as client:
        statuses = []
        for name in ("a", "a", "b"):
            reply = client.post(
                "/v1/queries",
                files={"picture": ("a.jpg", picture, "image/jpeg")},
                data={"query": json.dumps({"roi": BOX})},
                headers=key | {"Idempotency-Key": name},
            )
            statuses.append(reply.status_code)
    assert statuses == [202, 202, 429]
    assert len(decoded) == 1
    run_jobs(api.context)


def test_a_recording_sent_again_is_not_read_again(api: Api, monkeypatch):
    key = api.key("ingest") | {"Idempotency-Key": "once"}
    given = {"path": "bikes.mp4", "camera_id": api.camera("street"), "start_utc": LATER}
    first = api.client.post("/v1/segments", json=given, headers=key)
    monkeypatch.delattr(segments, "read_content")
    again = api.client.post("/v1/segments", json=given, headers=key)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["segment_id"] == again.json()["segment_id"]
    run_jobs(api.context)


def circle(points: int) -> list[list[float]]:
    turns = [2 * math.pi * i / points for i in range(points)]
    return [[0.5 + 0.4 * math.cos(turn), 0.5 + 0.4 * math.sin(turn)] for turn in turns]


def test_polygons_of_a_query_are_bounded_together_and_short_in_the_audit(api: Api):
    key, frame_id = api.key("search"), api.frame("street")
    example = {"frame_id": frame_id, "polygon": circle(1000)}
    asked: Any = {
        "frame_id": frame_id,
        "roi": {"polygon": circle(1000)},
        "params": {"more": [example]},
    }
    reply = api.client.post("/v1/queries", json=asked, headers=key)
    assert reply.status_code == 202, reply.text
    told = api.acts("query.submit")[-1]
    assert told["query_id"] == reply.json()["query_id"]
    text = json.dumps(circle(1000), separators=(",", ":"))
    brief = {"points": 1000, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    assert told["roi"] == {"polygon": brief}
    assert told["params"]["more"] == [{"frame_id": frame_id, "polygon": brief}]
    api.client.delete(reply.headers["Location"], headers=key)
    asked["params"] |= {"zone": {"polygon": circle(3)}}
    reply = api.client.post("/v1/queries", json=asked, headers=key)
    assert (reply.status_code, reply.json()["code"]) == (422, "input_invalid")
    assert "2003 points" in reply.json()["detail"]


def test_streams_of_a_key_are_bounded(api: Api):
    key, other = api.key("search"), api.key("search")
    asked = {"frame_id": api.frame("street"), "roi": BOX}
    with api.with_settings(api_events_s=0.2) as client:
        mine, theirs = (
            client.post("/v1/queries", json=asked, headers=one).headers["Location"] + "/events"
            for one in (key, other)
        )
        for _ in range(3):  # one after another they are not too many
            assert client.get(mine, headers=key).status_code == 200
        key_id = client.get("/v1/me", headers=key).json()["key_id"]
        for _ in range(api.desk.settings.api_open_queries):
            api.desk.streams.begin(key_id)
        refused = client.get(mine, headers=key)
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
        assert client.get(theirs, headers=other).status_code == 200
        api.desk.streams.end(key_id)
        assert client.get(mine, headers=key).status_code == 200
    run_jobs(api.context)


def test_the_client_takes_any_retry_after():
    """A proxy in between may send a date."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.send_header("Retry-After", "Fri, 01 May 2026 08:00:00 GMT")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        client = RisClient(f"http://127.0.0.1:{proxy.server_port}", "ris_x", patience_s=0.0)
        with pytest.raises(RisApiError):
            client.query("x")
        proxy.shutdown()


def test_an_id_of_a_request_is_taken_over_or_made(api: Api):
    given = api.client.get("/healthz", headers={"X-Request-ID": "vms-1.a_B"})
    assert given.headers["X-Request-ID"] == "vms-1.a_B"
    for bad in ("a b", "x" * 65, "{}"):
        made = api.client.get("/healthz", headers={"X-Request-ID": bad}).headers["X-Request-ID"]
        assert uuid.UUID(made)


def test_postgres_away_is_a_503_and_soon(api: Api):
    settings = api.desk.settings.model_copy(
        update={"database_url": "postgresql://ris:x@127.0.0.1:1/ris"}
    )
    desk = open_desk(settings, lambda _job_id, _kind: None)
    with serving(desk) as client:
        for path in ("/readyz", "/v1/cameras"):
            reply = client.get(path, headers={"Authorization": "Bearer ris_x"})
            assert (reply.status_code, reply.json()["code"]) == (503, "service_unavailable")
            assert reply.headers["Retry-After"] == "1"
            assert "127.0.0.1" not in reply.text
        assert client.get("/healthz").status_code == 200


def test_what_nobody_foresaw_is_a_500_that_names_its_request(api: Api, monkeypatch):
    with serving(replace(api.desk, pace=None)) as client:  # type: ignore[arg-type]
        reply = client.get("/v1/me", headers=api.key("view"))
    assert (reply.status_code, reply.json()["code"]) == (500, "internal")
    assert reply.json()["request_id"] == reply.headers["X-Request-ID"]


def test_the_bell_is_rung_beside_the_request():
    """A broker that is away holds up the bell's own thread, not who asks; what is too much is
    left to the sweeper."""
    let_go, rung = threading.Event(), []

    def slow(job_id: uuid.UUID, _kind: str) -> None:
        let_go.wait(60)
        rung.append(job_id)

    bell = BackgroundBell(slow)
    ids = [uuid.uuid4() for _ in range(1100)]
    for job_id in ids:
        bell(job_id, "query")
    assert rung == []
    let_go.set()
    until_s = time.monotonic() + 60
    while len(rung) < 1000 and time.monotonic() < until_s:
        time.sleep(0.01)
    assert rung == ids[:1000]
    bell.close()
