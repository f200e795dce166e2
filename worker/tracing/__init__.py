"""Traces for OpenTelemetry: what a request, the job it made and each of its stages took.

Off unless a setting asks for them, and then the library is not even loaded: :func:`span` and
:func:`note` do nothing. On, spans are children of the one that is current in this thread; without
one there is nothing to be a part of, and none is made. Only :func:`entry` begins a trace, or goes
on with one from elsewhere.

Attributes are ids, counts and words of our own. What people drew, recorded or named, addresses,
texts of errors and secrets are none: whoever runs the collector is not whoever may see footage.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import structlog

from worker.config import Settings
from worker.errors import SetupFailed

if TYPE_CHECKING:  # loads the library
    from worker.tracing.otlp import Traces

log = structlog.get_logger()

Value = str | int | float | bool | uuid.UUID | None
"""Of an attribute; None: it is left out."""
Kind = Literal["server", "consumer", "producer", "internal"]
CARRIED: Final = "traceparent"
"""Name of the text, in the form of the W3C, that says which span something came from."""
_ADDRESSES: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL: Final = "http/protobuf"
_REMEDY: Final = (
    "install the extra otel"
    " (python -m pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http)"
)


class Span(Protocol):
    """Part of a trace, from entering to leaving. An error that leaves it is told by its code or
    type, without its text."""

    def __enter__(self) -> Span:
        """Begin: what is done in this thread belongs to it."""
        ...

    def __exit__(self, *raised: Any) -> None:
        """End."""
        ...

    def note(self, **attributes: Value) -> None:
        """Add attributes. Names with a dot are as they are, others get ``ris.`` before them."""
        ...

    def rename(self, name: str) -> None:
        """Another name, once it is known."""
        ...


class _Nothing:
    """A span while there are none."""

    __slots__ = ()

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *raised: Any) -> None:
        pass

    def note(self, **attributes: Value) -> None:
        pass

    def rename(self, name: str) -> None:
        pass


class _Process:
    """What this process makes of spans."""

    __slots__ = ("traces",)

    def __init__(self) -> None:
        self.traces: Traces | None = None


NOTHING: Final = _Nothing()
_process: Final = _Process()


def span(name: str, **attributes: Value) -> Span:
    """A part of what is current in this thread."""
    traces = _process.traces
    return NOTHING if traces is None else traces.child(name, attributes)


def entry(
    name: str,
    came_from: object = None,
    *,
    kind: Kind = "internal",
    linked: bool = False,
    attributes: Mapping[str, Value] | None = None,
) -> Span:
    """A part of the trace that ``came_from`` is of (see :func:`carried`), or a trace of its own
    where that is no such text. ``linked``: always a trace of its own, which names that one."""
    traces = _process.traces
    if traces is None:
        return NOTHING
    return traces.entry(name, came_from, kind, attributes or {}, linked=linked)


def note(**attributes: Value) -> None:
    """Add attributes to what is current, as :meth:`Span.note`."""
    if (traces := _process.traces) is not None:
        traces.note(attributes)


def note_failure(code: str) -> None:
    """What is current failed, though no error leaves it."""
    if (traces := _process.traces) is not None:
        traces.note_failure(code)


def carried() -> dict[str, str]:
    """What is current, to be given along with work that others do: one entry, or none."""
    traces = _process.traces
    return {} if traces is None else traces.carried()


def wanted(configured: Settings) -> bool:
    """Whether traces are asked for and can be made.

    By ``RIS_OTLP_ENDPOINT``: raises :class:`SetupFailed` without the packages. By the standard's
    variables, which may have been set for other programs: then it is only logged.
    """
    if _variable("OTEL_SDK_DISABLED") == "true" or _variable("OTEL_TRACES_EXPORTER") == "none":
        return False
    if configured.otlp_endpoint is not None:
        if not _installed():
            raise SetupFailed(f"RIS_OTLP_ENDPOINT is set and a package is missing: {_REMEDY}")
        return True
    if not any(map(_variable, _ADDRESSES)):
        return False
    trouble = None if _installed() else _REMEDY
    spoken = next(filter(None, map(_variable, _PROTOCOLS)), _PROTOCOL)
    if spoken != _PROTOCOL:
        trouble = f"of the protocols of OTLP only {_PROTOCOL} is spoken"
    if trouble is not None:
        log.warning("traces_off", detail=trouble)
    return trouble is None


def start(role: str, configured: Settings) -> bool:
    """Make traces from now on, if they are :func:`wanted`, and raises as it does. ``role``: of this
    process. Call it after the last fork: a thread sends what was made."""
    if _process.traces is None and wanted(configured):
        try:
            from worker.tracing.otlp import Traces

            _process.traces = Traces(role, configured.otlp_endpoint)
        except (ValueError, ImportError) as error:
            if configured.otlp_endpoint is not None:
                raise SetupFailed(f"traces, by the variables OTEL_*: {error}") from error
            log.warning("traces_off", detail=str(error))  # they may be meant for other programs
    return _process.traces is not None


def stop() -> None:
    """Send what is left, for a second at most, and make no more."""
    ending, _process.traces = _process.traces, None
    if ending is not None:
        ending.close()


def _installed() -> bool:
    try:
        return all(
            find_spec(name) is not None
            for name in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
        )
    except (ImportError, ValueError):  # a package above it is missing
        return False


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip().lower()
