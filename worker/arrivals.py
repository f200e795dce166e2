"""Messages of a broker become segments whose recording is fetched; acknowledged once committed."""

from __future__ import annotations

import threading
import uuid
from typing import Final

import structlog

from models.repositories import arrivals as arrival_record
from models.session import DatabaseUnavailable, Session
from worker.accepting.desk import MESSAGES
from worker.accepting.feeds import feed_camera
from worker.accepting.segments import record_segment, recording_at
from worker.config import Settings
from worker.context import Context
from worker.core.arrival_messages import Arrival, read_message
from worker.core.sampling import policy_named
from worker.errors import AddressRefused, InputInvalid, SecretKeyMissing
from worker.mqtt.subscription import BrokerMessage, Subscription, broker_address

log = structlog.get_logger()

SOURCE: Final = "mqtt"
_STAND_BY_S: Final = 2.0
_LOOK_EVERY_S: Final = 0.5


class NotYet(Exception):
    """A message cannot be taken now, and can be soon: it is not acknowledged, and comes again."""


def listen(context: Context, stopping: threading.Event) -> None:
    """Take messages until it is to stop. Of several processes one listens, the others stand by.

    Raises :class:`InputInvalid` for a bad RIS_MQTT_URL.
    """
    settings = context.settings
    assert settings.mqtt_url is not None
    address = broker_address(settings.mqtt_url.get_secret_value())
    topics = listed_topics(settings)
    while not stopping.is_set():
        try:
            with context.db.transaction() as held:
                if arrival_record.try_to_listen(held):
                    with Subscription(
                        address, settings.mqtt_client_id, topics, settings.mqtt_ca_file
                    ) as subscription:
                        _take_messages(context, held, subscription, stopping)
        except DatabaseUnavailable as error:
            log.warning("listening_waits_for_postgres", detail=str(error))
        except NotYet as error:
            log.info("message_waits", detail=str(error))
        stopping.wait(_STAND_BY_S)


def listed_topics(settings: Settings) -> tuple[str, ...]:
    """Topics to subscribe to; names of topics know capitals."""
    return tuple(part.strip() for part in settings.mqtt_topics.split(",") if part.strip())


def _take_messages(
    context: Context, held: Session, subscription: Subscription, stopping: threading.Event
) -> None:
    """As long as this process is the one that listens. Raises ``DatabaseUnavailable``."""
    while not stopping.is_set():
        message = subscription.next(_LOOK_EVERY_S)
        arrival_record.still_there(held)
        if message is not None:
            take_message(context, message)
            subscription.acknowledge(message)


def take_message(context: Context, message: BrokerMessage) -> None:
    """Record what a message tells of. Raises ``DatabaseUnavailable`` and :class:`NotYet`: then it
    is not acknowledged, and comes again."""
    frigate = context.settings.frigate_url
    try:
        arrival = read_message(message.raw, None if frigate is None else frigate.get_secret_value())
    except InputInvalid as error:
        _count(context, "malformed", message, str(error))
        return
    if arrival is None:
        return
    try:
        _accept(context, arrival)
    except (InputInvalid, AddressRefused, SecretKeyMissing) as error:
        if error.again:
            raise NotYet(str(error)) from error
        _count(context, "refused", message, str(error))
    except DatabaseUnavailable:
        raise
    except Exception as error:  # what Postgres cannot store, say: it would come again for ever
        log.exception("message_unexpected", topic=message.topic)
        _count(context, "malformed", message, type(error).__name__)


def _accept(context: Context, arrival: Arrival) -> None:
    policy = policy_named(arrival.policy, arrival.every_s)
    delay_s = context.settings.frigate_settle_s if arrival.settles else 0.0
    recording = recording_at(
        context.settings, arrival.url, arrival.start_utc, policy, delay_s=delay_s
    )
    with context.db.transaction() as session:
        camera = feed_camera(session, MESSAGES, arrival.camera)
        made = record_segment(session, camera.id, recording, MESSAGES)
        arrival_record.count_message(session, SOURCE, "accepted")
    if made.is_new and not delay_s:
        context.ring(uuid.UUID(made.job_id), made.kind)


def _count(context: Context, outcome: str, message: BrokerMessage, detail: str) -> None:
    log.warning("message_not_taken", topic=message.topic, outcome=outcome, detail=detail)
    with context.db.transaction() as session:
        told = ascii(f"{message.topic[:200]}: {detail}")[1:-1]
        arrival_record.count_message(session, SOURCE, outcome, told)
