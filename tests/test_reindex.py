"""Reindex: another backbone's generation is built beside the live one, verified and switched."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from models.repositories import jobs as job_record
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
from worker import rebuilding
from worker.accepting.queries import query_state, submit_query
from worker.context import Context
from worker.core.search_params import SearchParams
from worker.core.types import Box
from worker.describe import describe_query
from worker.erasure import camera_span, submit_erasure
from worker.errors import GenerationSwitched, InputInvalid, NotFound
from worker.generations import backbone_of, ensure_live_generation, require_live_generation
from worker.jobs import Lease, run_job
from worker.reindex import (
    HowFar,
    ReindexSubmission,
    how_far,
    remove_generation,
    submit_reindex,
    submit_return,
)
from worker.search import search_generation
from worker.verify import tail_problems, verify_index

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
FRAMES = 10


@pytest.fixture
def tiny(context: Context, footage: dict[str, Path]) -> Context:
    """Ten frames of one camera, in a generation of the backbone ``tiny-a``."""
    made = loaded(with_settings(context, backbone="tiny-a"))
    ingested(made, footage["car"], "call", 0.4, start_utc=START)
    assert sql(made, "select count(*) from frames") == [(FRAMES,)]
    return made


def generations(context: Context) -> list[tuple[Any, ...]]:
    return sql(context, "select backbone, state from index_generations order by id")


def indexed(context: Context, generation_id: int) -> int:
    query = (
        "select count(distinct frame_id) from f_map_runs r join shards s on s.id = r.shard_id"
        " where s.generation_id = %s"
    )
    return int(sql(context, query, generation_id)[0][0])


def one_slice(context: Context, made: ReindexSubmission) -> str:
    run_job(context, made.job_id, HANDLERS)
    return job(context, made.job_id).state


def test_a_read_that_fails_once_does_not_cost_the_build(
    tiny: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads of vectors fail when the whole of it is verified before the switch."""
    made = submit_reindex(tiny, "tiny-b")
    real, failed = os.preadv, list[int]()

    def once(descriptor: int, *given: Any) -> int:
        if not failed:
            failed.append(descriptor)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, *given)

    monkeypatch.setattr(os, "preadv", once)
    run_jobs(tiny)
    assert failed and job(tiny, made.job_id).state == "done"
    assert generations(tiny) == [("tiny-a", "retired"), ("tiny-b", "live")]
    assert verify_index(tiny).problems == ()


def searched(context: Context) -> tuple[str, int]:
    """Backbone and number of hits of a query that runs now."""
    frame_id = sql(context, "select min(id) from frames")[0][0]
    params = SearchParams(tau=-1.0, group="frame", close_looks=0)  # every other frame is a hit
    query_id = submit_query(context, Box(0.2, 0.2, 0.8, 0.8), params, frame_id=frame_id)
    state = query_state(context, query_id)
    run_job(context, state.query.job_id, HANDLERS)
    state = query_state(context, query_id)
    assert state.state == "done", state.error_detail
    query = "select backbone from index_generations where id = %s"
    return sql(context, query, state.query.generation_id)[0][0], len(state.hits)


def test_a_new_generation_replaces_the_old_one(tiny: Context) -> None:
    made = submit_reindex(tiny, "tiny-b")
    assert generations(tiny) == [("tiny-a", "live"), ("tiny-b", "building")]
    run_jobs(tiny)
    assert job(tiny, made.job_id).progress == {"frames": FRAMES, "of": FRAMES}
    assert generations(tiny) == [("tiny-a", "retired"), ("tiny-b", "live")]
    assert indexed(tiny, made.generation_id) == FRAMES
    live = ensure_live_generation(tiny)
    assert live.id == made.generation_id
    assert backbone_of(tiny, live).spec == loaded_backbone("tiny-b").spec
    assert live.switched_at is not None
    report = verify_index(tiny)
    assert report.problems == ()
    assert report.rows == FRAMES * 16
    assert searched(tiny)[0] == "tiny-b"


