"""Sealed shards: smaller, and otherwise what they were; damage, lateness and erasure included."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from models.repositories import index as index_record
from tests.parts import ingested, job, loaded, queued_jobs, run_jobs, sql, with_settings
from tests.searching import asked, flip, fresh, lost, scores
from worker import sealing
from worker.context import Context
from worker.erasure import camera_span, submit_erasure
from worker.index.layout import HEADER_BYTES
from worker.index.runs_file import RunsWriter
from worker.index.shard import damaged_blocks
from worker.index.store import PinnedShard
from worker.leftovers import remove_former_files
from worker.pinning import FMapCache, pin_shard
from worker.repair import repair_index
from worker.verify import verify_index

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "MIN_FRAMES", 4)
    monkeypatch.setattr(sealing, "BLOCKS_AT_ONCE", 3)
    monkeypatch.setattr(sealing, "seal_distance", lambda _name: 0.2)


@pytest.fixture
def indexed(context: Context, footage: dict[str, Path]) -> Iterator[Context]:
    made = loaded(with_settings(context, backbone="tiny-a", seal_after_s=0.0))
    ingested(made, footage["car"], "call", 0.4, start_utc=START)
    ingested(made, footage["bikes"], "street", 2.0, start_utc=START)
    yield made


def sealed(context: Context) -> None:
    assert sealing.submit_due(context) is not None
    assert sealing.submit_due(context) is None, "not again while it is under way"
    run_jobs(context)
    assert sealing.submit_due(context) is None
    assert verify_index(fresh(context)).problems == ()


def pinned(context: Context, shard_id: int = 1) -> PinnedShard:
    with context.db.snapshot() as session:
        shard = index_record.find_shard(session, shard_id)
        assert shard is not None
        generation = index_record.find_generation(session, shard.generation_id)
        assert generation is not None
        return pin_shard(session, context.index, FMapCache(), generation, shard)


def counts(context: Context, shard_id: int = 1) -> tuple[int, int, int, int]:
    """Revision, frames, and how many of them are sealed and merged."""
    (row,) = sql(
        context,
        "select revision, frame_count, sealed_count, merged_count from shards where id = %s",
        shard_id,
    )
    return row


def patches(context: Context, shard_id: int = 1) -> np.ndarray:
    shard = pinned(fresh(context), shard_id)
    return shard.read("patch", np.arange(shard.blocks))


def test_sealed_frames_are_what_they_were_within_the_angle(indexed: Context) -> None:
    before, globals_before = patches(indexed), pinned(indexed).read("global", np.arange(10))
    size = pinned(indexed).layout.path("patch").stat().st_size
    sealed(indexed)
    assert counts(indexed) == (1, 10, 10, 10)
    after = patches(indexed)
    cosine = (before * after).sum(axis=2)
    assert cosine.min() >= 0.8 - 1e-4
    assert (cosine < 1 - 1e-4).any(), "the footage moves"
    assert np.array_equal(globals_before, pinned(indexed).read("global", np.arange(10)))
    layout = pinned(indexed).layout
    files = [layout.path_of("patch", 0), layout.path("patch")]
    assert sum(path.stat().st_size - HEADER_BYTES for path in files) < size - HEADER_BYTES
    assert not (indexed.index.root / "g1" / "s1").exists(), "the old files are gone"


def test_searches_answer_from_sealed_shards_alike(indexed: Context) -> None:
    before = scores(asked(fresh(indexed)))
    sealed(indexed)
    after = asked(fresh(indexed))
    assert lost(after) == 0
    assert scores(after) == pytest.approx(before, abs=0.25)
    reader = fresh(indexed)
    assert scores(asked(reader)) == scores(after), "and always the same"


def test_a_search_that_pinned_the_old_files_looks_again(indexed: Context) -> None:
    reader = fresh(indexed)
    asked(reader)
    sealed(indexed)
    assert lost(asked(reader)) == 0


def test_late_frames_are_appended_behind_and_sealed_next_time(
    indexed: Context, footage: dict[str, Path]
) -> None:
    sealed(indexed)
    first = patches(indexed)
    ingested(indexed, footage["car"], "call", 0.4, start_utc=START + timedelta(minutes=5))
    assert counts(indexed) == (1, 20, 10, 10)
    late = patches(indexed)
    assert np.array_equal(late[:10], first)
    assert verify_index(fresh(indexed)).problems == ()
    assert len(scores(asked(fresh(indexed)))) == 24
    sealed(indexed)
    assert counts(indexed) == (2, 20, 20, 20)
    again = patches(indexed)
    assert np.array_equal(again[:10], first), "what was made up already does not move again"
    assert ((again * late).sum(axis=2) >= 0.8 - 1e-4).all()


def test_frames_that_arrive_while_a_shard_is_sealed_are_kept(
    indexed: Context, footage: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    late = START + timedelta(minutes=5)
    switch = sealing._switch

    def arrive(*given: object) -> bool:
        if counts(indexed)[1] == 10:
            ingested(indexed, footage["car"], "call", 0.4, start_utc=late)
        return switch(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(sealing, "_switch", arrive)
    assert sealing.submit_due(indexed) is not None
    (job_id,) = queued_jobs(indexed)
    run_jobs(indexed)
    assert job(indexed, job_id).state == "done"
    assert counts(indexed) == (1, 20, 10, 10)
    assert verify_index(fresh(indexed)).problems == ()


@pytest.mark.parametrize("where", ["header", "row", "runs", "cut", "gone"])
def test_damage_of_sealed_files_is_found_and_repaired(indexed: Context, where: str) -> None:
    sealed(indexed)
    whole = scores(asked(fresh(indexed)))
    path = pinned(indexed).layout.path_of("patch", 0)
    size = path.stat().st_size
    if where == "gone":
        path.unlink()
    elif where == "cut":
        with path.open("r+b") as file:
            file.truncate(size - 5)
    else:
        flip(path, {"header": 20, "row": HEADER_BYTES + 3, "runs": size - 3}[where])
    found = verify_index(fresh(indexed)).problems
    assert found and all("patch.runs" in problem for problem in found)
    harmed = pinned(indexed)
    unsound = sorted(damaged_blocks(harmed.layout, harmed.sums_n2))
    answer = asked(fresh(indexed))
    assert 0 < lost(answer) == len(unsound)
    assert not set(scores(answer)) & set(harmed.f_map.frame_id[unsound].tolist())
    report = repair_index(fresh(indexed))
    assert report.problems == () and report.repaired == 1
    assert verify_index(fresh(indexed)).problems == ()
    assert counts(indexed)[2] == 0, "a repaired shard is whole until it is sealed again"
    sealed(indexed)
    assert len(scores(asked(fresh(indexed)))) == len(whole)


def test_a_damaged_shard_is_not_sealed_over(indexed: Context) -> None:
    flip(pinned(indexed).layout.path("patch"), HEADER_BYTES + 5)
    assert sealing.submit_due(indexed) is not None
    run_jobs(indexed)
    assert counts(indexed) == (0, 10, 0, 0)
    assert sql(indexed, "select sealed_count from shards where id <> 1") == [(5,)], "the others are"
    assert repair_index(fresh(indexed)).problems == ()
    sealed(indexed)
    assert counts(indexed)[2] == 10


def test_erasure_reaches_into_sealed_shards(indexed: Context) -> None:
    sealed(indexed)
    before = patches(indexed)
    span, _ = camera_span(indexed, "call", START, START + timedelta(seconds=1.5))
    submit_erasure(indexed, span)
    run_jobs(indexed)
    assert verify_index(fresh(indexed)).problems == ()
    revision, frames, sealed_count, merged = counts(indexed)
    assert (revision, sealed_count, merged) == (2, 0, frames) and 0 < frames < 10
    assert np.array_equal(patches(indexed), before[10 - frames :])
    sealed(indexed)
    assert np.array_equal(patches(indexed), before[10 - frames :]), "and do not move again"


def test_what_a_killed_sealer_left_is_swept(indexed: Context) -> None:
    former = indexed.index.root / "g1" / "s1"
    saved = {path.name: path.read_bytes() for path in former.iterdir()}
    sealed(indexed)
    former.mkdir()
    for name, content in saved.items():
        (former / name).write_bytes(content)
    assert verify_index(fresh(indexed)).problems == ()
    assert remove_former_files(indexed) == 1
    assert not former.exists() and verify_index(fresh(indexed)).problems == ()


def test_a_file_that_does_not_read_back_is_not_switched_to(
    indexed: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = RunsWriter.finish

    def harmed(self: RunsWriter) -> object:
        runs = finish(self)
        flip(self.layout.path_of("patch", 0), HEADER_BYTES + 1, 6)
        return runs

    monkeypatch.setattr(RunsWriter, "finish", harmed)
    assert sealing.submit_due(indexed) is not None
    run_jobs(indexed)
    assert counts(indexed) == (0, 10, 0, 0)
    assert verify_index(fresh(indexed)).problems == ()
