"""Recordings by address: fetched by a worker through the guard, bounded, with recorded reasons."""

from __future__ import annotations

import base64
import hashlib
import shutil
import ssl
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from models.repositories import videos as video_record
from tests.conftest import Services
from tests.feeding import until
from tests.parts import HANDLERS, fresh_context, job, run_jobs, sql, with_settings
from worker.accepting.desk import COMMAND_LINE
from worker.accepting.segments import Submission, record_segment, recording_at
from worker.context import Context
from worker.core.sampling import IntervalPolicy
from worker.errors import AddressRefused, InputInvalid, SecretKeyMissing
from worker.fetching import FetchHost, fail_fetch
from worker.jobs import Handler
from worker.verify import verify_index

SECRET = "hunter2"
MINUTES = iter(range(1, 10_000))


@dataclass
class Clips:
    """A real HTTP server with one clip; ``answers``: what else it says, first come first served."""

    clip: bytes
    answers: list[str] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    let_go: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    def url(self, path: str = "/clip.mp4", login: str = "", scheme: str = "http") -> str:
        return f"{scheme}://{login}127.0.0.1:{self.port}{path}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(dict(request.headers) | {"path": request.path})
        how = self.answers.pop(0) if self.answers else "all"
        if how.isdecimal():
            request.send_response(int(how))
            request.send_header("Location", "http://127.0.0.1:1/elsewhere")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if how == "rubbish":
            request.wfile.write(b"SSH-2.0 hello\r\n\r\n")
            return
        request.send_response(200)
        if how != "no length":
            request.send_header("Content-Length", str(len(self.clip)))
        request.end_headers()
        request.wfile.write(self.clip[: 1000 if how in ("torn", "slow", "held") else None])
        if how == "slow":
            for _ in range(100):
                time.sleep(0.02)
                request.wfile.write(b"x")
        if how == "held":
            self.let_go.wait(30)


@contextmanager
def serving(clips: Clips, context: ssl.SSLContext | None = None) -> Iterator[Clips]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            clips.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass  # who asked went away

    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    clips.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield clips
    finally:
        clips.let_go.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def context(
    services: Services, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Context]:
    changes = {"backbone": "tiny-a", "fetch_hosts": "127.0.0.0/8", "job_max_attempts": 3}
    folder = tmp_path_factory.mktemp("fetching")
    with fresh_context(services.database_url, template_database, folder, **changes) as made:
        yield made


@pytest.fixture
def clips(footage: dict[str, Path]) -> Iterator[Clips]:
    with serving(Clips(footage["car"].read_bytes() + uuid.uuid4().bytes)) as made:
        yield made


def order(context: Context, url: str, minute: int | None = None) -> Submission:
    start = datetime(2026, 2, 1, tzinfo=UTC) + timedelta(minutes=minute or next(MINUTES))
    recording = recording_at(context.settings, url, start, IntervalPolicy(1.0))
    with context.db.transaction() as session:
        camera = video_record.ensure_camera(session, "gate")
        return record_segment(session, camera.id, recording, COMMAND_LINE)


def segment(context: Context, made: Submission) -> Any:
    with context.db.transaction() as session:
        return video_record.find_segment(session, made.segment_id)


def left(context: Context) -> list[str]:
    root = context.recordings.root
    return [path.name for path in root.iterdir()] if root.exists() else []