def test_search_answers_and_ingest_goes_on_all_the_while(
    tiny: Context, footage: dict[str, Path]
) -> None:
    """Four frames a slice; between the slices queries run and another video comes in."""
    sliced = with_settings(tiny, job_slice_s=0.0)
    made = submit_reindex(sliced, "tiny-b")
    assert one_slice(sliced, made) == "queued"
    assert job(sliced, made.job_id).progress == {"from": 0, "frames": 4, "of": FRAMES}
    assert searched(sliced) == ("tiny-a", FRAMES - 1)
    later = START + timedelta(hours=5)
    ingested(tiny, footage["car"], "call", 1.0, start_utc=later)
    ingested(tiny, footage["car"], "second", 2.0, start_utc=START)
    total = FRAMES + 4 + 2
    assert searched(sliced) == ("tiny-a", total - 1)
    states = []
    while (state := one_slice(sliced, made)) != "done":
        assert state == "queued"
        states.append(generations(sliced))
        assert searched(sliced) == ("tiny-a", total - 1)
    assert len(states) >= 3
    assert searched(sliced) == ("tiny-b", total - 1)
    assert indexed(sliced, made.generation_id) == total
    assert verify_index(sliced).problems == ()


def test_ingest_after_the_switch_goes_to_the_new_generation(
    tiny: Context, footage: dict[str, Path]
) -> None:
    made = submit_reindex(tiny, "tiny-b")
    run_jobs(tiny)
    ingested(tiny, footage["car"], "second", 1.0, start_utc=START)
    assert indexed(tiny, made.generation_id) == FRAMES + 4
    assert verify_index(tiny).problems == ()


def test_the_same_backbone_rebuilds_every_row_in_another_codec(tiny: Context) -> None:
    submit_reindex(with_settings(tiny, codec="fp32"), "tiny-a")
    run_jobs(tiny)
    assert sql(tiny, "select codec, state from index_generations order by id") == [
        ("int8", "retired"),
        ("fp32", "live"),
    ]
    assert verify_index(tiny).problems == ()
    assert searched(tiny) == ("tiny-a", FRAMES - 1)


def test_a_missing_picture_fails_it_and_leaves_the_live_one_alone(tiny: Context) -> None:
    (sha256,) = sql(tiny, "select picture_sha256 from frames order by id offset 6 limit 1")[0]
    path = tiny.pictures.path(sha256)
    content = path.read_bytes()
    path.unlink()
    made = submit_reindex(tiny, "tiny-b")
    run_jobs(tiny)
    failed = job(tiny, made.job_id)
    assert (failed.state, failed.error_code) == ("failed", "not_found")
    assert sha256 in str(failed.error_detail)
    assert generations(tiny) == [("tiny-a", "live"), ("tiny-b", "failed")]
    assert searched(tiny) == ("tiny-a", FRAMES - 1)
    path.write_bytes(content)
    submit_reindex(tiny, "tiny-b")
    run_jobs(tiny)
    assert generations(tiny)[0::2] == [("tiny-a", "retired"), ("tiny-b", "live")]


def test_damage_in_the_new_files_prevents_the_switch(tiny: Context) -> None:
    sliced = with_settings(tiny, job_slice_s=0.0)
    made = submit_reindex(sliced, "tiny-b")
    assert one_slice(sliced, made) == "queued"
    folder = tiny.index.generation_folder(made.generation_id)
    (path,) = folder.glob("*/patch.vec")
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    run_jobs(sliced)
    failed = job(tiny, made.job_id)
    assert (failed.state, failed.error_code) == ("failed", "index_damaged")
    assert str(folder) in str(failed.error_detail)
    assert generations(tiny) == [("tiny-a", "live"), ("tiny-b", "failed")]


def test_only_one_is_built_at_a_time(tiny: Context) -> None:
    made = submit_reindex(tiny, "tiny-b")
    with pytest.raises(InputInvalid, match=f"generation {made.generation_id}"):
        submit_reindex(tiny, "tiny-a")
    run_jobs(tiny)
    submit_reindex(tiny, "tiny-a")


def test_an_unknown_backbone_or_an_empty_index_is_refused(tiny: Context, context: Context) -> None:
    with pytest.raises(NotFound, match="tiny-x"):
        submit_reindex(tiny, "tiny-x")
    assert generations(tiny) == [("tiny-a", "live")]
    sql(context, "truncate index_generations cascade")
    with pytest.raises(NotFound, match="nothing to reindex"):
        submit_reindex(tiny, "tiny-b")


