"""The only importer of OpenTelemetry: spans, and their way to a collector by OTLP over HTTP.

The address of the collector is the operator's, as a database's is: no rule for addresses that users
give applies to it. How it is reached, what is sampled and how much may wait are the SDK's affair,
by its own ``OTEL_*`` variables. The provider is this module's own and not the process's: libraries
that would make spans by themselves find none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from worker import VERSION
from worker.errors import RisError
from worker.tracing import CARRIED, NOTHING, Kind, Span, Value

log = structlog.get_logger()

FLUSH_S: Final = 1.0
"""How long the end of a process waits for the collector: what drains before may take eight of the
ten seconds that there are."""
TELL_EVERY_S: Final = 60.0
_PATH: Final = "/v1/traces"
_KINDS: Final[Mapping[Kind, trace.SpanKind]] = {
    "server": trace.SpanKind.SERVER,
    "consumer": trace.SpanKind.CONSUMER,
    "producer": trace.SpanKind.PRODUCER,
    "internal": trace.SpanKind.INTERNAL,
}
_W3C: Final = TraceContextTextMapPropagator()


class Traces:
    """The traces of one process."""

    def __init__(self, role: str, endpoint: str | None) -> None:
        address = None if endpoint is None else endpoint.rstrip("/") + _PATH
        own = {
            "service.namespace": "ris",
            "service.name": f"ris-{role}",
            "service.version": VERSION,
        }
        self._provider = TracerProvider(
            resource=Resource.create(own).merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,  # it would wait half a minute for a collector that is away
        )
        self._provider.add_span_processor(BatchSpanProcessor(_Exporter(address)))
        self._tracer = self._provider.get_tracer("ris", VERSION)

    def child(self, name: str, attributes: Mapping[str, Value]) -> Span:
        """A part of what is current and sampled; else nothing."""
        if not trace.get_current_span().is_recording():
            return NOTHING
        return _OpenSpan(self._tracer.start_span(name, attributes=_named(attributes)))

    def entry(
        self,
        name: str,
        came_from: object,
        kind: Kind,
        attributes: Mapping[str, Value],
        *,
        linked: bool,
    ) -> Span:
        """A part of the trace that is named, or a new one."""
        given = {CARRIED: came_from} if isinstance(came_from, str) else {}
        context = _W3C.extract(given, otel_context.Context())
        links = []
        if linked:
            origin = trace.get_current_span(context).get_span_context()
            context = otel_context.Context()
            links = [trace.Link(origin)] if origin.is_valid else []
        return _OpenSpan(
            self._tracer.start_span(
                name, context, kind=_KINDS[kind], attributes=_named(attributes), links=links
            )
        )

    def note(self, attributes: Mapping[str, Value]) -> None:
        """Add attributes to what is current."""
        trace.get_current_span().set_attributes(_named(attributes))

    def note_failure(self, code: str) -> None:
        """Mark what is current as failed."""
        _fail(trace.get_current_span(), code)

    def carried(self) -> dict[str, str]:
        """The W3C's text for what is current, if anything is. What vendors add to it is not
        passed on: it would be kept with the job, and is anyone's text."""
        found: dict[str, str] = {}
        _W3C.inject(found)
        return {CARRIED: found[CARRIED]} if CARRIED in found else {}

    def close(self) -> None:
        """Send what is left. The library waits longer than a process has: it is left behind."""
        sending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        sending.start()
        sending.join(FLUSH_S)
        if sending.is_alive():
            log.warning("spans_left_behind", detail="the collector did not take them in time")


class _OpenSpan:
    """A :class:`worker.tracing.Span` of the library; log lines within it name it."""

    __slots__ = ("_attached", "_bound", "_span")

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def __enter__(self) -> _OpenSpan:
        self._attached = otel_context.attach(trace.set_span_in_context(self._span))
        own = self._span.get_span_context()
        self._bound = structlog.contextvars.bind_contextvars(
            trace_id=trace.format_trace_id(own.trace_id), span_id=trace.format_span_id(own.span_id)
        )
        return self

    def __exit__(self, *raised: Any) -> None:
        error = raised[1]
        if error is not None:
            code = error.code if isinstance(error, RisError) else type(error).__name__
            _fail(self._span, code)
        structlog.contextvars.reset_contextvars(**self._bound)
        otel_context.detach(self._attached)
        self._span.end()

    def note(self, **attributes: Value) -> None:
        """Add attributes."""
        self._span.set_attributes(_named(attributes))

    def rename(self, name: str) -> None:
        """Another name."""
        self._span.update_name(name)


class _Exporter(OTLPSpanExporter):
    """Tells once a minute, not at each try, that spans are lost, and how many."""

    def __init__(self, address: str | None) -> None:
        super().__init__(endpoint=address)
        self._lost, self._told, self._tell_at_s = 0, 0, 0.0
        said = logging.getLogger(OTLPSpanExporter.__module__)
        said.setLevel(logging.ERROR)  # of each retry, for as long as it is away
        said.filters = [_OnceAMinute()]  # why

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; never raises."""
        result = super().export(spans)
        self._lost += 0 if result is SpanExportResult.SUCCESS else len(spans)
        if self._lost > self._told and time.monotonic() >= self._tell_at_s:
            self._told, self._tell_at_s = self._lost, time.monotonic() + TELL_EVERY_S
            log.warning("spans_lost", since_start=self._lost)
        return result


class _OnceAMinute(logging.Filter):
    """Lets the first record pass, and after that one a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._until_s = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if time.monotonic() < self._until_s:
            return False
        self._until_s = time.monotonic() + TELL_EVERY_S
        return True


def ask_collector(endpoint: str | None, patience_s: float) -> bool:
    """Whether a collector takes spans, none of them for now."""
    address = None if endpoint is None else endpoint.rstrip("/") + _PATH
    exporter = OTLPSpanExporter(endpoint=address, timeout=patience_s)
    try:
        return exporter.export([]) is SpanExportResult.SUCCESS
    finally:
        exporter.shutdown()  # type: ignore[no-untyped-call]


def _fail(span: trace.Span, code: str) -> None:
    span.set_attribute("error.type", code)
    span.set_status(trace.StatusCode.ERROR)


def _named(attributes: Mapping[str, Value]) -> dict[str, str | int | float | bool]:
    return {
        name if "." in name else f"ris.{name}": value
        if isinstance(value, str | int | float | bool)
        else str(value)
        for name, value in attributes.items()
        if value is not None
    }
