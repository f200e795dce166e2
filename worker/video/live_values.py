"""What reading a live camera takes and gives: plain values."""

from __future__ import annotations

from dataclasses import dataclass

from worker.core.sampling import SamplingPolicy
from worker.core.types import FloatArray, SizePx
from worker.video.address import AddressRules
from worker.video.values import VideoInfo


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """How a feed is read; sizes as of :func:`worker.video.decode.sample_video`."""

    policy: SamplingPolicy
    input_size: SizePx
    picture_max_side_px: int
    max_px: int
    stall_s: float
    rules: AddressRules


@dataclass(frozen=True, slots=True)
class LivePicture:
    """One decoded picture. ``stream_s``: by the stream's clock. ``arrival_s``: epoch seconds.

    ``ntp_s``: epoch seconds by the camera's clock, where it tells. ``decode_errors``: packets that
    could not be decoded since the picture before. ``info`` is another object when size or codec
    have changed. ``gray_hw``: small, float32, for policies that compare; else None.
    """

    stream_s: float
    arrival_s: float
    ntp_s: float | None
    keyframe: bool
    damaged: bool
    decode_errors: int
    info: VideoInfo
    gray_hw: FloatArray | None
