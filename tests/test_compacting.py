"""Compact codes: made behind ingest, used by searches, made again when they are not there."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from models.repositories import codes as codes_record
from tests.parts import HANDLERS, ingested, job, loaded, queued_jobs, run_jobs, sql, with_settings
from tests.searching import asked, flip, fresh, scores
from worker import compacting
from worker.context import Context
from worker.core.sampling import IntervalPolicy
from worker.erasure import camera_span, submit_erasure
from worker.errors import IndexDamaged
from worker.index.codes_file import write_codes
from worker.index.layout import HEADER_BYTES
from worker.index.store import PinnedShard
from worker.ingest import submit_file
from worker.jobs import run_job
from worker.reindex import submit_reindex, submit_return
from worker.repair import repair_index
from worker.verify import verify_index

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATE = START + timedelta(minutes=5)
FEW = 4
"""Candidates: fewer than frames, so that codes choose them."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compacting, "MIN_FRAMES", 8)
    monkeypatch.setattr(compacting, "MIN_LAG", 1)
    monkeypatch.setattr(compacting, "BLOCKS_AT_ONCE", 3)


@pytest.fixture
def indexed(context: Context, footage: dict[str, Path]) -> Iterator[Context]:
    made = loaded(with_settings(context, backbone="tiny-a"))
    ingested(made, footage["car"], "call", 0.4, start_utc=START)
    ingested(made, footage["bikes"], "street", 2.0, start_utc=START)
    yield made


def compacted(context: Context) -> None:
    assert compacting.submit_due(context)
    assert not compacting.submit_due(context)  # not again while it is under way
    run_jobs(context)
    query = """select count(*) from shards s join index_generations g on g.id = s.generation_id
        where g.state in ('live', 'building') and coded_count < frame_count"""
    assert sql(context, query) == [(0,)]
    assert not compacting.submit_due(context)


def codes_file(context: Context, shard: str = "s1") -> Path:
    return context.index.root / "g1" / shard / "codes.vec"


def test_searches_use_the_codes_on_disk(indexed: Context) -> None:
    without = scores(asked(fresh(indexed), top_n=FEW, tau=None))
    compacted(indexed)
    reader = fresh(indexed)
    # The basis is another one, fitted on more frames; what is shown is scored in full.
    assert scores(asked(reader, top_n=FEW, tau=None)) == pytest.approx(without, abs=0.02)
    assert not reader.compact._codes and len(reader.compact._mapped) == 2
    assert verify_index(indexed).problems == ()


def test_new_frames_are_found_before_they_are_coded(
    indexed: Context, footage: dict[str, Path]
) -> None:
    compacted(indexed)
    reader = fresh(indexed)
    asked(reader, top_n=FEW, tau=None)
    ingested(indexed, footage["car"], "call", 0.4, start_utc=LATE)
    assert sql(indexed, "select coded_count, frame_count from shards where id = 1") == [(10, 20)]
    later = [i for (i,) in sql(indexed, "select id from frames order by id desc limit 10")]
    found = scores(asked(reader, top_n=100, tau=None))
    assert set(later) & set(found)
    before = scores(asked(reader, top_n=FEW, tau=None))
    compacted(indexed)
    for again in (reader, fresh(indexed)):
        assert scores(asked(again, top_n=FEW, tau=None)) == before


