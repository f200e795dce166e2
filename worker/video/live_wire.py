"""Messages between a feed's slice and the process that decodes its camera, checked as if hostile.

The process says heads, objects and pixels as in :mod:`worker.video.decoding_wire`. The slice says
its request, once, and then one byte at a time what it wants.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, Final

from worker.core.sampling import SamplingPolicy, policy_from_json, policy_to_json
from worker.core.types import SizePx
from worker.video.address import SourceKind
from worker.video.decoding_wire import Json, WireBroken

REQUEST_HEAD = struct.Struct("<I")
HEAD = struct.Struct("<4sBI")
MAX_BODY_BYTES: Final = 32 * 1024
_MAGIC = b"RIS2"
_SEEN = struct.Struct("<ddd??IH")
_SIZE = struct.Struct("<II")
_LONGEST_S = 1e12
_MAX_ERRORS = 2**31
_MAX_GRAY_H_PX = 4096
_MAX_TEXT = 300

SKIP: Final = b"S"
KEEP: Final = b"K"
"""Followed by the input size wanted."""
QUIT: Final = b"Q"

REASONS: Final = frozenset(
    ("unreachable", "auth", "not_found", "refused", "invalid", "stalled", "ended",
     "connection_lost", "damaged", "decoder_killed")
)  # fmt: skip
"""Why a camera cannot be read, as its decoder may give it."""


class Said(IntEnum):
    """What a message of the decoding process says."""

    READY = 1
    """Limits hold; how far they went."""
    OPENED = 2
    """Connected; ``ends``: it is a recording with a length."""
    ALIVE = 3
    """A packet was read since the last message."""
    INFO = 4
    """What the pictures from now on are."""
    SEEN = 5
    """A picture was decoded; it waits for the answer whether it is wanted."""
    PIXELS = 6
    """Of the picture that was wanted."""
    FAILED = 7
    """The last one: why there is no more."""


@dataclass(frozen=True, slots=True)
class LiveRequest:
    """What a process is asked to read.

    ``url``: for FFmpeg, with the address that was looked at. ``camera``: where its connection goes
    to, given as an open socket; None where there is none. ``label``: for messages.
    ``pace_from_s``: when a recording's first picture is due, by the monotonic clock.
    """

    kind: SourceKind
    url: str
    host: str | None
    camera: tuple[str, int] | None
    label: str
    policy: SamplingPolicy
    input_size: SizePx
    picture_max_side_px: int
    max_px: int
    stall_s: float
    patience_s: float
    pace_from_s: float

    def to_bytes(self) -> bytes:
        """For :meth:`from_bytes`."""
        return json.dumps(asdict(self) | {"policy": policy_to_json(self.policy)}).encode()

    @staticmethod
    def from_bytes(told: bytes) -> LiveRequest:
        """The slice's request: it is trusted."""
        given = json.loads(told)
        camera = given.pop("camera")
        policy = policy_from_json(given.pop("policy"))
        input_size = SizePx(*given.pop("input_size"))
        where = None if camera is None else (str(camera[0]), int(camera[1]))
        return LiveRequest(**given, camera=where, policy=policy, input_size=input_size)


@dataclass(frozen=True, slots=True)
class Seen:
    """A decoded picture without its pixels; ``gray_h_px``: rows of the grey one, 0: there is none.

    Times as of :class:`worker.video.live_values.LivePicture`.
    """

    stream_s: float
    arrival_s: float
    ntp_s: float | None
    keyframe: bool
    damaged: bool
    decode_errors: int
    gray_h_px: int

    def to_bytes(self) -> bytes:
        """For :meth:`from_bytes`."""
        ntp_s = math.nan if self.ntp_s is None else self.ntp_s
        return _SEEN.pack(
            *(self.stream_s, self.arrival_s, ntp_s),
            *(self.keyframe, self.damaged, min(self.decode_errors, _MAX_ERRORS), self.gray_h_px),
        )

    @staticmethod
    def from_bytes(told: bytes) -> Seen:
        """Every number in bounds. Raises :class:`WireBroken`."""
        if len(told) != _SEEN.size:
            raise WireBroken("a picture's head of another length")
        stream_s, arrival_s, ntp_s, keyframe, damaged, decode_errors, gray_h_px = _SEEN.unpack(told)
        for time_s in (stream_s, arrival_s, 0.0 if math.isnan(ntp_s) else ntp_s):
            if not abs(time_s) < _LONGEST_S:
                raise WireBroken("a time out of bounds")
        if decode_errors > _MAX_ERRORS or gray_h_px > _MAX_GRAY_H_PX:
            raise WireBroken("a number out of bounds")
        heard_ntp_s = None if math.isnan(ntp_s) else ntp_s
        return Seen(stream_s, arrival_s, heard_ntp_s, keyframe, damaged, decode_errors, gray_h_px)


def pack(said: Said, body: bytes) -> bytes:
    """Head and body of a message."""
    return HEAD.pack(_MAGIC, said, len(body)) + body


def read_head(head: bytes) -> tuple[Said, int]:
    """What comes and how many bytes its body has. Raises :class:`WireBroken`."""
    magic, said, length = HEAD.unpack(head)
    if magic != _MAGIC or length > MAX_BODY_BYTES:
        raise WireBroken("a message without a proper head")
    try:
        return Said(said), length
    except ValueError:
        raise WireBroken(f"a message of unknown kind {said}") from None


def size_to_bytes(size: SizePx) -> bytes:
    """For :func:`size_from_bytes`."""
    return _SIZE.pack(*size)


def size_from_bytes(told: bytes, max_side_px: int) -> SizePx:
    """A size with sides up to ``max_side_px``. Raises :class:`WireBroken`."""
    if len(told) != _SIZE.size:
        raise WireBroken("a size that is none")
    size = SizePx(*_SIZE.unpack(told))
    if not (1 <= size.h_px <= max_side_px and 1 <= size.w_px <= max_side_px):
        raise WireBroken("a size out of bounds")
    return size


def failure_from_json(told: Json, secrets: Sequence[str]) -> tuple[str, str]:
    """Reason and words; words that hold a secret are not given on. Raises :class:`WireBroken`."""
    reason, text = told.get("reason"), told.get("text")
    if reason not in REASONS or not isinstance(text, str) or len(text) > _MAX_TEXT:
        raise WireBroken("a failure without proper reason and words")
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    if any(secret in printable for secret in secrets):
        printable = "failed, and its words held the password"
    return str(reason), printable


def failure_to_json(reason: str, text: str) -> dict[str, Any]:
    """For :func:`failure_from_json`."""
    return {"reason": reason, "text": text[:_MAX_TEXT]}


SIZE_BYTES: Final = _SIZE.size
