"""Sealed shards: smaller, and otherwise what they were; damage, lateness and erasure included."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from models.repositories import index as index_record
from models.session import DatabaseUnavailable
from tests.parts import (
    HANDLERS,
    acts,
    ingested,
    job,
    loaded,
    queued_jobs,
    run_jobs,
    sql,
    with_settings,
)
from tests.searching import asked, flip, fresh, lost, scores
from worker import compacting, sealing
from worker.accepting.desk import COMMAND_LINE
from worker.compacting import learn_basis
from worker.context import Context
from worker.core.search_params import SearchParams
from worker.erasure import camera_span, submit_erasure
from worker.errors import FormatNewer, IndexDamaged
from worker.index.global_cache import GlobalCache
from worker.index.layout import HEADER_BYTES
from worker.index.runs_file import RunsWriter, let_go_of_runs, open_runs
from worker.index.shard import damaged_blocks
from worker.index.store import PinnedShard
from worker.jobs import run_job
from worker.leftovers import remove_former_files
from worker.pinning import FMapCache, pin_shard, pin_shards
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


def test_who_orders_it_is_in_the_audit(indexed: Context) -> None:
    job_id = sealing.submit_due(indexed, 0.0, COMMAND_LINE)
    assert [act["job_id"] for act in acts(indexed, "seal.order")] == [str(job_id)]
    run_jobs(indexed)
    assert repair_index(indexed).problems == ()
    assert acts(indexed, "repair.begin") == [{"generation_id": 1}]


def test_what_its_time_orders_is_nobodys_act(indexed: Context) -> None:
    sealed(indexed)
    assert acts(indexed, "seal.order") == []


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


def test_a_harmed_header_with_no_block_behind_it_is_repaired(indexed: Context) -> None:
    sealed(indexed)
    flip(pinned(indexed).layout.path("patch"), 20)
    assert any("patch.vec" in problem for problem in verify_index(fresh(indexed)).problems)
    assert lost(asked(fresh(indexed))) == 0, "the sealed blocks are sound"
    assert repair_index(fresh(indexed)).problems == ()
    assert verify_index(fresh(indexed)).problems == ()


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


@pytest.mark.parametrize("went_through", [True, False])
def test_a_connection_lost_at_the_commit_loses_no_files(
    indexed: Context, monkeypatch: pytest.MonkeyPatch, went_through: bool
) -> None:
    """Whether the commit went through is not known to whoever gave it."""
    before, switch = patches(indexed), sealing._switch

    def lose(*given: object) -> bool:
        monkeypatch.setattr(sealing, "_switch", switch)
        if went_through:
            switch(*given)  # type: ignore[arg-type]
        raise DatabaseUnavailable("the connection is lost")

    monkeypatch.setattr(sealing, "_switch", lose)
    assert sealing.submit_due(indexed) is not None
    (job_id,) = queued_jobs(indexed)
    run_job(indexed, job_id, HANDLERS)
    assert job(indexed, job_id).retry_code == "service_unavailable"
    assert counts(indexed)[0] == int(went_through)
    assert (indexed.index.root / "g1" / "s1.1").exists() == went_through
    assert verify_index(fresh(indexed)).problems == ()
    run_jobs(indexed)
    assert counts(indexed) == (1, 10, 10, 10)
    assert ((patches(indexed) * before).sum(axis=2) >= 0.8 - 1e-4).all()
    assert verify_index(fresh(indexed)).problems == ()
    assert not (indexed.index.root / "g1" / "s1").exists()


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
@pytest.mark.parametrize("number", [1, 4])
def test_a_full_disk_leaves_the_old_files_and_sealing_goes_on(
    indexed: Context, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    real, left = getattr(os, call), [number]

    def full(*given: object) -> object:
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*given)

    assert sealing.submit_due(indexed) is not None
    (job_id,) = queued_jobs(indexed)
    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        run_job(indexed, job_id, HANDLERS)
    assert (job(indexed, job_id).state, job(indexed, job_id).retry_code) == (
        "queued",
        "storage_full",
    )
    assert counts(indexed)[0] == 0 and not (indexed.index.root / "g1" / "s1.1").exists()
    assert verify_index(fresh(indexed)).problems == ()
    run_jobs(indexed)
    assert counts(indexed) == (1, 10, 10, 10)
    assert verify_index(fresh(indexed)).problems == ()


def test_what_a_killed_sealer_wrote_is_not_left_in_a_repaired_shard(indexed: Context) -> None:
    """A repair writes the same next revision."""
    left = indexed.index.root / "g1" / "s1.1"
    left.mkdir()
    for name in ("patch.runs", "codes.runs", "patch.tmp"):
        (left / name).write_bytes(b"half")
    flip(pinned(indexed).layout.path("patch"), HEADER_BYTES + 5)
    assert repair_index(fresh(indexed)).problems == ()
    assert {path.name for path in left.iterdir()} == {"global.vec", "patch.vec", "writer.lock"}


@pytest.fixture
def coded(indexed: Context, monkeypatch: pytest.MonkeyPatch) -> Context:
    """The same, with compact codes."""
    monkeypatch.setattr(compacting, "MIN_FRAMES", 8)
    monkeypatch.setattr(compacting, "MIN_LAG", 1)
    compact(indexed)
    return indexed


def compact(context: Context) -> None:
    assert compacting.submit_due(context)
    run_jobs(context)
    assert sql(context, "select count(*) from shards where coded_count < frame_count") == [(0,)]


def codes(context: Context) -> np.ndarray:
    """Codes of the first shard's frames as a fresh process's searches get them."""
    reader = fresh(context)
    with reader.db.snapshot() as session:
        live = index_record.live_generation(session)
        assert live is not None
        learn_basis(reader, session, live)
        shards = pin_shards(session, reader.index, FMapCache(), live, SearchParams(), reader.damage)
    shard = shards[0]
    basis = reader.compact.basis(shards)
    found = list(reader.compact.chunks(shard, basis, 4))
    assert [start for start, _ in found] == sorted(start for start, _ in found)
    cells = shard.layout.cells
    made = np.concatenate([chunk[:, :cells] for _, chunk in found])
    assert not reader.compact._codes, "all are on disk"
    np.testing.assert_array_equal(made, basis.encode(shard.read("patch", np.arange(shard.blocks))))
    return made


def test_a_seal_brings_its_codes_along(coded: Context, footage: dict[str, Path]) -> None:
    before = codes(coded)
    sealed(coded)
    assert sql(coded, "select count(*) from shards where coded_count < frame_count") == [(0,)]
    folder = coded.index.root / "g1" / "s1.1"
    assert (folder / "codes.runs").exists() and not (folder / "codes.vec").exists()
    assert codes(coded).shape == before.shape
    assert len(asked(fresh(coded), top_n=4, tau=None).hits) > 0
    ingested(coded, footage["car"], "call", 0.4, start_utc=START + timedelta(minutes=5))
    compact(coded)
    assert (folder / "codes.vec").exists()
    assert len(codes(coded)) == 20
    assert verify_index(fresh(coded)).problems == ()
    sealed(coded)
    assert len(codes(coded)) == 20


def test_a_disk_that_fails_once_puts_codes_off_by_name(
    coded: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so where the rows of a sealed shard are opened, as anywhere else."""
    sealed(coded)
    sql(coded, "update shards set coded_count = 0 where id = 1")
    assert compacting.submit_due(coded)
    (job_id,) = queued_jobs(coded)
    let_go_of_runs()
    real = os.open

    def broken(path: object, *given: object, **named: object) -> int:
        if str(path).endswith("patch.runs"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *given, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", broken)
        run_job(coded, job_id, HANDLERS)
    assert job(coded, job_id).retry_code == "storage_failed"
    run_jobs(coded)
    assert len(codes(coded)) == 10


def test_sealed_shards_are_coded_when_the_projection_comes_later(
    indexed: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed(indexed)
    monkeypatch.setattr(compacting, "MIN_FRAMES", 8)
    monkeypatch.setattr(compacting, "MIN_LAG", 1)
    compact(indexed)
    assert (indexed.index.root / "g1" / "s1.1" / "codes.runs").exists()
    assert len(codes(indexed)) == 10


@pytest.mark.parametrize("where", ["header", "codes", "spans", "cut", "gone"])
def test_damaged_codes_of_rows_are_passed_over_and_made_again(coded: Context, where: str) -> None:
    sealed(coded)
    whole = scores(asked(fresh(coded), top_n=4, tau=None))
    path = coded.index.root / "g1" / "s1.1" / "codes.runs"
    size = path.stat().st_size
    if where == "gone":
        path.unlink()
    elif where == "cut":
        with path.open("r+b") as file:
            file.truncate(size - 9)
    else:
        flip(path, {"header": 20, "codes": HEADER_BYTES + 3, "spans": size - 9}[where])
    assert any("codes.runs" in problem for problem in verify_index(fresh(coded)).problems)
    assert scores(asked(fresh(coded), top_n=4, tau=None)) == pytest.approx(whole, abs=1e-5)
    assert repair_index(fresh(coded)).problems == ()
    compact(coded)
    assert verify_index(fresh(coded)).problems == ()
    assert counts(coded)[2] == 10, "the vectors were sound: they stay sealed"


def test_frames_lost_from_a_sealed_shard_are_not_among_its_codes(coded: Context) -> None:
    sealed(coded)
    path = pinned(coded).layout.path_of("patch", 0)
    rows = open_runs(pinned(coded).layout).rows_of(np.arange(10))
    alone = [i for i in range(10) if set(rows[i]) - set(np.delete(rows, i, axis=0).ravel())]
    row = min(set(rows[alone[0]]) - set(np.delete(rows, alone[0], axis=0).ravel()))
    width = pinned(coded).layout.patch_dim
    flip(path, HEADER_BYTES + int(row) * width, 6)
    reader = fresh(coded)
    assert lost(asked(reader, top_n=100, tau=None)) == 1
    frame_id = int(pinned(coded).f_map.frame_id[alone[0]])
    again = asked(reader, top_n=4, tau=None)  # chosen by codes, which know of the loss now
    assert lost(again) == 1 and frame_id not in scores(again) and reader.compact._mapped
    harmed = pinned(coded)
    assert sorted(damaged_blocks(harmed.layout, harmed.sums_n2)) == [alone[0]]


def test_one_shard_that_cannot_be_sealed_does_not_keep_the_others(
    indexed: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = sealing._write

    def refused(context: Context, generation: object, old: PinnedShard, *given: object) -> object:
        if old.shard_id == 1:
            raise FormatNewer("made up")
        return write(context, generation, old, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(sealing, "_write", refused)
    assert sealing.submit_due(indexed) is not None
    (job_id,) = queued_jobs(indexed)
    run_jobs(indexed)
    assert job(indexed, job_id).state == "done"
    assert sql(indexed, "select sealed_count from shards order by id") == [(0,), (5,)]


def test_what_is_replaced_is_not_kept_mapped(coded: Context) -> None:
    """Else the disk space of every former revision would be held by whoever searched it."""
    reader = fresh(coded)
    asked(reader, top_n=4, tau=None)
    sealed(coded)
    asked(reader, top_n=4, tau=None)
    held = Path("/proc/self/maps").read_text()
    folder = str(coded.index.root / "g1")
    assert not [line for line in held.splitlines() if folder in line and "(deleted)" in line]


def test_a_shard_sealed_under_a_search_is_looked_at_again(
    coded: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its whole-frame descriptors were checked before, and are not mapped any more."""
    reader = fresh(coded)
    whole = set(scores(asked(reader, top_n=100, tau=None)))
    reader.index._globals._mapped.clear()
    pin = pin_shards

    def seal_behind(*given: object, **named: object) -> object:
        found = pin(*given, **named)  # type: ignore[arg-type]
        monkeypatch.undo()
        monkeypatch.setattr(sealing, "MIN_FRAMES", 4)
        monkeypatch.setattr(sealing, "seal_distance", lambda _name: 0.0)
        sealed(coded)
        return found

    monkeypatch.setattr("worker.search.pin_shards", seal_behind)
    answer = asked(reader, top_n=100, tau=None)
    assert lost(answer) == 0 and set(scores(answer)) == whole


def test_blocks_passed_over_as_lost_are_checked_when_they_are_back(indexed: Context) -> None:
    layout = pinned(indexed).layout
    flip(layout.path("global"), HEADER_BYTES + 5 * layout.block_bytes("global"))
    cache = GlobalCache()
    whole = pinned(indexed)
    without = replace(
        whole,
        blocks=9,
        stored_n=np.delete(whole.stored_n, 5),
        sums_n2=np.delete(whole.sums_n2, 5, axis=0),
        lost=(5,),
    )
    assert len(cache.stored(without)) == 9
    with pytest.raises(IndexDamaged):
        cache.stored(whole)
