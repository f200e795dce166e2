"""One message to a broker, received by it (QoS 1) or not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from worker.errors import SetupFailed
from worker.mqtt.subscription import BrokerAddress, require_package

_KEEPALIVE_S: Final = 30


class NotPublished(OSError):
    """The broker did not take a message; says why, without what is secret."""


@dataclass(frozen=True, slots=True)
class Publisher:
    """A broker to tell; connects anew for each message. ``timeout_s`` bounds each step."""

    address: BrokerAddress
    ca_file: Path | None
    timeout_s: float

    def publish(self, topic: str, body: bytes) -> None:
        """Returns once the broker has it. Raises :class:`NotPublished`."""
        try:
            require_package()
        except SetupFailed as error:
            raise NotPublished(str(error)) from error
        from paho.mqtt.client import Client, MQTTv311
        from paho.mqtt.enums import CallbackAPIVersion

        client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv311)
        client.connect_timeout = self.timeout_s
        if self.address.user is not None:
            client.username_pw_set(self.address.user, self.address.password)
        refused: list[str] = []

        def on_connect(_client: Any, _data: Any, _flags: Any, reason: Any, _more: Any) -> None:
            if reason.is_failure:
                refused.append(str(reason))

        client.on_connect = on_connect
        try:
            if self.address.tls:
                client.tls_set(ca_certs=None if self.ca_file is None else str(self.ca_file))
            client.connect(self.address.host, self.address.port, keepalive=_KEEPALIVE_S)
            client.loop_start()
            sent = client.publish(topic, body, qos=1)
            sent.wait_for_publish(self.timeout_s)
            taken = sent.is_published()
        except (OSError, ValueError, RuntimeError) as error:
            words = getattr(error, "strerror", None) or type(error).__name__
            raise NotPublished(refused[0] if refused else words) from error
        finally:
            client.disconnect()
            client.loop_stop()
        if not taken:
            late = f"not taken within {self.timeout_s:g} s"
            raise NotPublished(refused[0] if refused else late)
