"""How an event reaches who is told: a small protocol; HTTP by Standard Webhooks, and MQTT.

Another way out is another :class:`EventTransport` under its scheme.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Final, Protocol

from standardwebhooks import Webhook as Signer

from worker import VERSION
from worker.errors import AddressRefused, FeedFailed
from worker.mqtt.publishing import NotPublished, Publisher
from worker.video.address import AddressRules, LookedUp, looked_up
from worker.video.pinned_http import PinnedConnection, cut_off_after

_GONE: Final = 410


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent: the same ``event_id`` and ``body`` at each try."""

    event_id: str
    kind: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Receipt:
    """How a try went. ``status``: of an answer, if there was one. ``trouble``: why it does not
    count as received; None: it does. ``gone``: nothing shall be sent there any more."""

    status: int | None
    trouble: str | None = None
    gone: bool = False


class EventTransport(Protocol):
    """A way out for events. Never raises for what the receiver does."""

    def send(self, url: str, message: Message, secrets: Sequence[str]) -> Receipt:
        """One try, signed with each of the secrets."""
        ...


@dataclass(frozen=True, slots=True)
class HttpTransport:
    """POST to an address that ``rules`` allow: the host's addresses are looked up and checked, and
    one of those is connected to. No redirect is followed; all takes ``timeout_s`` at most, and of
    the answer the head is read, 100 lines of 64 KiB at most."""

    rules: AddressRules
    timeout_s: float
    tls: ssl.SSLContext = field(default_factory=ssl.create_default_context)

    def send(self, url: str, message: Message, secrets: Sequence[str]) -> Receipt:
        """One try."""
        try:
            target = looked_up(url, self.rules)
        except (AddressRefused, FeedFailed) as error:
            return Receipt(None, str(error))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"RIS/{VERSION}",
            "Connection": "close",
            **signature_headers(secrets, message, datetime.now(UTC)),
        }
        try:
            status = self._post(target, message.body, headers)
        except TimeoutError:
            return Receipt(None, f"no answer within {self.timeout_s:g} s")
        except (OSError, HTTPException) as error:
            return Receipt(None, f"no answer: {_in_words(error)}")
        if 200 <= status < 300:
            return Receipt(status)
        if 300 <= status < 400:
            return Receipt(status, f"HTTP {status}: redirects are not followed, name its target")
        return Receipt(status, f"HTTP {status}", gone=status == _GONE)

    def _post(self, target: LookedUp, body: bytes, headers: Mapping[str, str]) -> int:
        """The status of the answer. Raises ``OSError``, and ``TimeoutError`` once time is up."""
        connection = PinnedConnection(target, self.timeout_s, self.tls)
        with cut_off_after(connection, self.timeout_s):
            connection.request("POST", target.path, body=body, headers=dict(headers))
            return connection.getresponse().status


@dataclass(frozen=True, slots=True)
class MqttTransport:
    """``mqtt:TOPIC``: to that topic, below ``prefix``, of the one broker of the settings, which
    knows us by its own means. ``publisher`` None: there is none, as ``trouble`` says."""

    publisher: Publisher | None
    prefix: str
    trouble: str = "RIS_MQTT_URL is not set: there is no broker to tell"

    def send(self, url: str, message: Message, secrets: Sequence[str]) -> Receipt:
        """One try. The body says its ``id`` too: MQTT has no headers, nor signatures."""
        if self.publisher is None:
            return Receipt(None, self.trouble)
        topic = url.partition(":")[2]
        if not topic.startswith(self.prefix):
            return Receipt(None, f"the topic is not below {self.prefix!r} (RIS_MQTT_OUT_PREFIX)")
        body = json.dumps(
            {"id": message.event_id, **json.loads(message.body)},
            sort_keys=True,
            separators=(",", ":"),
        )
        try:
            self.publisher.publish(topic, body.encode())
        except NotPublished as error:
            return Receipt(None, f"the broker did not take it: {error}")
        return Receipt(None)


def signature_headers(
    secrets: Sequence[str], message: Message, now_utc: datetime
) -> dict[str, str]:
    """The headers of Standard Webhooks, signed with each secret: a receiver that knows one of them
    believes the message."""
    text = message.body.decode()
    signatures = [Signer(secret).sign(message.event_id, now_utc, text) for secret in secrets]
    return {
        "webhook-id": message.event_id,
        "webhook-timestamp": str(int(now_utc.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def _in_words(error: Exception) -> str:
    """Short, and without what the receiver wrote."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not believed ({error.verify_message})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
