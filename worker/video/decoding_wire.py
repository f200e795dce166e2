"""Messages between a worker and the process that decodes for it, checked as if from an enemy.

A message is a head of fixed size, a JSON object and, of a frame, the bytes of its two pictures.
Nothing in it is executed, no length is believed beyond its bound.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from enum import IntEnum
from fractions import Fraction
from typing import Any

from worker.core.sampling import SamplingPolicy, policy_from_json, policy_to_json
from worker.core.types import SizePx
from worker.errors import RisError
from worker.video.values import DecodeReport, VideoInfo

Json = dict[str, Any]

HEAD = struct.Struct("<4sBI")
MAX_JSON_BYTES = 32 * 1024
_MAGIC = b"RIS1"
_MAX_TEXT = 2000
_MAX_SIDE = 2**31
_BIGINT = 2**63


class Kind(IntEnum):
    """What a message says."""

    READY = 1
    """Limits hold; ``network`` says how far it went."""
    INFO = 2
    """What the file is."""
    ALIVE = 3
    """A packet was read since the last message."""
    FRAME = 4
    """A kept picture, and the report up to it."""
    END = 5
    """No more; the final report, where there was sampling."""
    FAILED = 6
    """A typed error."""


class WireBroken(Exception):
    """A message is not what it should be."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which pictures are wanted, as of :func:`worker.video.decode.sample_video`."""

    policy: SamplingPolicy
    input_size: SizePx
    picture_max_side_px: int
    resume_after_pts: int | None


@dataclass(frozen=True, slots=True)
class Request:
    """What a decoding process is asked, once.

    ``name``: of the file, for messages. ``sampling``: None to describe the file only.
    ``stretch_s``: processor time between two signs of life, for each thread.
    """

    name: str
    max_px: int
    threads: int
    stretch_s: float
    sampling: Sampling | None

    def to_bytes(self) -> bytes:
        """For :meth:`from_bytes`."""
        told: Json = {
            "name": self.name,
            "max_px": self.max_px,
            "threads": self.threads,
            "stretch_s": self.stretch_s,
        }
        if self.sampling is not None:
            wanted = self.sampling
            told["sampling"] = {
                "policy": policy_to_json(wanted.policy),
                "input_size": list(wanted.input_size),
                "picture_max_side_px": wanted.picture_max_side_px,
                "resume_after_pts": wanted.resume_after_pts,
            }
        return json.dumps(told).encode()

    @staticmethod
    def from_bytes(told: bytes) -> Request:
        """The worker's request: it is trusted."""
        given = json.loads(told)
        wanted = given.pop("sampling", None)
        sampling = None
        if wanted is not None:
            wanted["policy"] = policy_from_json(wanted["policy"])
            wanted["input_size"] = SizePx(*wanted["input_size"])
            sampling = Sampling(**wanted)
        return Request(**given, sampling=sampling)


@dataclass(frozen=True, slots=True)
class FrameHead:
    """A kept picture without its pixels."""

    pts: int
    t_s: float
    keyframe: bool
    picture: SizePx
    report: DecodeReport


def pack(kind: Kind, told: Mapping[str, Any]) -> bytes:
    """Head and object of a message."""
    body = json.dumps(told).encode()
    return HEAD.pack(_MAGIC, kind, len(body)) + body


def read_head(head: bytes) -> tuple[Kind, int]:
    """What comes and how many bytes its object has. Raises :class:`WireBroken`."""
    magic, kind, length = HEAD.unpack(head)
    if magic != _MAGIC or length > MAX_JSON_BYTES:
        raise WireBroken("a message without a proper head")
    try:
        return Kind(kind), length
    except ValueError:
        raise WireBroken(f"a message of unknown kind {kind}") from None


