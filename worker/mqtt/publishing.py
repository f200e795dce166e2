"""One message to a broker, received by it (QoS 1) or not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from worker.errors import SetupFailed
from worker.mqtt.subscription import BrokerAddress, broker_client, require_package

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
        refused: list[str] = []

        def on_connect(_client: Any, _data: Any, _flags: Any, reason: Any, _more: Any) -> None:
            if reason.is_failure:
                refused.append(str(reason))

        try:
            require_package()
            client = broker_client(self.address, self.ca_file)
        except (SetupFailed, OSError) as error:
            raise NotPublished(str(error)) from error
        client.connect_timeout = self.timeout_s
        client.on_connect = on_connect
        try:
            client.connect(self.address.host, self.address.port, keepalive=_KEEPALIVE_S)
            client.loop_start()
            sent = client.publish(topic, body, qos=1)
            sent.wait_for_publish(self.timeout_s)
            trouble = None if sent.is_published() else f"not taken within {self.timeout_s:g} s"
        except (OSError, ValueError, RuntimeError) as error:
            trouble = getattr(error, "strerror", None) or type(error).__name__
        finally:
            client.disconnect()
            client.loop_stop()
        if trouble is not None:
            raise NotPublished(refused[0] if refused else trouble)
