"""What a video file is: size as displayed, time base, length. Decodes one picture to be sure."""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from worker.core.types import SizePx
from worker.errors import VideoInvalid
from worker.video.container import (
    VideoFile,
    as_file,
    check_picture_size,
    open_video,
    packets,
    video_stream,
)
from worker.video.values import VideoInfo

_CONTAINER_TICKS_PER_S = 1_000_000
_MAX_PIXEL_ASPECT = 8
_MAX_FRAMES = 2**31


def probe(given: Path | VideoFile, max_px: int) -> VideoInfo:
    """Describe a local video file.

    Raises ``VideoUnreadable`` (missing, a folder, no access) and ``VideoInvalid`` (empty, not a
    video, no video stream, pictures of more than ``max_px`` pixels, no decodable picture).
    """
    file = as_file(given)
    path = file.path
    with open_video(file, max_px) as container:
        stream = video_stream(container, path, max_px, threads=1)
        picture = _first_picture(file, container, stream)
        if picture is None:
            raise VideoInvalid(
                f"{path} holds no picture that can be decoded (damaged, or larger than the "
                f"{max_px} pixels allowed); record or copy it again"
            )
        check_picture_size(path, picture.height, picture.width, max_px)
        return describe_stream(container, stream, picture)


def rotation_cw_deg(picture: VideoFrame) -> int:
    """Clockwise turn that displays the picture, to the nearest quarter: 0, 90, 180 or 270."""
    # FFmpeg's display matrix counts counter-clockwise.
    return round(-picture.rotation / 90) % 4 * 90


def display_size(coded: SizePx, pixel_aspect: Fraction, rotation_deg: int) -> SizePx:
    """Size with square pixels after the turn; the shorter axis is stretched, none is shrunk."""
    h_px = round(coded.h_px / min(pixel_aspect, Fraction(1)))
    w_px = round(coded.w_px * max(pixel_aspect, Fraction(1)))
    return SizePx(w_px, h_px) if rotation_deg in (90, 270) else SizePx(h_px, w_px)


def _first_picture(
    file: VideoFile, container: InputContainer, stream: VideoStream
) -> VideoFrame | None:
    try:
        for packet in packets(container, stream):
            file.on_packet()
            try:
                pictures = packet.decode()
            except FFmpegError:
                continue
            if pictures:
                return pictures[0]
    except FFmpegError:
        return None
    return None


def describe_stream(
    container: InputContainer, stream: VideoStream, picture: VideoFrame
) -> VideoInfo:
    """An open video as its container and a decoded picture describe it."""
    assert stream.time_base is not None  # checked when the stream was chosen
    coded = SizePx(picture.height, picture.width)
    aspect = _pixel_aspect(stream)
    rotation_deg = rotation_cw_deg(picture)
    timestamped = stream.start_time is not None and picture.pts is not None
    start_pts = stream.start_time if stream.start_time is not None else picture.pts
    duration_s = _duration_s(container, stream)
    fps = float(stream.average_rate) if stream.average_rate else None
    estimate = duration_s * fps if duration_s and fps else 0.0
    return VideoInfo(
        container=container.format.name,
        codec=stream.codec_context.codec.canonical_name,
        coded_size=coded,
        display_size=display_size(coded, aspect, rotation_deg),
        rotation_deg=rotation_deg,
        pixel_aspect=aspect,
        time_base=stream.time_base,
        start_pts=start_pts or 0,
        duration_s=duration_s,
        fps=fps,
        frames_expected=believable_count(stream.frames) or believable_count(estimate),
        creation_time_utc=_creation_time(container, stream),
        timestamped=timestamped,
    )


def believable_count(frames: float) -> int | None:
    """A number of frames that a header gives; None for none and for nonsense."""
    return round(frames) if 0.5 <= frames < _MAX_FRAMES else None


def _pixel_aspect(stream: VideoStream) -> Fraction:
    aspect = stream.sample_aspect_ratio
    if not aspect or not Fraction(1, _MAX_PIXEL_ASPECT) <= aspect <= _MAX_PIXEL_ASPECT:
        return Fraction(1)  # unset, or nonsense from a damaged header
    return aspect


def _duration_s(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration and stream.duration > 0 and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration and container.duration > 0:
        return container.duration / _CONTAINER_TICKS_PER_S
    return None


def _creation_time(container: InputContainer, stream: VideoStream) -> datetime | None:
    for metadata in (stream.metadata, container.metadata):
        try:
            created = datetime.fromisoformat(metadata.get("creation_time", ""))
        except ValueError:
            continue
        created = created.replace(tzinfo=UTC) if created.tzinfo is None else created.astimezone(UTC)
        if created.year > 1970:  # writers without a clock leave 1904 or 1970
            return created
    return None
