"""A small RTSP camera on loopback with fault knobs: H.264 over RTP, interleaved in the TCP stream.

No packaged server has the knobs (stall, half-open, lying clock, corrupt RTP).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache

import av
import numpy as np

RTP_CLOCK_HZ = 90_000
_NTP_EPOCH_S = 2_208_988_800
_MTU = 1200
_PAYLOAD_TYPE = 96
_SSRC = 0x52495321


@dataclass(frozen=True)
class Clip:
    """Encoded access units, each a list of NAL units without start codes; the first is an IDR."""

    units: tuple[tuple[bytes, ...], ...]
    fps: int
    sps: bytes
    pps: bytes


@cache
def encoded(w_px: int = 160, h_px: int = 128, fps: int = 10, gop: int = 5, count: int = 20) -> Clip:
    """A clip of moving blocks, to be sent over and over."""
    codec = av.CodecContext.create("libx264", "w")
    codec.width, codec.height, codec.pix_fmt = w_px, h_px, "yuv420p"
    codec.time_base, codec.framerate = Fraction(1, fps), Fraction(fps)
    codec.options = {
        "preset": "ultrafast", "tune": "zerolatency", "x264-params": f"keyint={gop}:scenecut=0",
    }  # fmt: skip
    units = []
    for number in range(count):
        img_hwc = np.full((h_px, w_px, 3), 60, np.uint8)
        x = number * (w_px - 32) // count
        img_hwc[h_px // 2 : h_px // 2 + 32, x : x + 32] = (200, 120, 40)
        frame = av.VideoFrame.from_ndarray(img_hwc, format="rgb24")
        frame.pts = number
        units += [tuple(_nals(bytes(packet))) for packet in codec.encode(frame)]
    units += [tuple(_nals(bytes(packet))) for packet in codec.encode(None)]
    sps = next(nal for nal in units[0] if nal[0] & 31 == 7)
    pps = next(nal for nal in units[0] if nal[0] & 31 == 8)
    return Clip(tuple(units), fps, sps, pps)


def _nals(annex_b: bytes) -> Iterator[bytes]:
    for part in re.split(rb"\x00\x00\x00?\x01", annex_b):
        if part:
            yield part


def _payloads(nal: bytes) -> Iterator[bytes]:
    """RTP payloads of one NAL unit: single, or fragments (RFC 6184 FU-A)."""
    if len(nal) <= _MTU:
        yield nal
        return
    indicator, kind, body = (nal[0] & 0xE0) | 28, nal[0] & 31, nal[1:]
    for at in range(0, len(body), _MTU):
        start, end = 0x80 * (at == 0), 0x40 * (at + _MTU >= len(body))
        yield bytes((indicator, start | end | kind)) + body[at : at + _MTU]


@dataclass
class Faults:
    """What the camera does wrong. Changed while it runs."""

    stalled: bool = False  # connections stay open, answers come, no picture does
    mute: bool = False  # half-open: nothing at all is answered or sent, nothing is closed
    corrupt_share: float = 0.0  # of RTP packets, whose payload is overwritten
    clock_offset_s: float = 0.0  # how wrong its clock is
    no_rtcp: bool = False
    end_after: int | None = None  # pictures, then it closes the connection
    redirect_to: str | None = None


@dataclass
class Camera:
    """One camera at ``rtsp://127.0.0.1:port/live``. ``stop`` and ``start`` are a restart."""

    clip: Clip = field(default_factory=encoded)
    user: str | None = None
    password: str = ""
    digest: bool = True
    port: int = 0
    faults: Faults = field(default_factory=Faults)
    sent: int = 0
    connections: int = 0
    _listener: socket.socket | None = None
    _open: set[socket.socket] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        login = f"{self.user}:{self.password}@" if self.user else ""
        return f"rtsp://{login}127.0.0.1:{self.port}/live"

    def start(self) -> Camera:
        """Listen; a restarted camera keeps its port."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for _ in range(50):
            try:
                listener.bind(("127.0.0.1", self.port))
                break
            except OSError:
                time.sleep(0.05)  # somebody's outgoing connection has the port for a moment
        self.port = listener.getsockname()[1]
        listener.listen(16)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Refuse connections and close those that are open."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.kill()

    def kill(self) -> None:
        """Reset every open connection."""
        with self._lock:
            doomed, self._open = self._open, set()
        for connection in doomed:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(connection)
                self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            _Connection(self, connection).run()
        with self._lock:
            self._open.discard(connection)
        with contextlib.suppress(OSError):
            connection.close()

    def __enter__(self) -> Camera:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Connection:
    def __init__(self, camera: Camera, connection: socket.socket) -> None:
        self.camera = camera
        self.socket = connection
        self.write_lock = threading.Lock()
        self.nonce = hashlib.md5(random.randbytes(8)).hexdigest()

    def run(self) -> None:
        stream = self.socket.makefile("rb")
        while line := stream.readline():
            if line[:1] == b"$":  # RTCP of the receiver
                head = (line + stream.read(3))[:4]
                stream.read(struct.unpack("!H", head[2:4])[0] - max(0, len(line) - 4))
                continue
            if not line.strip():
                continue
            method, target, _ = line.decode().split(" ", 2)
            headers = {}
            while (header := stream.readline().decode().strip()) != "":
                name, _, value = header.partition(":")
                headers[name.lower()] = value.strip()
            if self.camera.faults.mute:
                continue
            self._answer(method, target, headers)

    def _answer(self, method: str, target: str, headers: dict[str, str]) -> None:
        number = headers.get("cseq", "0")
        if method != "OPTIONS" and not self._allowed(method, headers.get("authorization", "")):
            kind = (
                f'Digest realm="camera", nonce="{self.nonce}"'
                if self.camera.digest
                else 'Basic realm="camera"'
            )
            self._reply(number, "401 Unauthorized", {"WWW-Authenticate": kind})
            return
        if self.camera.faults.redirect_to is not None and method == "DESCRIBE":
            self._reply(number, "302 Found", {"Location": self.camera.faults.redirect_to})
        elif method == "DESCRIBE":
            sdp = self._sdp()
            extra = {"Content-Type": "application/sdp", "Content-Base": target + "/"}
            self._reply(number, "200 OK", extra, sdp)
        elif method == "SETUP":
            transport = "RTP/AVP/TCP;unicast;interleaved=0-1"
            self._reply(number, "200 OK", {"Transport": transport, "Session": "1;timeout=60"})
        elif method == "PLAY":
            self._reply(number, "200 OK", {"Session": "1", "Range": "npt=now-"})
            threading.Thread(target=self._play, daemon=True).start()
        else:
            public = "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER"
            self._reply(number, "200 OK", {"Public": public, "Session": "1"})
            if method == "TEARDOWN":
                raise ValueError("over")

    def _allowed(self, method: str, given: str) -> bool:
        camera = self.camera
        if camera.user is None:
            return True
        if not camera.digest:
            wanted = base64.b64encode(f"{camera.user}:{camera.password}".encode()).decode()
            return given == f"Basic {wanted}"
        fields = dict(re.findall(r'(\w+)="?([^",]*)"?', given))
        ha1 = hashlib.md5(f"{camera.user}:camera:{camera.password}".encode()).hexdigest()
        ha2 = hashlib.md5(f"{method}:{fields.get('uri', '')}".encode()).hexdigest()
        return (
            fields.get("response") == hashlib.md5(f"{ha1}:{self.nonce}:{ha2}".encode()).hexdigest()
        )

    def _sdp(self) -> bytes:
        clip = self.camera.clip
        sets = ",".join(base64.b64encode(nal).decode() for nal in (clip.sps, clip.pps))
        return (
            "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n"
            f"m=video 0 RTP/AVP {_PAYLOAD_TYPE}\r\na=rtpmap:{_PAYLOAD_TYPE} H264/{RTP_CLOCK_HZ}\r\n"
            f"a=fmtp:{_PAYLOAD_TYPE} packetization-mode=1;sprop-parameter-sets={sets}\r\n"
            "a=control:track1\r\n"
        ).encode()

    def _reply(self, number: str, status: str, headers: dict[str, str], body: bytes = b"") -> None:
        if body:
            headers = {**headers, "Content-Length": str(len(body))}
        lines = [
            f"RTSP/1.0 {status}",
            f"CSeq: {number}",
            *(f"{k}: {v}" for k, v in headers.items()),
        ]
        with self.write_lock:
            self.socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def _play(self) -> None:
        with contextlib.suppress(OSError):
            self._stream()
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def _stream(self) -> None:
        camera, dice = self.camera, random.Random(7)
        sequence, start_s, first = 0, time.monotonic(), random.randrange(1 << 31)
        next_report_s = 0.0
        number = 0
        while camera.faults.end_after is None or number < camera.faults.end_after:
            clip = camera.clip
            at_s = number / clip.fps
            time.sleep(max(0.0, start_s + at_s - time.monotonic()))
            if camera.faults.stalled or camera.faults.mute:
                number += 1
                continue
            ticks = (first + round(at_s * RTP_CLOCK_HZ)) & 0xFFFFFFFF
            if at_s >= next_report_s and not camera.faults.no_rtcp:
                self._interleaved(1, self._sender_report(ticks))
                next_report_s = at_s + 0.5
            unit = clip.units[number % len(clip.units)]
            for nal in unit:
                pieces = list(_payloads(nal))
                for piece in pieces:
                    last = nal is unit[-1] and piece is pieces[-1]
                    head = struct.pack(
                        "!BBHII", 0x80, _PAYLOAD_TYPE | 0x80 * last, sequence, ticks, _SSRC
                    )
                    sequence = (sequence + 1) & 0xFFFF
                    spoilt = dice.random() < camera.faults.corrupt_share
                    body = piece[:1] + dice.randbytes(len(piece) - 1) if spoilt else piece
                    self._interleaved(0, head + body)
            camera.sent += 1
            number += 1

    def _sender_report(self, ticks: int) -> bytes:
        now_s = time.time() + self.camera.faults.clock_offset_s + _NTP_EPOCH_S
        whole = int(now_s)
        fraction = int((now_s - whole) * (1 << 32))
        return struct.pack("!BBHIIIIII", 0x80, 200, 6, _SSRC, whole, fraction, ticks, 0, 0)

    def _interleaved(self, channel: int, body: bytes) -> None:
        with self.write_lock:
            self.socket.sendall(struct.pack("!cBH", b"$", channel, len(body)) + body)