def test_a_recording_is_fetched_ingested_and_gone(
    context: Context, clips: Clips, capfd: pytest.CaptureFixture[str]
):
    url = clips.url(f"/a/clip.mp4?token={SECRET}", login=f"user:{SECRET}%2F@")
    with capture_logs() as logs:
        made = order(context, url)
        assert (made.kind, made.is_new) == ("fetch", True)
        again = order(context, url.replace("user", "other"), next(MINUTES) - 1)
        waiting = str(sql(context, "select to_jsonb(s) from video_segments s"))
        assert SECRET not in waiting and segment(context, made).fetch_url is not None
        assert (again.segment_id, again.is_new) == (made.segment_id, False)
        run_jobs(context)
    done = segment(context, made)
    assert (done.outcome, done.fetch_url, done.held_sha256) == ("complete", None, None)
    assert done.frame_count >= 3
    assert left(context) == []
    (asked,) = clips.asked
    assert asked["path"] == f"/a/clip.mp4?token={SECRET}"
    login = base64.b64decode(asked["Authorization"].split()[1]).decode()
    assert login == f"user:{SECRET}/"
    assert asked["Host"] == f"127.0.0.1:{clips.port}"
    rows = sql(context, "select to_jsonb(s) from video_segments s")
    rows += sql(context, "select to_jsonb(j) from jobs j")
    rows += sql(context, "select to_jsonb(a) from audit_entries a")
    said = [str(logs), str(rows), repr(made), *capfd.readouterr()]
    assert [text for text in said if SECRET in text] == []
    assert f"http://***@127.0.0.1:{clips.port}/a/clip.mp4?..." in str(rows)


def test_without_a_key_no_password_is_kept(context: Context, clips: Clips, tmp_path: Path):
    keyless = with_settings(context, secret_key=None, data_dir=tmp_path)
    with pytest.raises(SecretKeyMissing):
        order(keyless, clips.url(login=f"u:{SECRET}@"))
    made = order(context, clips.url(login=f"u:{SECRET}@"))
    run_jobs(keyless)
    assert job(context, made.job_id).error_code == "secret_key_missing"
    made = order(keyless, clips.url())
    run_jobs(context)
    assert segment(context, made).outcome == "complete"


def test_without_a_length(context: Context, clips: Clips):
    clips.answers = ["no length"]
    made = order(context, clips.url())
    run_jobs(context)
    assert segment(context, made).outcome == "complete"


@pytest.mark.parametrize("trouble", ["404", "503", "torn", "rubbish"])
def test_what_may_pass_is_tried_again(context: Context, clips: Clips, trouble: str):
    clips.answers = [trouble] * 2
    made = order(context, clips.url())
    run_jobs(context)
    assert (segment(context, made).outcome, len(clips.asked)) == ("complete", 3)
    assert left(context) == []


