"""The process that reads one live camera: forked by :mod:`worker.video.live_forker`, limited.

What it may reach: the line to the slice, and the open connection or recording it was given. It
knows no settings, no database, no broker, and of passwords its own camera's.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from worker.core.types import ImageArray, SizePx
from worker.errors import FeedFailed, VideoInvalid
from worker.video.camera_link import CameraLink, listen_as
from worker.video.confinement import (
    first_to_go,
    give_up_rest,
    leave_network,
    limit_memory,
    memory_for,
    memory_needed,
    renew_cpu,
)
from worker.video.decoding_wire import info_to_json
from worker.video.live import DecodedPicture, LiveVideo, open_video_live
from worker.video.live_wire import (
    KEEP,
    QUIT,
    REQUEST_HEAD,
    SIZE_BYTES,
    LiveRequest,
    Said,
    Seen,
    failure_to_json,
    pack,
    size_from_bytes,
    size_to_bytes,
)
from worker.video.values import VideoInfo

_ALIVE_EVERY_S: Final = 0.5
_MAX_SIDE_PX: Final = 16_384
_FAREWELL_S: Final = 0.2


class Quit(Exception):
    """The slice has enough."""


class Line:
    """The way to the slice. Writing waits until the slice reads."""

    def __init__(self, connection: socket.socket, patience_s: float) -> None:
        self._connection, self._patience_s = connection, patience_s
        self._told_s = time.monotonic()
        self._asked = select.poll()
        self._asked.register(connection, select.POLLIN)

    def say(self, said: Said, body: bytes = b"", pixels: Sequence[ImageArray] = ()) -> None:
        """Send one message, and begin the next stretch of processor time."""
        self._connection.sendall(pack(said, body))
        for img in pixels:  # pictures of odd widths come with padded lines
            self._connection.sendall(np.ascontiguousarray(img).data.cast("B"))
        renew_cpu(self._patience_s)
        self._told_s = time.monotonic()

    def say_object(self, said: Said, told: Mapping[str, Any]) -> None:
        """Send a message that is an object."""
        self.say(said, json.dumps(told).encode())

    def alive(self) -> None:
        """A packet was read; said twice a second at most. Raises :class:`Quit`."""
        if time.monotonic() - self._told_s >= _ALIVE_EVERY_S:
            self.say(Said.ALIVE)
        if self._asked.poll(0):  # nothing else is asked between pictures
            raise Quit

    def wanted(self) -> SizePx | None:
        """Whether the picture that was seen is wanted, and in which size for the backbone."""
        answer = self.read(1)
        if answer == QUIT:
            raise Quit
        return size_from_bytes(self.read(SIZE_BYTES), _MAX_SIDE_PX) if answer == KEEP else None

    def read(self, count: int) -> bytes:
        """Exactly so many bytes of the slice. Raises :class:`Quit` when it is gone."""
        told = bytearray()
        while len(told) < count:
            part = self._connection.recv(count - len(told))
            if not part:
                raise Quit
            told += part
        return bytes(told)


def main(connection: socket.socket, source_fd: int | None) -> None:
    """Serve the one request that comes on the line."""
    line = Line(connection, 0.0)
    (length,) = REQUEST_HEAD.unpack(line.read(REQUEST_HEAD.size))
    request = LiveRequest.from_bytes(line.read(length))
    with suppress(Quit, BrokenPipeError, ConnectionResetError):
        serve(request, Line(connection, request.patience_s), source_fd)


def serve(request: LiveRequest, line: Line, source_fd: int | None) -> None:
    """Confine this process, then read the camera to its end. Never raises for what it sends."""
    link: CameraLink | None = None
    try:
        request, link = _confined(request, line, source_fd)
        video = open_video_live(request, source_fd)
        try:
            line.say_object(Said.OPENED, {"ends": video.ends})
            _read(video, request, line)
        finally:
            video.close()
            if link is not None:
                link.finish(_FAREWELL_S)
    except FeedFailed as error:
        reason, text = error.reason, str(error)
    except VideoInvalid as error:
        reason, text = "invalid", str(error)
    except MemoryError:
        reason, text = "decoder_killed", "needs more memory than its pictures justify"
    except (Quit, BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        reason, text = "decoder_killed", f"made its decoder fail: {type(error).__name__}: {error}"
    if link is not None and link.redirected:
        reason, text = "refused", "sends elsewhere, which is not followed: add the feed with that"
    elif link is not None and link.lost and reason in ("ended", "invalid"):
        reason, text = "connection_lost", "closed the connection"
    line.say_object(Said.FAILED, failure_to_json(reason, text.removeprefix(request.label).strip()))


def _confined(
    request: LiveRequest, line: Line, source_fd: int | None
) -> tuple[LiveRequest, CameraLink | None]:
    """Give up everything but what the request needs, and say so."""
    first_to_go()
    link, port, files, network = None, None, "open", "unlimited"
    if request.kind != "http":  # it may have to look up names, and go to several
        alone = leave_network()
        if request.camera is not None and source_fd is not None:
            listener = listen_as(request.camera, alone=alone)
            host, port = listener.getsockname()[:2]
            link = CameraLink(listener, socket.socket(fileno=source_fd))
            request = replace(request, url=_at(request.url, host, port))
        rest = give_up_rest(port)
        files = "none" if rest.no_files else "open"
        network = "none" if alone else "one port" if rest.one_port else "unlimited"
    limit_memory(memory_needed(request.max_px, 1))
    renew_cpu(request.patience_s)
    line.say_object(Said.READY, {"network": network, "files": files})
    if link is not None:
        link.start()
    return request, link


def _at(url: str, host: str, port: int) -> str:
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    where = f"[{host}]" if ":" in host else host
    return urlunsplit(parts._replace(netloc=f"{login}{at}{where}:{port}"))


def _read(video: LiveVideo, request: LiveRequest, line: Line) -> None:
    """Say each picture, and send it if it is wanted. Raises :class:`FeedFailed` at the end."""
    info: VideoInfo | None = None
    while True:
        for seen in video.step():
            if seen.info is not info:
                info = seen.info
                px = info.coded_size.h_px * info.coded_size.w_px
                limit_memory(memory_for(px, request.max_px, 1))
                line.say_object(Said.INFO, info_to_json(info))
            _offer(video, seen, line)
        line.alive()


def _offer(video: LiveVideo, seen: DecodedPicture, line: Line) -> None:
    gray_hw = video.gray(seen)
    told = Seen(
        stream_s=seen.stream_s,
        arrival_s=seen.arrival_s,
        ntp_s=seen.ntp_s,
        keyframe=seen.keyframe,
        damaged=seen.damaged,
        decode_errors=video.take_decode_errors(),
        gray_h_px=0 if gray_hw is None else gray_hw.shape[0],
    )
    line.say(Said.SEEN, told.to_bytes(), () if gray_hw is None else (gray_hw,))
    input_size = line.wanted()
    if input_size is not None:
        img_input_hwc, img_picture_hwc = video.pixels(seen, input_size)
        size = SizePx(*img_picture_hwc.shape[:2])
        line.say(Said.PIXELS, size_to_bytes(size), (img_input_hwc, img_picture_hwc))


def close_others(kept: Sequence[int]) -> None:
    """Close every descriptor but these, and say nothing to anybody's terminal."""
    silent = os.open(os.devnull, os.O_RDWR)
    for taken in (0, 1, 2):
        os.dup2(silent, taken)
    last = 2
    for fd in sorted(kept):
        os.closerange(last + 1, fd)
        last = fd
    os.closerange(last + 1, os.sysconf("SC_OPEN_MAX"))
