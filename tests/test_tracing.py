"""Traces: off and unloaded by default, without secrets, and never in the way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from models.repositories import jobs as job_record
from models.repositories.jobs import ClaimedJob
from tests.conftest import REPO, Services
from tests.feeding import feed_context, feed_worker, frame_times, until
from tests.otlp_collector import Collector, collecting
from tests.parts import fresh_context, ingested, job, run_jobs, sql
from tests.receiver import receiving
from tests.rtsp_server import Camera
from worker import sealing, tracing
from worker.accepting import webhooks
from worker.accepting.webhooks import AT_COMMAND_LINE
from worker.admin.services import trace_checks
from worker.config import Settings
from worker.context import Context
from worker.core.sampling import IntervalPolicy
from worker.delivering import deliver_due
from worker.embedded.child_process import free_port
from worker.errors import InputInvalid, SetupFailed, StorageFull
from worker.feeds import add_feed, pause_feed
from worker.jobs import Handler, Lease, Outcome, run_job
from worker.reindex import submit_reindex
from worker.scanning import answer_scan
from worker.sealing import submit_due

START = datetime(2026, 1, 1, tzinfo=UTC)
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        tracing.start("test", Settings(otlp_endpoint=made.url))
        yield made
        tracing.stop()


@pytest.fixture(scope="module")
def context(
    services: Services, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Context]:
    given = {"backbone": "tiny-a", "webhook_hosts": "127.0.0.0/8", "commit_batch": 3}
    folder = tmp_path_factory.mktemp("traces")
    with fresh_context(services.database_url, template_database, folder, **given) as made:
        yield made


def own_process(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "RIS_"))}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "RIS_BROKER_URL": "redis://127.0.0.1:1/0", **env},
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )


def test_off_by_default_and_then_the_sdk_is_not_loaded() -> None:
    said = own_process(
        "import sys, threading; import worker.tasks, api.app; from worker import tracing;"
        "from worker.config import settings; assert not tracing.start('test', settings());"
        "assert tracing.span('a', b=1) is tracing.NOTHING is tracing.entry('a', 'b');"
        "assert tracing.carried() == {};"
        # redis-py loads the SDK's metrics where it is installed, whatever is set.
        "print([m for m in sys.modules if m.startswith(('opentelemetry.sdk.trace',"
        " 'opentelemetry.exporter', 'worker.tracing.otlp'))], threading.active_count())"
    )
    assert said.stdout.split() == ["[]", "1"], said.stderr


@pytest.mark.parametrize("name", ["opentelemetry.sdk", "opentelemetry.exporter"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for loaded in [loaded for loaded in sys.modules if loaded.startswith(name)]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SetupFailed, match=r"RIS_OTLP_ENDPOINT .* opentelemetry-sdk"):
        tracing.start("test", Settings(otlp_endpoint="http://127.0.0.1:4318"))
    # The standard's variable may be there for other programs: no reason not to start.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert not tracing.start("test", Settings())


def test_up_refuses_and_doctor_says_why() -> None:
    code = (
        "import sys; sys.modules['opentelemetry.sdk'] = None; sys.argv[1:] = ['up'];"
        "from worker.admin.cli import main; main()"
    )
    said = own_process(code, RIS_OTLP_ENDPOINT="http://127.0.0.1:4318")
    assert said.returncode == 1
    assert "setup_failed" in said.stderr and "opentelemetry-sdk" in said.stderr
    with collecting() as collector:
        for path, ok in (("", True), ("/elsewhere", False)):
            [(check, works, detail)] = trace_checks(Settings(otlp_endpoint=collector.url + path))
            assert (check, works) == ("traces", ok)
            assert ok or "RIS_OTLP_ENDPOINT" in detail
    assert not collector.spans and trace_checks(Settings()) == []


def test_the_standards_variables_are_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
        for name, value in (
            ("OTEL_SDK_DISABLED", "true"),
            ("OTEL_TRACES_EXPORTER", "none"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ):
            with monkeypatch.context() as changed:
                changed.setenv(name, value)
                assert not tracing.start("test", Settings())
        assert tracing.start("test", Settings())
        with tracing.entry("a"):
            pass
        tracing.stop()
        assert [span.service for span in collector.spans] == ["mine"]
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
        assert tracing.start("test", Settings())
        with tracing.entry("b") as unsampled:
            assert tracing.span("c") is tracing.NOTHING
            flags = int(tracing.carried()["traceparent"][-2:], 16)
            assert flags & 1 == 0  # nor do others make any
            unsampled.note(d=1)
        tracing.stop()
        assert len(collector.spans) == 1
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "1")  # less than is sent at once
        assert not tracing.start("test", Settings())  # they may be meant for other programs
        with pytest.raises(SetupFailed, match="OTEL_"):
            tracing.start("test", Settings(otlp_endpoint=collector.url))


def test_spans_tell_codes_and_not_texts(collector: Collector) -> None:
    with pytest.raises(InputInvalid), tracing.entry("outer", "no traceparent"):
        with tracing.span("inner", a=None, b=uuid.UUID(int=1)):
            tracing.note(c=2)
        raise InputInvalid("rtsp://user:secret@camera")
    with pytest.raises(KeyError), tracing.entry("other"):
        raise KeyError("secret")
    tracing.stop()
    outer, other = collector.one("outer"), collector.one("other")
    assert outer.failed and outer.attributes == {"error.type": "input_invalid"}
    assert other.failed and other.attributes == {"error.type": "KeyError"}
    assert outer.service == "ris-test" and not outer.parent
    inner = collector.one("inner")
    assert inner.attributes == {"ris.b": str(uuid.UUID(int=1)), "ris.c": 2} and not inner.failed
    assert (inner.trace, inner.parent) == (outer.trace, outer.id)
    assert b"secret" not in b"".join(collector.raw)


def test_an_ingest_tells_its_batches(
    context: Context, collector: Collector, footage: dict[str, Path]
) -> None:
    ingested(context, footage["bikes"], "private name", 2.0, start_utc=START)
    tracing.stop()
    top = collector.one("job ingest")
    assert not top.parent and top.attributes["ris.outcome"] == "finished"
    assert {"ris.job_id", "ris.segment_id", "ris.camera_id", "ris.attempt"} <= set(top.attributes)
    assert {span.trace for span in collector.spans} == {top.trace}
    stages = {"ingest.decode", "ingest.embed", "ingest.commit", "index.append"}
    assert collector.below(top) == stages
    frames = [span.attributes["ris.frames"] for span in collector.named("ingest.decode")]
    assert sum(frames) == sum(
        span.attributes["ris.frames"] for span in collector.named("index.append")
    )
    assert len([count for count in frames if count]) == len(collector.named("ingest.embed")) > 1
    raw = b"".join(collector.raw)
    for secret in ("private name", str(footage["bikes"]), str(context.settings.database_url)):
        assert secret.encode() not in raw


def test_a_reindex_and_a_sealing_tell_their_steps(
    context: Context,
    collector: Collector,
    footage: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sealing, "MIN_FRAMES", 4)
    monkeypatch.setattr(sealing, "seal_distance", lambda _name: 0.2)
    ingested(context, footage["car"], "private yard", 0.4, start_utc=START)
    sealed = submit_due(context, after_s=0.0)
    run_jobs(context)
    with tracing.entry("request", GIVEN):
        made = submit_reindex(context, "tiny-b")
    run_jobs(context)
    assert job(context, made.job_id).state == "done" and sealed is not None
    tracing.stop()
    seal = collector.one("job seal")
    assert collector.below(seal) == {"seal.shard"}
    assert 10 in [span.attributes["ris.frames"] for span in collector.named("seal.shard")]
    reindex = collector.one("job reindex")
    assert reindex.links == (TRACE,) and reindex.attributes["ris.outcome"] == "finished"
    assert reindex.attributes["ris.generation_id"] == made.generation_id
    steps = {"reindex.batch", "reindex.verify", "reindex.close", "index.append"}
    assert steps <= collector.below(reindex)
    embedded = sum(span.attributes["ris.frames"] for span in collector.named("reindex.batch"))
    assert embedded == sql(context, "select count(*) from frames")[0][0]
    assert b"private yard" not in b"".join(collector.raw)


def test_slices_of_a_feed_are_a_trace_each(
    services: Services, template_database: str, tmp_path: Path, collector: Collector
) -> None:
    with (
        feed_context(services, template_database, tmp_path) as fed,
        Camera(user="ris", password="marker-secret") as camera,
        feed_worker(fed),
    ):
        add_feed(fed, "private gate", camera.url, IntervalPolicy(0.5))
        until(lambda: len(frame_times(fed, "private gate")) >= 8, what="slices of a camera")
        pause_feed(fed, "private gate")
    tracing.stop()
    slices = collector.named("job feed")
    assert len(slices) > 1 and len({span.trace for span in slices}) == len(slices)
    assert not any(span.parent for span in slices)
    batches = collector.named("feed.batch")
    assert batches and {span.parent for span in batches} == {""}
    assert set().union(*map(collector.below, batches)) == {"feed.embed", "index.append"}
    appended = [span.attributes["ris.frames"] for span in collector.named("index.append")]
    assert sum(span.attributes["ris.frames"] for span in batches) == sum(appended) >= 8
    raw = b"".join(collector.raw)
    for secret in ("marker-secret", "private gate", camera.url):
        assert secret.encode() not in raw


@pytest.mark.parametrize(("kind", "own"), [("query", False), ("feed", True)])
def test_tries_of_a_job_are_in_the_trace_that_ordered_it(
    context: Context, collector: Collector, kind: str, own: bool
) -> None:
    """Feeds go on for days, and begin a trace a slice."""
    with tracing.entry("request", GIVEN), context.db.transaction() as session:
        job_id = job_record.submit(session, kind, kind, tracing.carried())
    tries: list[int] = []

    def fails_once(_context: Context, _job: ClaimedJob, lease: Lease) -> Outcome:
        tries.append(1)
        if len(tries) == 1:
            raise StorageFull("/private/place is full")
        with context.db.transaction() as session:
            lease.finish(session, {})
        return "finished"

    deadline_s = time.monotonic() + 60
    while job(context, job_id).state != "done" and time.monotonic() < deadline_s:
        run_job(context, job_id, {kind: Handler(fails_once)})
        time.sleep(0.01)  # until it is tried again
    tracing.stop()
    request = collector.one("request")
    assert (request.trace, request.parent) == (TRACE, SPAN)
    first, second = sorted(collector.named(f"job {kind}"), key=lambda span: not span.failed)
    assert first.failed and first.attributes["error.type"] == "storage_full"
    assert not second.failed and second.attributes["ris.outcome"] == "finished"
    for span in (first, second):
        if own:
            assert span.trace != TRACE and span.links == (TRACE,)
        else:
            assert (span.trace, span.parent, span.links) == (TRACE, request.id, ())
    assert b"/private/place" not in b"".join(collector.raw)


def test_a_delivery_is_traced_and_its_receiver_is_not_told(
    context: Context, collector: Collector, footage: dict[str, Path]
) -> None:
    with receiving() as receiver:
        url = f"{receiver.url}/private"
        with context.db.transaction() as session:
            webhooks.create_webhook(
                session, AT_COMMAND_LINE, name="a", url=url, kinds=["segment.ingested"]
            )
        ingested(context, footage["bikes"], "told", 2.0, start_utc=START)
        assert deliver_due(context) == 1
        assert "traceparent" not in {name.lower() for name in receiver.got[0].headers}
    tracing.stop()
    delivery = collector.one("webhook.delivery", event_kind="segment.ingested", attempt=1)
    assert delivery.attributes["http.response.status_code"] == 204 and not delivery.failed
    assert b"/private" not in b"".join(collector.raw)
    assert b"told" not in b"".join(collector.raw)


def test_a_scan_worker_goes_on_with_the_querys_trace(
    context: Context, collector: Collector
) -> None:
    with pytest.raises(InputInvalid):
        answer_scan(context, {"traceparent": GIVEN})
    tracing.stop()
    scan = collector.one("scan")
    assert (scan.trace, scan.parent, scan.failed) == (TRACE, SPAN, True)


@pytest.mark.parametrize("hangs", [True, False])
def test_a_collector_that_is_away_holds_nothing_up(
    hangs: bool,
) -> None:
    with collecting() as collector:
        collector.hanging.set()
        url = collector.url if hangs else f"http://127.0.0.1:{free_port()}"
        tracing.start("test", Settings(otlp_endpoint=url))
        with tracing.entry("top"):
            for _ in range(5000):  # more than may wait
                with tracing.span("part"):
                    pass
        began_s = time.monotonic()
        tracing.stop()
        assert time.monotonic() - began_s < 15  # the library itself waits for thirty
        assert tracing.span("after") is tracing.NOTHING
