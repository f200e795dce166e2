"""FFmpeg's one way out of a decoding process: to the camera that was looked at, and nowhere else.

FFmpeg opens its connections itself. It finds a listener on the loopback of its own network, at the
camera's very address; what comes there is carried over a connection that the worker made.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Final

_SIOCSIFADDR, _SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8916, 0x8913, 0x8914
_IFF_UP = 1
_LOOPBACK_INDEX = 1
_ADDRESS_S: Final = 2.0
_CHUNK_BYTES: Final = 64 * 1024
_STACK_BYTES: Final = 512 * 1024
_MAX_HEAD_BYTES: Final = 16 * 1024
_FRAME = struct.Struct("!cBH")
_END = b"\r\n\r\n"
_Watch = Callable[[memoryview], bool]


def listen_as(camera: tuple[str, int], *, alone: bool) -> socket.socket:
    """A listener for FFmpeg: at the camera's address where the network is this process's own.

    Elsewhere at a free port of the machine's loopback.
    """
    host, _ = camera
    if alone:
        with contextlib.suppress(OSError):
            _take_address(host)
            return _listening(camera)
    return socket.create_server(("127.0.0.1", 0), backlog=1)


def _listening(where: tuple[str, int]) -> socket.socket:
    """A listener; a new IPv6 address can be used a moment after it was given only."""
    until_s = time.monotonic() + _ADDRESS_S
    while True:
        try:
            return socket.create_server(where, family=_family(where[0]), backlog=1)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL or time.monotonic() > until_s:
                raise
        time.sleep(0.01)


class CameraLink:
    """Carries one connection to the camera's and back; ends with either."""

    def __init__(self, listener: socket.socket, camera: socket.socket) -> None:
        self._listener, self._camera = listener, camera
        self._redirects = RedirectWatch()
        self._to_camera: threading.Thread | None = None
        self.lost = False

    @property
    def redirected(self) -> bool:
        """Whether the camera sent elsewhere. It was not passed on."""
        return self._redirects.seen

    def start(self) -> None:
        """Carry from now on, in threads of this process."""
        threading.stack_size(_STACK_BYTES)
        threading.Thread(target=self._run, daemon=True).start()

    def finish(self, limit_s: float) -> None:
        """Wait until what FFmpeg said last is on its way."""
        if self._to_camera is not None:
            self._to_camera.join(limit_s)

    def _run(self) -> None:
        try:
            inner, _ = self._listener.accept()
        except OSError:
            return
        self._listener.close()
        self._to_camera = threading.Thread(
            target=self._carry, args=(inner, self._camera, self._redirects.asks), daemon=True
        )
        self._to_camera.start()
        self._carry(self._camera, inner, self._redirects.answers)

    def _carry(self, source: socket.socket, sink: socket.socket, watch: _Watch) -> None:
        room = memoryview(bytearray(_CHUNK_BYTES))
        try:
            while count := source.recv_into(room):
                if watch(room[:count]):
                    break
                sink.sendall(room[:count])
        except OSError:
            self.lost |= source is self._camera
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


class RedirectWatch:
    """Reads along what an RTSP server answers, until FFmpeg asks for pictures.

    Up to then FFmpeg goes wherever it is sent, and what listens there was not looked at.
    """

    def __init__(self) -> None:
        self.seen = False
        self._over = False
        self._unread = bytearray()
        self._body_left = 0

    def asks(self, told: memoryview) -> bool:
        """FFmpeg's side of it; never ends the connection."""
        self._over |= bytes(told[:5]) == b"PLAY "
        return False

    def answers(self, told: memoryview) -> bool:
        """Whether a redirect has been answered by now, or what no server answers."""
        if self._over:
            return False
        self._unread += told
        while self._unread and not self.seen:
            if self._body_left:
                skipped = min(self._body_left, len(self._unread))
                del self._unread[:skipped]
                self._body_left -= skipped
            elif self._unread[:1] == b"$":
                if len(self._unread) < _FRAME.size:
                    break
                self._body_left = _FRAME.size + _FRAME.unpack_from(self._unread)[2]
            else:
                end = self._unread.find(_END)
                self.seen = end < 0 and len(self._unread) > _MAX_HEAD_BYTES
                if end < 0:
                    break
                self._read(bytes(self._unread[:end]))
                del self._unread[: end + len(_END)]
        return self.seen

    def _read(self, head: bytes) -> None:
        first, *lines = head.lstrip().split(b"\r\n")
        words = first.split()
        self.seen = len(words) > 1 and words[0].startswith(b"RTSP/") and words[1][:1] == b"3"
        for line in lines:
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-length" and value.strip().isdigit():
                self._body_left = int(value)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _take_address(host: str) -> None:
    """Give the loopback of this process's own network the camera's address, and switch it on."""
    address = ipaddress.ip_address(host)
    with socket.socket(_family(host), socket.SOCK_DGRAM) as asked:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
            told = fcntl.ioctl(plain, _SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
            flags = struct.unpack_from("16sH", told)[1]
            fcntl.ioctl(plain, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
        if address.is_loopback:
            return
        if address.version == 4:
            request = struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, address.packed)
        else:
            request = struct.pack("=16sIi", address.packed, 128, _LOOPBACK_INDEX)
        fcntl.ioctl(asked, _SIOCSIFADDR, request)
