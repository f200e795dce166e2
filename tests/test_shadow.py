"""Shadow comparison: a new generation must answer what the live one answers before the switch."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from models.repositories import index as index_record
from models.repositories import jobs as job_record
from models.repositories import videos as video_record
from tests.parts import (
    HANDLERS,
    _loaded_backbones,
    ingested,
    job,
    loaded,
    run_jobs,
    sql,
    with_settings,
)
from tests.searching import asked, fresh
from worker.accepting.queries import query_state, submit_query
from worker.admin.index import _in_short, _show
from worker.config import Settings
from worker.context import Context
from worker.core.comparison import Gate, ShadowOptions
from worker.core.search_params import Strategy, search_params_from_json
from worker.core.types import Box
from worker.erasure import camera_span, submit_erasure
from worker.errors import LeaseLost
from worker.jobs import Lease, job_state, run_job
from worker.reindex import ReindexSubmission, submit_reindex, submit_return
from worker.runtime import BackboneCache
from worker.shadow import compare_generations
from worker.verify import verify_index

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
FRAMES = 12


@pytest.fixture
def tiny(context: Context, footage: dict[str, Path]) -> Context:
    """Twelve frames of two cameras in generation 1 of ``tiny-a``."""
    return _indexed(context, footage, "tiny-a")


@pytest.fixture
def real(context: Context, footage: dict[str, Path]) -> Context:
    """The same frames in generation 1 of the default backbone."""
    return _indexed(context, footage, "efficientnet-lite0")


def _indexed(context: Context, footage: dict[str, Path], backbone: str) -> Context:
    made = loaded(with_settings(context, backbone=backbone))
    ingested(made, footage["car"], "call", 0.4, start_utc=START)
    ingested(made, footage["bikes"], "street", 5.0, start_utc=START)
    assert sql(made, "select count(*) from frames") == [(FRAMES,)]
    return made


def states(context: Context) -> list[str]:
    return [s for (s,) in sql(context, "select state from index_generations order by id")]


def comparison(context: Context, made: ReindexSubmission) -> dict[str, Any]:
    query = "select comparison from index_generations where id = %s"
    found = sql(context, query, made.generation_id)[0][0]
    assert isinstance(found, dict)
    return found


def outcomes(found: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(one["outcome"], one["detail"]) for one in found["queries"]]


def begun(context: Context, made: ReindexSubmission) -> None:
    """Run the job slice by slice until one question was asked of both."""
    sliced = with_settings(context, job_slice_s=0.0)
    while "asked" not in job(sliced, made.job_id).progress:
        run_job(sliced, made.job_id, HANDLERS)
        assert job(sliced, made.job_id).state == "queued"


def embedded(context: Context, made: ReindexSubmission) -> None:
    """Run the job until every frame is embedded, and no further."""
    sliced = with_settings(context, job_slice_s=0.0)
    while job(sliced, made.job_id).progress.get("frames") != FRAMES:
        run_job(sliced, made.job_id, HANDLERS)


def shuffle(context: Context, generation_id: int) -> None:
    """Give every row to another frame of its shard. Checksums stay right: bytes do not change."""
    rows = sql(
        context,
        "select r.* from f_map_runs r join shards s on s.id = r.shard_id"
        " where s.generation_id = %s order by r.shard_id, r.start_row",
        generation_id,
    )
    sql(context, "delete from f_map_runs where shard_id = any(%s)", [row[0] for row in rows])
    for shard_id in {row[0] for row in rows}:
        own = [row for row in rows if row[0] == shard_id]
        frame_ids = [row[3] for row in own]
        half = len(own) // 2
        for row, frame_id in zip(own, frame_ids[half:] + frame_ids[:half], strict=True):
            sql(
                context,
                "insert into f_map_runs values (%s, %s, %s, %s, %s, %s, %s)",
                *(*row[:3], frame_id, *row[4:]),
            )


def test_the_same_again_gives_the_same_answers(tiny: Context) -> None:
    """From frames and from uploads; nothing is recorded as if somebody had asked."""
    submit_reindex(tiny, "tiny-a", compare=False)
    run_jobs(tiny)  # made of kept pictures, as the next one will be: its bytes are the same
    asked(tiny)
    asked(tiny, uploaded=True, limit=5)
    asked(tiny, tau=None)
    recorded = [
        sql(tiny, f"select * from {table} order by 1, 2")
        for table in ("search_queries", "search_hits")
    ]
    made = submit_reindex(tiny, "tiny-a")
    run_jobs(tiny)
    found = comparison(tiny, made)
    assert outcomes(found) == [("compared", None)] * 3
    assert [one["overlap"] for one in found["queries"]] == [1.0] * 3
    assert all(one["live_hits"] == one["new_hits"] > 0 for one in found["queries"])
    figures = found["figures"]
    assert (figures["overlap_worst"], figures["agreement_mean"]) == (1.0, 1.0)
    assert (figures["live_self_recall"], figures["new_self_recall"]) == (1.0, 1.0)
    assert figures["live_neighbour_recall"] == figures["new_neighbour_recall"] > 0
    assert (figures["canaries"], figures["canaries_skipped"]) == (FRAMES, 0)
    assert (found["live_id"], found["refused"]) == (2, [])
    assert states(tiny) == ["retired", "retired", "live"]
    assert recorded == [
        sql(tiny, f"select * from {table} order by 1, 2")
        for table in ("search_queries", "search_hits")
    ]
    assert sql(tiny, "select count(*) from jobs where kind = 'query'") == [(3,)]


def test_descriptors_of_other_frames_are_not_switched_to(
    real: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    """They verify: every block is what it was, every row finds itself. Only pictures tell."""
    made = submit_reindex(real, "efficientnet-lite0")
    embedded(real, made)
    shuffle(real, made.generation_id)
    assert verify_index(real).problems == ()
    run_jobs(real)
    failed = job(real, made.job_id)
    assert (failed.state, failed.error_code) == ("failed", "shadow_mismatch")
    assert "--generation 2 --no-compare" in str(failed.error_detail)
    found = comparison(real, made)
    assert found["figures"]["live_self_recall"] == 1.0
    assert found["figures"]["new_self_recall"] == 0.0
    assert states(real) == ["live", "failed"]
    assert asked(real).query.generation_id == 1

    _show(2, job_state(real, made.job_id), found)
    shown = capsys.readouterr().out
    assert "find themselves" in shown and "failed (shadow_mismatch)" in shown
    assert _in_short(found) == "recall 1.00 -> 0.00, overlap -, refused"

    again = submit_return(real, 2)
    run_jobs(real)
    assert job(real, again.job_id).error_code == "shadow_mismatch"
    submit_return(real, 2, compare=False)
    run_jobs(real)
    assert states(real) == ["retired", "live"]
    submit_return(real, 1)  # the way back is not compared: it would be with the bad one
    run_jobs(real)
    assert states(real) == ["live", "retired"]


def test_a_killed_worker_s_successor_goes_on(tiny: Context) -> None:
    asked(tiny)
    asked(tiny, uploaded=True)
    whole = submit_reindex(tiny, "tiny-b")
    run_jobs(tiny)
    submit_return(tiny, 1)
    run_jobs(tiny)
    made = submit_reindex(tiny, "tiny-b")
    begun(tiny, made)
    noted = comparison(tiny, made)
    assert [one["outcome"] for one in noted["canaries"]].count("planned") == FRAMES - 1
    with tiny.db.transaction() as session:
        killed = job_record.claim(session, made.job_id, 30)
        generation = index_record.find_generation(session, made.generation_id)
    assert killed is not None and generation is not None
    asked(tiny)  # asked after the plan was made: not in it
    sql(tiny, "update jobs set lease_until = now() - interval '1 s' where id = %s", made.job_id)
    run_job(fresh(tiny), made.job_id, HANDLERS)
    assert job(tiny, made.job_id).state == "done"
    ended, uninterrupted = comparison(tiny, made), comparison(tiny, whole)
    for key in ("queries", "canaries", "figures"):
        assert ended[key] == uninterrupted[key]
    sql(tiny, "update index_generations set comparison = null where id = %s", made.generation_id)
    with pytest.raises(LeaseLost):  # the killed one, had it only been frozen
        compare_generations(tiny, Lease(tiny, killed), generation, ShadowOptions(3), {})


def test_what_was_erased_or_lost_is_skipped(tiny: Context) -> None:
    first, last = sql(tiny, "select min(id), max(id) from frames")[0]
    asked(tiny)  # on the first frame
    asked(tiny, uploaded=True)  # its picture
    example = {"frame_id": first, "box": [0.1, 0.1, 0.5, 0.5]}
    _ask(tiny, frame_id=last, more=[example])
    (sha256,) = sql(tiny, "select picture_sha256 from frames where id = %s", last)[0]
    _ask(tiny, picture=tiny.pictures.path(sha256).read_bytes())
    _ask(tiny, frame_id=last)
    made = submit_reindex(tiny, "tiny-b")
    begun(tiny, made)
    for upload in tiny.uploads.root.rglob(sha256):
        upload.unlink()
    span, _ = camera_span(tiny, "call", START, START + timedelta(seconds=0.1))
    run_job(tiny, submit_erasure(tiny, span), HANDLERS)
    run_jobs(tiny)
    found = comparison(tiny, made)
    lost = ("skipped", "the live generation gives no answer: not_found")
    erased = ("skipped", "it was erased")
    assert outcomes(found) == [("compared", None), lost, lost, erased, erased]
    assert found["figures"]["queries_skipped"] == 4
    assert states(tiny) == ["retired", "live"]
    (problem,) = verify_index(tiny).problems
    assert "is gone" in problem and "uploads" in problem, "the one taken away above"


def _ask(
    context: Context, *, frame_id: int | None = None, picture: bytes | None = None, **given: Any
) -> None:
    query_id = submit_query(
        context,
        Box(0.2, 0.2, 0.8, 0.8),
        search_params_from_json({"tau": -1.0, "close_looks": 0, **given}),
        frame_id=frame_id,
        picture=picture,
    )
    run_job(context, query_state(context, query_id).query.job_id, HANDLERS)
    assert query_state(context, query_id).state == "done"


def test_a_query_that_fails_in_the_new_one_refuses_the_switch(tiny: Context) -> None:
    """One by an error (its widths differ), one by no hits (its tau is beyond the new cosines)."""
    asked(tiny, query_descriptor="roi-mean")
    other_scene: dict[str, Any] = {"strategy": "max-sim", "tau": 0.9, "camera_ids": [1]}
    _ask(tiny, frame_id=sql(tiny, "select max(id) from frames")[0][0], **other_scene)
    asked(tiny)
    made = submit_reindex(tiny, "efficientnet-lite0")
    run_jobs(tiny)
    found = comparison(tiny, made)
    assert [outcome for outcome, _ in outcomes(found)] == ["compared", "failing", "failing"]
    assert str(outcomes(found)[1][1]).startswith("no hits, ")
    assert str(outcomes(found)[1][1]).endswith("at its tau of 0.9")
    assert str(outcomes(found)[2][1]).startswith("input_invalid: ")
    assert job(tiny, made.job_id).error_code == "shadow_mismatch"
    assert states(tiny) == ["live", "failed"]


def test_overlap_refuses_only_when_asked_to(tiny: Context) -> None:
    asked(tiny, strategy=Strategy.WHOLE_FRAME, limit=3)
    made = submit_reindex(tiny, "tiny-b", gate=Gate(min_overlap=1.0))
    assert job(tiny, made.job_id).payload == {
        "generation_id": 2,
        "compare": {"queries": 20, "recall_margin": 0.05, "min_overlap": 1.0},
    }
    run_jobs(tiny)
    assert comparison(tiny, made)["figures"]["overlap_mean"] < 1
    assert "--min-overlap 1" in str(job(tiny, made.job_id).error_detail)
    submit_return(tiny, 2)
    run_jobs(tiny)
    assert states(tiny) == ["retired", "live"]


def test_a_query_on_a_frame_that_came_later_is_skipped(
    tiny: Context, footage: dict[str, Path]
) -> None:
    """The new generation does not have it yet; that is no failure."""
    made = submit_reindex(tiny, "tiny-b")
    embedded(tiny, made)
    ingested(tiny, footage["car"], "second", 4.0, start_utc=START)
    _ask(tiny, frame_id=sql(tiny, "select max(id) from frames")[0][0])
    with tiny.db.transaction() as session:
        claimed = job_record.claim(session, made.job_id, 30)
        generation = index_record.find_generation(session, 2)
    assert claimed is not None and generation is not None
    assert compare_generations(tiny, Lease(tiny, claimed), generation, ShadowOptions(5), {})
    found = comparison(tiny, made)
    assert outcomes(found) == [("skipped", "a frame of it is not in both")]
    assert found["figures"]["canaries_skipped"] == 1


def test_a_lost_live_backbone_is_no_reason_to_stay_with_it(tiny: Context, tmp_path: Path) -> None:
    """A reindex is what mends that."""
    folder = tmp_path / "backbones"
    _, weights = _loaded_backbones()
    shutil.copytree(Path(weights.name) / "tiny-b", folder / "tiny-b")
    asked(tiny)
    asked(tiny, uploaded=True)
    without = replace(tiny, backbone=BackboneCache(Settings(backbones_dir=folder)))
    made = submit_reindex(without, "tiny-b")
    run_jobs(without)
    found = comparison(without, made)
    assert outcomes(found) == [
        ("skipped", "the live generation gives no answer: not_found"),
        ("compared", None),
    ]
    assert found["figures"]["live_self_recall"] is None
    assert found["figures"]["new_self_recall"] == 1.0
    assert states(without) == ["retired", "live"]


def test_it_can_be_turned_off(tiny: Context) -> None:
    for context, given in ((tiny, {"compare": False}), (with_settings(tiny, shadow_queries=0), {})):
        made = submit_reindex(context, "tiny-b", **given)  # type: ignore[arg-type]
        run_jobs(context)
        query = "select comparison is null, state from index_generations where id = %s"
        assert sql(tiny, query, made.generation_id) == [(True, "live")]
        submit_return(context, 1)
        run_jobs(context)
        assert sql(tiny, query, 1) == [(True, "live")]


def test_canaries_are_spread_and_have_neighbours_of_their_own_camera(tiny: Context) -> None:
    ids = [i for (i,) in sql(tiny, "select id from frames order by camera_id, t_utc")]
    street = ids[10:]
    with tiny.db.transaction() as session:
        assert video_record.frames_evenly(session, 3) == [ids[0], ids[5], ids[11]]
        assert video_record.frames_evenly(session, 1) == [ids[0]]
        assert sorted(video_record.frames_evenly(session, 100)) == sorted(ids)
        near = {}
        for frame_id in (ids[0], ids[4], ids[9], street[0]):
            frame = video_record.find_frame(session, frame_id)
            assert frame is not None
            near[frame_id] = video_record.neighbours_in_time(session, frame, 30.0)
            assert not video_record.neighbours_in_time(session, frame, 0.1)
    assert near[ids[0]] == [ids[1]]
    assert near[ids[4]] == [ids[3], ids[5]]
    assert near[ids[9]] == [ids[8]]
    assert near[street[0]] == [street[1]]
