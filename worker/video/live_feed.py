"""A live camera as its slice sees it: pictures that another process decodes, watched and checked.

Whatever a camera sends, the worker reads checked messages only. A process that crashes, hangs or
says nonsense is a failure of its feed, of reason ``decoder_killed``.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import unquote, urlsplit

import numpy as np
import structlog

from worker.core.types import FloatArray, ImageArray, SizePx
from worker.errors import FeedFailed
from worker.video.address import Target, resolved
from worker.video.camera_connection import connected, open_recording
from worker.video.decoding_wire import WireBroken, info_from_json, read_object
from worker.video.http_gate import HttpGate
from worker.video.http_guard import without_login
from worker.video.live import NO_PICTURE_S, OPEN_TIMEOUT_S
from worker.video.live_decoders import DECODERS, LiveDecoder, LiveDecoders
from worker.video.live_values import LiveOptions, LivePicture
from worker.video.live_wire import (
    HEAD,
    KEEP,
    QUIT,
    REQUEST_HEAD,
    SKIP,
    LiveRequest,
    Said,
    Seen,
    failure_from_json,
    read_head,
    size_from_bytes,
    size_to_bytes,
)
from worker.video.values import GRAY_W_PX, VideoInfo

log = structlog.get_logger()

_MOMENT_S: Final = 0.25
"""How long one step waits: so long a slice that shall end is not noticed."""
_GRACE_S: Final = 5.0
"""How much later than FFmpeg's own time limits a silent process counts as hung."""
_ROUND_GAP_S: Final = 0.04
_FAREWELL_S: Final = 0.5
_LATEST_S: Final = 120.0


