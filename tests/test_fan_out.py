"""Stage 1 spread over scan workers: the same answer whatever they answer. Here a scan worker is
another context on the same database and files; tests/processes/test_fan_out.py has real ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.otlp_collector import collecting
from tests.parts import ingested, loaded, run_jobs, sql, with_settings
from tests.searching import asked, flip, fresh, lost
from worker import compacting, sealing, tracing
from worker.accepting.queries import QueryState
from worker.config import Settings
from worker.context import Context
from worker.core.coarse import CoarseQuery
from worker.core.compact import CODE_DIM
from worker.core.examples import Example
from worker.core.types import Box
from worker.device_scan import DeviceScan
from worker.erasure import camera_span, submit_erasure
from worker.errors import InputInvalid
from worker.fan_out import FanOut
from worker.index.layout import HEADER_BYTES
from worker.kernels.held_codes import HeldCodes
from worker.repair import repair_index
from worker.scan_message import (
    Json,
    ScanAnswer,
    ScanRequest,
    ToldShard,
    answer_from_json,
    request_from_json,
)
from worker.scanning import answer_scan
from worker.shard_scan import ShardScores

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
FEW = 4
"""Candidates: fewer than frames, so that codes choose them."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compacting, "MIN_FRAMES", 8)
    monkeypatch.setattr(compacting, "MIN_LAG", 1)
    monkeypatch.setattr(sealing, "MIN_FRAMES", 4)
    monkeypatch.setattr(sealing, "seal_distance", lambda _name: 0.2)


@pytest.fixture
def indexed(context: Context, footage: dict[str, Path]) -> Iterator[Context]:
    """Three shards of two cameras, coded, not sealed."""
    made = loaded(with_settings(context, backbone="tiny-a", seal_after_s=0.0))
    ingested(made, footage["car"], "call", 0.4, start_utc=START)
    ingested(made, footage["car"], "call", 0.4, start_utc=START + timedelta(hours=2))
    ingested(made, footage["bikes"], "street", 2.0, start_utc=START)
    compacted(made)
    yield made


def compacted(context: Context) -> None:
    assert compacting.submit_due(context)
    run_jobs(context)


def seal(context: Context) -> None:
    assert sealing.submit_due(context) is not None
    run_jobs(context)


def nothing() -> None:
    pass


@dataclass
class Workers:
    """Scan workers that share ``context``; ``before`` runs before each of them begins."""

    context: Context
    before: Callable[[], None] = nothing
    answers: list[ScanAnswer] = field(default_factory=list)
    queues: list[str] = field(default_factory=list)

    def ask(
        self, messages: Sequence[tuple[str, Json]], _wait_s: float
    ) -> Iterator[tuple[int, Json]]:
        for position in reversed(range(len(messages))):  # in any order
            self.before()
            queue, message = messages[position]
            said = answer_scan(self.context, json.loads(json.dumps(message)))
            self.queues.append(queue)
            self.answers.append(answer_from_json(json.loads(json.dumps(said))))
            yield position, json.loads(json.dumps(said))

    @property
    def served(self) -> int:
        return sum(len(answer.scores) for answer in self.answers)

    @property
    def reasons(self) -> set[str]:
        return {why for answer in self.answers for why in answer.left.values()}


def fanned(context: Context, ask: Any, groups: int = 3, min_frames: int = 1) -> Context:
    return replace(fresh(context), fan_out=FanOut(ask, groups, 5.0, min_frames))


def shown(state: QueryState) -> list[tuple[Any, ...]]:
    """Everything of every hit, in order."""
    columns = ("rank", "frame_id", "score", "similarity", "coverage", "false_matches", "box")
    proof = ("region_query_index", "region_cell_index", "on_trail")
    return [tuple(getattr(hit, name) for name in (*columns, *proof)) for hit in state.hits]


def folders(context: Context) -> list[Path]:
    """Of the three shards, as they were first written: call, call two hours later, street."""
    ids = sql(context, "select id from shards order by camera_id, bucket_utc")
    return [context.index.root / "g1" / f"s{shard_id}" for (shard_id,) in ids]


