"""Sampled pictures of a video file: decode, choose, convert. One pass, one picture in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import dropwhile
from pathlib import Path
from typing import Any

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from worker.core.bounds import check_int
from worker.core.sampling import (
    ChangePolicy,
    KeyframePolicy,
    Sampler,
    SamplingPolicy,
    sampler,
)
from worker.core.types import FloatArray, ImageArray, SizePx
from worker.errors import StorageFailed
from worker.video.container import (
    VideoFile,
    as_file,
    can_be_read,
    open_video,
    packets,
    video_stream,
)
from worker.video.passing_over import PassingOver
from worker.video.probe import believable_count, display_size, probe, rotation_cw_deg
from worker.video.values import GRAY_W_PX, DecodeReport, SampledFrame, VideoInfo

_SEEK_BACK_S = (0, 10, 60)
"""Where to look for a keyframe before the resume point; MPEG-TS seeks may land behind it."""
_END_SLACK_S = 0.5
_MAX_INDEX = 10_000_000
_MAX_SIDE_PX = 16_384


@dataclass(slots=True)
class _Tally:
    decoded: int = 0
    kept: int = 0
    out_of_order: int = 0
    errors: int = 0
    truncated: bool = False
    last_pts: int | None = None
    end_pts: int = 0  # end of the newest packet read, decoded or not
    listed: int | None = None


class SampledVideo:
    """Iterator over the kept pictures of one file; made by :func:`sample_video`."""

    def __init__(self, info: VideoInfo, tally: _Tally, frames: Iterator[SampledFrame]) -> None:
        self.info = info
        self._tally = tally
        self._frames = frames

    def __iter__(self) -> Iterator[SampledFrame]:
        return self._frames

    def __next__(self) -> SampledFrame:
        return next(self._frames)

    @property
    def report(self) -> DecodeReport:
        """Counts so far; complete once the iterator is exhausted."""
        tally = self._tally
        return DecodeReport(
            frames_decoded=tally.decoded,
            frames_kept=tally.kept,
            frames_out_of_order=tally.out_of_order,
            decode_errors=tally.errors,
            truncated=tally.truncated,
            last_pts=tally.last_pts,
            frames_expected=self.info.frames_expected,
            frames_listed=tally.listed,
        )


def check_sizes(input_size: SizePx, picture_max_side_px: int) -> None:
    """Raise ``InputInvalid`` for sizes of pictures to give that are out of bounds."""
    check_int("input_size.h_px", input_size.h_px, 1, _MAX_SIDE_PX)
    check_int("input_size.w_px", input_size.w_px, 1, _MAX_SIDE_PX)
    check_int("picture_max_side_px", picture_max_side_px, 1, _MAX_SIDE_PX)


@contextmanager
def sample_video(
    given: Path | VideoFile,
    policy: SamplingPolicy,
    *,
    input_size: SizePx,
    picture_max_side_px: int,
    max_px: int,
    resume_after_pts: int | None = None,
    threads: int = 0,
) -> Iterator[SampledVideo]:
    """Open a file and sample it; the file is closed on exit.

    ``max_px``: largest accepted picture. ``resume_after_pts``: ``pts`` of the last picture kept by
    an interrupted run; what follows is what that run would have kept. ``threads``: decoder
    threads, 0 for all cores.

    Packets that no wanted picture stands on are not decoded, and count as decoded. Damaged ones are
    counted and skipped, a cut-off file yields what it holds. Raises ``VideoUnreadable`` and
    ``VideoInvalid`` as :func:`probe` does, ``StorageFailed`` when reading fails half-way, and
    ``InputInvalid`` for sizes out of bounds.
    """
    check_sizes(input_size, picture_max_side_px)
    file = as_file(given)
    info = probe(file, max_px)
    tally = _Tally(end_pts=info.start_pts)
    seek_pts = None
    if resume_after_pts is not None:
        seek_pts = _seek_pts(file, info, max_px, resume_after_pts)
    with open_video(file, max_px) as container:
        stream = video_stream(container, file.path, max_px, threads)
        if isinstance(policy, KeyframePolicy) and info.timestamped:
            stream.codec_context.skip_frame = "NONKEY"
        if seek_pts is not None:
            container.seek(seek_pts, stream=stream)
        chosen = sampler(policy, None if resume_after_pts is None else info.t_s(resume_after_pts))
        read = _read(file, container, stream, tally)
        needed = _needed(read, policy, chosen, info, tally, resume_after_pts)
        decoded = _decoded(file, container, stream, info, tally, needed)
        pictures = _in_order(decoded, info, tally, resume_after_pts)
        if seek_pts is not None:
            pictures = dropwhile(lambda timed: not timed[1].key_frame, pictures)
        converter = Converter(info, input_size, picture_max_side_px)
        frames = _kept(pictures, policy, chosen, converter, tally, resume_after_pts)
        yield SampledVideo(info, tally, frames)


def _seek_pts(file: VideoFile, info: VideoInfo, max_px: int, resume_pts: int) -> int | None:
    """Where to seek so that decoding starts with a keyframe at or before ``resume_pts``.

    None: start from the beginning, because the file has no usable times or index.
    """
    if not info.timestamped:
        return None
    for back_s in _SEEK_BACK_S:
        seek_pts = resume_pts - int(back_s / info.time_base)
        if seek_pts <= info.start_pts:
            return None
        with open_video(file, max_px) as container:
            stream = video_stream(container, file.path, max_px, threads=1)
            try:
                container.seek(seek_pts, stream=stream)
            except FFmpegError:
                return None
            trial = _Tally()
            read = _read(file, container, stream, trial)
            decoded = _decoded(file, container, stream, info, trial, read)
            first = next((picture for picture in decoded if picture.key_frame), None)
            if first is not None and first.pts is not None and first.pts <= resume_pts:
                return seek_pts
    return None


def _read(
    file: VideoFile, container: InputContainer, stream: VideoStream, tally: _Tally
) -> Iterator[Packet[Any]]:
    for packet in packets(container, stream):
        file.on_packet()
        at_pts = packet.pts if packet.pts is not None else packet.dts
        if at_pts is not None:
            tally.end_pts = max(tally.end_pts, at_pts + (packet.duration or 0))
        yield packet


def _needed(
    read: Iterator[Packet[Any]],
    policy: SamplingPolicy,
    chosen: Sampler,
    info: VideoInfo,
    tally: _Tally,
    resume_pts: int | None,
) -> Iterator[Packet[Any] | None]:
    """Those packets without which a wanted picture cannot be decoded; None: they do not go on."""

    def passed(pts: int) -> None:
        tally.decoded += resume_pts is None or pts > resume_pts

    if not info.timestamped:
        return read
    alone = isinstance(policy, KeyframePolicy)
    return PassingOver(info, chosen.next_s, passed, alone).needed(read)


def _decoded(
    file: VideoFile,
    container: InputContainer,
    stream: VideoStream,
    info: VideoInfo,
    tally: _Tally,
    needed: Iterator[Packet[Any] | None],
) -> Iterator[VideoFrame]:
    """Every picture that can be decoded of the packets; damage is counted, the end is judged."""
    decoder = stream.codec_context
    try:
        for packet in needed:
            try:
                pictures = decoder.decode(None) if packet is None else packet.decode()
            except FFmpegError:
                tally.errors += 1
                continue
            finally:
                if packet is None:
                    decoder.flush_buffers()
            for picture in pictures:
                tally.errors += picture.is_corrupt
                yield picture
    except FFmpegError as error:
        # Demuxers answer "I/O error" to nonsense too, and a retry would meet it for ever.
        if isinstance(error, OSError) and not can_be_read(file):
            raise StorageFailed(
                f"reading {file.path} failed half-way ({error.strerror}); check the disk, then"
                " retry"
            ) from error
        tally.errors += 1
        tally.truncated = True
    read_s = float((tally.end_pts - info.start_pts) * info.time_base)
    if info.timestamped and info.duration_s is not None:
        slack_s = max(_END_SLACK_S, 2 / info.fps if info.fps else 0.0)
        tally.truncated |= read_s < info.duration_s - slack_s
    if stream.codec_context.skip_frame != "NONKEY":
        tally.listed = _frames_listed(container, stream)


def _frames_listed(container: InputContainer, stream: VideoStream) -> int | None:
    """Pictures that the container counts, less those that an edit list hides."""
    counted = believable_count(stream.frames)
    entries = stream.index_entries
    if counted is None or "mp4" not in container.format.name or len(entries) > _MAX_INDEX:
        return counted
    # What lies outside an edit is left out of the index, or in it to be decoded and not shown.
    return len(entries) - sum(entry.is_discard for entry in entries)


def _in_order(
    pictures: Iterator[VideoFrame], info: VideoInfo, tally: _Tally, resume_pts: int | None
) -> Iterator[tuple[int, VideoFrame]]:
    """Pictures with strictly rising pts; a missing pts is counted on from the previous picture."""
    frame_ticks = round(1 / (Fraction(info.fps) * info.time_base)) if info.fps else 1
    next_pts = info.start_pts
    for picture in pictures:
        pts = picture.pts if picture.pts is not None else next_pts
        next_pts = pts + max(1, picture.duration or frame_ticks)
        tally.decoded += resume_pts is None or pts > resume_pts
        if tally.last_pts is not None and pts <= tally.last_pts:
            tally.out_of_order += 1
            continue
        tally.last_pts = pts
        yield pts, picture


def _kept(
    pictures: Iterator[tuple[int, VideoFrame]],
    policy: SamplingPolicy,
    chosen: Sampler,
    converter: Converter,
    tally: _Tally,
    resume_pts: int | None,
) -> Iterator[SampledFrame]:
    info = converter.info
    for pts, picture in pictures:
        if resume_pts is not None and pts < resume_pts:
            continue
        # The picture at the resume point is shown to the sampler again: `change` compares with it.
        t_s = info.t_s(pts)
        gray_hw = converter.gray(picture) if isinstance(policy, ChangePolicy) else None
        if chosen.keep(t_s, bool(picture.key_frame), gray_hw):
            tally.kept += 1
            yield SampledFrame(
                pts=pts,
                t_s=t_s,
                keyframe=bool(picture.key_frame),
                img_input_hwc=converter.input_picture(picture),
                img_picture_hwc=converter.shown_picture(picture),
            )


class Converter:
    """Decoded picture to RGB: one swscale call per result straight to its final size."""

    def __init__(self, info: VideoInfo, input_size: SizePx, picture_max_side_px: int) -> None:
        self.info = info
        self._input_size = input_size
        self._max_side_px = picture_max_side_px
        # One reformatter per target size: each caches its scaling tables.
        self._to_input = VideoReformatter()
        self._to_shown = VideoReformatter()
        self._to_gray = VideoReformatter()

    def input_picture(self, picture: VideoFrame) -> ImageArray:
        """Exactly the backbone's input size."""
        return self._upright(self._to_input, picture, self._input_size)

    def shown_picture(self, picture: VideoFrame) -> ImageArray:
        """In display aspect, square pixels, turned; never enlarged."""
        full = display_size(
            SizePx(picture.height, picture.width), self.info.pixel_aspect, rotation_cw_deg(picture)
        )
        scale = min(1.0, self._max_side_px / max(full))
        size = SizePx(max(1, round(full.h_px * scale)), max(1, round(full.w_px * scale)))
        return self._upright(self._to_shown, picture, size)

    def gray(self, picture: VideoFrame) -> FloatArray:
        """Small and grey, for policies that compare."""
        h_px = max(1, round(GRAY_W_PX * picture.height / picture.width))
        size = SizePx(h_px, GRAY_W_PX)
        return _scaled(self._to_gray, picture, size, "gray").astype(np.float32)

    def _upright(
        self, reformatter: VideoReformatter, picture: VideoFrame, size: SizePx
    ) -> ImageArray:
        turn_deg = rotation_cw_deg(picture)
        if turn_deg == 0:
            return _scaled(reformatter, picture, size, "rgb24")
        lying = SizePx(size.w_px, size.h_px) if turn_deg in (90, 270) else size
        img_hwc = _scaled(reformatter, picture, lying, "rgb24")
        return np.ascontiguousarray(np.rot90(img_hwc, k=-turn_deg // 90))


def _scaled(
    reformatter: VideoReformatter, picture: VideoFrame, size: SizePx, pixel_format: str
) -> ImageArray:
    shrinks = size.h_px <= picture.height and size.w_px <= picture.width
    # AREA averages every source pixel, so nothing aliases; enlarging needs a smooth kernel.
    kernel = Interpolation.AREA if shrinks else Interpolation.BICUBIC

    def scale(colorspace: Colorspace | None) -> VideoFrame:
        return reformatter.reformat(
            picture,
            width=size.w_px,
            height=size.h_px,
            format=pixel_format,
            src_colorspace=colorspace,
            interpolation=kernel,
            threads=1,
        )

    try:
        scaled = scale(None)
    except FFmpegError:
        # A damaged header may name a colour matrix that does not exist; this is the usual one.
        scaled = scale(Colorspace.ITU601)
    return np.asarray(scaled.to_ndarray(), dtype=np.uint8)
