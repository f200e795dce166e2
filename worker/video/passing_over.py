"""Packets that need no decoding: what they show is not wanted, and nothing wanted stands on them.

A picture stands on those before it, back to the last keyframe. So packets are held back until one
comes that may be wanted, when all of them are decoded, or a keyframe that pictures can start from,
when none of them is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from av.packet import Packet

from worker.core.sampling import TIME_SLACK_S
from worker.video.values import VideoInfo

_HELD_BYTES = 8 << 20
"""Packets held back at most; what is longer without a keyframe is decoded instead."""


@dataclass(slots=True)
class PassingOver:
    """Chooses packets of one stream whose times are known.

    ``next_s``: no earlier picture is wanted, seconds since the stream's start; asked at each
    packet. ``passed``: tells the ``pts`` of each picture that is not decoded. ``keyframes_only``:
    the decoder skips all others, so that no picture stands on another.
    """

    info: VideoInfo
    next_s: Callable[[], float]
    passed: Callable[[int], None]
    keyframes_only: bool = False
    _held: list[Packet[Any]] = field(default_factory=list)
    _held_bytes: int = 0
    _keyframe: Packet[Any] | None = None
    _broken_before_pts: int | None = None
    _last_dts: int | None = None

    def needed(self, packets: Iterator[Packet[Any]]) -> Iterator[Packet[Any] | None]:
        """The packets to decode, in order; None: what came before does not go on."""
        for packet in packets:
            last = packet.size == 0 and packet.dts is None
            if self._starts_again(packet):
                yield from self._everything(packet)
                yield from packets
                return
            if self.keyframes_only:
                if packet.pts is None or not packet.is_keyframe or self._wanted(packet):
                    yield packet
                else:
                    self._pass(packet)
                continue
            if self._keyframe is not None:
                yield from self._decide(self._keyframe, None if last else packet)
            if last:
                self._drop()
                yield packet
            elif packet.pts is None:
                yield from self._release()
                yield packet
            elif packet.is_keyframe:
                self._keyframe = packet
            elif self._broken_before_pts is not None and packet.pts < self._broken_before_pts:
                self._pass(packet)  # shown before the keyframe, and stands on what was dropped
            else:
                self._hold(packet)
                if self._wanted(packet) or self._held_bytes > _HELD_BYTES:
                    yield from self._release()

    def _starts_again(self, packet: Packet[Any]) -> bool:
        """Whether times repeat or go back, as of joined recordings: nothing can be said of what
        follows."""
        if packet.dts is None:
            return False
        before, self._last_dts = self._last_dts, packet.dts
        return before is not None and packet.dts <= before

    def _everything(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        yield from self._release()
        if self._keyframe is not None:
            yield self._keyframe
        yield packet

    def _decide(
        self, keyframe: Packet[Any], after: Packet[Any] | None
    ) -> Iterator[Packet[Any] | None]:
        """Whether to start from a keyframe, now that the packet behind it is known."""
        self._keyframe = None
        assert keyframe.pts is not None
        # Pictures that are shown before a keyframe, and stand on it too, come right behind it.
        leads = after is not None and (after.pts is None or after.pts < keyframe.pts)
        wanted_before = leads and self.info.t_s(keyframe.pts) > self.next_s() + TIME_SLACK_S
        self._broken_before_pts = None
        if self._held and wanted_before:
            yield from self._release()
        elif self._held:
            self._drop()
            self._broken_before_pts = keyframe.pts
            yield None
        self._hold(keyframe)
        if self._wanted(keyframe):
            yield from self._release()

    def _wanted(self, packet: Packet[Any]) -> bool:
        assert packet.pts is not None
        return self.info.t_s(packet.pts) >= self.next_s() - TIME_SLACK_S

    def _hold(self, packet: Packet[Any]) -> None:
        self._held.append(packet)
        self._held_bytes += packet.size

    def _release(self) -> Iterator[Packet[Any]]:
        held, self._held, self._held_bytes = self._held, [], 0
        yield from held

    def _drop(self) -> None:
        for packet in self._held:
            self._pass(packet)
        self._held, self._held_bytes = [], 0

    def _pass(self, packet: Packet[Any]) -> None:
        if packet.pts is not None and not packet.is_discard:
            self.passed(packet.pts)
