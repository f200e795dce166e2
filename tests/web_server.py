"""A web server on loopback whose answers a test chooses, and listeners that nobody may come to."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Handler(BaseHTTPRequestHandler):
    """Answers from the table of its server."""

    web: Web

    def do_GET(self) -> None:
        self.web.asked.append((self.path, dict(self.headers)))
        answer = self.web.answers.get(self.path.partition("?")[0])
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if answer is None:
                self.send_error(404)
            else:
                answer(self)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def give(self, body: bytes, status: int = 200, /, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


Answer = Callable[[Handler], None]


@dataclass
class Web:
    """What a server answers by path, and what it was asked."""

    port: int = 0
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Web]:
    web = Web()
    handler = type("Bound", (Handler,), {"web": web})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        web.port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield web
        server.shutdown()


@contextmanager
def canary(host: str = "127.0.0.2") -> Iterator[tuple[int, list[object]]]:
    """A port that takes connections, and who came."""
    came: list[object] = []
    with socket.create_server((host, 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, who = listener.accept()
                    came.append(who)
                    connection.close()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], came


def content(body: bytes, **headers: str) -> Answer:
    return lambda handler: handler.give(body, **headers)


def sends_to(where: str, status: int = 302) -> Answer:
    return lambda handler: handler.give(b"", status, Location=where)


def in_ranges(body: bytes) -> Answer:
    """As a server that can be read from the middle."""

    def answer(handler: Handler) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
        if asked is None:
            handler.give(body)
            return
        first, last = int(asked[1]), int(asked[2] or len(body) - 1)
        told = f"bytes {first}-{last}/{len(body)}"
        handler.give(body[first : last + 1], 206, Content_Range=told)

    return answer


def with_login(user: str, password: str, kind: str, then: Answer) -> Answer:
    """Asks for a user and a password first."""

    def answer(handler: Handler) -> None:
        given = handler.headers.get("Authorization", "")
        if kind == "Basic":
            right = given == "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        else:
            right = given.startswith("Digest ") and _digest_holds(given, user, password)
        if right:
            then(handler)
            return
        challenge = f'{kind} realm="camera", nonce="abc"'
        handler.give(b"", 401, WWW_Authenticate=challenge)

    return answer


def _digest_holds(given: str, user: str, password: str) -> bool:
    fields = dict(re.findall(r'(\w+)="?([^",]*)"?', given))
    ha1 = hashlib.md5(f"{user}:camera:{password}".encode()).hexdigest()
    ha2 = hashlib.md5(f"GET:{fields.get('uri', '')}".encode()).hexdigest()
    return fields.get("response") == hashlib.md5(f"{ha1}:abc:{ha2}".encode()).hexdigest()


def make_authority(folder: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """A certificate authority's file, and a server that has its certificate for a name."""
    now = datetime.now(UTC)

    def signed(subject: str, issuer: str, key, signer, *, authority: bool):
        named = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in (subject, issuer)]
        builder = (
            x509.CertificateBuilder()
            .subject_name(named[0])
            .issuer_name(named[1])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
        )
        if not authority:
            names = x509.SubjectAlternativeName([x509.DNSName(subject)])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = signed("RIS test", "RIS test", root_key, root_key, authority=True)
    own = signed(name, "RIS test", key, root_key, authority=False)
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(serialization.Encoding.PEM, form, plain)
    (folder / "root.pem").write_bytes(root)
    (folder / "own.pem").write_bytes(own + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "own.pem")
    return folder / "root.pem", context