class LiveFeed:
    """An open connection; made by :func:`open_live`, used by one thread at a time."""

    def __init__(
        self, target: Target, options: LiveOptions, label: str, decoders: LiveDecoders
    ) -> None:
        self._target, self._options, self._label = target, options, label
        self._decoders = decoders
        self._secrets = _secrets(target.url)
        self._input_size = options.input_size
        self._info: VideoInfo | None = None
        self._round_s = self._end_s = 0.0  # of a recording that goes round
        self._pace_from_s = time.monotonic()
        self.ends = False
        self._started: LiveDecoder | None = None
        self._gate: HttpGate | None = None

    def connect(self, *, again: bool) -> None:
        """Connect, and have a process read it. Raises :class:`FeedFailed`."""
        self._opening, self._asked = True, False
        self._silent_s = 0.0
        self._last_picture_s = time.monotonic()
        self._patience_s = self._options.stall_s + _GRACE_S
        if self._target.kind == "http":  # it may wait for another connection as well
            self._patience_s += self._options.stall_s + OPEN_TIMEOUT_S
        try:
            source, camera = self._source(again=again)
            try:
                self._started = self._decoders.start([source])
            except FeedFailed as error:
                raise FeedFailed(f"{self._label}: {error}", reason=error.reason) from error
            finally:
                os.close(source)
            told = self._request(camera).to_bytes()
            with self._believing():
                self._send(REQUEST_HEAD.pack(len(told)) + told)
        except BaseException:
            self.close()
            raise

    def _source(self, *, again: bool) -> tuple[int, tuple[str, int] | None]:
        """The descriptor that the process reads from, and the camera's address where it has one."""
        target = self._target
        match target.kind:
            case "rtsp":
                return connected(target.url, self._label, again=again)
            case "file":
                return open_recording(target.url, self._label), None
            case "http":
                self._gate = HttpGate(target.url, self._options.rules, self._options.stall_s)
                return self._gate.start(), None

    def _request(self, camera: tuple[str, int] | None) -> LiveRequest:
        target, options = self._target, self._options
        return LiveRequest(
            kind=target.kind,
            url=without_login(target.url) if target.kind == "http" else target.url,
            camera=camera,
            label=self._label,
            policy=options.policy,
            input_size=self._input_size,
            picture_max_side_px=options.picture_max_side_px,
            max_px=options.max_px,
            stall_s=options.stall_s,
            patience_s=self._patience_s,
            pace_from_s=self._pace_from_s,
        )

    @property
    def _decoder(self) -> LiveDecoder:
        assert self._started is not None
        return self._started

    @property
    def pid(self) -> int:
        """Of the process that decodes."""
        return self._decoder.pid

    def step(self) -> LivePicture | None:
        """The next picture; None when none came within a moment.

        A picture whose pixels nobody asked for is let go. Raises :class:`FeedFailed`; its reason
        ``ended`` is no failure when :attr:`ends`.
        """
        try:
            with self._believing():
                return self._step()
        except FeedFailed as error:
            went_on = self._end_s > self._round_s
            if self._target.kind != "file" or error.reason != "ended" or not went_on:
                raise
        self.close()
        self._pace_from_s += self._end_s + _ROUND_GAP_S - self._round_s
        self._round_s = self._end_s + _ROUND_GAP_S
        self.connect(again=False)
        return None

    def pixels(self, input_size: SizePx) -> tuple[ImageArray, ImageArray]:
        """The picture that :meth:`step` gave last: uint8 RGB of exactly the backbone's input size,
        which may change meanwhile, and as displayed, no larger than asked for.

        Raises :class:`FeedFailed`.
        """
        assert self._asked
        self._input_size, self._asked = input_size, False
        with self._believing():
            self._send(KEEP + size_to_bytes(input_size))
            said, body = self._receive(self._patience_s)
            if said is not Said.PIXELS:
                self._other(said, body)
                raise WireBroken(f"{said.name} out of turn")
            size = size_from_bytes(body, self._options.picture_max_side_px)
            return self._picture(input_size), self._picture(size)

    def close(self) -> None:
        """End the connection. A camera that does not answer is not waited for."""
        decoder, self._started = self._started, None
        gate, self._gate = self._gate, None
        if decoder is not None:
            with contextlib.suppress(OSError):
                decoder.line.send(QUIT)
                decoder.wait(_FAREWELL_S)
            decoder.kill()
        if gate is not None:
            gate.close()

    def _step(self) -> LivePicture | None:
        if self._asked:
            self._asked = False
            self._send(SKIP)
        if not self._comes(_MOMENT_S):
            patience_s = self._patience_s + (2 * OPEN_TIMEOUT_S if self._opening else 0.0)
            if self._silent_s > patience_s:
                raise _Late
            return None
        said, body = self._receive(self._patience_s)
        if said is Said.SEEN and self._info is not None:
            return self._seen(Seen.from_bytes(body), self._info)
        self._other(said, body)
        most_s = max(NO_PICTURE_S, self._options.stall_s) + self._patience_s
        if not self._opening and time.monotonic() - self._last_picture_s > most_s:
            raise _Late
        return None

    def _other(self, said: Said, body: bytes) -> None:
        """What is no picture. Raises :class:`FeedFailed` for the last message."""
        if said is Said.FAILED:
            reason, text = failure_from_json(read_object(body), self._secrets)
            raise FeedFailed(f"{self._label} {text}", reason=reason)
        if said is Said.INFO:
            info = info_from_json(read_object(body))
            self._info = self._info if info == self._info else info
        elif said is Said.OPENED and self._opening:
            self.ends = self._target.kind == "http" and read_object(body).get("ends") is True
            self._opening, self._last_picture_s = False, time.monotonic()
        elif said is Said.READY and self._opening:
            log.debug("live_decoder_ready", camera=self._label, pid=self.pid)
        elif said is not Said.ALIVE:
            raise WireBroken(f"{said.name} out of turn")

    def _seen(self, seen: Seen, info: VideoInfo) -> LivePicture:
        gray_hw: FloatArray | None = None
        if seen.gray_h_px:
            room = np.empty((seen.gray_h_px, GRAY_W_PX), np.uint8)
            self._fill(room.data.cast("B"), self._patience_s)
            gray_hw = room.astype(np.float32)
        self._asked, self._last_picture_s = True, time.monotonic()
        stream_s = self._round_s + seen.stream_s
        self._end_s = max(self._end_s, stream_s)
        now_s = time.time()
        return LivePicture(
            stream_s=stream_s,
            arrival_s=min(max(seen.arrival_s, now_s - _LATEST_S), now_s),
            ntp_s=seen.ntp_s,
            keyframe=seen.keyframe,
            damaged=seen.damaged,
            decode_errors=seen.decode_errors,
            info=info,
            gray_hw=gray_hw,
        )

    def _comes(self, limit_s: float) -> bool:
        """Whether something comes within that time; what is waited in vain is added up."""
        began_s = time.monotonic()
        ready = select.poll()
        ready.register(self._decoder.line, select.POLLIN)
        if ready.poll(limit_s * 1000):
            self._silent_s = 0.0
            return True
        self._silent_s += time.monotonic() - began_s
        return False

    def _receive(self, limit_s: float) -> tuple[Said, bytes]:
        head = bytearray(HEAD.size)
        self._fill(memoryview(head), limit_s)
        said, length = read_head(bytes(head))
        body = bytearray(length)
        self._fill(memoryview(body), limit_s)
        return said, bytes(body)

    def _picture(self, size: SizePx) -> ImageArray:
        img_hwc = np.empty((*size, 3), np.uint8)
        self._fill(img_hwc.data.cast("B"), self._patience_s)
        return img_hwc

    def _fill(self, room: memoryview, limit_s: float) -> None:
        """Read exactly so much. Raises :class:`_Late`, and ``EOFError`` when no more comes."""
        line, filled = self._decoder.line, 0
        until_s = time.monotonic() + limit_s
        while filled < len(room):
            try:
                count = line.recv_into(room[filled:])
            except BlockingIOError:
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    raise _Late from None
                self._comes(left_s)
                continue
            if count == 0:
                raise EOFError
            filled += count

    def _send(self, told: bytes) -> None:
        """Say something short: there is always room for it, unless nobody reads."""
        try:
            if self._decoder.line.send(told) != len(told):
                raise _Late
        except BlockingIOError:
            raise _Late from None
        except OSError:
            raise EOFError from None

    @contextmanager
    def _believing(self) -> Iterator[None]:
        """Tell what went wrong with the process as a failure of its feed."""
        try:
            yield
        except WireBroken as error:
            text = f"made its decoder answer nonsense ({error})"
        except _Late:
            text = "hung the process that decodes it, which was ended"
        except (EOFError, ConnectionResetError):
            text = f"ended the process that decodes it ({_ending(self._decoder.wait(1.0))})"
        else:
            return
        raise FeedFailed(f"{self._label} {text}", reason="decoder_killed")


class _Late(Exception):
    """The deadline is over."""


def open_live(
    url: str,
    options: LiveOptions,
    label: str,
    *,
    again: bool = False,
    decoders: LiveDecoders | None = None,
) -> LiveFeed:
    """Connect to a feed's address. ``label`` names it in messages, which never show the address.

    ``again``: it failed before, so ask shortly first whether it answers at all. ``decoders``: those
    of this process by default. Returns before the camera has said what it sends.

    Raises :class:`FeedFailed`, and :class:`AddressRefused` for what the settings do not allow.
    """
    feed = LiveFeed(resolved(url, options.rules), options, label, decoders or DECODERS)
    feed.connect(again=again)
    return feed


def _secrets(url: str) -> list[str]:
    """What of an address no message may hold."""
    parts = urlsplit(url)
    given = [parts.password or "", parts.query, unquote(parts.password or "")]
    return [secret for secret in given if secret]


def _ending(status: int | None) -> str:
    if status is not None and status < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-status).name
    return f"status {status}"
