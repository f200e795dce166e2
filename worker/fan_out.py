"""Stage 1 spread over scan workers: one message per group of shards, and whatever is not answered
in time is scanned here. An answer never depends on them, only how soon it comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from worker.core.spread import spread
from worker.errors import IndexDamaged, InputInvalid
from worker.index.store import PinnedShard
from worker.messages import scan_queue
from worker.scan_message import Json, ScanAnswer, answer_from_json, request_of
from worker.shard_scan import ScanQuery, ShardScan, ShardScores
from worker.tracing import carried, note, span

log = structlog.get_logger()

PAUSE_S = 30.0
"""After a query that nobody answered, the next ones do not wait for scan workers this long."""

AskScanWorkers = Callable[[Sequence[tuple[str, Json]], float], Iterator[tuple[int, Json]]]
"""Sends messages, each to its queue, and yields (which one, its answer) as they come, until the
given seconds are over or none is missing. What fails is left out; never raises."""


class ScanPause:
    """Whether nobody answered lately. Safe to share between threads."""

    def __init__(self) -> None:
        self._until_s = 0.0
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Ask nobody for ``PAUSE_S``."""
        with self._lock:
            self._until_s = time.monotonic() + PAUSE_S

    @property
    def is_on(self) -> bool:
        """Whether to ask nobody."""
        with self._lock:
            return time.monotonic() < self._until_s


@dataclass(frozen=True, slots=True)
class FanOut:
    """How this process spreads its scans: over ``groups`` groups, for which it waits ``wait_s``,
    where at least ``min_frames`` frames are to be looked at. No groups: it does not."""

    ask: AskScanWorkers
    groups: int
    wait_s: float
    min_frames: int
    pause: ScanPause = field(default_factory=ScanPause)


@dataclass(frozen=True, slots=True)
class FannedScan:
    """A :class:`worker.shard_scan.ShardScan` by scan workers, and by ``local`` for the rest.

    ``recorded_basis``: the name of the generation's recorded basis; codes of any other are known to
    this process alone, and are scanned here.
    """

    fan_out: FanOut
    local: ShardScan
    generation_id: int
    recorded_basis: str | None

    def __call__(self, query: ScanQuery, shards: Sequence[PinnedShard]) -> list[ShardScores]:
        """Each pinned frame of each shard, as ``local`` would say.

        Raises :class:`IndexDamaged`, also for damage that only a scan worker met.
        """
        scored = self._asked(query, shards) if self._worth_it(query, shards) else {}
        rest = [shard for shard in shards if shard.shard_id not in scored]
        here = self.local(query, rest) if rest else []
        scored |= {shard.shard_id: scores for shard, scores in zip(rest, here, strict=True)}
        return [scored[shard.shard_id] for shard in shards]

    def _worth_it(self, query: ScanQuery, shards: Sequence[PinnedShard]) -> bool:
        frames = sum(shard.blocks for shard in shards)
        return (
            self.fan_out.groups > 0
            and frames >= max(1, self.fan_out.min_frames)
            and query.basis.name == self.recorded_basis
            and not self.fan_out.pause.is_on
        )

    def _asked(self, query: ScanQuery, shards: Sequence[PinnedShard]) -> dict[int, ShardScores]:
        """What scan workers answered, by shard."""
        fan_out, began_s = self.fan_out, time.perf_counter()
        by_id = {shard.shard_id: shard for shard in shards}
        members = spread({one: shard.blocks for one, shard in by_id.items()}, fan_out.groups)
        parts = [(slot, [by_id[one] for one in ids]) for slot, ids in enumerate(members) if ids]
        scored: dict[int, ShardScores] = {}
        answered = 0
        with span("scan.spread", groups=len(parts)):
            messages = [
                (scan_queue(slot), request_of(self.generation_id, query, part).to_json())
                for slot, part in parts
            ]
            along = carried()
            sent = [(name, message | along) for name, message in messages]
            for position, answer in fan_out.ask(sent, fan_out.wait_s):
                scored |= _usable(answer, parts[position][1])
                answered += 1
            note(answered=answered)
        if not answered:
            fan_out.pause.begin()
        tell = log.info if answered == len(parts) else log.warning
        waited_s = round(time.perf_counter() - began_s, 3)
        tell("scan_spread", groups=len(parts), answered=answered, waited_s=waited_s)
        return scored


def _usable(answer: Json, shards: Sequence[PinnedShard]) -> dict[int, ShardScores]:
    """The scores in an answer to a group. Raises :class:`IndexDamaged` for damage it tells of."""
    try:
        found = answer_from_json(answer)
    except InputInvalid as error:
        log.warning("scan_answer_unusable", detail=str(error))
        return {}
    by_id = {shard.shard_id: shard for shard in shards}
    _raise_damage(found, by_id)
    if found.left:
        log.info("scan_shards_left", shards=len(found.left), why=next(iter(found.left.values())))
    return {
        shard_id: scores
        for shard_id, scores in found.scores.items()
        if shard_id in by_id
        and scores.appearance_n.shape == scores.global_n.shape == (by_id[shard_id].blocks,)
    }


def _raise_damage(found: ScanAnswer, by_id: Mapping[int, PinnedShard]) -> None:
    """Under the coordinator's own folder, so that it examines the shard and searches again."""
    damage = found.damage
    if damage is not None and damage.shard_id in by_id:
        folder = by_id[damage.shard_id].layout.folder
        raise IndexDamaged(damage.detail, folder=str(folder), blocks=damage.blocks)
