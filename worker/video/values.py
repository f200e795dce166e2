"""What decoding gives: plain values, which whoever receives them reads without PyAV."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import Final

from worker.core.types import ImageArray, SizePx

GRAY_W_PX: Final = 64
"""Width of the grey pictures that are compared."""


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """A video file as its container and first decodable picture describe it.

    ``coded_size``: pictures as decoded. ``display_size``: as shown, square pixels, turned.
    ``rotation_deg``: clockwise turn that displays a decoded picture, 0, 90, 180 or 270.
    ``pixel_aspect``: width : height of one pixel. ``start_pts``: the stream's start in ticks of
    ``time_base``. ``timestamped``: False for raw streams, whose times are counted, not read.
    ``frames_expected``: frames declared by the container, else duration times rate. ``None``
    stands for what the file does not say.
    """

    container: str
    codec: str
    coded_size: SizePx
    display_size: SizePx
    rotation_deg: int
    pixel_aspect: Fraction
    time_base: Fraction
    start_pts: int
    duration_s: float | None
    fps: float | None
    frames_expected: int | None
    creation_time_utc: datetime | None
    timestamped: bool

    def t_s(self, pts: int) -> float:
        """Seconds of ``pts`` since the stream's start."""
        return float((pts - self.start_pts) * self.time_base)


@dataclass(frozen=True, slots=True)
class SampledFrame:
    """One kept picture.

    ``pts``: ticks of the stream's time base. ``t_s``: seconds since the stream's start.
    ``img_input_hwc``: uint8 RGB of exactly the input size, stretched, turned for display.
    ``img_picture_hwc``: uint8 RGB in display aspect, square pixels, turned; never enlarged.
    """

    pts: int
    t_s: float
    keyframe: bool
    img_input_hwc: ImageArray
    img_picture_hwc: ImageArray


@dataclass(frozen=True, slots=True)
class DecodeReport:
    """What happened up to now.

    ``frames_decoded``: pictures decoded in this run, after the resume point if there is one, and
    passed over, because they were read and no wanted one stands on them.
    ``frames_out_of_order``: pictures dropped because their time repeats or goes back.
    ``decode_errors``: packets that could not be decoded plus pictures with concealed damage.
    ``truncated``: the file ended before its declared length; known at the end only.
    ``last_pts``: newest picture seen. ``frames_expected``: of the whole file, as declared.
    ``frames_listed``: pictures that the container lists one by one, less those it says not to
    show; known at the end only, None where it lists none or not every picture was wanted.
    """

    frames_decoded: int
    frames_kept: int
    frames_out_of_order: int
    decode_errors: int
    truncated: bool
    last_pts: int | None
    frames_expected: int | None
    frames_listed: int | None = None
