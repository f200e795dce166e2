"""A live camera: connect, read packet by packet, decode, and say in one word why it ended."""

from __future__ import annotations

import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame

from worker.core.sampling import ChangePolicy, KeyframePolicy, SamplingPolicy
from worker.core.types import FloatArray, ImageArray, SizePx
from worker.errors import FeedFailed, VideoInvalid
from worker.video.address import AddressRules, Target, resolved
from worker.video.container import FILE_FORMATS, check_picture_size, packets, video_stream
from worker.video.decode import Converter
from worker.video.probe import describe_stream
from worker.video.values import VideoInfo

_OPEN_TIMEOUT_S: Final = 10.0
_ANSWER_TIMEOUT_S: Final = 2.0
_NO_PICTURE_S: Final = 60.0
"""Packets without one picture that can be decoded: longer than any usual keyframe distance."""
_LOOP_GAP_S: Final = 0.04
# Never `file` or `pipe` for what comes by network: a playlist names what FFmpeg opens next.
_PROTOCOLS = {"rtsp": "rtsp,rtsps,rtp,tcp,tls", "http": "http,https,tcp,tls,crypto", "file": "file"}
_NETWORK_FORMATS = {"rtsp": "rtsp", "http": f"{FILE_FORMATS},hls,mpjpeg", "file": FILE_FORMATS}


@dataclass(frozen=True, slots=True)
class LivePicture:
    """One decoded picture. ``stream_s``: by the stream's clock. ``arrival_s``: epoch seconds.

    ``ntp_s``: epoch seconds by the camera's clock, where it tells. ``info`` is another object
    when size or codec have changed.
    """

    stream_s: float
    arrival_s: float
    ntp_s: float | None
    keyframe: bool
    damaged: bool
    info: VideoInfo
    picture: VideoFrame


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """How a feed is read; sizes as of :func:`worker.video.decode.sample_video`."""

    policy: SamplingPolicy
    input_size: SizePx
    picture_max_side_px: int
    max_px: int
    stall_s: float
    rules: AddressRules


