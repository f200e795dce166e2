"""Recordings that are sent: streamed to disk, accepted with their last byte, gone after ingest."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from api.app import make_app
from api.desk import ApiDesk
from tests.api.conftest import Api, run_async, serving
from tests.parts import run_jobs, sql, with_settings
from worker.backup import back_up
from worker.erasure import camera_span, submit_erasure
from worker.leftovers import remove_strays
from worker.verify import verify_index

HOURS = iter(range(1, 10_000))


@pytest.fixture
def key(api: Api) -> dict[str, str]:
    return api.key("ingest")


@pytest.fixture(autouse=True)
def clip(api: Api) -> Iterator[bytes]:
    """Bytes that nobody has sent before; nothing of what was sent is left at the end."""
    yield (api.footage / "bikes.mp4").read_bytes() + uuid.uuid4().bytes
    run_jobs(api.context)
    assert held(api) == []


def held(api: Api) -> list[str]:
    root = api.context.recordings.root
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


def said(**changes: Any) -> str:
    """What is said of a recording: of a time of its own."""
    start = datetime(2026, 2, 1, tzinfo=UTC) + timedelta(hours=next(HOURS))
    given = {"camera": "street", "start_utc": start.isoformat(), "every_s": 60.0} | changes
    return json.dumps({name: value for name, value in given.items() if value is not None})


def send(api: Api, key: dict[str, str], clip: bytes, text: str, name: str = "a.mp4", **more: str):
    files = {"segment": (None, text), "recording": (name, clip)}
    return api.client.post("/v1/segments", files=files, headers=key | more)  # type: ignore[arg-type]


def test_what_is_sent_is_ingested_and_gone(api: Api, key: dict[str, str], clip: bytes):
    reply = send(api, key, clip, said(every_s=2.0), name="C:\\clips/evil.mp4")
    assert reply.status_code == 202, reply.text
    assert held(api) == [hashlib.sha256(clip).hexdigest()]
    row = "select source_path, content_sha256 = held_sha256 from video_segments order by id desc"
    assert sql(api.context, row)[0] == ("sent:evil.mp4", True)
    assert verify_index(api.context).recordings == 1
    run_jobs(api.context)
    told = api.client.get(reply.headers["Location"], headers=key).json()
    assert (told["state"], told["outcome"]) == ("done", "complete")
    assert told["frames"] >= 4
    assert held(api) == []
    assert verify_index(api.context).problems == ()


def test_the_same_again_changes_nothing(api: Api, key: dict[str, str], clip: bytes):
    text, named = said(), {"Idempotency-Key": uuid.uuid4().hex}
    first, again = (send(api, key, clip, text, **named) for _ in range(2))
    unnamed = send(api, key, clip, text)
    assert first.json()["segment_id"] == again.json()["segment_id"] == unnamed.json()["segment_id"]
    other = send(api, key, clip + b"x", text, **named)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")
    run_jobs(api.context)
    late = send(api, key, clip, text)
    assert late.json()["segment_id"] == first.json()["segment_id"]
    assert (late.json()["state"], held(api)) == ("done", [])


def test_a_file_that_is_no_video_is_a_recorded_failure(api: Api, key: dict[str, str]):
    reply = send(api, key, b"not a video", said(), name="party.mp4")
    run_jobs(api.context)
    told = api.client.get(reply.headers["Location"], headers=key).json()
    assert (told["state"], told["outcome"]) == ("failed", "failed")
    assert told["error"]["code"] == "video_invalid"
    assert "sent:party.mp4" in told["error"]["detail"]
    assert str(api.context.settings.data_dir) not in told["error"]["detail"]
    assert held(api) == []


BAD: dict[str, tuple[Any, int]] = {
    "no form": (b"hello", 415),
    "file first": ([("recording", b"x"), ("segment", b"{}")], 422),
    "two files": ([("segment", "said"), ("recording", b"x"), ("recording", b"x")], 422),
    "no file": ([("segment", "said")], 422),
    "a field nobody knows": ([("segment", "said"), ("other", b"x")], 422),
    "no JSON": ([("segment", b"{"), ("recording", b"x")], 422),
    "large JSON": ([("segment", b" " * 300_000), ("recording", b"x")], 422),
    "path": ([("segment", b'{"path": "a"}'), ("recording", b"x")], 422),
}


@pytest.mark.parametrize("how", BAD)
def test_what_is_no_form_of_ours_is_refused(api: Api, key: dict[str, str], how: str):
    parts, status = BAD[how]
    if not isinstance(parts, list):
        headers = key | {"Content-Type": "multipart/form-data"}
        reply = api.client.post("/v1/segments", content=parts, headers=headers)
    else:
        reply = post_form(api, key, [(n, said().encode() if v == "said" else v) for n, v in parts])
    assert reply.status_code == status, reply.text
    assert held(api) == []


def post_form(api: Api, key: dict[str, str], parts: list[tuple[str, bytes]], end: bytes = b"--"):
    body = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), value)
        for name, value in parts
    )
    headers = key | {"Content-Type": "multipart/form-data; boundary=b"}
    return api.client.post("/v1/segments", content=body + b"--b" + end, headers=headers)


def test_a_form_that_breaks_off_leaves_nothing(api: Api, key: dict[str, str], clip: bytes):
    parts = [("segment", said().encode()), ("recording", clip)]
    whole = post_form(api, key, parts)
    assert whole.status_code == 202
    torn = post_form(api, key, parts, end=b"")
    assert (torn.status_code, torn.json()["code"]) == (422, "input_invalid")
    run_jobs(api.context)
    assert held(api) == []


def test_cameras_that_the_key_must_not_know_are_refused_before_the_file(api: Api, clip: bytes):
    limited = api.key("ingest", camera_ids=[api.camera("street")])
    for given in ({"camera": "car"}, {"camera": None, "camera_id": api.camera("car")},
                  {"camera": "nowhere"}):  # fmt: skip
        reply = send(api, limited, clip, said(**given))
        assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
    both = send(api, limited, clip, said(camera_id=api.camera("street")))
    assert both.status_code == 422
    assert send(api, limited, clip, said(start_utc="2026-02-01")).status_code == 422
    assert send(api, api.key("search"), clip, said()).status_code == 403
    assert held(api) == []


def test_too_large_is_413_announced_or_not(api: Api, key: dict[str, str], clip: bytes):
    with api.with_settings(api_max_recording_bytes=100_000, api_max_body_bytes=4096) as client:
        limited = replace(api, client=client)
        reply = send(limited, key, clip, said())
        assert (reply.status_code, reply.json()["code"]) == (413, "body_too_large")
        assert "RIS_API_MAX_RECORDING_BYTES" in reply.json()["detail"]

        def dribble() -> Iterator[bytes]:  # no Content-Length
            yield form_head(said())
            for _ in range(200):
                yield b"x" * 1024

        headers = key | {"Content-Type": "multipart/form-data; boundary=b"}
        reply = client.post("/v1/segments", content=dribble(), headers=headers)
        assert (reply.status_code, reply.json()["code"]) == (413, "body_too_large")
        assert send(limited, key, clip[:50_000], said()).status_code == 202
        as_json = client.post("/v1/segments", json={"path": "x" * 5000}, headers=key)
        assert as_json.status_code == 413


def form_head(text: str) -> bytes:
    return (
        b'--b\r\nContent-Disposition: form-data; name="segment"\r\n\r\n%b\r\n--b\r\n'
        b'Content-Disposition: form-data; name="recording"; filename="a.mp4"\r\n\r\n'
    ) % text.encode()


def test_the_free_space_floor_holds(api: Api, key: dict[str, str], clip: bytes):
    free = shutil.disk_usage(api.context.settings.data_dir).free
    with api.with_settings(min_free_bytes=2 * free) as client:
        reply = send(replace(api, client=client), key, clip, said())
    assert (reply.status_code, reply.json()["code"]) == (503, "storage_full")
    assert held(api) == []


async def asked(
    desk: ApiDesk, headers: dict[str, str], body: AsyncIterator[dict[str, Any]], path: str
) -> tuple[int, dict[str, Any]]:
    """Status and JSON of one request straight at an application, its body as it comes."""
    said: list[Any] = []
    given = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope: Any = {"type": "http", "method": "POST" if path == "/v1/segments" else "GET"}
    scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "headers": given}

    async def receive() -> dict[str, Any]:
        return await anext(body)

    async def tell(message: Any) -> None:
        said.append(message)

    await make_app(desk)(scope | {"http_version": "1.1"}, receive, tell)
    text = b"".join(message.get("body", b"") for message in said[1:])
    return said[0]["status"], json.loads(text) if text else {}


async def none() -> AsyncIterator[dict[str, Any]]:
    yield {"type": "http.request", "body": b"", "more_body": False}


def test_slow_senders_hold_up_nobody(api: Api, key: dict[str, str], clip: bytes):
    """Eight of them half-way, on two threads that write: others are answered, then all eight."""
    go_on = asyncio.Event()

    async def slow(number: int) -> AsyncIterator[dict[str, Any]]:
        yield {"body": form_head(said()), "more_body": True, "type": "http.request"}
        yield {"body": clip[:200_000], "more_body": True, "type": "http.request"}
        await go_on.wait()
        rest = clip[200_000:] + bytes([number]) + b"\r\n--b--"
        yield {"body": rest, "more_body": False, "type": "http.request"}

    async def run() -> list[tuple[int, dict[str, Any]]]:
        headers = key | {"Content-Type": "multipart/form-data; boundary=b"}
        paths = "/v1/segments"
        sent = [asyncio.create_task(asked(api.desk, headers, slow(n), paths)) for n in range(8)]
        while len(held(api)) < 8:
            await asyncio.sleep(0.01)
        threads = threading.active_count()
        for _ in range(20):
            assert (await asked(api.desk, key, none(), "/v1/me"))[0] == 200
        assert threading.active_count() <= threads + 1
        assert not any(one.done() for one in sent)
        go_on.set()
        return await asyncio.gather(*sent)

    told = run_async(run())
    assert [status for status, _ in told] == [202] * 8
    assert len({one["segment_id"] for _, one in told}) == 8


def test_one_key_sends_so_many_at_once(api: Api, key: dict[str, str], clip: bytes):
    desk = replace(api.desk, settings=api.desk.settings.model_copy(update={"api_open_uploads": 1}))
    desk.uploading.begin(99)  # another key's
    desk = replace(desk, uploading=type(desk.uploading)(1, "uploads", "RIS_API_OPEN_UPLOADS"))
    with serving(desk) as client:
        mine = client.get("/v1/me", headers=key).json()["key_id"]
        desk.uploading.begin(mine)
        reply = send(replace(api, client=client), key, clip, said())
        assert (reply.status_code, reply.json()["code"]) == (429, "too_many_requests")
        assert "RIS_API_OPEN_UPLOADS" in reply.json()["detail"]
        desk.uploading.end(mine)
        assert send(replace(api, client=client), key, clip, said()).status_code == 202


@pytest.mark.parametrize("end", ["gone", "silent"])
def test_a_sender_that_goes_away_or_says_no_more_leaves_nothing(
    api: Api, key: dict[str, str], clip: bytes, end: str
):
    async def torn() -> AsyncIterator[dict[str, Any]]:
        yield {"body": form_head(said()), "more_body": True, "type": "http.request"}
        yield {"body": clip, "more_body": True, "type": "http.request"}
        assert len(held(api)) == 1
        if end == "gone":
            yield {"type": "http.disconnect"}
        await asyncio.sleep(60)

    settings = api.desk.settings.model_copy(update={"api_body_timeout_s": 0.3})
    headers = key | {"Content-Type": "multipart/form-data; boundary=b"}

    async def run() -> tuple[int, dict[str, Any]]:
        desk = replace(api.desk, settings=settings)
        return await asked(desk, headers, torn(), "/v1/segments")

    if end == "gone":
        with pytest.raises(IndexError):  # nobody is told anything
            run_async(run())
    else:
        status, told = run_async(run())
        assert (status, told["code"]) == (408, "body_too_slow")
        assert "no more of the body came" in told["detail"]
    assert held(api) == []


def test_what_a_crash_leaves_is_swept(api: Api, key: dict[str, str], clip: bytes):
    send(api, key, clip, said())
    root, sha256 = api.context.recordings.root, hashlib.sha256(clip).hexdigest()
    half, stray = root / "0.tmp", root / ("0" * 64)
    for path in (half, stray, root / sha256):
        if path != root / sha256:
            path.write_bytes(b"x")
        os.utime(path, (time.time() - 7200,) * 2)
    (root / "1.tmp").write_bytes(b"being written")
    remove_strays(api.context)
    assert held(api) == sorted(["1.tmp", sha256])
    (root / "1.tmp").unlink()
    run_jobs(api.context)


def test_kept_recordings_are_known_to_backup_verify_and_erasure(
    api: Api, key: dict[str, str], clip: bytes, tmp_path: Path
):
    context = with_settings(api.context, keep_recordings=True)
    start, sha256 = datetime(2026, 3, 1, 5, tzinfo=UTC), hashlib.sha256(clip).hexdigest()
    for _ in range(2):  # an erased recording may be sent again
        send(api, key, clip, said(start_utc=start.isoformat()))
        run_jobs(context)
        remove_strays(context, 0.0)
        assert held(api) == [sha256]
        back_up(context, tmp_path / "backup")
        copy = tmp_path / "backup" / "recordings" / sha256
        assert copy.read_bytes() == clip
        path = context.recordings.path(sha256)
        path.write_bytes(b"rotten")
        assert any(sha256 in problem for problem in verify_index(context).problems)
        path.write_bytes(clip)
        # A second of it is enough: nobody can cut the file.
        span, _ = camera_span(
            context, "street", start + timedelta(seconds=1), start + timedelta(seconds=2)
        )
        submit_erasure(context, span)
        run_jobs(context)
        assert held(api) == []
        assert verify_index(context).problems == ()
        back_up(context, tmp_path / "backup")
        assert not copy.exists()


def test_one_whose_footage_is_erased_before_it_is_ingested_is_not_kept(
    api: Api, key: dict[str, str], clip: bytes
):
    context = with_settings(api.context, keep_recordings=True)
    start = datetime(2026, 3, 2, 5, tzinfo=UTC)
    reply = send(api, key, clip, said(start_utc=start.isoformat()))
    span, _ = camera_span(context, "street", start, start + timedelta(seconds=2))
    submit_erasure(context, span)
    run_jobs(context)
    told = api.client.get(reply.headers["Location"], headers=key).json()
    assert told["outcome"] == "complete"
    assert held(api) == []


def test_by_address(api: Api, key: dict[str, str], capfd: pytest.CaptureFixture[str]):
    """What the worker does with it: tests/test_fetching.py."""
    secret = uuid.uuid4().hex
    url = f"http://user:{secret}@127.0.0.1:1/clip.mp4?token={secret}"
    body = json.loads(said()) | {"url": url}
    named = key | {"Idempotency-Key": uuid.uuid4().hex}
    none = api.client.post("/v1/segments", json=body, headers=key)
    assert (none.status_code, none.json()["code"]) == (422, "input_invalid")
    assert "RIS_FETCH_HOSTS" in none.json()["detail"]
    replies = [none]
    with api.with_settings(fetch_hosts="127.0.0.0/8") as client:
        for headers in (named, named, key):
            replies.append(client.post("/v1/segments", json=body, headers=headers))
            assert replies[-1].status_code == 202, replies[-1].text
        assert len({reply.json()["segment_id"] for reply in replies[1:]}) == 1
        other = body | {"url": url.replace("clip", "other")}
        for given, headers, status in (
            (other, named, 409),
            (body | {"url": "http://10.0.0.1/a"}, key, 422),
            (body | {"url": f"http://user:{secret}/@127.0.0.1/"}, key, 422),
            (body | {"path": "bikes.mp4"}, key, 422),
            (json.loads(said()), key, 422),
        ):
            replies.append(client.post("/v1/segments", json=given, headers=headers))
            assert replies[-1].status_code == status, replies[-1].text
    run_jobs(with_settings(api.context, fetch_hosts="127.0.0.0/8", job_max_attempts=1))
    path = replies[1].headers["Location"]
    replies += [api.client.get(path, headers=key)]
    admin = api.key("admin")
    replies += [api.client.get(path, headers=admin) for path in ("/v1/jobs", "/v1/audit?limit=30")]
    told = replies[-3].json()
    assert (told["state"], told["outcome"], told["error"]["code"]) == (
        "failed",
        "failed",
        "fetch_failed",
    )
    assert "Connection refused" in told["error"]["detail"]
    said_all = [*(reply.text for reply in replies), *capfd.readouterr()]
    assert [text for text in said_all if secret in text] == []
