"""What one process knows of one feed: its connection, its clock, and frames that wait."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from models.video import VideoSegment
from worker.core.feed_clock import FeedClock, TimeSource
from worker.core.sampling import Sampler, SamplingPolicy
from worker.core.types import ImageArray, SizePx
from worker.errors import (
    AddressRefused,
    BackboneMismatch,
    FeedFailed,
    SecretKeyMissing,
    VideoInvalid,
    WeightsMissing,
)
from worker.jobs import Lease
from worker.video.live_feed import LiveFeed
from worker.video.values import VideoInfo

GAP_REASONS: Final = (
    "unreachable", "auth", "not_found", "refused", "not_allowed", "invalid", "stalled", "ended",
    "connection_lost", "damaged", "decoder_killed", "clock", "storage_full", "storage_failed",
    "worker_lost", "stopped", "paused", "backbone", "secret_key", "internal",
)  # fmt: skip
DROP_REASONS: Final = ("busy", "storage", "erased", "generation_switched", "internal", "stopped")


def reason_of(error: Exception) -> str:
    """Why frames are missing when this happens to a feed, in one word."""
    if isinstance(error, FeedFailed):
        return error.reason
    if isinstance(error, BackboneMismatch | WeightsMissing):
        return "backbone"
    if isinstance(error, SecretKeyMissing):
        return "secret_key"
    if isinstance(error, AddressRefused):
        return "not_allowed"
    return "invalid" if isinstance(error, VideoInvalid) else "internal"


@dataclass(frozen=True, slots=True)
class Stretch:
    """Pictures that belong together: one connection, one size and codec, one clock."""

    info: VideoInfo
    time_source: TimeSource


@dataclass(frozen=True, slots=True)
class LiveFrame:
    """A sampled picture of a feed that is still to be embedded and recorded.

    ``received_utc``: by this machine's clock; an erasure ordered later may cover it.
    """

    t_utc: datetime
    received_utc: datetime
    stretch: Stretch
    img_input_hwc: ImageArray
    img_picture_hwc: ImageArray


@dataclass(frozen=True, slots=True)
class PlannedSegment:
    """A segment as it is made: the same again when the answer of the commit was lost."""

    stretch: Stretch
    start_utc: datetime
    content_sha256: str


@dataclass(frozen=True, slots=True)
class Missed:
    """What is to be written of a feed beside its frames: a gap that began, drops, counts."""

    gap: tuple[datetime, str] | None
    drops: Counter[tuple[datetime, str]]
    decoded: int
    decode_errors: int


@dataclass(slots=True, eq=False)
class FeedSession:
    """One feed in one process, kept between slices.

    The slice's thread reads and appends to ``pending``, the recorder takes from it; both hold the
    lock of :class:`HeldFeeds` for that. ``lease`` is None between slices: then nothing is recorded.
    """

    feed_id: int
    camera_id: int
    name: str
    url: str = field(repr=False)
    policy: SamplingPolicy
    queue_frames: int
    clock: FeedClock
    sampler: Sampler
    input_size: SizePx
    video: LiveFeed | None = None
    lease: Lease | None = None
    idle_since_s: float = 0.0
    pending: deque[LiveFrame] = field(default_factory=deque)
    in_flight: int = 0
    # Whose turn it is: by the age of what waits, the feed that is older by a phase always wins.
    taken_at_s: float = 0.0
    stretch: Stretch | None = None
    # Of the recorder: the segment being added to, and the stretch its frames are of.
    segment: VideoSegment | None = None
    segment_stretch: Stretch | None = None
    planned: PlannedSegment | None = None
    # To be written with the next status or frame.
    gap: tuple[datetime, str] | None = None
    drops: Counter[tuple[datetime, str]] = field(default_factory=Counter)
    decoded: int = 0
    decode_errors: int = 0
    last_seen_utc: datetime | None = None
    last_frame_utc: datetime | None = None
    connected_since: datetime | None = None
    time_source: TimeSource | None = None
    error: tuple[str, str] | None = None
    failures: int = 0
    retry_at_s: float = 0.0
    over: bool = False
    blocked: str = "busy"
    unexpected: Exception | None = None
    lease_lost: bool = False

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"feed {self.name}"

    def phase(self) -> str:
        """``live`` once pictures come, ``connecting`` until then, else ``waiting``."""
        if self.video is None:
            return "waiting"
        return "live" if self.connected_since is not None else "connecting"

    def offer(self, frame: LiveFrame) -> None:
        """Let a frame wait; the oldest goes where too many do."""
        self.pending.append(frame)
        self._trim()

    def put_back(self, frames: Sequence[LiveFrame]) -> None:
        """Let frames wait again that were taken and could not be recorded."""
        self.pending.extendleft(reversed(frames))
        self._trim()

    def _trim(self) -> None:
        while len(self.pending) > self.queue_frames:
            self.count_drop(self.pending.popleft().t_utc, self.blocked)

    def count_drop(self, t_utc: datetime, reason: str) -> None:
        """Count one frame that was sampled and is not recorded."""
        self.drops[t_utc.replace(minute=0, second=0, microsecond=0), reason] += 1

    def drop_pending(self, reason: str) -> None:
        """Give up what waits."""
        while self.pending:
            self.count_drop(self.pending.popleft().t_utc, reason)

    def gap_is_behind_waiting(self) -> bool:
        """Whether frames from before the gap are still to be recorded."""
        if self.gap is None:
            return False
        return self.in_flight > 0 or (bool(self.pending) and self.pending[0].t_utc <= self.gap[0])

    def note_gap(self, reason: str, from_utc: datetime | None) -> None:
        """Frames are missing since then; the first reason stands until it was written."""
        if self.gap is None and from_utc is not None:
            self.gap = (from_utc, reason)


@contextmanager
def taking(
    feed: FeedSession, lock: AbstractContextManager[object], *, waiting_stay: bool = False
) -> Iterator[Callable[[], Missed]]:
    """Hands over what was missed, once asked; takes it back when the transaction inside fails.

    ``waiting_stay``: no frame is recorded with it, so a gap behind frames that wait stays too: they
    may end an earlier one, and only one is open at a time.

    Ask behind the fence: there only one transaction of a feed is at a time.
    """
    taken: list[Missed] = []

    def take() -> Missed:
        with lock:
            gap = None if waiting_stay and feed.gap_is_behind_waiting() else feed.gap
            missed = Missed(gap, feed.drops, feed.decoded, feed.decode_errors)
            feed.gap, feed.drops = None if gap is feed.gap else feed.gap, Counter()
            feed.decoded = feed.decode_errors = 0
        taken.append(missed)
        return missed

    try:
        yield take
    except BaseException:
        with lock:
            for missed in taken:
                feed.gap = missed.gap or feed.gap
                feed.drops += missed.drops
                feed.decoded += missed.decoded
                feed.decode_errors += missed.decode_errors
        raise


def at_utc(t_s: float) -> datetime:
    """Epoch seconds as a time."""
    return datetime.fromtimestamp(t_s, UTC)
