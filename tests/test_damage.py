"""Damaged vector files: found by whoever reads, searched around, named, and repaired."""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import worker.repair
from models.session import DatabaseUnavailable
from tests.parts import (
    HANDLERS,
    ingested,
    job,
    loaded,
    loaded_backbone,
    run_jobs,
    sql,
    with_settings,
)
from tests.searching import asked, flip, fresh, lost, scores
from worker.accepting.queries import query_state, submit_query
from worker.admin.query import show_result
from worker.backbones.base import Backbone
from worker.context import Context
from worker.core.sampling import IntervalPolicy
from worker.core.search_params import SearchParams, Strategy
from worker.core.types import Box
from worker.errors import IndexDamaged, StorageFull, WeightsMissing
from worker.generations import require_live_generation
from worker.index.damage import KnownDamage
from worker.index.layout import HEADER_BYTES, ShardLayout
from worker.index.shard import hold_shard
from worker.ingest import submit_file
from worker.jobs import run_job
from worker.leftovers import remove_former_files
from worker.repair import repair_index
from worker.runtime import make_context
from worker.verify import verify_index

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = START + timedelta(minutes=20)
FRAMES = 12
FLIPS = 60


@pytest.fixture
def indexed(context: Context, footage: dict[str, Path]) -> Context:
    """Ten frames of one camera in shard 1, two of another in shard 2."""
    made = loaded(with_settings(context, backbone="tiny-a"))
    ingested(made, footage["car"], "call", 0.4, start_utc=START)
    ingested(made, footage["bikes"], "street", 5.0, start_utc=START)
    assert sql(made, "select frame_count from shards order by id") == [(10,), (2,)]
    return made


def vector_files(context: Context) -> list[Path]:
    return sorted(context.index.root.rglob("*.vec"))


def test_every_flipped_bit_and_cut_is_found_named_and_searched_around(indexed: Context) -> None:
    """Whole-index MaxSim reads every block: hits are those of the sound index less the damaged."""
    rng = random.Random(7)
    whole = scores(asked(indexed, uploaded=True, strategy=Strategy.MAX_SIM, top_n=100))
    assert len(whole) == FRAMES
    paths = vector_files(indexed)
    for number in range(FLIPS):
        path = paths[number % len(paths)]
        content = path.read_bytes()
        if number % 5 == 4:
            os.truncate(path, rng.randrange(len(content)))
        else:
            offset = rng.choice((rng.randrange(len(content)), rng.randrange(200)))
            flip(path, offset, rng.randrange(8))
        reader = fresh(indexed)
        state = asked(reader, uploaded=True, strategy=Strategy.MAX_SIM, top_n=100)
        found, left = lost(state), scores(state)
        if path.read_bytes() != content:
            assert found > 0, (path, number)
            assert any(str(path) in problem for problem in verify_index(reader).problems)
        assert len(left) >= len(whole) - found
        assert left == {frame_id: whole[frame_id] for frame_id in left}
        path.write_bytes(content)
    assert verify_index(indexed).problems == ()


