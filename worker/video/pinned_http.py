"""An HTTP connection to an address that was checked, whatever its name says by now."""

from __future__ import annotations

import socket
import ssl
from http.client import HTTPConnection

from worker.video.address import LookedUp


class PinnedConnection(HTTPConnection):
    """Connects to the first of the checked addresses that answers; name and certificate are those
    of the host that was asked for. No redirect is followed. ``silence_s``: without a byte, at most.
    """

    def __init__(self, target: LookedUp, silence_s: float, tls: ssl.SSLContext) -> None:
        super().__init__(target.host, target.port, timeout=silence_s)
        self.default_port = 443 if target.tls else 80  # left out of the Host header
        self._target, self._tls = target, tls

    def connect(self) -> None:
        """Raises ``OSError``."""
        trouble = OSError("the host has no address")
        for address in self._target.addresses:
            try:
                self.sock = socket.create_connection((address, self.port), self.timeout)
                break
            except OSError as error:
                trouble = error
        else:
            raise trouble
        if self._target.tls:
            # Its place is taken before the handshake: who cuts the connection off finds it.
            self.sock = self._tls.wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            self.sock.do_handshake()