def test_a_job_that_died_goes_on(indexed: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the file and its row: what was written is written over."""
    assert compacting.submit_due(indexed)
    (job_id,) = queued_jobs(indexed)
    with monkeypatch.context() as patched:
        patched.setattr(codes_record, "advance", lambda *_: 1 / 0)
        run_job(indexed, job_id, HANDLERS)
    assert job(indexed, job_id).state == "queued"
    assert sql(indexed, "select sum(coded_count) from shards") == [(0,)]
    run_jobs(indexed)
    assert job(indexed, job_id).state == "done"
    assert verify_index(indexed).problems == ()
    assert sql(indexed, "select sum(coded_count) from shards") == [(15,)]


def test_an_append_does_not_wait_for_codes(
    indexed: Context, footage: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has locked the row that codes are recorded in: each would wait for the other."""
    write = write_codes
    states: list[str] = []

    def while_frames_come(*given: Any) -> None:
        if not states:
            made = submit_file(indexed, footage["car"], "call", IntervalPolicy(0.4), start_utc=LATE)
            run_job(indexed, uuid.UUID(made.job_id), HANDLERS)
            states.append(job(indexed, made.job_id).state)
        write(*given)

    monkeypatch.setattr(compacting, "write_codes", while_frames_come)
    compacted(indexed)
    assert states == ["done"]
    assert sql(indexed, "select coded_count, frame_count from shards where id = 1") == [(20, 20)]
    assert verify_index(indexed).problems == ()


def test_slices_are_short(indexed: Context) -> None:
    sliced = with_settings(indexed, job_slice_s=0.0)
    assert compacting.submit_due(sliced)
    (job_id,) = queued_jobs(sliced)
    run_job(sliced, job_id, HANDLERS)
    assert job(sliced, job_id).state == "queued"
    run_jobs(sliced)
    assert verify_index(sliced).problems == ()


@pytest.mark.parametrize("harm", ["flip", "cut", "header", "gone"])
def test_damaged_codes_are_named_passed_over_and_made_again(indexed: Context, harm: str) -> None:
    compacted(indexed)
    before = scores(asked(fresh(indexed), top_n=FEW, tau=None))
    path = codes_file(indexed)
    if harm == "gone":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        flip(path, 20 if harm == "header" else HEADER_BYTES + 7)
    assert scores(asked(fresh(indexed), top_n=FEW, tau=None)) == before
    (problem,) = verify_index(indexed).problems
    assert str(path) in problem
    assert repair_index(indexed).problems == ()
    assert verify_index(indexed).problems == ()
    compacted(indexed)
    assert scores(asked(fresh(indexed), top_n=FEW, tau=None)) == before
    assert verify_index(indexed).problems == ()


def test_an_erased_span_takes_its_codes_along(indexed: Context) -> None:
    compacted(indexed)
    content = codes_file(indexed).read_bytes()
    block = (len(content) - HEADER_BYTES) // 10
    marker = content[HEADER_BYTES + 4 * block : HEADER_BYTES + 4 * block + 40]
    span, _ = camera_span(indexed, "call", START + timedelta(seconds=1), START.replace(second=2))
    submit_erasure(indexed, span)
    run_jobs(indexed)
    compacted(indexed)
    files = [path.read_bytes() for path in indexed.index.root.rglob("*") if path.is_file()]
    assert not any(marker in found for found in files)
    assert verify_index(indexed).problems == ()


def test_a_repaired_shard_is_coded_again(indexed: Context) -> None:
    compacted(indexed)
    flip(indexed.index.root / "g1" / "s1" / "patch.vec", HEADER_BYTES + 1)
    assert repair_index(indexed).frames == 1
    assert sql(indexed, "select coded_count from shards where id = 1") == [(0,)]
    compacted(indexed)
    assert verify_index(indexed).problems == ()


def test_codes_of_damaged_vectors_are_nothing(indexed: Context) -> None:
    flip(indexed.index.root / "g1" / "s1" / "patch.vec", HEADER_BYTES + 1)
    compacted(indexed)
    state = asked(fresh(indexed), top_n=FEW, tau=None)
    assert state.query.stats is not None
    assert state.hits


def test_a_generation_that_is_being_built_is_coded_too(indexed: Context) -> None:
    compacted(indexed)
    submit_reindex(indexed, "tiny-b")
    run_jobs(indexed)
    compacted(indexed)
    assert sql(indexed, "select count(*), count(distinct name) from compact_bases") == [(2, 2)]
    reader = fresh(indexed)
    assert asked(reader, top_n=FEW, tau=None).hits
    assert not reader.compact._codes


def test_a_small_index_is_left_alone(indexed: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compacting, "MIN_FRAMES", 17)
    assert not compacting.submit_due(indexed)


def test_a_lost_file_is_begun_anew_and_others_go_on(
    indexed: Context, footage: dict[str, Path]
) -> None:
    compacted(indexed)
    for camera in ("call", "street"):
        later = START + timedelta(minutes=5)
        ingested(indexed, footage["car"], camera, 1.0, start_utc=later)
    codes_file(indexed).unlink()
    compacted(indexed)
    assert verify_index(indexed).problems == ()


def test_vectors_that_could_not_be_read_for_a_moment_are_coded_after_a_repair(
    indexed: Context,
) -> None:
    path = indexed.index.root / "g1" / "s1" / "patch.vec"
    flip(path, HEADER_BYTES + 1)
    compacted(indexed)
    flip(path, HEADER_BYTES + 1)  # and back
    (problem,) = verify_index(indexed).problems
    assert "block 0 has no codes" in problem
    assert repair_index(indexed).frames == 0
    compacted(indexed)
    assert verify_index(indexed).problems == ()


def test_a_shard_that_cannot_be_coded_does_not_stop_the_others(
    indexed: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = compacting._encoded

    def refuses(pinned: PinnedShard, *given: Any) -> Any:
        if pinned.shard_id == 1:
            raise IndexDamaged("planted")
        return encoded(pinned, *given)

    monkeypatch.setattr(compacting, "_encoded", refuses)
    assert compacting.submit_due(indexed)
    run_jobs(indexed)
    assert sql(indexed, "select coded_count > 0 from shards order by id") == [(False,), (True,)]


def test_rotten_codes_do_not_keep_a_generation_from_coming_back(indexed: Context) -> None:
    compacted(indexed)
    submit_reindex(indexed, "tiny-b")
    run_jobs(indexed)
    flip(codes_file(indexed), HEADER_BYTES + 7)
    submitted = submit_return(indexed, 1)
    run_jobs(indexed)
    assert job(indexed, submitted.job_id).state == "done"
    assert len(verify_index(indexed).problems) == 1
    assert repair_index(indexed).problems == ()
    compacted(indexed)
    assert verify_index(indexed).problems == ()


def test_a_disk_error_on_codes_is_damage_and_nothing_worse(indexed: Context) -> None:
    compacted(indexed)
    path = codes_file(indexed)
    path.unlink()
    path.mkdir()  # reading it is an error of the disk's
    assert asked(fresh(indexed), top_n=FEW, tau=None).hits
    assert str(path) in verify_index(indexed).problems[0]
    path.rmdir()
    assert repair_index(indexed).problems == ()
    compacted(indexed)
    assert verify_index(indexed).problems == ()
