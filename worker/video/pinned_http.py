"""An HTTP connection to an address that was checked, whatever its name says by now."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException

from worker.video.address import LookedUp


class PinnedConnection(HTTPConnection):
    """Connects to the first of the checked addresses that answers; name and certificate are those
    of the host that was asked for. No redirect is followed. ``silence_s``: without a byte, at most.
    """

    def __init__(self, target: LookedUp, silence_s: float, tls: ssl.SSLContext) -> None:
        super().__init__(target.host, target.port, timeout=silence_s)
        self.default_port = 443 if target.tls else 80  # left out of the Host header
        self._target, self._tls = target, tls
        self._cut = False
        # Ours to the end: HTTPConnection forgets its own once an answer says that it is the last.
        self._held: socket.socket | None = None

    def connect(self) -> None:
        """Raises ``OSError``."""
        trouble = OSError("the host has no address")
        for address in self._target.addresses:
            self._refuse_cut()
            try:
                self.sock = socket.create_connection((address, self.port), self.timeout)
                self._held = self.sock
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
            self._held = self.sock
            self._refuse_cut()
            self.sock.do_handshake()
        self._refuse_cut()

    def cut(self) -> None:
        """End it, by another thread: whoever reads or writes fails, also one that only connects."""
        self._cut = True
        with suppress(OSError):
            if self._held is not None:
                self._held.shutdown(socket.SHUT_RDWR)

    def _refuse_cut(self) -> None:
        if self._cut:
            raise TimeoutError


@contextmanager
def cut_off_after(connection: PinnedConnection, timeout_s: float) -> Iterator[None]:
    """All that is done with a connection inside of this takes so long at most; then it is closed.
    Raises ``TimeoutError`` once time is up, and else ``OSError`` and ``HTTPException`` as they are.

    A timeout of sockets is one of silence, which a server that says a byte a second never breaks:
    a timer cuts the connection when all time is up.
    """
    until_s = time.monotonic() + timeout_s
    timer = threading.Timer(max(timeout_s, 0), connection.cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, HTTPException):
        if time.monotonic() >= until_s:
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()
        connection.close()
    if time.monotonic() >= until_s:  # cut off within an answer, which reads like the end of it
        raise TimeoutError