@pytest.mark.parametrize(
    ("answers", "asked", "reason"),
    [
        (["404"] * 9, 3, "answers 404 Not Found"),
        (["401"] * 9, 1, "answers 401 Unauthorized: check user and password"),
        (["302"] * 9, 1, "answers 302 Found: redirects are not followed"),
        (["410"] * 9, 1, "answers 410 Gone"),
        (["torn"] * 9, 3, "1000 of"),
        (["slow"] * 9, 3, "RIS_FETCH_TIMEOUT_S"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_failures_are_recorded_reasons(
    context: Context, clips: Clips, answers: list[str], asked: int, reason: str
):
    clips.answers = answers
    made = order(context, clips.url(login=f"u:{SECRET}@"))
    run_jobs(with_settings(context, fetch_timeout_s=0.5))
    failed = job(context, made.job_id)
    assert (failed.state, failed.error_code) == ("failed", "fetch_failed")
    assert reason in str(failed.error_detail)
    assert SECRET not in str(failed.error_detail)
    assert len(clips.asked) == asked
    assert (segment(context, made).outcome, segment(context, made).fetch_url) == ("failed", None)
    assert left(context) == []
    clips.answers = []
    minute = (segment(context, made).start_utc - datetime(2026, 2, 1, tzinfo=UTC)).seconds // 60
    again = order(context, clips.url(login=f"u:{SECRET}@"), minute)
    assert (again.segment_id, again.is_new) == (made.segment_id, True)
    run_jobs(context)
    assert segment(context, made).outcome == "complete"


def test_too_large_announced_or_not(context: Context, clips: Clips):
    small = with_settings(context, fetch_max_bytes=5000)
    for answers in ([], ["no length"]):
        clips.answers = list(answers)
        made = order(context, clips.url())
        run_jobs(small)
        failed = job(context, made.job_id)
        assert failed.error_code == "fetch_failed"
        assert "RIS_FETCH_MAX_BYTES" in str(failed.error_detail)
    assert left(context) == []


def test_a_full_disk_is_waited_for(context: Context, clips: Clips):
    free = shutil.disk_usage(context.settings.data_dir).free
    made = order(context, clips.url())
    host = FetchHost()
    full = with_settings(context, min_free_bytes=2 * free)
    host.take(full, uuid.UUID(made.job_id), {"fetch": Handler(host.run, fail_fetch)})
    until(lambda: job(context, made.job_id).retry_code == "storage_full")
    run_jobs(context)
    assert segment(context, made).outcome == "complete"


@pytest.mark.parametrize(
    "url",
    ["ftp://127.0.0.1/a", "file:///etc/passwd", "rtsp://127.0.0.1/a", "http://10.0.0.1/a",
     "http://169.254.169.254/latest", "http://127.0.0.1\\@10.0.0.1/", "http://", "a.mp4"],
)  # fmt: skip
def test_addresses_that_are_not_allowed_are_refused_at_once(context: Context, url: str):
    with pytest.raises(AddressRefused) as refused:
        order(context, url)
    assert "RIS_FEED_HOSTS" not in str(refused.value)
    with pytest.raises(InputInvalid, match="RIS_FETCH_HOSTS"):
        order(with_settings(context, fetch_hosts=None), "http://127.0.0.1/")


def test_a_name_that_leads_elsewhere_is_refused_when_it_is_fetched(context: Context, clips: Clips):
    """Listed by name only, this machine's own address is not meant."""
    named = with_settings(context, fetch_hosts="localhost")
    made = order(named, clips.url().replace("127.0.0.1", "localhost"))
    run_jobs(named)
    failed = job(context, made.job_id)
    assert (failed.error_code, clips.asked) == ("address_refused", [])
    assert "RIS_FETCH_HOSTS" in str(failed.error_detail)


def test_a_certificate_must_be_of_the_name(
    context: Context, footage: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not on this machine: no certificate to serve with")
    for name in ("localhost", "camera.example"):
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        command += ["-keyout", str(tmp_path / f"{name}.key"), "-out", str(tmp_path / f"{name}.crt")]
        command += ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
        subprocess.run(command, check=True, capture_output=True)
    both = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("*.crt")))
    (tmp_path / "ca.pem").write_bytes(both)
    for trusted, name, code in (
        (True, "localhost", None),
        (True, "camera.example", "fetch_failed"),
        (False, "localhost", "fetch_failed"),
    ):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem") if trusted else "/dev/null")
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(tmp_path / f"{name}.crt", tmp_path / f"{name}.key")
        with serving(Clips(footage["car"].read_bytes()), tls) as clips:
            url = clips.url(scheme="https").replace("127.0.0.1", "localhost")
            made = order(context, url)
            run_jobs(context)
            ended = job(context, made.job_id)
            assert ended.error_code == code, ended.error_detail
            assert len(clips.asked) == (1 if code is None else 0)


def test_a_host_fetches_beside_and_gives_up_when_it_stops(context: Context, clips: Clips):
    clips.answers = ["held"]
    host = FetchHost()
    handlers = {**HANDLERS, "fetch": Handler(host.run, fail_fetch)}
    stuck, quick = order(context, clips.url("/1")), order(context, clips.url("/2"))
    began_s = time.monotonic()
    host.take(context, uuid.UUID(stuck.job_id), handlers)
    until(lambda: clips.asked)
    host.take(context, uuid.UUID(quick.job_id), handlers)
    host.take(context, uuid.UUID(quick.job_id), handlers)  # rung twice
    until(lambda: job(context, quick.job_id).state == "done")
    assert time.monotonic() - began_s < 30 and job(context, stuck.job_id).state == "running"
    held = segment(context, quick).held_sha256
    assert held == hashlib.sha256(clips.clip).hexdigest()
    assert verify_index(context).recordings == 1
    host.stop()
    clips.let_go.set()  # the rest never came: it is torn, and tried again by another
    until(lambda: job(context, stuck.job_id).state == "queued")
    run_jobs(context)
    assert segment(context, stuck).outcome == segment(context, quick).outcome == "complete"
