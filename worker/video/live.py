"""A live camera as FFmpeg reads it: packet by packet, and in one word why it ended.

This runs in a process of its own (:mod:`worker.video.live_child`).
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame

from worker.core.sampling import ChangePolicy, KeyframePolicy
from worker.core.types import ImageArray, SizePx
from worker.errors import FeedFailed, VideoInvalid
from worker.video.container import FILE_FORMATS, check_picture_size, packets, video_stream
from worker.video.decode import Converter
from worker.video.live_wire import LiveRequest
from worker.video.probe import describe_stream
from worker.video.values import VideoInfo

OPEN_TIMEOUT_S: Final = 10.0
"""Of FFmpeg for connecting, and again for the first pictures."""
NO_PICTURE_S: Final = 60.0
"""Packets without one picture that can be decoded: longer than any usual keyframe distance."""
_FRAME_GAP_S: Final = 0.04
# Never `file` or `pipe` for what comes by network: a playlist names what FFmpeg opens next.
_PROTOCOLS = {"rtsp": "rtsp,rtsps,rtp,tcp,tls", "http": "http,https,tcp,tls,crypto", "file": "fd"}
_NETWORK_FORMATS = {"rtsp": "rtsp", "http": f"{FILE_FORMATS},hls,mpjpeg", "file": FILE_FORMATS}


@dataclass(frozen=True, slots=True)
class DecodedPicture:
    """One decoded picture and its times, as of :class:`worker.video.live_values.LivePicture`."""

    stream_s: float
    arrival_s: float
    ntp_s: float | None
    keyframe: bool
    damaged: bool
    info: VideoInfo
    picture: VideoFrame


class LiveVideo:
    """An open connection; made by :func:`open_video_live`, used by one thread."""

    def __init__(self, request: LiveRequest, container: InputContainer) -> None:
        self._request, self._container = request, container
        self._last_picture_s = time.monotonic()
        self._decode_errors = 0
        self._end_s = 0.0
        self._first_s: float | None = None
        self._stream = video_stream(container, request.label, request.max_px, threads=1)
        if isinstance(request.policy, KeyframePolicy):
            self._stream.codec_context.skip_frame = "NONKEY"
        # Of all streams: FFmpeg's time limit is per packet, and sound may go on without pictures.
        self._packets: Iterator[Packet[Stream]] = packets(container)
        self._silent_s = 0.0
        self._info: VideoInfo | None = None
        self._converter: Converter | None = None
        self._ntp_offset_s: float | None = None

    @property
    def ends(self) -> bool:
        """Whether this is a recording with a length, whose end is no failure."""
        duration = self._container.duration
        return self._request.kind == "http" and duration is not None and duration > 0

    def step(self) -> list[DecodedPicture]:
        """Read one packet; decode it when it is of the video. Blocks no longer than ``stall_s``.

        Raises :class:`FeedFailed`; its reason ``ended`` is no failure when :attr:`ends`.
        """
        waited_from_s = time.monotonic()
        try:
            packet = next(self._packets, None)
            if packet is None or self._is_end(packet):
                raise FeedFailed(f"{self._request.label} ended", reason="ended")
        except FFmpegError as error:
            raise self._failure(error, waited_from_s) from None
        now_s = time.monotonic()
        if packet.stream.index != self._stream.index:
            self._silent_s += now_s - waited_from_s
            if self._silent_s > self._request.stall_s:
                raise FeedFailed(
                    f"{self._request.label} has stalled: it sends no video", reason="stalled"
                )
            return []
        self._silent_s = 0.0
        if now_s - self._last_picture_s > max(NO_PICTURE_S, self._request.stall_s):
            raise FeedFailed(
                f"{self._request.label} sends nothing that can be decoded", reason="damaged"
            )
        return list(self._decoded(packet))

    def _is_end(self, packet: Packet[Any]) -> bool:
        """Whether it is the empty one behind the last; other streams may have empty ones."""
        ours = packet.stream.index == self._stream.index
        return packet.size == 0 and (ours or packet.dts is None)

    def _decoded(self, packet: Packet[Any]) -> Iterator[DecodedPicture]:
        arrival_s = time.time()
        time_base = float(packet.time_base or self._stream.time_base or 0)
        self._note_clock(packet, time_base)
        try:
            pictures = packet.decode()
        except FFmpegError:
            self._decode_errors += 1
            return
        for picture in pictures:
            self._last_picture_s = time.monotonic()
            if self._info is None and not picture.key_frame:
                continue  # it stands on pictures that were sent before
            yield self._live(picture, arrival_s, time_base)

    def take_decode_errors(self) -> int:
        """Packets that could not be decoded since the last call."""
        count, self._decode_errors = self._decode_errors, 0
        return count

    def _live(self, picture: VideoFrame, arrival_s: float, time_base: float) -> DecodedPicture:
        if self._info is None or self._info.coded_size != (picture.height, picture.width):
            check_picture_size(
                self._request.label, picture.height, picture.width, self._request.max_px
            )
            self._info = describe_stream(self._container, self._stream, picture)
            self._converter = self._made_converter()
        own_s = self._end_s + _FRAME_GAP_S if picture.pts is None else picture.pts * time_base
        if picture.pts is None:
            stream_s = own_s
        else:
            if self._first_s is None:
                self._first_s = own_s
            stream_s = own_s - self._first_s
        self._end_s = max(self._end_s, stream_s)
        if self._request.kind == "file" or self.ends:
            self._pace(stream_s)
            arrival_s = time.time()
        ntp_s = None
        if self._ntp_offset_s is not None and picture.pts is not None:
            ntp_s = own_s + self._ntp_offset_s
        return DecodedPicture(
            stream_s=stream_s,
            arrival_s=arrival_s,
            ntp_s=ntp_s,
            keyframe=bool(picture.key_frame),
            damaged=bool(picture.is_corrupt),
            info=self._info,
            picture=picture,
        )

    def _note_clock(self, packet: Packet[Any], time_base: float) -> None:
        """The camera's clock: FFmpeg works it out per packet from RTCP sender reports."""
        if packet.pts is not None and packet.has_sidedata("prft"):
            wallclock_us = struct.unpack_from("=q", bytes(packet.get_sidedata("prft")))[0]
            self._ntp_offset_s = wallclock_us / 1e6 - packet.pts * time_base

    def _pace(self, stream_s: float) -> None:
        """Wait until a recording's picture would have come from a camera."""
        ahead_s = self._request.pace_from_s + stream_s - time.monotonic()
        time.sleep(min(max(0.0, ahead_s), self._request.stall_s))

    def _made_converter(self) -> Converter:
        assert self._info is not None
        request = self._request
        return Converter(self._info, request.input_size, request.picture_max_side_px)

    def pixels(self, seen: DecodedPicture, input_size: SizePx) -> tuple[ImageArray, ImageArray]:
        """uint8 RGB of exactly that size, and as displayed, no larger than asked for.

        Another backbone may have gone live since: the input size may be another one.
        """
        if input_size != self._request.input_size:
            self._request = replace(self._request, input_size=input_size)
            self._converter = self._made_converter()
        assert self._converter is not None
        shown = self._converter.shown_picture(seen.picture)
        return self._converter.input_picture(seen.picture), shown

    def gray(self, seen: DecodedPicture) -> ImageArray | None:
        """A small grey picture, uint8 (h, w), for policies that compare; else None."""
        if not isinstance(self._request.policy, ChangePolicy):
            return None
        assert self._converter is not None
        return self._converter.gray(seen.picture).astype(np.uint8)

    def close(self) -> None:
        """End the connection. A camera that does not answer is not waited for."""
        with suppress(FFmpegError):
            self._container.close()

    def _failure(self, error: FFmpegError, waited_from_s: float) -> FeedFailed:
        waited_s = time.monotonic() - waited_from_s
        return _failure(error, self._request.label, waited_s >= 0.9 * self._request.stall_s / 2)


