"""One message to a broker, received by it (QoS 1) or not."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from worker.errors import SetupFailed
from worker.mqtt.subscription import BrokerAddress, broker_client, require_package

_KEEPALIVE_S: Final = 30
_LOOK_S: Final = 0.1


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
        trouble = None
        try:
            client.connect(self.address.host, self.address.port, keepalive=_KEEPALIVE_S)
            if _carried(client, client.is_connected, self.timeout_s):
                sent = client.publish(topic, body, qos=1)
                if not _carried(client, sent.is_published, self.timeout_s):
                    trouble = f"not taken within {self.timeout_s:g} s"
            else:
                trouble = "the connection was not accepted"
        except (OSError, ValueError, RuntimeError) as error:
            trouble = getattr(error, "strerror", None) or type(error).__name__
        finally:
            client.disconnect()
        if trouble is not None:
            raise NotPublished(refused[0] if refused else trouble)


def _carried(client: Any, happened: Callable[[], bool], most_s: float) -> bool:
    """Carry a client's packets until something has happened; False once time is up or the
    connection is gone. paho's own loop waits by select(2), which takes no file numbered above
    1,023; a worker that searches has more of them open."""
    ends = time.monotonic() + most_s
    while not happened():
        socket, left_s = client.socket(), ends - time.monotonic()
        if socket is None or left_s <= 0:
            return False
        poll = select.poll()
        poll.register(socket, select.POLLIN | (select.POLLOUT if client.want_write() else 0))
        poll.poll(1000 * min(_LOOK_S, left_s))
        # Whatever was heard: TLS may hold read bytes back that no poll tells of.
        client.loop_read()
        client.loop_write()
        client.loop_misc()
    return True
