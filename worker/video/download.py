"""Recordings over HTTP: one request to an address that was looked at, no redirects, bounded.

The connection goes to the very address that the guard (:mod:`worker.video.address`) allowed; TLS
certificates are checked against the name. What is said of failures names no user and no password.
"""

from __future__ import annotations

import base64
import http.client
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from worker.errors import AddressRefused, FeedFailed, FetchFailed
from worker.video.address import AddressRules, check_address, looked_up, redacted
from worker.video.pinned_http import PinnedConnection

SCHEMES: Final = ("http", "https")
Made = TypeVar("Made")
_CHUNK_BYTES = 256 * 1024
_MAY_CHANGE = {404, 408, 409, 425, 429, *range(500, 600)}
"""Statuses that another attempt may not meet: a clip that is still being made is 404."""


@dataclass(frozen=True, slots=True)
class DownloadBounds:
    """``max_bytes`` in all, ``timeout_s`` in all, ``pause_s`` without a byte."""

    max_bytes: int
    timeout_s: float
    pause_s: float = 15.0


@dataclass(frozen=True, slots=True)
class Download:
    """An answer that has begun. ``byte_count``: its length, 0 where it does not say.

    ``chunks`` raises :class:`FetchFailed` where it ends early, is too large or too slow.
    """

    byte_count: int
    chunks: Iterator[bytes]


def check_recording_address(url: str, rules: AddressRules) -> None:
    """Raise :class:`AddressRefused` unless a recording may be fetched from there, without asking
    the network."""
    if urlsplit_scheme(url) not in SCHEMES:
        raise AddressRefused("recordings are fetched by http: or https: only")
    _by_our_setting(lambda: check_address(url, rules))


def urlsplit_scheme(url: str) -> str:
    """The scheme, lower case; empty where there is none."""
    return url.partition(":")[0].lower()


def without_login(url: str) -> str:
    """The address without user and password: what it is the same by."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _by_our_setting(work: Callable[[], Made]) -> Made:
    """A guard's refusal names the setting of recordings, not that of feeds."""
    try:
        return work()
    except AddressRefused as error:
        text = str(error).replace("RIS_FEED_HOSTS", "RIS_FETCH_HOSTS")
        raise AddressRefused(text) from error


@contextmanager
def open_download(url: str, rules: AddressRules, bounds: DownloadBounds) -> Iterator[Download]:
    """Ask for a recording. Raises :class:`AddressRefused` and :class:`FetchFailed`."""
    until_s, shown = time.monotonic() + bounds.timeout_s, redacted(url)
    connection, path = _connection(url, rules, bounds)
    try:
        answer = _ask(connection, path, urlsplit(url), shown)
        length = int(answer.length or 0)
        if length > bounds.max_bytes:
            raise _too_large(shown, bounds)
        yield Download(length, _chunks(answer, shown, length, bounds, until_s))
    finally:
        connection.close()


def _connection(
    url: str, rules: AddressRules, bounds: DownloadBounds
) -> tuple[PinnedConnection, str]:
    """And the path to ask for."""
    check_recording_address(url, rules)
    try:
        target = _by_our_setting(lambda: looked_up(url, rules))
    except FeedFailed as error:  # the name is not known
        raise FetchFailed(str(error), again=True) from error
    connection = PinnedConnection(target, bounds.pause_s, ssl.create_default_context())
    return connection, target.path


def _ask(
    connection: PinnedConnection, path: str, parts: SplitResult, shown: str
) -> http.client.HTTPResponse:
    headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "RIS"}
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
    except ssl.SSLCertVerificationError as error:
        raise FetchFailed(
            f"{shown}: its certificate is not valid: {error.verify_message}"
        ) from None
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise FetchFailed(f"{shown}: {_reason(error)}", again=True) from None
    if answer.status != 200:
        raise _refused(answer.status, shown)
    return answer


def _refused(status: int, shown: str) -> FetchFailed:
    what = f"{shown} answers {status} {http.client.responses.get(status, '')}".rstrip()
    if 300 <= status < 400:
        return FetchFailed(f"{what}: redirects are not followed, give the address itself")
    if status in (401, 403):
        return FetchFailed(f"{what}: check user and password")
    return FetchFailed(what, again=status in _MAY_CHANGE)


def _chunks(
    answer: http.client.HTTPResponse,
    shown: str,
    length: int,
    bounds: DownloadBounds,
    until_s: float,
) -> Iterator[bytes]:
    read_bytes = 0
    while True:
        try:
            chunk = answer.read1(_CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise FetchFailed(f"{shown}: {_reason(error)}", again=True) from None
        read_bytes += len(chunk)
        if read_bytes > bounds.max_bytes:
            raise _too_large(shown, bounds)
        if time.monotonic() > until_s:
            raise FetchFailed(
                f"{shown}: {read_bytes} bytes came within {bounds.timeout_s:g} s"
                " (RIS_FETCH_TIMEOUT_S), and that was not all",
                again=True,
            )
        if not chunk:
            break
        yield chunk
    if length and read_bytes < length:
        raise FetchFailed(f"{shown}: {read_bytes} of {length} bytes came", again=True)


def _too_large(shown: str, bounds: DownloadBounds) -> FetchFailed:
    return FetchFailed(f"{shown} is larger than {bounds.max_bytes} bytes (RIS_FETCH_MAX_BYTES)")


def _reason(error: Exception) -> str:
    """In a few words; of what a server wrote nothing is repeated."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, http.client.HTTPException):
        return f"the answer breaks off or is no HTTP ({type(error).__name__})"
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