def open_video_live(request: LiveRequest, fd: int | None) -> LiveVideo:
    """Connect to a feed's address; a recording is read from an open descriptor.

    Messages name it by its label and never show the address. Raises :class:`FeedFailed`.
    """
    began_s = time.monotonic()
    try:
        container = _open(request, fd)
    except FFmpegError as error:
        timed_out = time.monotonic() - began_s >= 0.9 * OPEN_TIMEOUT_S
        raise _failure(error, request.label, timed_out, opening=True) from None
    try:
        return LiveVideo(request, container)
    except VideoInvalid as error:
        container.close()
        raise FeedFailed(str(error), reason="invalid") from error


def _open(request: LiveRequest, fd: int | None) -> InputContainer:
    kind, url = request.kind, request.url
    options = {
        "protocol_whitelist": _PROTOCOLS[kind],
        "format_whitelist": _NETWORK_FORMATS[kind],
        "max_pixels": str(2 * request.max_px),
    }
    if kind == "file":
        assert fd is not None
        os.lseek(fd, 0, os.SEEK_SET)
        url = "fd:"
        options["fd"] = str(fd)
    if kind == "rtsp":
        options |= {"rtsp_transport": "tcp", "allowed_media_types": "video"}
        options |= {"analyzeduration": "1000000", "fflags": "nobuffer"}
    if kind == "http":
        options |= {"max_redirects": "0", "live_start_index": "-1"}
    if request.host is not None:
        options["headers"] = f"Host: {request.host}\r\n"
    # When nothing comes FFmpeg first hands out what its parser held back: two waits make a stall.
    return av.open(
        url,
        mode="r",
        options=options,
        metadata_errors="ignore",
        timeout=(OPEN_TIMEOUT_S, request.stall_s / 2),
    )


_REASONS: tuple[tuple[tuple[type[BaseException], ...], str, str], ...] = (
    (
        (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError, PermissionError),
        "auth",
        "refuses user and password: correct them (rm, then add)",
    ),
    (
        (av.error.HTTPNotFoundError, FileNotFoundError),
        "not_found",
        "has no stream of that name: correct the address's path",
    ),
    ((av.error.HTTPError,), "refused", "answers with an error"),
    ((EOFError,), "ended", "ended"),
    (
        (ConnectionResetError, BrokenPipeError, ConnectionAbortedError),
        "connection_lost",
        "closed the connection",
    ),
    ((ConnectionRefusedError,), "unreachable", "refuses connections: is it on?"),
)


def _failure(
    error: FFmpegError, label: str, timed_out: bool, *, opening: bool = False
) -> FeedFailed:
    """The reason in one word. FFmpeg's own text is left out: it holds the address."""
    if timed_out or isinstance(error, av.error.ExitError | TimeoutError):
        reason, text = ("unreachable", "does not answer") if opening else ("stalled", "has stalled")
        return FeedFailed(f"{label} {text}", reason=reason)
    for kinds, reason, text in _REASONS:
        if isinstance(error, kinds):
            return FeedFailed(f"{label} {text}", reason=reason)
    if isinstance(error, av.error.InvalidDataError):
        text = "is no video that can be read"
        return FeedFailed(f"{label} {text}", reason="invalid" if opening else "connection_lost")
    if opening and isinstance(error, OSError):
        return FeedFailed(f"{label} cannot be reached ({error.strerror})", reason="unreachable")
    return FeedFailed(f"{label} was lost ({error.strerror})", reason="connection_lost")