def test_a_bell_after_the_end_changes_nothing(tiny: Context) -> None:
    made = submit_reindex(tiny, "tiny-b")
    run_jobs(tiny)
    run_job(tiny, made.job_id, HANDLERS)
    assert generations(tiny) == [("tiny-a", "retired"), ("tiny-b", "live")]
    sql(tiny, "update jobs set state = 'queued', finished_at = null where id = %s", made.job_id)
    run_jobs(tiny)
    assert job(tiny, made.job_id).error_code == "input_invalid"


def test_an_interrupted_reindex_goes_on_where_it_was(tiny: Context) -> None:
    """Frames that are already there are not embedded again."""
    sliced = with_settings(tiny, job_slice_s=0.0)
    made = submit_reindex(sliced, "tiny-b")
    one_slice(sliced, made)
    (path,) = tiny.index.generation_folder(made.generation_id).glob("*/global.vec")
    begun = path.read_bytes()
    run_jobs(tiny)
    assert path.read_bytes()[: len(begun)] == begun
    assert indexed(tiny, made.generation_id) == FRAMES


def built(tiny: Context, made: ReindexSubmission) -> rebuilding._Build:
    """All of a reindex but its end."""
    with tiny.db.transaction() as session:
        claimed = job_record.claim(session, made.job_id, 30)
    assert claimed is not None
    builds: list[rebuilding._Build] = []

    def stop(build: rebuilding._Build) -> bool:
        builds.append(build)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(rebuilding, "_close", stop)
        rebuilding.run_reindex(tiny, claimed, Lease(tiny, claimed))
    return builds[0]


def test_the_last_frames_come_with_the_switch(tiny: Context, footage: dict[str, Path]) -> None:
    made = submit_reindex(tiny, "tiny-b")
    build = built(tiny, made)
    assert indexed(tiny, made.generation_id) == FRAMES
    ingested(tiny, footage["car"], "second", 2.0, start_utc=START)
    build.frame_s = 0.1
    assert rebuilding._close(build)
    assert generations(tiny) == [("tiny-a", "retired"), ("tiny-b", "live")]
    assert indexed(tiny, made.generation_id) == FRAMES + 2
    assert sql(tiny, "select sum(verified_count) from shards where generation_id = 2") == [
        (FRAMES + 2,)
    ]
    assert verify_index(tiny).problems == ()


def test_ingest_does_not_wait_for_more_than_a_few(tiny: Context, footage: dict[str, Path]) -> None:
    made = submit_reindex(tiny, "tiny-b")
    build = built(tiny, made)
    ingested(tiny, footage["car"], "second", 2.0, start_utc=START)
    build.frame_s, build.shard_s = rebuilding.CLOSING_S * 0.8, 0.0
    assert not rebuilding._close(build), "two would take too long"
    assert build.refused == 1
    assert build.at_most() == 2, "next time it may take longer"
    build.refused = 9
    assert build.at_most() == 3, "half of a lock's patience"
    build.refused = 0
    assert generations(tiny) == [("tiny-a", "live"), ("tiny-b", "building")]
    assert job(tiny, made.job_id).state == "running"
    assert rebuilding.run_reindex(tiny, build.lease.job, build.lease) == "finished"
    assert indexed(tiny, made.generation_id) == FRAMES + 2


