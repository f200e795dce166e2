"""What every request passes first: an id, a bounded body, one log line, and no bare failure."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from dataclasses import dataclass

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics import METHODS, RequestMetrics
from api.problems import problem, problem_of
from worker.config import Settings
from worker.errors import BodyTooLarge, BodyTooSlow, RisError
from worker.tracing import CARRIED, NOTHING, Span, entry, note_failure

log = structlog.get_logger()

_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class BodyBounds:
    """What is read of a body: so many bytes, within so long, and none of it later than ``pause_s``
    after the one before. ``settings``: which say so, in that order."""

    max_bytes: int
    timeout_s: float
    pause_s: float
    settings: tuple[str, str, str]

    @classmethod
    def of_requests(cls, settings: Settings) -> BodyBounds:
        """Of requests in general."""
        patience_s, named = settings.api_body_timeout_s, "RIS_API_BODY_TIMEOUT_S"
        most = settings.api_max_body_bytes
        return cls(most, patience_s, patience_s, ("RIS_API_MAX_BODY_BYTES", named, named))

    @classmethod
    def of_recordings(cls, settings: Settings) -> BodyBounds:
        """Of recordings that are sent: large, on slow lines, but not silent ones."""
        return cls(
            settings.api_max_recording_bytes,
            settings.api_recording_timeout_s,
            settings.api_body_timeout_s,
            (
                "RIS_API_MAX_RECORDING_BYTES",
                "RIS_API_RECORDING_TIMEOUT_S",
                "RIS_API_BODY_TIMEOUT_S",
            ),
        )


class Front:
    """ASGI middleware. ``bounds`` of all bodies but the forms at ``recordings_path``."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        bounds: BodyBounds,
        recordings: BodyBounds,
        recordings_path: str,
        metrics: RequestMetrics,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._bounds = bounds
        self._recordings = recordings
        self._recordings_path = recordings_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with _span(scope) as span:
            await self._answer(scope, receive, send, span)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, span: Span) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _GIVEN_ID.fullmatch(given) else uuid.uuid4().hex
        scope["request_id"] = request_id
        began_s, status = time.perf_counter(), 0
        bounded = _Bounded(receive, self._bounds_of(scope))

        async def tell(message: Message) -> None:
            nonlocal status
            if bounded.refused is not None and not status:
                raise bounded.refused  # whatever the application makes of a cut-off body
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            bounded.refuse_announced(scope)
            await self._app(scope, bounded.read, tell)
        except ClientDisconnect:
            log.info("client_gone", request_id=request_id)
        except Exception as error:
            known, bounded.refused = bounded.refused or error, None
            answer = problem_of(known, request_id)
            if answer is None:
                log.exception("request_unexpected", request_id=request_id)
                what = f"{type(error).__name__}; the log of the API says more"
                answer = problem("internal", what, request_id)
            if status == 0:  # else the answer is under way and can only be cut off
                await answer(scope, receive, tell)
        self._tell(scope, span, status, time.perf_counter() - began_s)

    def _tell(self, scope: Scope, span: Span, status: int, took_s: float) -> None:
        """That a request was answered: metrics, its span, its line in the log."""
        route, method = _template(scope), _method(scope)
        self._metrics.note(route, scope["method"], status, took_s)
        span.rename(f"{method} {route}")
        span.note(request_id=scope["request_id"], key_id=scope.get("key_id"))
        span.note(**{"http.route": route})
        span.note(**{"http.response.status_code": status})
        if status >= 500:
            note_failure(str(status))
        log.info(
            "request",
            request_id=scope["request_id"],
            method=scope["method"],
            path=scope["path"],
            status=status,
            ms=round(1000 * took_s, 1),
            key_id=scope.get("key_id"),
        )

    def _bounds_of(self, scope: Scope) -> BodyBounds:
        kind = Headers(scope=scope).get("content-type", "").lower()
        sent = scope["path"] == self._recordings_path and kind.startswith("multipart/form-data")
        return self._recordings if sent else self._bounds


def _span(scope: Scope) -> Span:
    """Of a request to the API proper, in the trace of whoever asks, if that is told."""
    if not scope["path"].startswith("/v1/"):
        return NOTHING  # asked all day by machines, or files of the page
    came_from = Headers(scope=scope).get(CARRIED)
    method = _method(scope)
    return entry(method, came_from, kind="server", attributes={"http.request.method": method})


def _method(scope: Scope) -> str:
    method = str(scope["method"])
    return method if method in METHODS else "_OTHER"


def _template(scope: Scope) -> str:
    """The route that answered, with names for its ids; ``none`` where none did."""
    return str(getattr(scope.get("route"), "path", "none"))


class _Bounded:
    """The body of one request, as far as it is read. ``refused``: why no more of it is."""

    def __init__(self, receive: Receive, bounds: BodyBounds) -> None:
        self.refused: RisError | None = None
        self._receive = receive
        self._bounds = bounds
        self._until_s = time.monotonic() + bounds.timeout_s
        self._read_bytes = 0
        self._ended = False

    def refuse_announced(self, scope: Scope) -> None:
        """Raise :class:`BodyTooLarge` for a Content-Length that is."""
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self._bounds.max_bytes:
            raise self._too_large()

    async def read(self) -> Message:
        """The next message. Raises :class:`BodyTooLarge` or :class:`BodyTooSlow`."""
        if self._ended:  # what comes now is that the client went away: no limit
            return await self._receive()
        left_s = max(0.0, self._until_s - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), min(left_s, self._bounds.pause_s))
        except TimeoutError:
            self.refused = self._too_slow(paused=left_s > self._bounds.pause_s)
            raise self.refused from None
        self._read_bytes += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        if self._read_bytes > self._bounds.max_bytes:
            self.refused = self._too_large()
            raise self.refused
        return message

    def _too_slow(self, *, paused: bool) -> RisError:
        bounds = self._bounds
        if paused:
            return BodyTooSlow(
                f"no more of the body came for {bounds.pause_s:g} s ({bounds.settings[2]})"
            )
        return BodyTooSlow(
            f"the body did not arrive within {bounds.timeout_s:g} s ({bounds.settings[1]})"
        )

    def _too_large(self) -> RisError:
        return BodyTooLarge(
            f"the body is larger than {self._bounds.max_bytes} bytes ({self._bounds.settings[0]})"
        )
