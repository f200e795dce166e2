"""A subscription that forgets nothing: QoS 1, a session that the broker keeps, acks by hand.

What is not acknowledged when the connection breaks comes again with the next one.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import structlog

from worker.errors import InputInvalid, SetupFailed

log = structlog.get_logger()

_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
_KEEPALIVE_S: Final = 30
_FIRST_RETRY_S, _LONGEST_RETRY_S = 1, 60
_MOST_WAITING: Final = 1000


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker is. ``tls``: by mqtts:."""

    host: str
    port: int
    tls: bool
    user: str | None
    password: str | None = field(repr=False)


def broker_address(url: str) -> BrokerAddress:
    """Raises :class:`InputInvalid`, which quotes nothing of the address."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        port, host = None, None
    if not host or parts.scheme not in _PORTS or parts.path.strip("/") or parts.query:
        raise InputInvalid("RIS_MQTT_URL is no mqtt://user:password@host:1883 or mqtts://...")
    user, password = parts.username, parts.password
    return BrokerAddress(
        host,
        port or _PORTS[parts.scheme],
        parts.scheme == "mqtts",
        None if user is None else unquote(user),
        None if password is None else unquote(password),
    )


def require_package() -> None:
    """Raises :class:`SetupFailed` when paho-mqtt is missing."""
    try:
        import paho.mqtt.client  # noqa: F401
    except ImportError as error:
        raise SetupFailed(
            "RIS_MQTT_URL is set and the package paho-mqtt is missing: install the extra mqtt"
            " (python -m pip install paho-mqtt)"
        ) from error


def broker_client(address: BrokerAddress, ca_file: Path | None, **given: Any) -> Any:
    """A client of paho, not connected yet, that knows user, password and certificates. Raises
    ``OSError`` where ``ca_file`` cannot be read."""
    from paho.mqtt.client import Client, MQTTv311
    from paho.mqtt.enums import CallbackAPIVersion

    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv311, **given)
    if address.user is not None:
        client.username_pw_set(address.user, address.password)
    if address.tls:
        client.tls_set(ca_certs=None if ca_file is None else str(ca_file))
    return client


@dataclass(frozen=True, slots=True)
class BrokerMessage:
    """A message and the connection that it came by: only that one can acknowledge it."""

    topic: str
    raw: bytes
    mid: int
    qos: int
    connection: int


class Subscription:
    """One client of a broker; connects when it is entered and reconnects ever later by itself."""

    def __init__(
        self, address: BrokerAddress, client_id: str, topics: Sequence[str], ca_file: Path | None
    ) -> None:
        self._address, self._topics, self._ca_file = address, topics, ca_file
        self._client_id = client_id
        self._waiting: queue.Queue[BrokerMessage] = queue.Queue(_MOST_WAITING)
        self._connection = 0
        self._client: Any = None
        self.connected = threading.Event()

    def __enter__(self) -> Subscription:
        kept = {"client_id": self._client_id, "clean_session": False, "manual_ack": True}
        client = broker_client(self._address, self._ca_file, **kept)
        client.reconnect_delay_set(_FIRST_RETRY_S, _LONGEST_RETRY_S)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_connect_fail, client.on_message = self._on_connect_fail, self._on_message
        client.connect_async(self._address.host, self._address.port, keepalive=_KEEPALIVE_S)
        client.loop_start()
        self._client = client
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def next(self, wait_s: float) -> BrokerMessage | None:
        """The next message of the present connection; None where none came."""
        try:
            message = self._waiting.get(timeout=wait_s)
        except queue.Empty:
            return None
        return message if self._is_current(message) else None

    def acknowledge(self, message: BrokerMessage) -> None:
        """Have the broker forget a message that is in the record."""
        if message.qos and self._is_current(message):
            self._client.ack(message.mid, message.qos)

    def _is_current(self, message: BrokerMessage) -> bool:
        """Whether its number still means this message: what was not acknowledged before comes again
        by the next connection."""
        return message.qos == 0 or message.connection == self._connection

    def _on_connect(self, client: Any, _data: Any, _flags: Any, reason: Any, _more: Any) -> None:
        if reason.is_failure:
            log.error("mqtt_refused", host=self._address.host, reason=str(reason))
            return
        client.subscribe([(topic, 1) for topic in self._topics])
        self.connected.set()
        log.info("mqtt_connected", host=self._address.host, topics=list(self._topics))

    def _on_subscribe(self, _client: Any, _data: Any, _mid: Any, codes: Any, _more: Any) -> None:
        for topic, code in zip(self._topics, codes, strict=False):
            if code.is_failure:
                log.error("mqtt_topic_refused", topic=topic, reason=str(code))

    def _on_disconnect(self, *told: Any) -> None:
        reason = told[3]
        self._connection += 1
        self.connected.clear()
        log.warning("mqtt_disconnected", host=self._address.host, reason=str(reason))

    def _on_connect_fail(self, _client: Any, _data: Any) -> None:
        log.warning("mqtt_unreachable", host=self._address.host)

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        got = BrokerMessage(
            str(message.topic), bytes(message.payload), message.mid, message.qos, self._connection
        )
        try:
            self._waiting.put_nowait(got)
        except queue.Full:  # the broker has those of QoS 1, and sends them again
            log.error("mqtt_too_many_messages", topic=got.topic, qos=got.qos)