def read_object(body: bytes) -> Json:
    """The object of a message. Raises :class:`WireBroken`."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        raise WireBroken("a message that is no JSON") from None
    if not isinstance(told, dict):
        raise WireBroken("a message that is no object")
    return told


def report_to_json(report: DecodeReport) -> Json:
    """For :func:`report_from_json`."""
    return asdict(report)


def report_from_json(told: Any) -> DecodeReport:
    """A report with every number in bounds. Raises :class:`WireBroken`."""
    found = _object(told, [field.name for field in fields(DecodeReport)])
    optional = {
        name: None if found[name] is None else _integer(found[name], low)
        for name, low in (("last_pts", -_BIGINT), ("frames_expected", 0), ("frames_listed", 0))
    }
    return DecodeReport(
        frames_decoded=_integer(found["frames_decoded"], 0, _MAX_SIDE),
        frames_kept=_integer(found["frames_kept"], 0, _MAX_SIDE),
        frames_out_of_order=_integer(found["frames_out_of_order"], 0, _MAX_SIDE),
        decode_errors=_integer(found["decode_errors"], 0, _MAX_SIDE),
        truncated=_boolean(found["truncated"]),
        **optional,
    )


def frame_to_json(head: FrameHead) -> Json:
    """For :func:`frame_from_json`."""
    return asdict(head) | {"picture": list(head.picture)}


def frame_from_json(told: Any, picture_max_side_px: int) -> FrameHead:
    """A frame whose picture has at most that side. Raises :class:`WireBroken`."""
    found = _object(told, ["pts", "t_s", "keyframe", "picture", "report"])
    return FrameHead(
        pts=_integer(found["pts"], -_BIGINT),
        t_s=_number(found["t_s"]),
        keyframe=_boolean(found["keyframe"]),
        picture=_size(found["picture"], picture_max_side_px),
        report=report_from_json(found["report"]),
    )


def info_to_json(info: VideoInfo) -> Json:
    """For :func:`info_from_json`."""
    created = info.creation_time_utc
    return asdict(info) | {
        "coded_size": list(info.coded_size),
        "display_size": list(info.display_size),
        "pixel_aspect": [info.pixel_aspect.numerator, info.pixel_aspect.denominator],
        "time_base": [info.time_base.numerator, info.time_base.denominator],
        "creation_time_utc": None if created is None else created.isoformat(),
    }


def info_from_json(told: Any) -> VideoInfo:
    """A description with every field in bounds. Raises :class:`WireBroken`."""
    found = _object(told, [field.name for field in fields(VideoInfo)])
    return VideoInfo(
        container=_text(found["container"], 200),
        codec=_text(found["codec"], 200),
        coded_size=_size(found["coded_size"], _MAX_SIDE),
        display_size=_size(found["display_size"], _MAX_SIDE),
        rotation_deg=_integer(found["rotation_deg"], 0, 271),
        pixel_aspect=_fraction(found["pixel_aspect"]),
        time_base=_fraction(found["time_base"]),
        start_pts=_integer(found["start_pts"], -_BIGINT),
        duration_s=None if found["duration_s"] is None else _number(found["duration_s"]),
        fps=None if found["fps"] is None else _number(found["fps"]),
        frames_expected=(
            None if found["frames_expected"] is None else _integer(found["frames_expected"], 0)
        ),
        creation_time_utc=_time(found["creation_time_utc"]),
        timestamped=_boolean(found["timestamped"]),
    )


def error_from_json(told: Any, allowed: Sequence[type[RisError]]) -> RisError:
    """The typed error, one of those allowed, in printable words. Raises :class:`WireBroken`."""
    found = _object(told, ["code", "detail"])
    for kind in allowed:
        if kind.code == found["code"]:
            return kind(_text(found["detail"], _MAX_TEXT))
    raise WireBroken("an error of unknown code")


def error_to_json(code: str, detail: str) -> Json:
    """For :func:`error_from_json`."""
    return {"code": code, "detail": detail[:_MAX_TEXT]}


def network_from_json(told: Any) -> str:
    """What a process that is ready says of its network. Raises :class:`WireBroken`."""
    return _text(_object(told, ["network"])["network"], 20)


def _object(told: Any, names: Sequence[str]) -> Json:
    if not isinstance(told, dict) or set(told) != set(names):
        raise WireBroken(f"a message without exactly {', '.join(names)}")
    return told


def _integer(value: Any, low: int, end: int = _BIGINT) -> int:
    if type(value) is not int or not low <= value < end:
        raise WireBroken("an integer out of bounds")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or abs(value) > 1e300 or not math.isfinite(value):
        raise WireBroken("a number that is not finite")
    return float(value)


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise WireBroken("neither true nor false")
    return value


def _text(value: Any, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest:
        raise WireBroken("a text that is too long")
    return "".join(letter if letter.isprintable() else "?" for letter in value)


def _size(value: Any, max_side: int) -> SizePx:
    if not isinstance(value, list) or len(value) != 2:
        raise WireBroken("a size that is none")
    return SizePx(*(_integer(side, 1, max_side + 1) for side in value))


def _fraction(value: Any) -> Fraction:
    if not isinstance(value, list) or len(value) != 2:
        raise WireBroken("a fraction that is none")
    return Fraction(_integer(value[0], 1), _integer(value[1], 1))


def _time(value: Any) -> datetime | None:
    if value is None:
        return None
    try:
        read = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise WireBroken("a time that is none") from None
    if read.tzinfo is None:
        raise WireBroken("a time without a zone")
    return read
