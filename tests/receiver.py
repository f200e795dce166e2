"""A real HTTP receiver of webhooks that can be slow, wrong, gone or away."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook as Verifier


@dataclass
class Got:
    """A message as it came."""

    headers: dict[str, str]
    body: bytes

    @property
    def event_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def told(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.body)
        return told

    def verify(self, secret: str) -> None:
        """As a receiver does with the library of the standard. Raises where it is not right."""
        Verifier(secret).verify(self.body, self.headers)


@dataclass
class Receiver:
    """What came, and what is answered: ``answer`` is given each message and returns a status."""

    port: int
    got: list[Got] = field(default_factory=list)
    answer: Callable[[Got], int] = lambda _got: 204
    redirect_to: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def ids(self) -> list[str]:
        return [one.event_id for one in self.got]


@contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    """A receiver on this machine, until the end."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got = Got({name.lower(): value for name, value in self.headers.items()}, body)
            receiver.got.append(got)
            status = receiver.answer(got)
            self.send_response(status)
            if receiver.redirect_to is not None:
                self.send_header("Location", receiver.redirect_to)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # whoever was killed or gave up

    with Server(("127.0.0.1", port), Handler) as server:
        receiver = Receiver(server.server_port)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield receiver
        server.shutdown()


@contextmanager
def dripping() -> Iterator[str]:
    """The address of a server that answers a byte every 50 ms, for ever."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while not over.is_set():
                    try:
                        connection.sendall(b"a")
                    except OSError:
                        return
                    time.sleep(0.05)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        over.set()
