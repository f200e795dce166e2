"""A real collector of traces: OTLP over HTTP on this machine, which keeps what it is sent."""

from __future__ import annotations

import gzip
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Seen:
    """A span as it came; ids in hexadecimal, ``parent`` empty for the first of a trace."""

    name: str
    trace: str
    id: str
    parent: str
    service: str
    failed: bool
    attributes: dict[str, Any]
    links: tuple[str, ...]


@dataclass
class Collector:
    """What came. While ``hanging`` is set it takes requests and never answers."""

    port: int
    spans: list[Seen] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    hanging: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def named(self, name: str, **attributes: Any) -> list[Seen]:
        """Spans of a name with these attributes (without ``ris.``)."""
        return [
            span
            for span in self.spans
            if span.name == name
            and all(span.attributes.get(f"ris.{key}") == want for key, want in attributes.items())
        ]

    def one(self, name: str, **attributes: Any) -> Seen:
        """The only one of them."""
        found = self.named(name, **attributes)
        assert len(found) == 1, (name, attributes, [(s.name, s.attributes) for s in self.spans])
        return found[0]

    def below(self, top: Seen) -> set[str]:
        """Names of all spans of which a span is an ancestor."""
        found, parents = set(), {top.id}
        while parents:
            children = [span for span in self.spans if span.parent in parents]
            found |= {span.name for span in children}
            parents = {span.id for span in children}
        return found


@contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    """A collector on this machine, until the end."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if made.hanging.is_set():
                made.ended.wait()
                return
            if self.path != "/v1/traces":
                self.send_error(404)
                return
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            made.raw.append(body)
            made.spans.extend(_spans(ExportTraceServiceRequest.FromString(body)))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    made = Collector(server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.ended.set()
        server.shutdown()
        server.server_close()


def _spans(request: ExportTraceServiceRequest) -> Iterator[Seen]:
    for resource in request.resource_spans:
        about = _attributes(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Seen(
                    name=span.name,
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    service=str(about.get("service.name")),
                    failed=span.status.code == span.status.STATUS_CODE_ERROR,
                    attributes=_attributes(span.attributes),
                    links=tuple(link.trace_id.hex() for link in span.links),
                )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def main() -> None:
    """Write down what comes: `python -m tests.otlp_collector 4318`."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 4318
    with collecting(port) as collector:
        sys.stdout.write(f"listening at {collector.url}\n")
        told = 0
        while True:
            for span in collector.spans[told:]:
                told += 1
                about = {name: span.attributes[name] for name in sorted(span.attributes)}
                sys.stdout.write(f"{span.trace} {span.service} {span.name} {about}\n")
            sys.stdout.flush()
            time.sleep(0.2)


if __name__ == "__main__":
    main()