class LiveVideo:
    """An open connection; made by :func:`open_live`, used by one thread at a time."""

    def __init__(
        self, target: Target, options: LiveOptions, container: InputContainer, label: str
    ) -> None:
        self._target, self._options, self._label = target, options, label
        self._started_s = self._last_picture_s = time.monotonic()
        self._decode_errors = 0
        self._loop_start_s = 0.0  # of a looping file, by the stream's clock
        self._end_s = 0.0
        self._first_s: float | None = None
        self._adopt(container)

    def _adopt(self, container: InputContainer) -> None:
        options = self._options
        self._container = container
        self._stream = video_stream(container, self._label, options.max_px, threads=1)
        if isinstance(options.policy, KeyframePolicy):
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
        return self._target.kind == "http" and duration is not None and duration > 0

    def step(self) -> list[LivePicture]:
        """Read one packet; decode it when it is of the video. Blocks no longer than ``stall_s``.

        Raises :class:`FeedFailed`; its reason ``ended`` is no failure when :attr:`ends`.
        """
        waited_from_s = time.monotonic()
        try:
            packet = next(self._packets, None)
            if packet is None or self._is_end(packet):
                if self._target.kind == "file" and self._end_s > self._loop_start_s:
                    self._rewind()
                    return []
                raise FeedFailed(f"{self._label} ended", reason="ended")
        except FFmpegError as error:
            raise self._failure(error, waited_from_s) from None
        now_s = time.monotonic()
        if packet.stream.index != self._stream.index:
            self._silent_s += now_s - waited_from_s
            if self._silent_s > self._options.stall_s:
                raise FeedFailed(f"{self._label} has stalled: it sends no video", reason="stalled")
            return []
        self._silent_s = 0.0
        if now_s - self._last_picture_s > max(_NO_PICTURE_S, self._options.stall_s):
            raise FeedFailed(f"{self._label} sends nothing that can be decoded", reason="damaged")
        return list(self._decoded(packet))

    def _is_end(self, packet: Packet[Any]) -> bool:
        """Whether it is the empty one behind the last; other streams may have empty ones."""
        ours = packet.stream.index == self._stream.index
        return packet.size == 0 and (ours or packet.dts is None)

    def _decoded(self, packet: Packet[Any]) -> Iterator[LivePicture]:
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

    def _live(self, picture: VideoFrame, arrival_s: float, time_base: float) -> LivePicture:
        if self._info is None or self._info.coded_size != (picture.height, picture.width):
            check_picture_size(self._label, picture.height, picture.width, self._options.max_px)
            self._info = describe_stream(self._container, self._stream, picture)
            self._converter = Converter(
                self._info, self._options.input_size, self._options.picture_max_side_px
            )
        own_s = self._end_s + _LOOP_GAP_S if picture.pts is None else picture.pts * time_base
        if picture.pts is None:
            stream_s = own_s
        else:
            if self._first_s is None:
                self._first_s = own_s
            stream_s = self._loop_start_s + own_s - self._first_s
        self._end_s = max(self._end_s, stream_s)
        if self._target.kind == "file" or self.ends:
            self._pace(stream_s)
            arrival_s = time.time()
        ntp_s = None
        if self._ntp_offset_s is not None and picture.pts is not None:
            ntp_s = own_s + self._ntp_offset_s
        return LivePicture(
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
        ahead_s = self._started_s + stream_s - time.monotonic()
        time.sleep(min(max(0.0, ahead_s), self._options.stall_s))

    def _rewind(self) -> None:
        self._container.close()
        container = _open(self._target, self._label, self._options)
        self._loop_start_s, self._first_s = self._end_s + _LOOP_GAP_S, None
        info, converter = self._info, self._converter
        self._adopt(container)
        self._info, self._converter = info, converter

    def fit(self, input_size: SizePx) -> None:
        """Make input pictures of this size from now on: another backbone may have gone live."""
        if input_size != self._options.input_size:
            self._options = replace(self._options, input_size=input_size)
            assert self._info is not None
            self._converter = Converter(self._info, input_size, self._options.picture_max_side_px)

    def input_picture(self, live: LivePicture) -> ImageArray:
        """uint8 RGB of exactly the backbone's input size."""
        assert self._converter is not None
        return self._converter.input_picture(live.picture)

    def shown_picture(self, live: LivePicture) -> ImageArray:
        """uint8 RGB as displayed, no larger than asked for."""
        assert self._converter is not None
        return self._converter.shown_picture(live.picture)

    def gray(self, live: LivePicture) -> FloatArray | None:
        """A small grey picture, float32 (h, w), for policies that compare; else None."""
        if not isinstance(self._options.policy, ChangePolicy):
            return None
        assert self._converter is not None
        return np.asarray(self._converter.gray(live.picture), np.float32)

    def close(self) -> None:
        """End the connection. A camera that does not answer is not waited for."""
        with suppress(FFmpegError):
            self._container.close()

    def _failure(self, error: FFmpegError, waited_from_s: float) -> FeedFailed:
        waited_s = time.monotonic() - waited_from_s
        return _failure(error, self._label, waited_s >= 0.9 * self._options.stall_s / 2)


def open_live(url: str, options: LiveOptions, label: str, *, again: bool = False) -> LiveVideo:
    """Connect to a feed's address. ``label`` names it in messages, which never show the address.

    ``again``: it failed before, so ask shortly first whether it answers at all.

    Raises :class:`FeedFailed`, and :class:`AddressRefused` for what the settings do not allow.
    """
    target = resolved(url, options.rules)
    if again and target.url.startswith("rtsp:"):
        _require_answer(target.url, label)
    began_s = time.monotonic()
    try:
        container = _open(target, label, options)
    except FFmpegError as error:
        timed_out = time.monotonic() - began_s >= 0.9 * _OPEN_TIMEOUT_S
        raise _failure(error, label, timed_out, opening=True) from None
    try:
        return LiveVideo(target, options, container, label)
    except VideoInvalid as error:
        container.close()
        raise FeedFailed(str(error), reason="invalid") from error


def _require_answer(target: str, label: str) -> None:
    """Raise :class:`FeedFailed` unless an RTSP server answers a question soon.

    A connection to a camera that hangs is waited for as long as a slow one may take to send its
    first keyframe; this tells the two apart.
    """
    parts = urlsplit(target)
    where = (parts.hostname or "", parts.port or 554)
    question = f"OPTIONS rtsp://{parts.hostname}:{where[1]}/ RTSP/1.0\r\nCSeq: 1\r\n\r\n"
    try:
        with socket.create_connection(where, timeout=_ANSWER_TIMEOUT_S) as connection:
            connection.sendall(question.encode())
            answered = connection.recv(1) != b""
    except OSError as error:
        text = "does not answer" if isinstance(error, TimeoutError) else error.strerror
        raise FeedFailed(f"{label} cannot be reached ({text})", reason="unreachable") from None
    if not answered:
        raise FeedFailed(f"{label} closed the connection", reason="connection_lost")


def _open(target: Target, label: str, given: LiveOptions) -> InputContainer:
    kind = target.kind
    if kind == "file" and not _is_regular(target.url.removeprefix("file:")):
        raise FeedFailed(f"{label} is not a regular file", reason="invalid")
    options = {
        "protocol_whitelist": _PROTOCOLS[kind],
        "format_whitelist": _NETWORK_FORMATS[kind],
        "max_pixels": str(2 * given.max_px),
    }
    if kind == "rtsp":
        options |= {"rtsp_transport": "tcp", "allowed_media_types": "video"}
        options |= {"analyzeduration": "1000000", "fflags": "nobuffer"}
    if kind == "http":
        options |= {"max_redirects": "0", "live_start_index": "-1"}
    if target.host is not None:
        options["headers"] = f"Host: {target.host}\r\n"
    # When nothing comes FFmpeg first hands out what its parser held back: two waits make a stall.
    return av.open(
        target.url,
        mode="r",
        options=options,
        metadata_errors="ignore",
        timeout=(_OPEN_TIMEOUT_S, given.stall_s / 2),
    )


def _is_regular(path: str) -> bool:
    """Whether it can be opened without waiting for somebody: a pipe cannot. True when it's gone."""
    try:
        return stat.S_ISREG(Path(path).stat().st_mode)
    except OSError:
        return True  # FFmpeg says why


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
