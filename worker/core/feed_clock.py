"""What time a picture of a live camera was taken: cameras lie about it, and clocks are set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

TimeSource = Literal["ntp", "arrival", "held"]
"""``ntp``: the camera's clock (RTCP). ``arrival``: when it came. ``held``: a clock was set back,
and time stands almost still until it has caught up."""

JUMP_S: Final = 1.0
"""A difference from the stream's own clock that is a jump, not a wobble."""
HELD_STEP_S: Final = 0.001
_AHEAD_S: Final = 10.0
"""How far the stream's clock may run ahead of arrival: a playlist is handed out in one go."""
OWN_CLOCK_S: Final = 3600.0
"""Last times further ahead than this were made by this machine's own wrong clock."""


@dataclass(frozen=True, slots=True)
class FeedTime:
    """``t_s``: seconds since the epoch. ``jumped``: not continuous with the picture before.

    ``skipped``: times between the picture before, of the same connection, and this one are no
    picture's, although none is missing: a clock was set forward.
    ``sample_s``: what sampling goes by; it goes on evenly while time is held.
    """

    t_s: float
    sample_s: float
    source: TimeSource
    jumped: bool
    skipped: bool


class FeedClock:
    """Times of one camera's pictures, each later than the one before, over reconnections too.

    ``last_s``: time of its last picture before this process had it. ``tolerance_s``: a camera's
    clock that differs more from this machine's is not believed.
    """

    def __init__(self, last_s: float | None, tolerance_s: float) -> None:
        self._last_s = last_s
        self._tolerance_s = tolerance_s
        self._sample_s = -math.inf
        self._arrival_s = 0.0
        self._source: TimeSource = "arrival"
        self.reconnected()

    def reconnected(self) -> None:
        """The next picture begins a stream with a clock of its own."""
        self._anchor_s: float | None = None  # epoch time of the stream's second 0, by arrival
        self._offset_s: float | None = None  # of the picture before, whatever its source
        self._stream_s: float | None = None
        self._ntp = False

    def at(self, stream_s: float, arrival_s: float, ntp_s: float | None = None) -> FeedTime:
        """Time of the picture at ``stream_s`` of the stream's clock, which came at ``arrival_s``.

        ``ntp_s``: its time by the camera's clock, where the stream says it.
        """
        t_s = self._wanted(stream_s, arrival_s, ntp_s)
        source: TimeSource = "ntp" if self._ntp else "arrival"
        offset_s = t_s - stream_s
        jumped = self._offset_s is None or abs(offset_s - self._offset_s) > JUMP_S
        last_s = self._last_s
        if last_s is not None and t_s <= last_s and last_s - arrival_s <= OWN_CLOCK_S:
            t_s, source = last_s + HELD_STEP_S, "held"
        jumped |= self._source != source and "held" not in (self._source, source)
        # By the stream's clock, and over a reconnection, which starts it anew, by arrival.
        elapsed_s = (
            arrival_s - self._arrival_s if self._stream_s is None else stream_s - self._stream_s
        )
        skipped = (
            last_s is not None
            and self._stream_s is not None
            and t_s - last_s > stream_s - self._stream_s + JUMP_S
        )
        self._sample_s = max(t_s, self._sample_s + max(HELD_STEP_S, elapsed_s))
        self._last_s, self._source = t_s, source
        self._offset_s, self._stream_s, self._arrival_s = offset_s, stream_s, arrival_s
        return FeedTime(t_s, self._sample_s, source, jumped, skipped)

    def _wanted(self, stream_s: float, arrival_s: float, ntp_s: float | None) -> float:
        # What is believed already may differ a little more, so that nothing flaps at the limit.
        limit_s = self._tolerance_s * (1.0 if self._ntp else 0.8)
        self._ntp = ntp_s is not None and abs(ntp_s - arrival_s) <= limit_s
        if self._ntp and ntp_s is not None:
            return ntp_s
        ahead_s = None if self._anchor_s is None else self._anchor_s + stream_s - arrival_s
        if ahead_s is None or not -self._tolerance_s <= ahead_s <= _AHEAD_S:
            self._anchor_s = arrival_s - stream_s
        assert self._anchor_s is not None
        return self._anchor_s + stream_s
