"""Events over a real MQTT broker: to a topic of ours, at least once, whatever breaks in between."""

from __future__ import annotations

import json
import os
import queue
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.conftest import Services
from tests.mqtt_broker import Broker
from tests.parts import fresh_context, sql, with_settings
from worker.accepting import webhooks as accepting
from worker.accepting.events import tell_feed
from worker.accepting.webhooks import AT_COMMAND_LINE
from worker.context import Context
from worker.delivering import deliver_due
from worker.errors import AddressRefused, InputInvalid

TOPIC = "ris/events/site a"
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    made = Broker(tmp_path_factory.mktemp("broker"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def shared(
    services: Services,
    template_database: str,
    tmp_path_factory: pytest.TempPathFactory,
    broker: Broker,
) -> Iterator[Context]:
    given = {
        "mqtt_url": SecretStr(broker.url),
        "webhook_retry_base_s": 0.01,
        "webhook_timeout_s": 20.0,  # a busy machine
    }
    folder = tmp_path_factory.mktemp("mqtt-out")
    with fresh_context(services.database_url, template_database, folder, **given) as made:
        yield made


@pytest.fixture
def context(shared: Context) -> Context:
    sql(shared, "truncate webhooks, events cascade")
    return shared


@pytest.fixture
def heard(broker: Broker) -> Iterator[queue.Queue[Any]]:
    """What a subscriber of ours gets: topic, message, QoS."""
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    got: queue.Queue[Any] = queue.Queue()
    subscribed: queue.Queue[Any] = queue.Queue()
    client = Client(CallbackAPIVersion.VERSION2)
    client.username_pw_set("ris", "s/cret")
    client.on_message = lambda _client, _data, message: got.put(
        (message.topic, json.loads(message.payload), message.qos)
    )
    client.on_subscribe = lambda *_: subscribed.put(True)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    client.subscribe("ris/#", qos=1)
    subscribed.get(timeout=60)
    yield got
    client.disconnect()
    client.loop_stop()


def told_at(context: Context, url: str) -> int:
    address = accepting.checked_url(context.settings, url)
    with context.db.transaction() as session:
        given = {"name": "a", "url": address, "kinds": ["feed.down"]}
        made, _ = accepting.create_webhook(session, AT_COMMAND_LINE, **given)  # type: ignore[arg-type]
    return made.id


def happen(context: Context) -> None:
    with context.db.transaction() as session:
        tell_feed(session, "feed.down", 7, "yard", since_utc=START, reason="stalled")


def deliveries(context: Context) -> list[tuple[Any, ...]]:
    return sql(context, "select state, attempts, status, detail from deliveries")


def test_an_event_goes_to_its_topic_once_the_broker_has_it(context, heard):
    webhook_id = told_at(context, f"MQTT:{TOPIC}")
    happen(context)
    assert deliver_due(context) == 1
    topic, message, qos = heard.get(timeout=60)
    assert (topic, qos) == (TOPIC, 1)
    assert message["type"] == "feed.down"
    assert message["data"]["camera"] == "yard"
    (event_id,) = sql(context, "select event_id::text from deliveries")[0]
    assert message["id"] == event_id
    assert deliveries(context)[0][0] == "delivered"
    shown = sql(context, "select url from webhooks where id = %s", webhook_id)
    assert shown == [(f"mqtt:{TOPIC}",)]
    assert accepting.shown_url(f"mqtt:{TOPIC}") == f"mqtt:{TOPIC}"


def test_a_worker_with_many_files_open_tells_its_broker(context, heard):
    """Of 1,024 and more: what select(2) refuses."""
    told_at(context, f"mqtt:{TOPIC}")
    happen(context)
    with (context.settings.data_dir / "held").open("w") as file, ExitStack() as held:
        for _ in range(1100):
            held.callback(os.close, os.dup(file.fileno()))
        deliver_due(context)
    assert deliveries(context)[0][0] == "delivered"
    assert heard.get(timeout=60)[0] == TOPIC


def test_a_broker_that_is_away_gets_it_when_it_is_back(context, broker):
    told_at(context, f"mqtt:{TOPIC}")
    happen(context)
    broker.stop()
    deliver_due(with_settings(context, webhook_retry_base_s=30.0))
    state, attempts, status, detail = deliveries(context)[0]
    assert (state, attempts, status) == ("pending", 1, None)
    assert "refused" in detail
    broker.start()
    sql(context, "update deliveries set next_try_at = now()")
    sql(context, "update webhooks set rest_until = null")
    deliver_due(context)
    assert deliveries(context)[0][0] == "delivered"


def test_a_broker_that_does_not_know_us_is_told_apart(context, broker):
    told_at(context, f"mqtt:{TOPIC}")
    happen(context)
    wrong = SecretStr(f"mqtt://ris:wrong@127.0.0.1:{broker.port}")
    deliver_due(with_settings(context, mqtt_url=wrong, webhook_retry_base_s=30.0))
    detail = deliveries(context)[0][3]
    assert "Not authorized" in detail
    assert "wrong" not in detail


def test_without_a_broker_any_more_it_waits_and_says_why(context):
    told_at(context, f"mqtt:{TOPIC}")
    happen(context)
    deliver_due(with_settings(context, mqtt_url=None, webhook_retry_base_s=30.0))
    assert "RIS_MQTT_URL is not set" in deliveries(context)[0][3]


def test_a_prefix_that_was_changed_holds_for_those_made_before(context, heard):
    told_at(context, f"mqtt:{TOPIC}")
    happen(context)
    deliver_due(with_settings(context, mqtt_out_prefix="other/", webhook_retry_base_s=30.0))
    assert "not below 'other/'" in deliveries(context)[0][3]
    assert heard.empty()


def test_a_broker_address_that_is_none_does_not_hold_up_others(context):
    told_at(context, f"mqtt:{TOPIC}")
    happen(context)
    wrong = SecretStr("http://broker/")
    deliver_due(with_settings(context, mqtt_url=wrong, webhook_retry_base_s=30.0))
    assert "RIS_MQTT_URL is no mqtt:" in deliveries(context)[0][3]


@pytest.mark.parametrize(
    ("url", "error", "match"),
    [
        ("mqtt:home/doors/front", AddressRefused, "below 'ris/events/'"),
        ("mqtt:ris/recordings", AddressRefused, "below"),
        ("mqtt:ris/events/", AddressRefused, "below"),
        ("mqtt:", AddressRefused, "below"),
        ("mqtt://broker/ris/events", AddressRefused, "below"),
        ("mqtt:ris/events/+/a", InputInvalid, "no \\+"),
        ("mqtt:ris/events/#", InputInvalid, "no \\+"),
        ("mqtt:ris/events/a\0b", InputInvalid, "printed"),
        ("mqtt:ris/events/" + "a" * 500, InputInvalid, "500 bytes"),
    ],
)
def test_other_topics_are_refused(context, url: str, error: type[Exception], match: str):
    with pytest.raises(error, match=match):
        accepting.checked_url(context.settings, url)


def test_without_a_broker_no_topic_is_taken(context, tmp_path: Path):
    with pytest.raises(AddressRefused, match="RIS_MQTT_URL"):
        accepting.checked_url(with_settings(context, mqtt_url=None).settings, "mqtt:ris/events")
