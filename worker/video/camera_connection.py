"""The worker's part of opening a feed: the connection, or the file, that a decoder is given."""

from __future__ import annotations

import os
import socket
import stat
from typing import Final
from urllib.parse import SplitResult, urlsplit

from worker.errors import FeedFailed
from worker.video.address import PORTS

_CONNECT_S: Final = 10.0
_ANSWER_S: Final = 2.0


def connected(url: str, label: str, *, again: bool) -> tuple[int, tuple[str, int]]:
    """A descriptor connected to the address in an RTSP URL, and that address.

    ``again``: it failed before: it is given 2 s to take connections and to answer a question.
    A connection to a camera that hangs is waited for as long as a slow one may take to send its
    first keyframe; this tells the two apart. Raises :class:`FeedFailed`.
    """
    parts = urlsplit(url)
    where = (parts.hostname or "", parts.port or PORTS[parts.scheme])
    if again and parts.scheme == "rtsp":
        _require_answer(where, parts, label)
    with _connection(where, label, _CONNECT_S) as connection:
        connection.setblocking(True)  # the other process shares the flag
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection.detach(), where


def open_recording(url: str, label: str) -> int:
    """A descriptor of the file a ``file:`` address names. Raises :class:`FeedFailed`."""
    try:
        # Without waiting: opening a pipe would wait for a writer.
        fd = os.open(url.removeprefix("file:"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        text = "is not there: correct the address's path"
        raise FeedFailed(f"{label} {text}", reason="not_found") from None
    except PermissionError:
        raise FeedFailed(f"{label} may not be read by this user", reason="auth") from None
    except OSError as error:
        text = f"{label} cannot be opened ({error.strerror})"
        raise FeedFailed(text, reason="unreachable") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FeedFailed(f"{label} is not a regular file", reason="invalid")
    return fd


def _require_answer(where: tuple[str, int], parts: SplitResult, label: str) -> None:
    """Raise :class:`FeedFailed` unless an RTSP server answers a question soon."""
    question = f"OPTIONS rtsp://{parts.hostname}:{where[1]}/ RTSP/1.0\r\nCSeq: 1\r\n\r\n"
    try:
        with _connection(where, label, _ANSWER_S) as connection:
            connection.sendall(question.encode())
            answered = connection.recv(1) != b""
    except OSError as error:
        raise _unreachable(error, label) from None
    if not answered:
        raise FeedFailed(f"{label} closed the connection", reason="connection_lost")


def _connection(where: tuple[str, int], label: str, limit_s: float) -> socket.socket:
    try:
        return socket.create_connection(where, limit_s)
    except OSError as error:
        raise _unreachable(error, label) from None


def _unreachable(error: OSError, label: str) -> FeedFailed:
    match error:
        case TimeoutError():
            text = "does not answer"
        case ConnectionRefusedError():
            text = "refuses connections: is it on?"
        case _:
            text = f"cannot be reached ({error.strerror})"
    return FeedFailed(f"{label} {text}", reason="unreachable")
