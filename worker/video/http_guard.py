"""HTTP for feeds: only to addresses that were looked at, no redirects, certificates checked.

FFmpeg's own HTTP would look names up again, follow redirects, go wherever a playlist sends it, and
believe any certificate. So a decoder has no network; what it wants to read is asked for here.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urlsplit, urlunsplit

import httpcore2
import httpx2

from worker.errors import AddressRefused, FeedFailed
from worker.video.address import AddressRules, allowed_addresses, check_address

for _library in ("httpx2", "httpcore2"):  # they log addresses, and what is secret in them
    logging.getLogger(_library).setLevel(logging.WARNING)

_CONNECT_S: Final = 10.0
_REDIRECTS: Final = range(300, 400)


@dataclass(slots=True)
class Opened:
    """An answer whose body is still to be read. ``ranges``: it can be read from the middle too.

    ``byte_count``: of the whole, where it is told. ``media_type``: what the server calls it.
    """

    body: httpx2.Response
    byte_count: int | None
    ranges: bool
    media_type: str


class GuardedHttp:
    """HTTP and HTTPS within the rules of feeds; user and password go to the feed's own server only.

    Cookies are kept for as long as it lives. Used by several threads.
    """

    def __init__(self, url: str, rules: AddressRules, read_s: float) -> None:
        parts = urlsplit(url)
        self._rules = rules
        self._origin = _origin(url)
        self._login = None
        if parts.username is not None:
            self._login = _Login(unquote(parts.username), unquote(parts.password or ""))
        self._client = httpx2.Client(
            transport=_Transport(rules),
            timeout=httpx2.Timeout(read_s, connect=_CONNECT_S, pool=_CONNECT_S),
            follow_redirects=False,
            trust_env=False,  # a proxy would look names up for us
            headers={"Accept-Encoding": "identity", "User-Agent": "RIS"},
        )

    def open(self, url: str, first: int = 0, last: int | None = None) -> Opened:
        """Ask for an address from byte ``first`` on, up to ``last``.

        Raises :class:`AddressRefused`, and :class:`FeedFailed` with texts that show no address.
        """
        url = url.partition("#")[0]
        if check_address(url, self._rules) != "http":
            raise AddressRefused("a playlist may name HTTP and HTTPS addresses only")
        span = f"bytes={first}-{'' if last is None else last}"
        try:
            request = self._client.build_request("GET", without_login(url), headers={"Range": span})
        except httpx2.InvalidURL:
            raise AddressRefused("the address is no URL") from None
        login = self._login if _origin(url) == self._origin else None
        try:
            answer = self._client.send(request, auth=login, stream=True)
        except (httpcore2.TimeoutException, httpx2.TimeoutException):
            raise FeedFailed("does not answer", reason="unreachable") from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpx2.HTTPError) as error:
            raise _unreachable(error) from None
        try:
            return _opened(answer, first, last)
        except BaseException:
            answer.close()
            raise

    def close(self) -> None:
        """End its connections."""
        self._client.close()


def pieces(opened: Opened) -> Iterator[bytes]:
    """The body, as it comes. Raises :class:`FeedFailed` where it ends too soon."""
    try:
        yield from opened.body.iter_raw()
    except (httpcore2.TimeoutException, httpx2.TimeoutException):
        raise FeedFailed("has stalled", reason="stalled") from None
    except (httpcore2.NetworkError, httpcore2.ProtocolError, httpx2.HTTPError):
        raise FeedFailed("closed the connection", reason="connection_lost") from None
    finally:
        opened.body.close()


class _Network(httpcore2.NetworkBackend):
    """Looks a name up once for each connection, and connects to what it found and allowed."""

    def __init__(self, rules: AddressRules) -> None:
        self._rules = rules
        self._real = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        failed: Exception | None = None
        for address in allowed_addresses(host, port, self._rules):
            try:
                return self._real.connect_tcp(str(address), port, timeout, None, socket_options)
            except httpcore2.ConnectError as error:
                failed = error
        assert failed is not None
        raise failed


class _Transport(httpx2.BaseTransport):
    def __init__(self, rules: AddressRules) -> None:
        self._pool = httpcore2.ConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_keepalive_connections=2,
            network_backend=_Network(rules),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        assert isinstance(request.stream, httpx2.SyncByteStream)
        url = httpcore2.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        answer = self._pool.handle_request(
            httpcore2.Request(
                method=request.method,
                url=url,
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx2.Response(
            status_code=answer.status,
            headers=answer.headers,
            stream=_Body(answer),
            extensions=answer.extensions,
        )

    def close(self) -> None:
        self._pool.close()


class _Body(httpx2.SyncByteStream):
    def __init__(self, answer: httpcore2.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        yield from self._answer.iter_stream()

    def close(self) -> None:
        self._answer.close()


class _Login(httpx2.Auth):
    """Basic or Digest, as the camera asks for it."""

    def __init__(self, user: str, password: str) -> None:
        self._basic = httpx2.BasicAuth(user, password)
        self._digest = httpx2.DigestAuth(user, password)
        self._chosen: httpx2.Auth | None = None

    def auth_flow(
        self, request: httpx2.Request
    ) -> Generator[httpx2.Request, httpx2.Response, None]:
        if self._chosen is None:
            answer = yield request
            if answer.status_code != 401:
                return
            asked = answer.headers.get("www-authenticate", "").lower()
            self._chosen = self._digest if "digest" in asked else self._basic
        yield from self._chosen.auth_flow(request)


def _opened(answer: httpx2.Response, first: int, last: int | None) -> Opened:
    status = answer.status_code
    if status in _REDIRECTS:
        text = "sends elsewhere, which is not followed: add the feed with that address"
        raise FeedFailed(text, reason="refused")
    if status in (401, 403):
        text = "refuses user and password: correct them (rm, then add)"
        raise FeedFailed(text, reason="auth")
    if status in (404, 410):
        text = "has no stream of that name: correct the address's path"
        raise FeedFailed(text, reason="not_found")
    if not 200 <= status < 300 or (status != 206 and (first or last is not None)):
        raise FeedFailed(f"answers with HTTP status {status}", reason="refused")
    length = answer.headers.get("content-length", "")
    byte_count = first + int(length) if length.isdecimal() and len(length) < 19 else None
    media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    return Opened(answer, byte_count, status == 206, media_type)


def _unreachable(error: Exception) -> FeedFailed:
    """Without the library's words, which may hold the address."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and len(causes) < 9:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            text = f"has a certificate that cannot be believed ({cause.verify_message})"
            return FeedFailed(text, reason="unreachable")
        if isinstance(cause, ConnectionRefusedError):
            return FeedFailed("refuses connections: is it on?", reason="unreachable")
    return FeedFailed("cannot be reached, or speaks no HTTP", reason="unreachable")


def _origin(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]


def without_login(url: str) -> str:
    """The address without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