@pytest.mark.parametrize("strategy", ["default", "vote-majority", "grow-rigid", "whole-frame"])
def test_no_strategy_shows_a_damaged_frame(indexed: Context, strategy: str) -> None:
    call = indexed.index.root / "g1" / "s1"
    damaged = sql(indexed, "select frame_id from f_map_runs where shard_id = 1 order by start_row")
    size = (call / "patch.vec").stat().st_size - HEADER_BYTES
    for block in (3, 7):
        flip(call / "patch.vec", HEADER_BYTES + block * size // 10 + 5)
    flip(call / "global.vec", (call / "global.vec").stat().st_size - 1)
    state = asked(indexed, strategy=Strategy(strategy), vote_scope="index", top_n=100)
    if strategy != "whole-frame":
        assert lost(state) == 3
    assert {damaged[block][0] for block in (3, 7, 9)}.isdisjoint(scores(state))
    assert len(state.hits) >= 5


def test_the_answer_says_that_it_is_degraded(
    indexed: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = asked(indexed)
    os.truncate(vector_files(indexed)[1], HEADER_BYTES)
    state = asked(fresh(indexed))
    capsys.readouterr()
    show_result(state, None, as_json=False)
    assert f"the vectors of {lost(state)} frames are damaged" in capsys.readouterr().out
    show_result(state, None, as_json=True)
    assert json.loads(capsys.readouterr().out)["degraded"] is True
    show_result(whole, None, as_json=True)
    assert json.loads(capsys.readouterr().out)["degraded"] is False


def test_a_file_put_back_by_hand_counts_again(indexed: Context) -> None:
    path = indexed.index.root / "g1" / "s1" / "patch.vec"
    content = path.read_bytes()
    for remembered_s, after in ((600.0, 1), (1.5, 0)):
        reader = replace(fresh(indexed), damage=KnownDamage(remembered_s))
        flip(path, len(content) - 1)
        assert lost(asked(reader)) == 1
        path.write_bytes(content)
        time.sleep(0 if after else 2 * remembered_s)
        assert lost(asked(reader)) == after


def test_the_querys_own_damaged_frame_is_described_from_its_picture(indexed: Context) -> None:
    before = [hit.frame_id for hit in asked(indexed, strategy=Strategy.MAX_SIM).hits]
    flip(indexed.index.root / "g1" / "s1" / "patch.vec", HEADER_BYTES + 1)
    state = asked(fresh(indexed), strategy=Strategy.MAX_SIM)
    assert [hit.frame_id for hit in state.hits][:3] == before[:3]


def damage_header(path: Path) -> None:
    flip(path, 20)


def damage_block(path: Path) -> None:
    flip(path, path.stat().st_size - 3)


def cut(path: Path) -> None:
    os.truncate(path, HEADER_BYTES + 10)


@pytest.mark.parametrize("harm", [damage_header, damage_block, cut, Path.unlink])
@pytest.mark.parametrize("name", ["global.vec", "patch.vec"])
def test_repair_makes_it_whole_again(
    indexed: Context, name: str, harm: Callable[[Path], None]
) -> None:
    before = scores(asked(indexed, strategy=Strategy.MAX_SIM))
    path = indexed.index.root / "g1" / "s1" / name
    harm(path)
    reader = fresh(indexed)
    damaged = lost(asked(reader, strategy=Strategy.MAX_SIM, top_n=100))
    assert damaged > 0
    report = repair_index(reader)
    assert (report.shards, report.repaired, report.problems) == (2, 1, ())
    # Behind a broken header every block is sound: nothing is made anew.
    assert report.frames == (0 if harm is damage_header else damaged)
    assert verify_index(reader).problems == ()
    assert not path.parent.exists(), "the old files are gone"
    assert sql(reader, "select revision from shards order by id") == [(1,), (0,)]
    for again in (reader, fresh(indexed)):  # a process that knew of the damage, and another
        state = asked(again, strategy=Strategy.MAX_SIM)
        assert lost(state) == 0
        assert scores(state) == pytest.approx(before, abs=0.05)  # made from JPEG, not from video
    assert repair_index(reader).frames == 0


def test_a_repaired_shard_takes_new_frames(indexed: Context, footage: dict[str, Path]) -> None:
    flip(indexed.index.root / "g1" / "s1" / "patch.vec", HEADER_BYTES + 1)
    assert repair_index(indexed).frames == 1
    ingested(indexed, footage["car"], "call", 2.0, start_utc=START.replace(minute=20))
    assert verify_index(indexed).problems == ()
    assert lost(asked(fresh(indexed))) == 0


def test_what_has_no_picture_stays_damaged_and_out_of_answers(indexed: Context) -> None:
    size = (indexed.index.root / "g1" / "s1" / "patch.vec").stat().st_size - HEADER_BYTES
    for block in (2, 5):
        flip(indexed.index.root / "g1" / "s1" / "patch.vec", HEADER_BYTES + block * size // 10)
    frame_id, sha256 = sql(
        indexed,
        "select f.id, picture_sha256 from frames f join f_map_runs r on r.frame_id = f.id"
        " where shard_id = 1 order by start_row offset 5 limit 1",
    )[0]
    indexed.pictures.path(sha256).unlink()
    report = repair_index(indexed)
    assert report.frames == 1
    problem, kept = report.problems
    assert f"frame {frame_id} stays damaged" in problem
    assert str(indexed.index.root) in kept and (indexed.index.root / "g1" / "s1").exists()
    for reader in (indexed, fresh(indexed)):
        state = asked(reader)
        assert lost(state) == 1 and frame_id not in scores(state)
    assert len(verify_index(indexed).problems) == 2  # the block and the picture
    again = repair_index(indexed)
    assert (again.repaired, again.frames, len(again.problems)) == (0, 0, 1)
    assert sql(indexed, "select revision from shards order by id") == [(1,), (0,)]


def test_without_weights_nothing_is_touched(indexed: Context) -> None:
    def missing(name: str) -> object:
        raise WeightsMissing(f"no {name}")

    path = indexed.index.root / "g1" / "s1" / "patch.vec"
    flip(path, HEADER_BYTES + 1)
    report = repair_index(replace(indexed, backbone=missing))  # type: ignore[arg-type]
    assert report.frames == 0
    assert "no tiny-a" in report.problems[0]
    assert path.exists()
    assert sql(indexed, "select max(revision) from shards") == [(0,)]


def test_a_bad_sector_costs_its_own_frame(
    indexed: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk says EIO for whatever touches one block, alone or among its neighbours."""
    path = indexed.index.root / "g1" / "s1" / "patch.vec"
    size = (path.stat().st_size - HEADER_BYTES) // 10
    bad = range(HEADER_BYTES + 4 * size, HEADER_BYTES + 5 * size)
    inode, real = path.stat().st_ino, os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        end = offset + sum(len(buffer) for buffer in buffers)
        if os.fstat(descriptor).st_ino == inode and offset < bad.stop and end > bad.start:
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    state = asked(indexed, strategy=Strategy.MAX_SIM, top_n=100)
    assert lost(state) == 1
    assert len(state.hits) == FRAMES - 2


def test_rows_of_an_older_version_are_searched_unchecked(indexed: Context) -> None:
    """They have no checksum of the global block: verify finds their damage, as it always did."""
    sql(indexed, "update f_map_runs set global_crc32 = null")
    assert verify_index(indexed).problems == ()
    whole = scores(asked(fresh(indexed)))
    path = indexed.index.root / "g1" / "s1" / "patch.vec"
    flip(path, HEADER_BYTES + 9, 3)
    (problem,) = verify_index(indexed).problems
    assert str(path) in problem
    state = asked(fresh(indexed))
    assert lost(state) == 0 and len(scores(state)) == len(whole)


def test_damage_that_comes_during_a_search_costs_its_own_frame(
    indexed: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another block of a shard rots after the shard was examined."""
    path, examine = indexed.index.root / "g1" / "s1" / "patch.vec", KnownDamage.examine
    size, found = (path.stat().st_size - HEADER_BYTES) // 10, list[int]()

    def then_more(*given: Any) -> int:
        found.append(examine(*given))
        if len(found) == 1:
            flip(path, HEADER_BYTES + 7 * size + 5)
        return found[-1]

    flip(path, HEADER_BYTES + 3 * size + 5)
    monkeypatch.setattr(KnownDamage, "examine", then_more)
    assert lost(asked(indexed, strategy=Strategy.MAX_SIM, top_n=100)) == 2 and found == [1, 1]


def test_damage_that_examination_does_not_find_is_an_error(
    indexed: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No endless search: it is done again only without some frames of before."""
    flip(indexed.index.root / "g1" / "s1" / "patch.vec", HEADER_BYTES + 1)
    monkeypatch.setattr(KnownDamage, "examine", lambda _self, _shard, _blocks: 0)
    frame_id = sql(indexed, "select max(id) from frames")[0][0]
    query_id = submit_query(indexed, Box(0.2, 0.2, 0.8, 0.8), SearchParams(), frame_id=frame_id)
    run_job(indexed, query_state(indexed, query_id).query.job_id, HANDLERS)
    assert query_state(indexed, query_id).error_code == IndexDamaged.code


def current(context: Context) -> ShardLayout:
    revision = sql(context, "select revision from shards where id = 1")[0][0]
    spec = loaded_backbone("tiny-a").spec
    return context.index.layout(require_live_generation(context).id, 1, revision, spec, "int8")


def test_a_shard_that_is_held_is_written_later(
    indexed: Context, footage: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    brief = functools.partial(hold_shard, wait_s=0.1)
    monkeypatch.setattr("worker.recording.hold_shard", brief)
    made = submit_file(indexed, footage["car"], "call", IntervalPolicy(2.0), start_utc=LATER)
    with hold_shard(current(indexed)):
        run_job(indexed, uuid.UUID(made.job_id), HANDLERS)
        waiting = job(indexed, made.job_id)
        assert (waiting.state, waiting.retry_code) == ("queued", "storage_failed")
    run_jobs(indexed)
    assert job(indexed, made.job_id).state == "done"
    assert verify_index(indexed).problems == ()


def test_a_frozen_writer_does_not_write_over_what_another_committed(
    indexed: Context, footage: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the row lock and its valid length, freezes, loses Postgres; another one commits."""
    thawed: list[bool] = []

    @contextmanager
    def frozen(layout: ShardLayout) -> Iterator[None]:
        if not thawed:
            thawed.append(True)
            sql(indexed, "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()")  # fmt: skip
            other = make_context(
                indexed.settings, str(indexed.settings.database_url), application_name="other"
            )
            ingested(
                replace(other, backbone=indexed.backbone, ring=indexed.ring),
                footage["car"], "call", 1.0, start_utc=LATER,
            )  # fmt: skip
            other.db.close()
        with hold_shard(layout):
            yield

    monkeypatch.setattr("worker.recording.hold_shard", frozen)
    made = submit_file(indexed, footage["car"], "call", IntervalPolicy(2.0), start_utc=LATER)
    run_job(indexed, uuid.UUID(made.job_id), HANDLERS)
    assert thawed
    assert job(indexed, made.job_id).retry_code == "service_unavailable"
    assert verify_index(indexed).problems == ()
    run_jobs(indexed)
    assert job(indexed, made.job_id).state == "done"
    assert verify_index(indexed).problems == ()
    assert sql(indexed, "select frame_count from shards where id = 1") == [(10 + 4 + 2,)]


def test_large_shards_are_repaired_whatever_is_broken(
    indexed: Context, footage: dict[str, Path]
) -> None:
    """More blocks than are read at a time, a picture that is gone, and frames that arrive late."""
    ingested(indexed, footage["bikes"], "call", 0.08, start_utc=LATER)
    blocks = sql(indexed, "select frame_count from shards where id = 1")[0][0]
    assert blocks > 100
    path = current(indexed).path("patch")
    (sha256,) = sql(
        indexed,
        "select picture_sha256 from frames f join f_map_runs r on r.frame_id = f.id"
        " where shard_id = 1 order by start_row offset 70 limit 1",
    )[0]
    kept = indexed.pictures.path(sha256).read_bytes()
    indexed.pictures.path(sha256).unlink()
    damage_header(path)
    assert lost(asked(fresh(indexed))) == blocks
    report = repair_index(indexed)
    assert (report.repaired, report.frames, report.problems) == (1, 0, ())
    assert verify_index(indexed, pictures=False).problems == ()
    current(indexed).path("patch").unlink()
    assert lost(asked(fresh(indexed))) == blocks
    report = repair_index(indexed)
    assert (report.repaired, report.frames, len(report.problems)) == (1, blocks - 1, 2)
    assert lost(asked(fresh(indexed))) == 1
    indexed.pictures.path(sha256).write_bytes(kept)
    assert repair_index(indexed).frames == 1
    assert verify_index(indexed).problems == ()


def test_frames_that_arrive_during_a_repair_are_in_it(
    indexed: Context, footage: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(current(indexed).path("global"), HEADER_BYTES + 1)
    real = indexed.backbone

    def slow(name: str) -> Backbone:
        if sql(indexed, "select count(*) from frames") == [(FRAMES,)]:
            ingested(indexed, footage["car"], "call", 2.0, start_utc=LATER)
        return real(name)

    report = repair_index(replace(indexed, backbone=slow))
    assert (report.repaired, report.frames, report.problems) == (1, 1, ())
    assert sql(indexed, "select frame_count, revision from shards where id = 1") == [(12, 1)]
    assert verify_index(indexed).problems == ()
    assert lost(asked(fresh(indexed))) == 0


def test_damage_outside_the_time_span_does_not_degrade(indexed: Context) -> None:
    path = current(indexed).path("patch")
    flip(path, HEADER_BYTES + (path.stat().st_size - HEADER_BYTES) // 10)  # 0.4 s after the start
    reader = fresh(indexed)
    assert lost(asked(reader)) == 1
    later = START + timedelta(seconds=0.6)
    assert lost(asked(reader, t_from_utc=later)) == 0
    assert lost(asked(reader, t_to_utc=later)) == 1


def test_a_repair_gives_rows_of_an_older_version_their_checksum(indexed: Context) -> None:
    """What cannot be repaired is not read as a frame of zeros afterwards."""
    sql(indexed, "update f_map_runs set global_crc32 = null")
    path = current(indexed).path("patch")
    os.truncate(path, path.stat().st_size - 1)
    (sha256,) = sql(
        indexed,
        "select picture_sha256 from frames f join f_map_runs r on r.frame_id = f.id"
        " where shard_id = 1 order by start_row desc limit 1",
    )[0]
    damage_header(path)
    indexed.pictures.path(sha256).unlink()
    report = repair_index(indexed)
    assert (report.repaired, report.frames, len(report.problems)) == (1, 0, 2)
    assert lost(asked(fresh(indexed))) == 1
    query = "select count(*) from f_map_runs where shard_id = 1 and global_crc32 is null"
    assert sql(indexed, query) == [(0,)]


def test_a_full_disk_leaves_no_half_of_a_repair(
    indexed: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(current(indexed).path("patch"), HEADER_BYTES + 1)
    real, left = os.pwrite, [3]

    def full(*given: Any) -> int:
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*given)

    with monkeypatch.context() as patched, pytest.raises(StorageFull):
        patched.setattr(os, "pwrite", full)
        repair_index(indexed)
    assert list((indexed.index.root / "g1").glob("s1.*")) == []
    assert repair_index(indexed).frames == 1
    assert verify_index(indexed).problems == ()


@pytest.mark.parametrize("went_through", [True, False])
def test_a_repair_whose_commit_is_in_doubt_is_done_once(
    indexed: Context, monkeypatch: pytest.MonkeyPatch, went_through: bool
) -> None:
    flip(current(indexed).path("patch"), HEADER_BYTES + 1)
    switch = worker.repair._switch

    def lose(*given: Any) -> None:
        if went_through:
            switch(*given)
            given[-1].switched = False  # it does not get that far
        raise DatabaseUnavailable("the connection is lost")

    with monkeypatch.context() as patched, pytest.raises(DatabaseUnavailable):
        patched.setattr(worker.repair, "_switch", lose)
        repair_index(indexed)
    assert repair_index(indexed).frames == int(not went_through)
    assert verify_index(fresh(indexed)).problems == ()
    assert len(list((indexed.index.root / "g1").glob("s1*"))) == 1


def test_a_picture_that_cannot_be_read_once_does_not_cost_its_frame(
    indexed: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(current(indexed).path("patch"), HEADER_BYTES + 1)
    real, failed = io.open, list[str]()

    def once(path: Any, *given: Any, **named: Any) -> Any:
        if str(path).endswith(".jpg") and not failed:
            failed.append(str(path))
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(io, "open", once)
        report = repair_index(indexed)
    assert failed and (report.frames, report.problems) == (1, ())


def test_old_files_are_kept_until_nothing_in_them_is_missing(indexed: Context) -> None:
    first = indexed.index.root / "g1" / "s1"
    ((sha256,),) = sql(indexed, "select picture_sha256 from frames order by id limit 1")
    path = indexed.pictures.path(sha256)
    kept = path.read_bytes()
    path.unlink()
    damage_header(current(indexed).path("patch"))
    flip(current(indexed).path("patch"), HEADER_BYTES + 1)
    assert len(repair_index(indexed).problems) == 2
    assert first.exists() and remove_former_files(indexed) == 0
    path.write_bytes(kept)
    assert repair_index(indexed).problems == ()
    assert not first.exists(), "they hold nothing that is wanted any more"
    assert verify_index(fresh(indexed)).problems == ()
