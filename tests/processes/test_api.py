"""The API beside real workers: asked over the network, killed, stopped."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import pytest

from tests.processes.harness import REPO, Ris, clean_env
from tests.receiver import receiving
from worker.embedded.state import api_path

pytestmark = pytest.mark.slow


def url_of(ris: Ris) -> str:
    return str(json.loads(api_path(ris.data_dir).read_text())["url"])


def call(
    url: str,
    path: str,
    secret: str,
    body: Any = None,
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, Any]:
    own = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    request = urllib.request.Request(
        url + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={**own, **(headers or {})},
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            raw, status = reply.read(), reply.status
    except urllib.error.HTTPError as error:
        raw, status = error.read(), error.code
    return status, json.loads(raw) if raw[:1] in (b"{", b"[") else raw


@pytest.fixture(scope="module")
def secret(ris: Ris) -> str:
    return str(ris.json("keys", "--create", "test", "--action", "admin")["secret"])


def test_a_query_is_answered_by_the_workers(ris, two_cameras, first_frame, secret):
    url = url_of(ris)
    asked = {"frame_id": first_frame, "roi": {"box": [0.3, 0.3, 0.7, 0.9]}}
    status, told = call(url, "/v1/queries", secret, asked)
    assert status == 202, told
    where = f"/v1/queries/{told['query_id']}"
    _, stream = call(url, where + "/events", secret)
    assert b'"state": "done"' in stream
    _, told = call(url, where, secret)
    _, page = call(url, where + "/hits", secret)
    assert told["hits"] == len(page["items"]) > 0
    assert page["items"][0]["camera_name"] == "street"
    status, picture = call(url, page["items"][0]["overlay"], secret)
    assert (status, picture[:2]) == (200, b"\xff\xd8")


def test_a_killed_watch_worker_loses_neither_events_nor_new_frames(
    ris, footage, first_frame, secret
):
    url = url_of(ris)
    with receiving() as receiver:
        hook = ris.json("webhook", "add", "test", receiver.url, "--kind", "segment.ingested")
        asked = {"name": "a", "frame_id": first_frame, "roi": {"box": [0.3, 0.3, 0.7, 0.9]}}
        status, made = call(url, "/v1/standing-queries", secret, asked)
        assert status == 201, made
        standing = f"/v1/standing-queries/{made['standing_query_id']}"
        pid = ris.kill("worker-watch")
        said = ris.json("ingest", str(footage["car"]), "--camera", "watched", "--every", "0.5")
        frames = ris.frames_of(said["jobs"][0]["id"])
        ris.wait_restarted("worker-watch", pid)
        ris.eventually(lambda: receiver.got, "the event comes")
        receiver.got[0].verify(hook["secret"])
        assert receiver.got[0].told["data"]["frames"] == frames > 5

        def seen() -> bool:
            told = call(url, standing, secret)[1]
            return bool(told["judged_frames"] + told["unjudged_frames"] == frames)

        ris.eventually(seen, "every new frame is seen once")
        assert call(url, standing, secret, method="DELETE")[0] == 204
        ris.run("webhook", "rm", str(hook["webhook_id"]))


def test_the_first_key_is_told_once(ris, tmp_path):
    """`up` on an index that has keys tells none; on a new one it tells the first."""
    fresh = Ris(tmp_path / "var", ris.settings, tmp_path)
    first = fresh.json("up")
    try:
        assert call(first["api_url"], "/v1/me", first["admin_key"])[1]["actions"] == ["admin"]
        fresh.run("down")
        again = fresh.json("up")
        assert again["admin_key"] is None
        assert call(again["api_url"], "/v1/me", first["admin_key"])[0] == 200
        assert call(again["api_url"], "/v1/me", "ris_x")[0] == 401
    finally:
        fresh.run("down")
    logs = "".join(path.read_text() for path in (fresh.data_dir / "logs").glob("*.log"))
    assert first["admin_key"] not in logs


def test_a_killed_api_is_started_again(ris, secret):
    old = ris.kill("api")
    ris.wait_restarted("api", old)

    def answers() -> bool:
        try:
            return call(url_of(ris), "/v1/me", secret)[0] == 200
        except OSError:
            return False

    ris.eventually(answers, "the API answers again")


def test_keys_on_the_command_line(ris, two_cameras):
    limits = ("--camera", "car", "--from", "2020-01-01T00:00+00:00", "--days", "1")
    made = ris.json("keys", "--create", "desk", "--action", "view", *limits)
    assert made["footage_from_utc"].startswith("2020-01-01") and made["footage_to_utc"] is None
    url = url_of(ris)
    status, told = call(url, "/v1/cameras", made["secret"])
    assert (status, [camera["name"] for camera in told["items"]]) == (200, ["car"])
    ris.run("keys", "--revoke", str(made["key_id"]))
    assert call(url, "/v1/cameras", made["secret"])[0] == 401
    assert made["secret"] not in ris.run("keys").stdout
    for wrong in (("--action", "view"), ("--create", "a"), ("--create", "a", "--action", "all")):
        assert ris.json("keys", *wrong, expect=1)["error"]["code"] == "input_invalid"
    assert ris.json("keys", "--revoke", "999", expect=1)["error"]["code"] == "not_found"


def served(ris: Ris, **changes: str) -> tuple[subprocess.Popen[bytes], str]:
    """An API of its own on this RIS's services, on a free port."""
    folder = ris.data_dir.parent / "own-api"
    env = clean_env(
        {
            "RIS_DATABASE_URL": str(ris.state.database_url),
            "RIS_BROKER_URL": str(ris.state.broker_url),
            "RIS_DATA_DIR": str(folder),
            "RIS_API_PORT": "0",
            **changes,
        }
    )
    api_path(folder).unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, "-m", "api"], env=env, cwd=REPO)

    ris.eventually(api_path(folder).exists, "the API says where it listens")
    return process, str(json.loads(api_path(folder).read_text())["url"])