def both(context: Context, workers: Workers, **params: object) -> None:
    """Ask in one process and through the workers: equal to the bit."""
    given: dict[str, Any] = {"top_n": FEW, "tau": None, **params}
    alone = asked(fresh(context), **given)
    spread = asked(fanned(context, workers.ask), **given)
    assert shown(spread) == shown(alone) and alone.hits
    assert lost(spread) == lost(alone)


@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_scan_on_a_device_says_what_the_local_one_does(
    indexed: Context, is_sealed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here on torch's CPU device: codes are read once, and let go with an erasure."""
    if is_sealed:
        seal(indexed)
    compared: list[float] = []
    on_device = DeviceScan.__call__

    def both_scans(self: DeviceScan, query: Any, shards: Any) -> list[ShardScores]:
        found, expected = on_device(self, query, shards), self.local(query, shards)
        for ours, theirs in zip(found, expected, strict=True):
            assert np.array_equal(ours.global_n, theirs.global_n)
            assert ours.appearance_n.shape == theirs.appearance_n.shape
            compared.append(float(np.abs(ours.appearance_n - theirs.appearance_n).max()))
        return found

    monkeypatch.setattr(DeviceScan, "__call__", both_scans)
    held = HeldCodes(lambda: ("cpu", 1 << 30))
    there = replace(fresh(indexed), held_codes=held)
    given: dict[str, Any] = {"top_n": FEW, "tau": None}
    for _ in range(2):
        found = asked(there, **given)
        assert [hit.frame_id for hit in found.hits] == [
            hit.frame_id for hit in asked(fresh(indexed), **given).hits
        ]
    assert len(compared) == 6 and max(compared) < 1e-3
    assert len(held._held) == 3
    there.let_go_since(datetime.now(UTC))
    assert not held._held


def test_what_a_device_cannot_hold_or_do_is_scanned_here(indexed: Context) -> None:
    def lost() -> tuple[str, int]:
        raise RuntimeError("CUDA error: told so by a test")

    alone = shown(asked(fresh(indexed), top_n=FEW, tau=None))
    places: list[Callable[[], tuple[str, int] | None]] = [lambda: None, lambda: ("cpu", 1000), lost]
    for place in places:
        there = replace(fresh(indexed), held_codes=HeldCodes(place))
        assert shown(asked(there, top_n=FEW, tau=None)) == alone


@pytest.mark.parametrize("is_sealed", [False, True])
def test_answers_are_those_of_one_process(indexed: Context, is_sealed: bool) -> None:
    if is_sealed:
        seal(indexed)
    workers = Workers(fresh(indexed))
    both(indexed, workers)
    assert workers.served == 3 and not workers.reasons
    assert set(workers.queues) <= {"scan.0", "scan.1", "scan.2"}
    both(indexed, workers, t_to_utc=START + timedelta(hours=1))
    assert workers.served == 5, "of two shards nothing is asked that the filter leaves out"
    both(indexed, workers, without=("background", "time"))
    both(indexed, workers, without=("whole-frame", "trail"))
    frame_id = sql(indexed, "select max(id) from frames")[0][0]
    both(indexed, workers, zone=Box(0.1, 0.5, 0.6, 1.0))
    both(indexed, workers, less=(Example(frame_id, Box(0.2, 0.2, 0.8, 0.8)),))


def test_scans_are_in_the_trace_of_the_search(indexed: Context) -> None:
    workers = Workers(fresh(indexed))
    with collecting() as collector:
        tracing.start("test", Settings(otlp_endpoint=collector.url))
        try:
            asked(fanned(indexed, workers.ask), top_n=FEW, tau=None)
        finally:
            tracing.stop()
    spread, scans = collector.one("scan.spread"), collector.named("scan")
    assert spread.attributes["ris.groups"] == spread.attributes["ris.answered"] == len(scans) > 1
    assert {(scan.trace, scan.parent) for scan in scans} == {(spread.trace, spread.id)}
    assert sum(scan.attributes["ris.shards"] for scan in scans) == workers.served == 3
    assert "scan.spread" in collector.below(collector.one("job query"))


def test_frames_that_came_since_are_not_looked_at(
    indexed: Context, footage: dict[str, Path]
) -> None:
    """Neither appended nor newly coded ones: all groups see what the query pinned."""
    alone = shown(asked(fresh(indexed), top_n=FEW, tau=None))
    done: list[bool] = []

    def more() -> None:
        if not done:
            done.append(True)
            later = START + timedelta(minutes=5)
            ingested(indexed, footage["car"], "call", 0.4, start_utc=later)
            compacted(indexed)

    workers = Workers(fresh(indexed), more)
    spread = asked(fanned(indexed, workers.ask), top_n=FEW, tau=None)
    assert shown(spread) == alone
    assert workers.served == 3


def test_shards_that_were_sealed_since_are_scanned_here(indexed: Context) -> None:
    alone = shown(asked(fresh(indexed), top_n=FEW, tau=None))
    done: list[bool] = []

    def first() -> None:
        if not done:
            done.append(True)
            seal(indexed)

    workers = Workers(fresh(indexed), first)
    spread = asked(fanned(indexed, workers.ask), top_n=FEW, tau=None)
    assert not any(answer.scores for answer in workers.answers[:3])
    assert workers.reasons == {"not as it was pinned"}
    # The former files are gone: the search is done again on what is there.
    assert len(workers.answers) == 6 and workers.served == 3
    again = shown(asked(fresh(indexed), top_n=FEW, tau=None))
    assert shown(spread) in (alone, again)


def test_erased_footage_is_let_go_and_not_found(indexed: Context) -> None:
    workers = Workers(fresh(indexed))
    both(indexed, workers)
    gone = {
        frame_id
        for (frame_id,) in sql(
            indexed,
            "select f.id from frames f join cameras c on c.id = f.camera_id"
            " where c.name = 'street'",
        )
    }
    mapped = len(workers.context.compact._mapped)
    span, _ = camera_span(indexed, "street", START, START + timedelta(hours=1))
    submit_erasure(indexed, span)
    run_jobs(indexed)
    workers.answers.clear()
    spread = asked(fanned(indexed, workers.ask), top_n=FEW, tau=None)
    assert not gone & {hit.frame_id for hit in spread.hits} and spread.hits
    assert workers.served == 2
    assert len(workers.context.compact._mapped) == mapped - 1
    both(indexed, workers)


def test_damage_that_a_worker_meets_is_searched_around(indexed: Context) -> None:
    """The whole-frame descriptors of a shard: a block is harmed after the coordinator checked it,
    so that only a worker that starts later can see it."""
    coordinator = fresh(indexed)
    asked(coordinator, top_n=FEW, tau=None)  # maps and checks
    folder = folders(indexed)[1]
    flip(folder / "global.vec", HEADER_BYTES + 3 * 24 + 1)
    workers = Workers(fresh(indexed))
    spread = asked(
        replace(coordinator, fan_out=FanOut(workers.ask, 3, 5.0, 1)), top_n=FEW, tau=None
    )
    damage = [answer.damage for answer in workers.answers if answer.damage]
    assert [(f"s{one.shard_id}", one.blocks) for one in damage] == [(folder.name, (3,))]
    assert lost(spread) == 1
    assert shown(spread) == shown(asked(fresh(indexed), top_n=FEW, tau=None))
    assert coordinator.damage.lost(folder) == {3}


def test_damage_that_both_meet_is_searched_around_and_repaired(indexed: Context) -> None:
    flip(folders(indexed)[0] / "global.vec", HEADER_BYTES + 5 * 24)
    workers = Workers(fresh(indexed))
    both(indexed, workers)
    assert lost(asked(fanned(indexed, workers.ask), top_n=FEW, tau=None)) == 1
    repair_index(fresh(indexed))
    both(indexed, workers)
    assert lost(asked(fanned(indexed, workers.ask), top_n=FEW, tau=None)) == 0


def test_damaged_codes_are_made_again_by_whoever_meets_them(indexed: Context) -> None:
    flip(folders(indexed)[0] / "codes.vec", HEADER_BYTES + 70)
    workers = Workers(fresh(indexed))
    both(indexed, workers)
    assert workers.served == 3


def test_what_a_worker_may_not_hold_is_scanned_here(indexed: Context) -> None:
    small = fresh(indexed)
    small = replace(small, compact=replace(small.compact, max_bytes=10))
    sql(indexed, "update shards set coded_count = 0")
    workers = Workers(small)
    both(indexed, workers)
    assert workers.served == 0 and workers.reasons == {"codes do not fit RIS_COMPACT_MAX_BYTES"}


def test_another_basis_and_a_removed_generation_are_refused(indexed: Context) -> None:
    sent: list[Json] = []

    def keep(messages: Sequence[tuple[str, Json]], _wait_s: float) -> Iterator[tuple[int, Json]]:
        sent.extend(message for _, message in messages)
        return iter(())

    asked(fanned(indexed, keep), top_n=FEW, tau=None)
    for changed, why in (({"basis": "other"}, "another basis"), ({"generation_id": 9}, "gone")):
        said = answer_scan(fresh(indexed), sent[0] | changed)
        assert not said["scores"] and all(why in reason for reason in said["left"].values())


def test_nothing_is_asked_of_nobody_for_a_while(indexed: Context) -> None:
    calls: list[int] = []

    def silent(messages: Sequence[tuple[str, Json]], _wait_s: float) -> Iterator[tuple[int, Json]]:
        calls.append(len(messages))
        return iter(())

    coordinator = fanned(indexed, silent)
    alone = shown(asked(fresh(indexed), top_n=FEW, tau=None))
    for _ in range(3):
        assert shown(asked(coordinator, top_n=FEW, tau=None)) == alone
    assert len(calls) == 1
    assert coordinator.fan_out is not None and coordinator.fan_out.pause.is_on


def test_small_searches_and_unrecorded_bases_stay_here(
    context: Context, footage: dict[str, Path]
) -> None:
    made = loaded(with_settings(context, backbone="tiny-a"))
    ingested(made, footage["car"], "call", 0.4, start_utc=START)
    workers = Workers(fresh(made))
    assert asked(fanned(made, workers.ask), top_n=FEW, tau=None).hits
    compacted(made)
    assert asked(fanned(made, workers.ask, min_frames=11), top_n=FEW, tau=None).hits
    assert not workers.queues
    assert asked(fanned(made, workers.ask, min_frames=10), top_n=FEW, tau=None).hits
    assert workers.served == 1


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"scores": {"1": [1, 2]}, "left": {}, "damage": None},
        {"scores": [], "left": {}, "damage": None},
        ScanAnswer({1: ShardScores(np.ones(3, np.float32), np.ones(3, np.float32))}, {}).to_json(),
        ScanAnswer({7: ShardScores(np.ones(3, np.float32), np.ones(3, np.float32))}, {}).to_json(),
    ],
)
def test_an_answer_that_cannot_be_used_is_none(indexed: Context, answer: Json) -> None:
    """Of another version, of another length, of another shard."""

    def ask(messages: Sequence[tuple[str, Json]], _wait_s: float) -> Iterator[tuple[int, Json]]:
        return ((position, answer) for position in range(len(messages)))

    alone = shown(asked(fresh(indexed), top_n=FEW, tau=None))
    assert shown(asked(fanned(indexed, ask), top_n=FEW, tau=None)) == alone


def test_messages_keep_every_bit_and_others_are_refused() -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((5, CODE_DIM)).astype(np.float32)
    request = ScanRequest(
        3,
        "abc",
        CoarseQuery(rows, np.arange(5, dtype=np.float32), [2, 3], [1.0], 0.3),
        rows[0],
        {1: rows[1:], 2: None},
        (ToldShard(8, "s8.2", 30, 20, 25, (4, 5)),),
        np.array([True, False, True]),
    )
    message = json.loads(json.dumps(request.to_json()))
    read = request_from_json(message)
    assert read.zone_c is not None and read.zone_c.tolist() == [True, False, True]
    assert read.shards == request.shards and read.generation_id == 3
    assert read.coarse.query_qk.tobytes() == rows.tobytes()
    assert read.background_ck[1] is not None and read.background_ck[2] is None
    assert read.background_ck[1].tobytes() == rows[1:].tobytes()
    for broken in (
        {**message, "query": [[5, CODE_DIM], "AAAA"]},
        {**message, "query": [[5, CODE_DIM], "*"]},
        {**message, "shards": [[1]]},
        {name: message[name] for name in message if name != "basis"},
    ):
        with pytest.raises(InputInvalid):
            request_from_json(broken)
