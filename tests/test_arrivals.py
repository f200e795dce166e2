"""Recordings told of over a real MQTT broker: taken once committed, whatever breaks in between."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from models.repositories import arrivals as arrival_record
from models.session import DatabaseUnavailable
from tests.conftest import Services
from tests.core.test_arrival_messages import EVENT, OURS, REVIEW, with_after
from tests.feeding import until
from tests.mqtt_broker import Broker
from tests.parts import fresh_context, run_jobs, sql, with_settings
from tests.test_fetching import Clips, serving
from worker import arrivals
from worker.accepting.segments import record_segment
from worker.arrivals import listen
from worker.config import Settings
from worker.context import Context
from worker.embedded.children import listener_children
from worker.erasure import camera_span, submit_erasure
from worker.errors import InputInvalid
from worker.mqtt.subscription import broker_address

TOPICS = "frigate/events,frigate/reviews,ris/recordings"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    made = Broker(tmp_path_factory.mktemp("broker"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def clips(footage: dict[str, Path]) -> Iterator[Clips]:
    with serving(Clips(footage["car"].read_bytes())) as made:
        yield made


@pytest.fixture(scope="module")
def context(
    services: Services,
    template_database: str,
    tmp_path_factory: pytest.TempPathFactory,
    broker: Broker,
    clips: Clips,
) -> Iterator[Context]:
    given = {
        "backbone": "tiny-a",
        "fetch_hosts": "127.0.0.0/8",
        "mqtt_url": broker.url,
        "mqtt_topics": TOPICS,
        "frigate_url": clips.url("", login="user:hunter2@"),
        "frigate_settle_s": 0.0,
    }
    folder = tmp_path_factory.mktemp("arrivals")
    with fresh_context(services.database_url, template_database, folder, **given) as made:
        yield made


@pytest.fixture
def camera() -> str:
    return f"camera {time.monotonic_ns()}"


@contextmanager
def listening(context: Context) -> Iterator[threading.Event]:
    """A listener as its process runs it."""
    stopping = threading.Event()
    thread = threading.Thread(target=listen, args=(context, stopping), daemon=True)
    thread.start()
    try:
        yield stopping
    finally:
        stopping.set()
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def recorder(broker: Broker) -> Iterator[Any]:
    """A client that publishes with QoS 1."""
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    client = Client(CallbackAPIVersion.VERSION2)
    client.username_pw_set("ris", "s/cret")
    client.connect("127.0.0.1", broker.port)
    client.loop_start()

    def publish(topic: str, message: Any) -> None:
        raw = message if isinstance(message, bytes) else json.dumps(message)
        client.publish(topic, raw, qos=1).wait_for_publish(20)

    yield publish
    client.disconnect()
    client.loop_stop()


def ours(clips: Clips, camera: str, minute: int) -> dict[str, Any]:
    start = f"2026-05-01T08:{minute:02}:00Z"
    return OURS | {"camera": camera, "url": clips.url(), "start_utc": start}


def segments(context: Context, camera: str) -> list[tuple[Any, ...]]:
    statement = """select extract(epoch from start_utc)::float8, outcome, source_path
        from video_segments s join cameras c on c.id = camera_id where c.name = %s order by 1"""
    return sql(context, statement, camera)


def counts(context: Context) -> dict[str, int]:
    with context.db.transaction() as session:
        return {one.outcome: one.messages for one in arrival_record.counts(session)}


def ready(context: Context, broker: Broker) -> None:
    """Subscribed once: from here on the broker keeps what is published."""
    with capture_logs() as logs, listening(context):
        until(lambda: any(entry["event"] == "mqtt_connected" for entry in logs))
        time.sleep(0.3)


def test_events_reviews_and_ours_are_fetched_and_ingested(
    context: Context, broker: Broker, clips: Clips, camera: str
):
    with capture_logs() as logs, listening(context), recorder(broker) as publish:
        until(lambda: any(entry["event"] == "mqtt_connected" for entry in logs))
        time.sleep(0.3)
        for kind in ("new", "update", "end"):
            publish("frigate/events", with_after(EVENT | {"type": kind}, camera=camera))
            publish("frigate/reviews", with_after(REVIEW | {"type": kind}, camera=camera))
        publish("ris/recordings", ours(clips, camera, 0))
        publish("ris/recordings", ours(clips, camera, 0))
        publish("ris/other", ours(clips, camera, 1))
        until(lambda: counts(context).get("accepted", 0) >= 4)
    run_jobs(context)
    found = segments(context, camera)
    assert [(start, outcome) for start, outcome, _ in found] == [
        (1607123955.475377, "complete"),
        (1718987129.308396, "complete"),
        (1777622400.0, "complete"),
    ]
    asked = [one["path"] for one in clips.asked]
    assert "/api/events/1607123955.475377-mxklsc/clip.mp4" in asked
    everything = str(logs) + str(sql(context, "select to_jsonb(s) from video_segments s"))
    everything += str(sql(context, "select to_jsonb(a) from audit_entries a"))
    assert "hunter2" not in everything and "s/cret" not in everything


def test_malformed_and_refused_messages_are_counted_and_no_crash(
    context: Context, broker: Broker, clips: Clips, camera: str
):
    before = counts(context)
    with listening(context), recorder(broker) as publish:
        for raw in (b"", b"online", b"\xff", b"[1]", b'{"type": "end", "after": {}}'):
            publish("ris/recordings", raw)
        publish("ris/recordings", ours(clips, "\ud800", 0))
        publish("ris/recordings", ours(clips, "a\0b", 0))
        publish("ris/recordings", ours(clips, camera, 1) | {"url": "http://10.0.0.1/secret.mp4"})
        publish("ris/recordings", ours(clips, camera, 1) | {"policy": "sometimes"})
        publish("ris/recordings", ours(clips, camera, 2))
        until(lambda: segments(context, camera))
    now = counts(context)
    gained = {name: now[name] - before.get(name, 0) for name in now}
    assert gained["accepted"] == 1
    assert gained["malformed"] + gained["refused"] == 9
    assert gained["refused"] >= 2
    names = [row[0] for row in sql(context, "select name from cameras")]
    assert "a\0b" not in names
    with context.db.transaction() as session:
        told = {one.outcome: one.last_detail for one in arrival_record.counts(session)}
    assert "ris/recordings: policy 'sometimes' is unknown" in str(told["refused"])
    run_jobs(context)


def test_what_comes_while_nobody_listens_is_taken_later(
    context: Context, broker: Broker, clips: Clips, camera: str
):
    ready(context, broker)
    with recorder(broker) as publish:
        for minute in range(3):
            publish("ris/recordings", ours(clips, camera, minute))
    assert segments(context, camera) == []
    with listening(context):
        until(lambda: len(segments(context, camera)) == 3)
    run_jobs(context)


def test_a_message_is_acknowledged_only_once_it_is_in_the_record(
    context: Context, broker: Broker, clips: Clips, camera: str, monkeypatch: pytest.MonkeyPatch
):
    """Postgres fails at the first tries: the same message comes again, and is lost nowhere."""
    ready(context, broker)
    real, tries = record_segment, []

    def failing(*given: Any) -> Any:
        tries.append(given)
        if len(tries) <= 2:
            raise DatabaseUnavailable("away")
        return real(*given)

    monkeypatch.setattr(arrivals, "record_segment", failing)
    monkeypatch.setattr(arrivals, "_STAND_BY_S", 0.1)
    with recorder(broker) as publish:
        publish("ris/recordings", ours(clips, camera, 0))
    with capture_logs() as logs, listening(context):
        until(lambda: segments(context, camera))
        time.sleep(0.5)
    assert len(tries) == 3, "acknowledged with the third, not again"
    waits = [entry for entry in logs if entry["event"] == "listening_waits_for_postgres"]
    assert len(waits) == 2
    run_jobs(context)


def test_a_message_waits_while_footage_of_its_camera_is_erased(
    context: Context, broker: Broker, clips: Clips, camera: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(arrivals, "_STAND_BY_S", 0.1)
    with capture_logs() as logs, listening(context), recorder(broker) as publish:
        publish("ris/recordings", ours(clips, camera, 0))
        until(lambda: len(segments(context, camera)) == 1)
        run_jobs(context)
        submit_erasure(context, camera_span(context, camera, None, None)[0])
        publish("ris/recordings", ours(clips, camera, 1))
        until(lambda: any(entry["event"] == "message_waits" for entry in logs))
        run_jobs(context)
        until(lambda: segments(context, camera))
    run_jobs(context)
    assert [outcome for _, outcome, _ in segments(context, camera)] == ["complete"]


def test_a_broker_that_restarts_and_one_that_is_away(
    context: Context, broker: Broker, clips: Clips, camera: str
):
    with listening(context):
        with recorder(broker) as publish:
            publish("ris/recordings", ours(clips, camera, 0))
        until(lambda: len(segments(context, camera)) == 1)
        broker.stop()
        time.sleep(0.5)
        broker.start()
        with recorder(broker) as publish:
            publish("ris/recordings", ours(clips, camera, 1))
        until(lambda: len(segments(context, camera)) == 2)
    broker.stop()
    with capture_logs() as logs, listening(context):
        until(lambda: any(entry["event"] == "mqtt_unreachable" for entry in logs))
    broker.start()
    wrong = SecretStr(broker.url.replace("cret", "wrong"))
    with capture_logs() as logs, listening(with_settings(context, mqtt_url=wrong)):
        until(lambda: any(entry["event"] == "mqtt_refused" for entry in logs))
    assert "wrong" not in str(logs)
    run_jobs(context)


def test_two_listeners_do_no_harm(
    context: Context, broker: Broker, clips: Clips, camera: str, monkeypatch: pytest.MonkeyPatch
):
    """One listens, the other stands by and follows it; with one name they would push each other
    off the broker for ever."""
    monkeypatch.setattr(arrivals, "_STAND_BY_S", 0.1)
    with capture_logs() as logs, listening(context) as first, recorder(broker) as publish:
        until(lambda: any(entry["event"] == "mqtt_connected" for entry in logs))
        with listening(replace(context)):
            for minute in range(5):
                publish("ris/recordings", ours(clips, camera, minute))
            until(lambda: len(segments(context, camera)) == 5)
            assert sum(entry["event"] == "mqtt_connected" for entry in logs) == 1
            first.set()
            publish("ris/recordings", ours(clips, camera, 5))
            until(lambda: len(segments(context, camera)) == 6)
    run_jobs(context)


def test_a_clip_of_frigate_is_left_time_to_be_finished(
    context: Context, broker: Broker, clips: Clips, camera: str
):
    rung: list[Any] = []
    patient = with_settings(context, frigate_settle_s=600.0)
    patient = replace(patient, ring=lambda _id, kind: rung.append(kind))
    with listening(patient), recorder(broker) as publish:
        time.sleep(1.0)
        publish("frigate/events", with_after(EVENT, camera=camera, id="x"))
        publish("ris/recordings", ours(clips, camera, 0))
        until(lambda: len(segments(context, camera)) == 2)
    assert rung == ["fetch"], "of ours; Frigate's is rung by the sweeper"
    due = """select round(extract(epoch from run_after - j.created_at))::int from jobs j
        join video_segments s on s.job_id = j.id join cameras c on c.id = s.camera_id
        where c.name = %s order by 1"""
    assert sql(context, due, camera) == [(0,), (600,)]
    sql(context, "update jobs set run_after = now() where state = 'queued'")
    run_jobs(context)


@pytest.mark.parametrize(
    "url", ["http://h", "mqtt:///", "h:1883", "mqtt://h:x", "mqtt://h/topic", "mqtt://u:p#w@h"]
)
def test_addresses_of_brokers_that_are_none(url: str):
    with pytest.raises(InputInvalid) as refused:
        broker_address(url)
    assert url not in str(refused.value)


def test_addresses_of_brokers():
    address = broker_address("mqtts://u%40x:p%2Fw@broker")
    assert (address.host, address.port, address.tls) == ("broker", 8883, True)
    assert (address.user, address.password) == ("u@x", "p/w")
    assert "p/w" not in repr(address)


def test_a_process_of_its_own_only_where_a_broker_is_set():
    assert listener_children(Settings()) == ()
    (child,) = listener_children(Settings(mqtt_url=SecretStr("mqtt://h")))
    assert child.name == "listener"
