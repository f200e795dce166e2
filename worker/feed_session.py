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
    ``number``: of the frames that were sampled of this feed, from 1 on.
    """

    number: int
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
class Gap:
    """Pictures are missing behind the frame of number ``behind``, from ``from_utc`` on.

    Its place is told by that number, not by its time: clocks are set.
    """

    behind: int
    from_utc: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Missed:
    """What is to be written of a feed beside its frames: gaps that began, drops, counts."""

    gaps: Sequence[Gap]
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
    sampled: int = 0  # the newest frame's number
    # To be written with the next status or frame.
    gaps: list[Gap] = field(default_factory=list)
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
    given_up: bool = False  # it ends here, and what the recorder still has of it comes too late

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
        """Let the next sampled frame wait; the oldest goes where too many do."""
        self.sampled = frame.number
        self.pending.append(frame)
        self._trim()

    def put_back(self, frames: Sequence[LiveFrame]) -> None:
        """Let frames wait again that were taken and could not be recorded."""
        self.pending.extendleft(reversed(frames))
        self._trim()

    def _trim(self) -> None:
        while len(self.pending) > self.queue_frames:
            self.count_drop(self.pending.popleft().t_utc, self.blocked)
        # All frames between two gaps may be gone: the first goes on.
        while (
            self.in_flight == 0
            and len(self.gaps) > 1
            and self.gaps[1].behind < self.pending[0].number
        ):
            del self.gaps[1]

    def count_drop(self, t_utc: datetime, reason: str) -> None:
        """Count one frame that was sampled and is not recorded."""
        self.drops[t_utc.replace(minute=0, second=0, microsecond=0), reason] += 1

    def drop_pending(self, reason: str) -> None:
        """Give up what waits."""
        while self.pending:
            self.count_drop(self.pending.popleft().t_utc, reason)

    def note_gap(self, reason: str, from_utc: datetime | None, behind: int | None = None) -> None:
        """Pictures are missing since then, behind the newest frame that was sampled, or the one of
        number ``behind``. Of several behind one frame the first stands until it was written.
        """
        place = self.sampled if behind is None else behind
        if from_utc is None or any(gap.behind == place for gap in self.gaps):
            return
        self.gaps.append(Gap(place, from_utc, reason))
        self.gaps.sort(key=lambda gap: gap.behind)

    def take_gaps(self, before: int | None) -> list[Gap]:
        """Gaps in front of the frame of that number; None: in front of whatever waits.

        Only one is open at a time: those behind frames that wait must let these end it first.
        """
        if before is None:
            if self.in_flight > 0:
                return []
            before = self.pending[0].number if self.pending else self.sampled + 1
        taken = [gap for gap in self.gaps if gap.behind < before]
        self.gaps = [gap for gap in self.gaps if gap.behind >= before]
        return taken


@contextmanager
def taking(
    feed: FeedSession, lock: AbstractContextManager[object]
) -> Iterator[Callable[[int | None], Missed]]:
    """Hands over what was missed, once asked; takes it back when the transaction inside fails.

    Ask with the number of the frame to be recorded, None without one: see
    :meth:`FeedSession.take_gaps`. Ask behind the fence: there only one transaction of a feed is at
    a time.
    """
    taken: list[Missed] = []

    def take(before: int | None) -> Missed:
        with lock:
            missed = Missed(feed.take_gaps(before), feed.drops, feed.decoded, feed.decode_errors)
            feed.drops = Counter()
            feed.decoded = feed.decode_errors = 0
        taken.append(missed)
        return missed

    try:
        yield take
    except BaseException:
        with lock:
            for missed in taken:
                noted, feed.gaps = feed.gaps, list(missed.gaps)
                for gap in noted:
                    feed.note_gap(gap.reason, gap.from_utc, gap.behind)
                feed.drops += missed.drops
                feed.decoded += missed.decoded
                feed.decode_errors += missed.decode_errors
        raise


def at_utc(t_s: float) -> datetime:
    """Epoch seconds as a time."""
    return datetime.fromtimestamp(t_s, UTC)