def test_a_body_that_never_comes_is_refused_and_sigterm_drains(ris, secret):
    process, url = served(ris, RIS_API_BODY_TIMEOUT_S="0.5")
    host, port = url.removeprefix("http://").split(":")
    try:
        with socket.create_connection((host, int(port)), timeout=60) as slow:
            head = (
                f"POST /v1/queries HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {secret}\r\n"
                "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
            )
            slow.sendall(head.encode())
            answer = b""
            while b"body_too_slow" not in answer and (part := slow.recv(65536)):
                answer += part
        assert answer.startswith(b"HTTP/1.1 408"), answer
        assert b"body_too_slow" in answer
    finally:
        process.terminate()
    assert process.wait(timeout=60) == 0


def test_a_taken_port_is_named(ris, tmp_path):
    port = url_of(ris).rsplit(":", 1)[1]
    done = subprocess.run(
        [sys.executable, "-m", "api"],
        env=clean_env(
            {
                "RIS_DATABASE_URL": str(ris.state.database_url),
                "RIS_DATA_DIR": str(tmp_path),
                "RIS_API_PORT": port,
            }
        ),
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "setup_failed" in done.stderr and f":{port}" in done.stderr
    assert "RIS_API_PORT" in done.stderr


def test_redis_away_does_not_hold_up_who_asks(ris, first_frame, secret):
    """The query is accepted; the sweeper of the workers finds it."""
    process, url = served(ris, RIS_BROKER_URL="redis://127.0.0.1:1/0")
    try:
        asked = {"frame_id": first_frame, "roi": {"box": [0.3, 0.3, 0.7, 0.9]}}
        status, told = call(url, "/v1/queries", secret, asked)
        assert status == 202
        ris.eventually(
            lambda: call(url, f"/v1/queries/{told['query_id']}", secret)[1]["state"] == "done",
            "the sweeper rings for it",
        )
    finally:
        process.terminate()
        process.wait(timeout=60)
