"""Delivering events: at least once, retried ever later, given up in the end.

A worker takes a webhook's turn, so that a slow receiver holds up one thread and no other receiver.
Each try is recorded before the next: a worker that is killed in between leaves an event that is
sent once more, under the same id.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

import structlog

from models.events import Delivery, Webhook
from models.repositories import events as event_record
from worker.accepting.webhooks import signing_secrets, webhook_rules
from worker.config import Settings
from worker.context import Context
from worker.core.backoff import retry_delay_s
from worker.errors import InputInvalid
from worker.event_transport import EventTransport, HttpTransport, Message, MqttTransport, Receipt
from worker.mqtt.publishing import Publisher
from worker.mqtt.subscription import broker_address
from worker.tracing import Value, entry, note, note_failure

log = structlog.get_logger()

LONGEST_RETRY_S: Final = 6 * 3600.0
GIVE_UP_S: Final = 3 * 86_400.0
"""However few times it was tried: a receiver that was away for so long starts anew."""
REST_MAX_S: Final = 60.0
"""A webhook that failed is left alone no longer than this, so that one that is back hears soon."""
_TURN_S: Final = 20.0
_HOLD_S: Final = 60.0
_spread = random.SystemRandom()

Transports = Mapping[str, EventTransport]
"""Ways out by the scheme of an address."""


def transports_of(context: Context) -> Transports:
    """The ways out that there are."""
    settings = context.settings
    http = HttpTransport(webhook_rules(settings), settings.webhook_timeout_s)
    return {"http": http, "https": http, "mqtt": _mqtt(settings)}


def _mqtt(settings: Settings) -> MqttTransport:
    prefix = settings.mqtt_out_prefix
    if settings.mqtt_url is None:
        return MqttTransport(None, prefix)
    try:
        address = broker_address(settings.mqtt_url.get_secret_value())
    except InputInvalid as error:  # no reason to keep events from others
        return MqttTransport(None, prefix, str(error))
    publisher = Publisher(address, settings.mqtt_ca_file, settings.webhook_timeout_s)
    return MqttTransport(publisher, prefix)


def deliver_due(context: Context, transports: Transports | None = None) -> int:
    """Send what is due, webhook by webhook; returns how many tries were made. Short: what is left
    after a while is for the next ring."""
    ways = transports_of(context) if transports is None else transports
    until_s, tries = time.monotonic() + _TURN_S, 0
    while time.monotonic() < until_s:
        with context.db.transaction() as session:
            webhook = event_record.take_turn(session, _HOLD_S + context.settings.webhook_timeout_s)
        if webhook is None:
            break
        tries += _turn(context, webhook, ways, until_s)
    return tries


def _turn(context: Context, webhook: Webhook, ways: Transports, until_s: float) -> int:
    """Send to one webhook until nothing is due, one fails, or time is up."""
    tries = 0
    try:
        while time.monotonic() < until_s:
            with context.db.transaction() as session:
                delivery = event_record.next_due(session, webhook.id)
                secrets = signing_secrets(session, webhook.id)
            if delivery is None or not secrets:
                break
            tries += 1
            receipt = _try(context, webhook, delivery, ways, secrets)
            if receipt.trouble is not None:
                break
    finally:
        with context.db.transaction() as session:
            event_record.change_webhook(session, webhook.id, {"held_until": None})
    return tries


def _try(
    context: Context,
    webhook: Webhook,
    delivery: Delivery,
    ways: Transports,
    secrets: Sequence[str],
) -> Receipt:
    """Send an event once, and record how that went. A trace of its own, which the receiver is not
    told of."""
    about: dict[str, Value] = {
        "webhook_id": webhook.id,
        "event_id": delivery.event_id,
        "event_kind": delivery.event.kind,
        "attempt": delivery.attempts + 1,
    }
    with entry("webhook.delivery", kind="producer", attributes=about):
        way = ways.get(urlsplit(webhook.url).scheme.lower())
        receipt = (
            Receipt(None, "addresses of this kind are not served")
            if way is None
            else way.send(webhook.url, message_of(delivery), secrets)
        )
        note(**{"http.response.status_code": receipt.status})
        if receipt.trouble is not None:
            note_failure("not_delivered")
        _record(context, webhook, delivery, receipt)
    return receipt


def message_of(delivery: Delivery) -> Message:
    """What is sent of an event: the same bytes each time."""
    event = delivery.event
    told = {"type": event.kind, "timestamp": event.created_at.isoformat(), "data": event.data}
    body = json.dumps(told, sort_keys=True, separators=(",", ":")).encode()
    return Message(str(event.id), event.kind, body)


def _record(context: Context, webhook: Webhook, delivery: Delivery, receipt: Receipt) -> None:
    settings, place = context.settings, (webhook.id, delivery.event_id)
    if receipt.trouble is None:
        with context.db.transaction() as session:
            event_record.record_delivered(session, *place, receipt.status)
        return
    attempts = delivery.attempts + 1
    delay_s = retry_delay_s(
        attempts, settings.webhook_retry_base_s, LONGEST_RETRY_S, _spread.random()
    )
    rest_s = retry_delay_s(webhook.failures + 1, settings.webhook_retry_base_s, REST_MAX_S, 1.0)
    last = receipt.gone or attempts >= settings.webhook_attempts
    with context.db.transaction() as session:
        event_record.record_failed(
            session,
            *place,
            status=receipt.status,
            detail=receipt.trouble,
            retry_s=None if last else delay_s,
            rest_s=rest_s,
        )
        if receipt.gone:
            event_record.change_webhook(session, webhook.id, {"state": "gone"})
    log.warning(
        "event_not_delivered",
        webhook_id=webhook.id,
        event_id=str(delivery.event_id),
        attempts=attempts,
        detail=receipt.trouble,
    )


def clean_up(context: Context) -> None:
    """Give up what is too old, and forget what ended long ago."""
    with context.db.transaction() as session:
        given_up = event_record.give_up(session, GIVE_UP_S)
        event_record.forget(session, context.settings.event_days)
    if given_up:
        log.warning("events_given_up", deliveries=given_up)
