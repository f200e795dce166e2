"""The watched end of the line to a process that decodes: patience, checks, and typed errors."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import structlog

from worker.core.types import ImageArray, SizePx
from worker.errors import (
    InputInvalid,
    RisError,
    SetupFailed,
    StorageFailed,
    VideoInvalid,
    VideoKilledDecoder,
    VideoTooSlow,
    VideoUnreadable,
)
from worker.video.decoding_wire import (
    HEAD,
    Json,
    Kind,
    Request,
    Sampling,
    WireBroken,
    error_from_json,
    frame_from_json,
    info_from_json,
    network_from_json,
    read_head,
    read_object,
    report_from_json,
)
from worker.video.values import DecodeReport, SampledFrame, VideoInfo

log = structlog.get_logger()

_ERRORS = (VideoUnreadable, VideoInvalid, VideoKilledDecoder, StorageFailed, InputInvalid)
_PIPE_BYTES = 1024 * 1024
START_S = 60.0
_END_S = 5.0
_NOTHING_YET = DecodeReport(0, 0, 0, 0, truncated=False, last_pts=None, frames_expected=None)


class Started(Protocol):
    """A decoding process that was given its file and its request."""

    pid: int
    out_fd: int

    def wait(self, timeout_s: float) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""

    def kill(self) -> None:
        """End it now."""


Start = Callable[[int, bytes], Started]
"""Starts a decoding process on an open file and a request."""


class Child:
    """The watched end of the line to one decoding process."""

    def __init__(self, start: Start, fd: int, request: Request, kept_s: float) -> None:
        self._start, self._fd, self._request = start, fd, request
        self._kept_s = self._left_s = kept_s
        self._ended = False
        self._last_pts: int | None = None
        self.report = _NOTHING_YET
        self.network = ""

    def __enter__(self) -> Child:
        self._started = self._start(self._fd, self._request.to_bytes())
        self.pid = self._started.pid
        try:
            os.set_blocking(self._started.out_fd, False)
            with contextlib.suppress(OSError):  # past what this user may have: smaller, slower
                fcntl.fcntl(self._started.out_fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            self._greet()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._started.kill()
        if self._started.wait(_END_S) is None:
            log.warning("decoder_does_not_end", pid=self.pid)  # it waits for a disk

    def grant(self, further_s: float) -> None:
        """Let the next kept picture take that much longer, once."""
        self._left_s += further_s

    def info(self) -> VideoInfo:
        """What the file is; the first thing that is told."""
        with self._believing():
            kind, told = self._message()
            if kind is not Kind.INFO:
                raise WireBroken(f"{kind.name} out of turn")
            return info_from_json(told)

    def next_frame(self) -> SampledFrame | None:
        """The next kept picture, None when there are no more."""
        if self._ended:
            return None
        with self._believing():
            kind, told = self._message()
            if kind is Kind.FRAME and self._request.sampling is not None:
                return self._frame(told, self._request.sampling)
            if kind is not Kind.END:
                raise WireBroken(f"{kind.name} out of turn")
            if self._request.sampling is not None:
                self.report = report_from_json(told.get("report"))
            self._ended = True
            return None

    def _frame(self, told: Json, wanted: Sampling) -> SampledFrame:
        head = frame_from_json(told, wanted.picture_max_side_px)
        last_pts = wanted.resume_after_pts
        if self.report.frames_kept:
            last_pts = self._last_pts
        if last_pts is not None and head.pts <= last_pts:
            raise WireBroken("a picture whose time goes back")
        until_s = time.monotonic() + self._request.stretch_s
        img_input_hwc = self._picture(wanted.input_size, until_s)
        img_picture_hwc = self._picture(head.picture, until_s)
        self._left_s, self.report, self._last_pts = self._kept_s, head.report, head.pts
        return SampledFrame(head.pts, head.t_s, head.keyframe, img_input_hwc, img_picture_hwc)

    def _greet(self) -> None:
        """Wait until the limits hold: before that, no byte of the file was looked at."""
        try:
            kind, told = self._receive(time.monotonic() + max(START_S, self._request.stretch_s))
            if kind is not Kind.READY:
                raise WireBroken(f"{kind.name} out of turn")
            self.network = network_from_json(told)
            if self.network != "none":
                _warn_of_network()
        except (WireBroken, _Late, EOFError) as error:
            status = self._started.wait(_END_S if isinstance(error, EOFError) else 0)
            raise SetupFailed(
                f"the process that decodes video did not start (status {status},"
                f" {error or 'it said nothing'}); the log above says why"
            ) from error

    def _message(self) -> tuple[Kind, Json]:
        """The next message that is more than a sign of life. Raises the error that it tells."""
        while True:
            began_s = time.monotonic()
            patience_s = min(self._request.stretch_s, max(0.0, self._left_s))
            kind, told = self._receive(began_s + patience_s)
            self._left_s -= time.monotonic() - began_s
            if kind is Kind.FAILED:
                raise error_from_json(told, _ERRORS)
            if kind is not Kind.ALIVE:
                return kind, told

    def _receive(self, until_s: float) -> tuple[Kind, Json]:
        head = bytearray(HEAD.size)
        self._fill(memoryview(head), until_s)
        kind, length = read_head(bytes(head))
        body = bytearray(length)
        self._fill(memoryview(body), until_s)
        return kind, read_object(bytes(body))

    def _picture(self, size: SizePx, until_s: float) -> ImageArray:
        img_hwc = np.empty((*size, 3), np.uint8)
        self._fill(img_hwc.data.cast("B"), until_s)
        return img_hwc

    def _fill(self, room: memoryview, until_s: float) -> None:
        """Read exactly so much. Raises :class:`_Late`, and ``EOFError`` when no more comes."""
        fd, filled = self._started.out_fd, 0
        ready = select.poll()
        ready.register(fd, select.POLLIN)
        while filled < len(room):
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                raise _Late
            if not ready.poll(left_s * 1000):
                continue
            try:
                count = os.readv(fd, [room[filled:]])
            except BlockingIOError:
                continue
            if count == 0:
                raise EOFError
            filled += count

    @contextmanager
    def _believing(self) -> Iterator[None]:
        """Tell what went wrong with the process as a typed error about its file."""
        name = self._request.name
        try:
            yield
        except WireBroken as error:
            raise VideoKilledDecoder(
                f"{name} made its decoder answer nonsense ({error}); convert the file"
            ) from error
        except _Late:
            raise self._late(name) from None
        except EOFError:
            raise _death(name, self._started.wait(_END_S), self._request.stretch_s) from None

    def _late(self, name: str) -> RisError:
        if _waits_for_disk(self.pid):
            return StorageFailed(f"reading {name} hangs; check the disk or the network it is on")
        return VideoTooSlow(
            f"{name} gave its decoder nothing to show within the deadline of"
            f" {self._request.stretch_s:g} s (RIS_DECODE_DEADLINE_S); convert the file"
        )


@cache
def _warn_of_network() -> None:
    """Once per process."""
    log.warning("decoder_keeps_network", detail="the kernel or container lets it not be given up")


class _Late(Exception):
    """The deadline is over."""


def _death(name: str, status: int | None, deadline_s: float) -> RisError:
    if status is not None and status < 0:
        with contextlib.suppress(ValueError):
            number = signal.Signals(-status)
            if number is signal.SIGXCPU:
                return VideoTooSlow(
                    f"{name} kept its decoder busy beyond the deadline of {deadline_s:g} s"
                    " (RIS_DECODE_DEADLINE_S); convert the file"
                )
            return VideoKilledDecoder(
                f"{name} ended the process that decoded it ({number.name}); convert the file"
            )
    return VideoKilledDecoder(
        f"{name} ended the process that decoded it (status {status}); convert the file"
    )


def _waits_for_disk(pid: int) -> bool:
    try:
        told = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return told.rpartition(")")[2].split()[:1] == ["D"]
