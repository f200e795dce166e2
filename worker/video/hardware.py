"""Hardware decoding: what PyAV's FFmpeg has of it. RIS decodes on the CPU (docs/scaling.md)."""

from __future__ import annotations

import av
from av.codec.hwaccel import hwdevices_available

_CODECS = ("h264", "hevc", "av1", "vp9", "mjpeg")


def describe_hardware_decoding() -> str:
    """Kinds of devices that it was built with, and codecs that NVDEC could decode, in words."""
    kinds = ", ".join(hwdevices_available()) or "none"
    by_nvdec = [name for name in _CODECS if _has_nvdec(name)]
    nvdec = f"NVDEC for {', '.join(by_nvdec)}" if by_nvdec else "no NVDEC"
    return f"FFmpeg {av.ffmpeg_version_info}: {kinds}; {nvdec}; not used, RIS decodes on the CPU"


def _has_nvdec(codec: str) -> bool:
    try:
        av.codec.Codec(f"{codec}_cuvid", "r")
    except ValueError:
        return False
    return True
