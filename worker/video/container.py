"""Opening a video file safely: what may be read, and which of its streams is the video."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.subtitles.codeccontext  # PyAV loads them late; a process that decodes can open no file
import av.subtitles.stream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

from worker.errors import VideoInvalid, VideoUnreadable

# Playlists and scripts (hls, dash, concat, sdp, image lists) are left out on purpose: a "file" of
# those kinds makes FFmpeg open other files and addresses.
FILE_FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,mxf,dhav,ivf,ogg,h264,hevc,obu,"
    "mjpeg,m4v,mpegvideo"
)
_CODECS = (
    "h264 hevc vvc av1 vp8 vp9 mpeg4 mpeg2video mpeg1video mjpeg h263 h263p flv1 msmpeg4v2 "
    "msmpeg4v3 wmv1 wmv2 wmv3 vc1 theora ffv1 prores dnxhd dvvideo rawvideo"
)

_CHUNK_BYTES = 1024 * 1024
_DECODER_SLACK = 2
"""Decoders count padded pictures (1080 rows are 1088); the exact check is on the picture itself."""


def _nothing() -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A local video file: ``path``, or an open descriptor of it, whose path is but its name then.

    ``on_packet`` is called for each packet read: that it is still being worked on.
    """

    path: Path
    fd: int | None = None
    on_packet: Callable[[], None] = _nothing


def as_file(given: Path | VideoFile) -> VideoFile:
    """A path as a file."""
    return VideoFile(given) if isinstance(given, Path) else given


def open_video(file: VideoFile, max_px: int) -> InputContainer:
    """Open a local video file; the caller closes it.

    Only the local file itself is read, only by the demuxers of video files. Raises
    ``VideoUnreadable`` for a path that is missing, not a regular file or not readable, and
    ``VideoInvalid`` for an empty file or one that is not a video.
    """
    path = file.path
    options = {"format_whitelist": FILE_FORMATS, "max_pixels": str(_DECODER_SLACK * max_px)}
    if file.fd is None:
        check_file(path)
        # "file:" keeps a name such as "concat:a|b" from being read as a protocol.
        address = f"file:{path.absolute()}"
        options |= {"protocol_whitelist": "file"}
    else:
        os.lseek(file.fd, 0, os.SEEK_SET)  # a former opening left it elsewhere
        address = "fd:"
        options |= {"protocol_whitelist": "fd", "fd": str(file.fd)}
    try:
        return av.open(address, mode="r", options=options, metadata_errors="ignore")
    except PermissionError:
        raise VideoUnreadable(f"{path} may not be read; give this user read access") from None
    except FFmpegError as error:
        raise VideoInvalid(
            f"{path} is not a video that can be read ({error.strerror}); "
            "give a complete video file such as MP4, MKV, AVI or TS"
        ) from None


def video_stream(
    container: InputContainer, path: Path | str, max_px: int, threads: int
) -> VideoStream:
    """The first real video stream, its decoder limited to ``max_px`` and ``threads`` (0: all).

    Raises ``VideoInvalid`` when there is none (audio only, cover art), its codec is not one of
    those allowed or its pictures are larger than ``max_px``.
    """
    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & av.stream.Disposition.attached_pic
    ]
    if not streams:
        raise VideoInvalid(f"{path} has no video stream; give a file with pictures")
    stream = streams[0]
    context = stream.codec_context
    if context is None or context.codec.canonical_name not in _CODECS.split():
        name = "unknown" if context is None else context.codec.canonical_name
        raise VideoInvalid(f"{path} has codec {name}, which is not allowed; convert it to H.264")
    if stream.time_base is None:
        raise VideoInvalid(f"{path} has no time base; convert it to MP4 or MKV")
    check_picture_size(path, context.height, context.width, max_px)
    context.options = {"max_pixels": str(_DECODER_SLACK * max_px)}
    context.thread_count = threads
    context.thread_type = "AUTO"
    return stream


def packets(container: InputContainer, stream: VideoStream | None = None) -> Iterator[Packet[Any]]:
    """The stream's packets, or those of all, and a last empty one that flushes the decoder."""
    try:
        for packet in container.demux() if stream is None else container.demux(stream):
            if stream is None or packet.stream.index == stream.index:
                yield packet
    except IndexError:
        # PyAV trips over streams that appear in the middle of a damaged MPEG-TS file; it does so
        # at the end of the file, after our stream was flushed.
        return


def check_picture_size(path: Path | str, h_px: int, w_px: int, max_px: int) -> None:
    """Raise ``VideoInvalid`` for pictures of more than ``max_px`` pixels."""
    if h_px * w_px > max_px:
        raise VideoInvalid(
            f"{path} has pictures of {w_px} x {h_px}, more than the {max_px} pixels allowed; "
            "use a smaller stream or raise RIS_VIDEO_MAX_PX"
        )


def can_be_read(file: VideoFile) -> bool:
    """Whether every byte can be read: tells a failing disk from a file that FFmpeg chokes on."""
    try:
        fd = os.dup(file.fd) if file.fd is not None else os.open(file.path, os.O_RDONLY)
        try:
            at = 0
            while chunk := os.pread(fd, _CHUNK_BYTES, at):
                at += len(chunk)
                file.on_packet()
        finally:
            os.close(fd)
    except OSError:
        return False
    return True


def check_file(path: Path) -> None:
    """Raise ``VideoUnreadable`` unless the path is a regular file that may be read, and
    ``VideoInvalid`` when it is empty."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoUnreadable(f"{path} cannot be read ({reason}); check the path") from None
    if not stat.S_ISREG(status.st_mode):
        raise VideoUnreadable(f"{path} is not a regular file; give the path of one video file")
    if not os.access(path, os.R_OK):
        raise VideoUnreadable(f"{path} may not be read; give this user read access")
    if status.st_size == 0:
        raise VideoInvalid(f"{path} is empty (0 bytes); record or copy it again")
