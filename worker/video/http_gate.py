"""The gate between a decoder without a network and HTTP: it asks for addresses, and gets bytes.

The decoder sends one request at a time over a socket of messages; the answer brings a pipe that the
body comes through. What is asked for is checked as if an enemy asked.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import suppress
from typing import Any, Final

from worker.errors import AddressRefused, FeedFailed
from worker.video.address import AddressRules
from worker.video.http_guard import GuardedHttp, Opened, pieces

_MAX_REQUEST_BYTES: Final = 16 * 1024
_MAX_OPEN: Final = 6
_MAX_OFFSET: Final = 2**62


class HttpGate:
    """Serves one decoder until :meth:`close`, in threads of its own."""

    def __init__(self, url: str, rules: AddressRules, read_s: float) -> None:
        self._http = GuardedHttp(url, rules, read_s)
        self._lock = threading.Lock()
        self._open: set[int] = set()
        self._fates: dict[int, tuple[str, str]] = {}
        self._count = 0
        self._ours: socket.socket | None = None

    def start(self) -> int:
        """Serve from now on; returns the decoder's end, a descriptor."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours = ours
        threading.Thread(target=self._serve, args=(ours,), name="http-gate", daemon=True).start()
        return theirs.detach()

    def close(self) -> None:
        """Serve no more; bodies that still come end with their pipes."""
        if self._ours is not None:
            with suppress(OSError):  # the decoder went first
                self._ours.shutdown(socket.SHUT_RDWR)
        self._http.close()

    def _serve(self, ours: socket.socket) -> None:
        with ours:
            while True:
                try:
                    told = ours.recv(_MAX_REQUEST_BYTES)
                    if not told:
                        return
                    answer, fd = self._answer(told)
                    try:
                        packed = json.dumps(answer).encode()
                        socket.send_fds(ours, [packed], [] if fd is None else [fd])
                    finally:
                        if fd is not None:
                            os.close(fd)
                except OSError:
                    return

    def _answer(self, told: bytes) -> tuple[dict[str, Any], int | None]:
        try:
            asked = json.loads(told)
            match asked:
                case {"fate": int(number)}:
                    with self._lock:
                        reason, text = self._fates.pop(number, ("", ""))
                    return {"reason": reason, "text": text}, None
                case {"url": str(url), "first": int(first), "last": int() | None as last}:
                    if not (0 <= first < _MAX_OFFSET and (last is None or first <= last)):
                        raise FeedFailed("asks for no bytes", reason="invalid")
                    return self._begin(url, first, last)
            raise FeedFailed("asks for nothing", reason="invalid")
        except AddressRefused as error:
            return {"reason": "not_allowed", "text": f"sends elsewhere: {error}"}, None
        except FeedFailed as error:
            return {"reason": error.reason, "text": str(error)}, None
        except (ValueError, RecursionError):
            return {"reason": "invalid", "text": "asks for no address"}, None

    def _begin(self, url: str, first: int, last: int | None) -> tuple[dict[str, Any], int]:
        with self._lock:
            if len(self._open) >= _MAX_OPEN:
                raise FeedFailed("reads too much at once", reason="invalid")
            self._count += 1
            number = self._count
            self._open.add(number)
        try:
            opened = self._http.open(url, first, last)
            read_fd, write_fd = os.pipe()
        except BaseException:
            with self._lock:
                self._open.discard(number)
            raise
        threading.Thread(
            target=self._carry, args=(number, opened, write_fd), name="http-body", daemon=True
        ).start()
        told = {"number": number, "byte_count": opened.byte_count, "ranges": opened.ranges}
        return told | {"media_type": opened.media_type[:100], "reason": ""}, read_fd

    def _carry(self, number: int, opened: Opened, write_fd: int) -> None:
        try:
            for piece in pieces(opened):
                left = memoryview(piece)
                while left:
                    left = left[os.write(write_fd, left) :]
        except OSError:
            pass  # the decoder has enough
        except FeedFailed as error:
            with self._lock:
                self._fates[number] = (error.reason, str(error))
        finally:
            with self._lock:
                self._open.discard(number)
            os.close(write_fd)