def test_cameras_that_never_pause_hold_up_no_switch(
    tiny: Context, footage: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames come between any two steps."""
    real, came = rebuilding._close, list[int]()

    def after_more(build: rebuilding._Build) -> bool:
        came.append(len(came))
        ingested(tiny, footage["car"], f"camera {len(came)}", 2.0, start_utc=START)
        return real(build)

    monkeypatch.setattr(rebuilding, "_close", after_more)
    made = submit_reindex(tiny, "tiny-b")
    run_jobs(tiny)
    assert job(tiny, made.job_id).state == "done"
    assert len(came) <= 3
    assert indexed(tiny, made.generation_id) == FRAMES + 2 * len(came)
    assert verify_index(tiny).problems == ()


def test_a_read_that_fails_once_as_it_switches_does_not_cost_the_build(
    tiny: Context, footage: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = submit_reindex(tiny, "tiny-b")
    build = built(tiny, made)
    ingested(tiny, footage["car"], "second", 2.0, start_utc=START)
    build.frame_s, told = 0.1, [["damaged"]]

    def once(*given: Any) -> list[str]:
        return told.pop() if told else tail_problems(*given)

    monkeypatch.setattr(rebuilding, "tail_problems", once)
    assert rebuilding._close(build)
    assert indexed(tiny, made.generation_id) == FRAMES + 2


def test_what_was_written_anew_is_read_back_before_ingest_waits(tiny: Context) -> None:
    made = submit_reindex(tiny, "tiny-b")
    build = built(tiny, made)
    sql(tiny, "update shards set verified_count = 0 where generation_id = 2")
    assert not rebuilding._close(build)
    assert rebuilding.run_reindex(tiny, build.lease.job, build.lease) == "finished"


def test_an_old_frame_that_is_missing_is_looked_for(
    tiny: Context, footage: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose rows went after all frames were looked through, far below the newest ids."""
    monkeypatch.setattr(rebuilding, "_IDS_BEFORE", 0)
    made = submit_reindex(tiny, "tiny-b")
    build = built(tiny, made)
    shard, rows = sql(
        tiny, "select s.id, row_count / frame_count from shards s where generation_id = 2"
    )[0]
    sql(tiny, "delete from f_map_runs where shard_id = %s and start_row = %s", shard, 9 * rows)
    sql(
        tiny,
        "update shards set frame_count = 9, verified_count = 9, row_count = %s where id = %s",
        9 * rows,
        shard,
    )
    assert not rebuilding._close(build)
    assert rebuilding.run_reindex(tiny, build.lease.job, build.lease) == "finished"
    assert indexed(tiny, made.generation_id) == FRAMES
    assert verify_index(tiny).problems == ()


def test_each_block_is_read_back_once_slice_by_slice(
    tiny: Context, footage: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for hour in range(1, 4):
        later = START + timedelta(hours=hour)
        ingested(tiny, footage["car"], "call", 2.0, start_utc=later)
    read: list[tuple[int, int, int]] = []

    def noted(context: Context, generation: Any, shard: Any, pinned: Any, first: int) -> Any:
        read.append((shard.id, first, shard.frame_count))
        return tail_problems(context, generation, shard, pinned, first)

    monkeypatch.setattr(rebuilding, "tail_problems", noted)
    made = submit_reindex(tiny, "tiny-b", compare=False)
    sliced, seen = with_settings(tiny, job_slice_s=0.0), list[int]()
    while one_slice(sliced, made) == "queued":
        seen.append(len(read))
    assert seen[-4:] == [1, 2, 3, 4]
    assert [(first, count) for _, first, count in read] == [(0, FRAMES), (0, 2), (0, 2), (0, 2)]
    read.clear()
    submit_return(tiny, 1)
    run_jobs(tiny)
    assert sorted(count for _, _, count in read) == [2, 2, 2, FRAMES], "all of what was retired"


def test_it_tells_how_far_it_is_and_where_it_began(tiny: Context) -> None:
    made = submit_reindex(tiny, "tiny-b")
    sliced = with_settings(tiny, job_slice_s=0.0)
    assert how_far(tiny) == {made.generation_id: HowFar(0, 0, 0, None)}
    for frames in (4, 8, 10):
        assert one_slice(sliced, made) == "queued"
        assert job(tiny, made.job_id).progress == {"from": 0, "frames": frames, "of": FRAMES}
        sql(tiny, "update jobs set started_at = now() - interval '40 s' where kind = 'reindex'")
        far = how_far(tiny)[made.generation_id]
        assert (far.frames, far.of, far.verified) == (frames, FRAMES, 0)
        assert far.left_s == pytest.approx(40 / frames * (FRAMES - frames), abs=5)
    assert one_slice(sliced, made) == "queued"
    told = {"from": 0, "frames": FRAMES, "of": FRAMES, "verified": FRAMES}
    assert job(tiny, made.job_id).progress == told
    run_jobs(tiny)
    assert job(tiny, made.job_id).progress == {"frames": FRAMES, "of": FRAMES}
    assert how_far(tiny) == {}


def test_the_former_generation_comes_back_with_what_it_missed(
    tiny: Context, footage: dict[str, Path]
) -> None:
    submit_reindex(tiny, "tiny-b")
    run_jobs(tiny)
    ingested(tiny, footage["car"], "second", 2.0, start_utc=START)
    assert (indexed(tiny, 1), indexed(tiny, 2)) == (FRAMES, FRAMES + 2)
    submit_return(tiny, 1)
    assert searched(tiny)[0] == "tiny-b"  # until the switch
    run_jobs(tiny)
    assert generations(tiny) == [("tiny-a", "live"), ("tiny-b", "retired")]
    assert indexed(tiny, 1) == FRAMES + 2
    assert searched(tiny)[0] == "tiny-a"
    assert verify_index(tiny).problems == ()


def test_a_generation_given_up_goes_on_where_it_was(tiny: Context) -> None:
    made = submit_reindex(with_settings(tiny, job_slice_s=0.0), "tiny-b")
    one_slice(with_settings(tiny, job_slice_s=0.0), made)
    sql(tiny, "update jobs set state = 'failed', error_code = 'x', finished_at = now()")
    sql(tiny, "update index_generations set state = 'failed' where id = 2")
    submit_return(tiny, 2)
    run_jobs(tiny)
    assert generations(tiny) == [("tiny-a", "retired"), ("tiny-b", "live")]


def test_only_what_is_not_in_use_can_be_returned_to_or_removed(tiny: Context) -> None:
    for act in (submit_return, remove_generation):
        with pytest.raises(NotFound, match="generation 9"):
            act(tiny, 9)
        with pytest.raises(InputInvalid, match="is live"):
            act(tiny, 1)
    submit_reindex(tiny, "tiny-b")
    with pytest.raises(InputInvalid, match="being built"):
        submit_return(tiny, 1)
    with pytest.raises(InputInvalid, match="is building"):
        remove_generation(tiny, 2)


def test_a_removed_generation_leaves_its_name_only(tiny: Context) -> None:
    submit_reindex(tiny, "tiny-b")
    run_jobs(tiny)
    old = require_live_generation(tiny)
    before = searched(tiny)
    assert remove_generation(tiny, 1) == 1
    assert remove_generation(tiny, 1) == 0  # after a crash: once more
    assert generations(tiny) == [("tiny-a", "removed"), ("tiny-b", "live")]
    assert not tiny.index.generation_folder(1).exists()
    assert sql(tiny, "select distinct generation_id from shards") == [(2,)]
    assert searched(tiny) == before
    assert verify_index(tiny).problems == ()
    with pytest.raises(InputInvalid, match="is removed"):
        submit_return(tiny, 1)
    assert old.id == 2


def test_a_search_whose_generation_is_removed_is_redone(tiny: Context) -> None:
    """Not answered from nothing."""
    live = require_live_generation(tiny)
    frame_id = sql(tiny, "select min(id) from frames")[0][0]
    given = (Box(0.2, 0.2, 0.8, 0.8), SearchParams())
    descriptors = describe_query(tiny, live, *given, frame_id=frame_id, picture_sha256=None)
    submit_reindex(tiny, "tiny-b")
    run_jobs(tiny)
    remove_generation(tiny, live.id)
    with pytest.raises(GenerationSwitched):
        search_generation(tiny, live, descriptors, SearchParams())


def test_as_many_erased_as_came_is_no_reason_to_switch(
    tiny: Context, footage: dict[str, Path]
) -> None:
    """Frames are as many as were verified; they are others."""
    made = submit_reindex(tiny, "tiny-b")
    build = built(tiny, made)
    build.frame_s = rebuilding.CLOSING_S
    span, _ = camera_span(tiny, "call", START, START + timedelta(seconds=0.5))
    run_job(tiny, submit_erasure(tiny, span), HANDLERS)
    ingested(tiny, footage["car"], "second", 2.0, start_utc=START)
    assert sql(tiny, "select count(*) from frames") == [(FRAMES,)]
    assert not rebuilding._close(build)
    assert generations(tiny) == [("tiny-a", "live"), ("tiny-b", "building")]
    assert rebuilding.run_reindex(tiny, build.lease.job, build.lease) == "finished"
    assert verify_index(tiny).problems == ()
