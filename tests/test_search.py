"""Queries over real footage with the default backbone: from an ROI to recorded hits."""

from __future__ import annotations

import io
import json
import math
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.repositories import jobs as job_record
from models.schema import SearchHit
from tests.conftest import Services
from tests.parts import HANDLERS, fresh_context, ingested, job, loaded, run_jobs, sql, with_settings
from worker.accepting.queries import QueryState, query_state, submit_query
from worker.admin.query import show_result
from worker.backbones.base import Backbone
from worker.context import Context
from worker.core.examples import Example
from worker.core.geometry import cells_box, roi_from_xyxy
from worker.core.search_params import SearchParams, Strategy
from worker.core.types import Box, GridSize, Point, Polygon, Roi
from worker.errors import InputInvalid, LeaseLost, NotFound, PictureInvalid, RoiInvalid
from worker.jobs import Lease, run_job
from worker.search import run_query

STREET = datetime(2026, 3, 1, 12, tzinfo=UTC)
CALL = STREET + timedelta(hours=2)
ROI = Box(0.30, 0.35, 0.55, 0.85)


@pytest.fixture(scope="module")
def indexed(
    services: Services,
    template_database: str,
    tmp_path_factory: pytest.TempPathFactory,
    footage: dict[str, Path],
) -> Iterator[Context]:
    """Five frames of a street and five of a phone call, two cameras."""
    folder = tmp_path_factory.mktemp("indexed")
    with fresh_context(services.database_url, template_database, folder) as made:
        ingested(made, footage["bikes"], "street", 2.0, start_utc=STREET)
        ingested(made, footage["car"], "call", 0.8, start_utc=CALL)
        yield made


def camera_id(context: Context, name: str) -> int:
    return int(sql(context, "select id from cameras where name = %s", name)[0][0])


def frame_ids(context: Context, camera: str) -> list[int]:
    query = "select id from frames where camera_id = %s order by t_utc"
    return [frame_id for (frame_id,) in sql(context, query, camera_id(context, camera))]


def picture_bytes(context: Context, frame_id: int) -> bytes:
    (sha256,) = sql(context, "select picture_sha256 from frames where id = %s", frame_id)[0]
    return context.pictures.path(sha256).read_bytes()


def answered(
    context: Context,
    roi: Roi = ROI,
    *,
    frame_id: int | None = None,
    picture: bytes | None = None,
    **params: Any,
) -> QueryState:
    """Submit a query for single frames, run its job, and return how it stands."""
    query_id = submit_query(
        context,
        roi,
        SearchParams(**{"group": "frame", **params}),
        frame_id=frame_id,
        picture=picture,
    )
    run_jobs(context)
    return query_state(context, query_id)


def hits_of(state: QueryState) -> list[SearchHit]:
    assert state.state == "done", (state.error_code, state.error_detail, state.retry_detail)
    return state.hits


def no_backbone(name: str) -> Backbone:
    raise AssertionError(f"backbone {name} was asked for")


def test_a_query_on_an_indexed_frame_runs_no_backbone(indexed: Context) -> None:
    frame_id = frame_ids(indexed, "street")[1]
    state = answered(replace(indexed, backbone=no_backbone), frame_id=frame_id, close_looks=0)
    hits = hits_of(state)
    assert hits
    assert state.query.stats is not None
    assert state.query.stats["frames_searched"] == 10
    assert state.query.stats["candidates"] == 9


def test_hits_are_whole_and_in_order(indexed: Context) -> None:
    frame_id = frame_ids(indexed, "street")[1]
    hits = hits_of(answered(indexed, frame_id=frame_id, limit=50))
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert len({hit.frame_id for hit in hits}) == len(hits)
    assert frame_id not in {hit.frame_id for hit in hits}
    for hit in hits:
        assert (hit.grid_h, hit.grid_w) == (16, 16)
        assert len(hit.region_cell_index) == len(hit.region_query_index) > 0
        box = cells_box(np.array(hit.region_cell_index), GridSize(16, 16))
        assert 0 <= box.x0 < box.x1 <= 1
        assert 0 < hit.coverage <= 1
        assert 0 < hit.similarity <= 1.001
        assert hit.frame.camera.name in ("street", "call")
        assert hit.frame.t_utc.utcoffset() == timedelta(0)


@pytest.mark.parametrize("codec", ["JPEG", "PNG"])
def test_an_uploaded_picture_finds_its_frame_first_and_in_place(
    indexed: Context, codec: str
) -> None:
    frame_id = frame_ids(indexed, "street")[2]
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture_bytes(indexed, frame_id))).save(buffer, codec)
    state = answered(indexed, picture=buffer.getvalue())
    best = hits_of(state)[0]
    assert best.frame_id == frame_id
    assert best.score > 0.7  # averaged with its neighbours in time
    assert best.coverage == 1.0
    box = cells_box(np.array(best.region_cell_index), GridSize(16, 16))
    assert abs(box.x0 - ROI.x0) < 0.07
    assert abs(box.y1 - ROI.y1) < 0.07
    assert state.query.picture_sha256 is not None
    assert indexed.uploads.load(state.query.picture_sha256) == buffer.getvalue()


def test_a_polygon_selects_fewer_patches_than_its_box(indexed: Context) -> None:
    frame_id = frame_ids(indexed, "call")[0]
    diamond = Polygon((Point(0.5, 0.2), Point(0.8, 0.5), Point(0.5, 0.8), Point(0.2, 0.5)))
    inside = answered(indexed, diamond, frame_id=frame_id)
    around = answered(indexed, Box(0.2, 0.2, 0.8, 0.8), frame_id=frame_id)
    assert hits_of(inside)[0].frame.camera.name == "call"
    assert inside.query.stats is not None
    assert around.query.stats is not None
    assert inside.query.stats["query_patches"] < 0.7 * around.query.stats["query_patches"]
    assert inside.query.roi == {"polygon": [[0.5, 0.2], [0.8, 0.5], [0.5, 0.8], [0.2, 0.5]]}


def test_a_tiny_roi_is_one_patch(indexed: Context) -> None:
    state = answered(indexed, Box(0.5, 0.5, 0.501, 0.501), frame_id=frame_ids(indexed, "call")[0])
    assert state.query.stats is not None
    assert state.query.stats["query_patches"] == 1
    assert hits_of(state)


@pytest.mark.parametrize("strategy", sorted(Strategy))
def test_every_strategy_ranks_the_same_camera_first(indexed: Context, strategy: Strategy) -> None:
    """A phone call looks like itself, not like a street, whatever the ranking."""
    frame_id = frame_ids(indexed, "call")[2]
    hits = hits_of(
        answered(indexed, Box(0.3, 0.2, 0.7, 0.8), frame_id=frame_id, strategy=strategy, top_n=10)
    )
    assert [hit.frame.camera.name for hit in hits[:4]] == ["call"] * 4
    assert all(math.isfinite(hit.score) for hit in hits)


def test_a_camera_filter_lets_only_its_frames_in(indexed: Context) -> None:
    frame_id = frame_ids(indexed, "street")[0]
    state = answered(
        indexed, frame_id=frame_id, camera_ids=(camera_id(indexed, "call"),), tau=-1.0, top_n=3
    )
    assert {hit.frame.camera.name for hit in hits_of(state)} == {"call"}
    assert len(state.hits) == 3


def test_filters_leave_the_scene_of_the_querys_frame_to_learn_from(indexed: Context) -> None:
    """The same likeness as without the filter, and no hit from outside it."""
    frame_id = frame_ids(indexed, "street")[2]
    everywhere = {hit.frame_id: hit for hit in hits_of(answered(indexed, frame_id=frame_id))}
    state = answered(indexed, frame_id=frame_id, camera_ids=(camera_id(indexed, "call"),))
    assert state.query.stats is not None
    assert state.query.stats["frames_searched"] == 5
    assert {hit.frame.camera.name for hit in hits_of(state)} == {"call"}
    both = [hit for hit in state.hits if hit.frame_id in everywhere]
    assert both
    for hit in both:
        assert hit.score == pytest.approx(everywhere[hit.frame_id].score, abs=1e-5)


@pytest.mark.parametrize(
    ("t_from_s", "t_to_s", "expected"),
    [
        (2, 6, [1, 2]),
        (2.001, 6.001, [2, 3]),
        (None, 4, [0, 1]),
        (8, 9, [4]),
        (8.001, 100, []),
        (-10, 0, []),
    ],
)
def test_time_filters_are_exact_and_half_open(
    indexed: Context, t_from_s: float | None, t_to_s: float | None, expected: list[int]
) -> None:
    """A query from the other camera, so that no frame of its own is left out."""
    street = frame_ids(indexed, "street")
    given = {"t_from_utc": t_from_s, "t_to_utc": t_to_s}
    times: dict[str, Any] = {
        name: None if t_s is None else STREET + timedelta(seconds=t_s)
        for name, t_s in given.items()
    }
    state = answered(indexed, frame_id=frame_ids(indexed, "call")[0], tau=-1.0, top_n=2, **times)
    assert sorted(hit.frame_id for hit in hits_of(state)) == [street[i] for i in expected]


def test_marked_hits_are_searched_for_and_against(indexed: Context) -> None:
    """More like a frame of the call, from a frame of the street: the call comes first."""
    street, call = frame_ids(indexed, "street"), frame_ids(indexed, "call")
    marked = Example(call[1], Box(0.3, 0.2, 0.7, 0.8))
    plain = hits_of(answered(indexed, frame_id=street[2]))
    more = hits_of(answered(indexed, frame_id=street[2], more=(marked,)))
    less = hits_of(answered(indexed, frame_id=street[2], less=(marked,)))
    places = [[hit.rank for hit in hits if hit.frame_id in call] for hits in (more, plain, less)]
    assert places[0] and sum(places[0]) / len(places[0]) < len(more) / 2
    scores = [{hit.frame_id: hit.score for hit in hits} for hits in (plain, less)]
    for frame_id in set(call) & set(scores[0]) & set(scores[1]):
        assert scores[1][frame_id] < scores[0][frame_id]
    with pytest.raises(NotFound, match="frame 999999 of an example"):
        answered(indexed, frame_id=street[2], more=(Example(999_999, ROI),))


def test_a_high_match_level_leaves_nothing_to_show(indexed: Context) -> None:
    state = answered(indexed, frame_id=frame_ids(indexed, "street")[0], tau=1.0)
    assert hits_of(state) == []


def test_the_limit_is_kept(indexed: Context) -> None:
    state = answered(indexed, frame_id=frame_ids(indexed, "street")[0], limit=2)
    assert len(hits_of(state)) == 2
    assert job(indexed, state.query.job_id).progress == {"hits": 2}


def test_a_cut_out_roi_as_query_descriptor(indexed: Context) -> None:
    frame_id = frame_ids(indexed, "street")[1]
    sources: list[dict[str, Any]] = [
        {"frame_id": frame_id},
        {"picture": picture_bytes(indexed, frame_id)},
    ]
    for source in sources:
        state = answered(indexed, query_descriptor="roi-crop", top_n=10, **source)
        assert hits_of(state)[0].frame.camera.name == "street"


def test_a_mean_over_patches_needs_equal_widths(indexed: Context) -> None:
    """192 numbers per patch, 320 per frame: a refusal that says so, and what to use."""
    state = answered(indexed, frame_id=frame_ids(indexed, "street")[1], query_descriptor="roi-mean")
    assert (state.state, state.error_code) == ("failed", "input_invalid")
    assert "192" in str(state.error_detail)
    assert "320" in str(state.error_detail)


def test_a_mean_over_patches_of_a_backbone_with_equal_widths(
    context: Context, footage: dict[str, Path]
) -> None:
    tiny = loaded(with_settings(context, backbone="tiny-a"))
    ingested(tiny, footage["car"], "call", 0.8, start_utc=CALL)
    frame_id = frame_ids(tiny, "call")[0]
    state = answered(tiny, frame_id=frame_id, query_descriptor="roi-mean", tau=-1.0)
    assert len(hits_of(state)) == 4


BAD_ROIS = [
    Box(0.5, 0.5, 0.5, 0.6),
    Box(0.6, 0.5, 0.5, 0.6),
    Box(1.2, 0.1, 1.5, 0.4),
    Box(math.nan, 0.1, 0.5, 0.4),
    Box(0.1, 0.1, math.inf, 0.4),
    Polygon((Point(0.1, 0.1), Point(0.5, 0.5))),
    Polygon((Point(0.1, 0.1), Point(0.5, 0.5), Point(0.9, 0.9))),
    Polygon((Point(0.1, 0.1), Point(math.nan, 0.5), Point(0.1, 0.9))),
    Polygon((Point(2, 2), Point(3, 2), Point(3, 3))),
]


@pytest.mark.parametrize("roi", BAD_ROIS)
def test_an_roi_that_selects_nothing_is_refused_before_anything_is_recorded(
    indexed: Context, roi: Roi
) -> None:
    before = sql(indexed, "select count(*) from jobs")
    with pytest.raises(RoiInvalid):
        submit_query(indexed, roi, SearchParams(), frame_id=frame_ids(indexed, "street")[0])
    assert sql(indexed, "select count(*) from jobs") == before


def big_picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (9000, 9000)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("make", [big_picture, lambda: b"", lambda: b"\xff\xd8\xff" + b"x" * 999])
def test_pictures_that_cannot_be_used_are_refused(indexed: Context, make: Any) -> None:
    before = sql(indexed, "select count(*) from jobs")
    content = make()
    with pytest.raises(PictureInvalid):
        submit_query(indexed, ROI, SearchParams(), picture=content)
    assert sql(indexed, "select count(*) from jobs") == before
    root = indexed.settings.data_dir / "uploads"
    assert len(content) not in {path.stat().st_size for path in root.glob("*")}


def test_unknown_frames_and_cameras_are_named(indexed: Context) -> None:
    for beyond_bigint in (-1, 10**20):
        with pytest.raises(NotFound, match=f"frame {beyond_bigint}"):
            submit_query(indexed, Box(0, 0, 1, 1), SearchParams(), frame_id=beyond_bigint)
    with pytest.raises(NotFound, match="frame 999999"):
        submit_query(indexed, ROI, SearchParams(), frame_id=999_999)
    with pytest.raises(NotFound, match=r"cameras \[77, 78\]"):
        submit_query(indexed, ROI, SearchParams(camera_ids=(78, 1, 77)), frame_id=1)
    query_id = uuid.uuid4()
    with pytest.raises(NotFound, match=str(query_id)):
        query_state(indexed, query_id)


def test_a_query_has_exactly_one_source(indexed: Context) -> None:
    for source in ({}, {"frame_id": 1, "picture": b"x"}):
        with pytest.raises(InputInvalid, match="either"):
            submit_query(indexed, ROI, SearchParams(), **source)  # type: ignore[arg-type]


def test_a_backbone_with_another_spec_than_the_index_is_recorded(indexed: Context) -> None:
    picture = picture_bytes(indexed, frame_ids(indexed, "street")[0])
    (built_with,) = sql(indexed, "select spec_hash from index_generations")[0]
    sql(indexed, "update index_generations set spec_hash = repeat('0', 64)")
    state = answered(indexed, picture=picture)
    sql(indexed, "update index_generations set spec_hash = %s", built_with)
    assert (state.state, state.error_code) == ("failed", "backbone_mismatch")
    assert "ris reindex" in str(state.error_detail)
    assert hits_of(answered(indexed, picture=picture))


def test_a_query_run_twice_has_its_hits_once(indexed: Context) -> None:
    first = answered(indexed, frame_id=frame_ids(indexed, "street")[3])
    expected = [(hit.rank, hit.frame_id, hit.score) for hit in hits_of(first)]
    sql(indexed, "update jobs set state = 'queued' where id = %s", first.query.job_id)
    assert query_state(indexed, first.query.id).hits == []
    run_jobs(indexed)
    again = hits_of(query_state(indexed, first.query.id))
    assert [(hit.rank, hit.frame_id, hit.score) for hit in again] == expected


def test_a_worker_that_lost_the_query_records_no_hits(indexed: Context) -> None:
    query_id = submit_query(indexed, ROI, SearchParams(), frame_id=frame_ids(indexed, "street")[3])
    job_id = query_state(indexed, query_id).query.job_id
    with indexed.db.transaction() as session:
        slow = job_record.claim(session, job_id, 30)
    assert slow is not None
    sql(indexed, "update jobs set lease_until = now() - interval '1 s' where id = %s", job_id)
    with indexed.db.transaction() as session:
        assert job_record.claim(session, job_id, 30)
    with pytest.raises(LeaseLost):
        run_query(indexed, slow, Lease(indexed, slow))
    assert sql(indexed, "select count(*) from search_hits where query_id = %s", query_id) == [(0,)]
    assert query_state(indexed, query_id).state == "running"
    sql(indexed, "update jobs set lease_until = now() - interval '1 s' where id = %s", job_id)
    run_job(indexed, job_id, HANDLERS)
    assert hits_of(query_state(indexed, query_id))


def test_an_upload_that_is_gone_is_a_recorded_failure(indexed: Context) -> None:
    picture = picture_bytes(indexed, frame_ids(indexed, "call")[4])
    query_id = submit_query(indexed, ROI, SearchParams(), picture=picture)
    sha256 = query_state(indexed, query_id).query.picture_sha256
    (indexed.settings.data_dir / "uploads" / str(sha256)).unlink()
    run_jobs(indexed)
    state = query_state(indexed, query_id)
    assert (state.state, state.error_code) == ("failed", "not_found")


def test_a_query_on_an_empty_index_says_so(context: Context) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48)).save(buffer, "PNG")
    state = answered(loaded(context), roi_from_xyxy([0, 0, 1, 1]), picture=buffer.getvalue())
    assert (state.state, state.error_code) == ("failed", "not_found")
    assert "ris ingest" in str(state.error_detail)


def test_damage_is_a_recorded_failure_and_never_another_frames_hit(
    context: Context, footage: dict[str, Path]
) -> None:
    """Without one f_map run every later frame would answer under its neighbour's name."""
    tiny = loaded(with_settings(context, backbone="tiny-a"))
    ingested(tiny, footage["car"], "call", 0.8, start_utc=CALL)
    first, second, *_ = frame_ids(tiny, "call")
    sql(tiny, "delete from f_map_runs where frame_id = %s", second)
    state = answered(tiny, frame_id=first)
    assert (state.state, state.error_code) == ("failed", "index_damaged")
    missing = answered(tiny, frame_id=second)
    assert (missing.state, missing.error_code) == ("failed", "not_found")
    assert "ris verify" in str(missing.error_detail)


def test_an_answer_lists_every_appearance_once(indexed: Context) -> None:
    frame_id = frame_ids(indexed, "street")[2]
    frames = hits_of(answered(indexed, frame_id=frame_id))
    appearances = hits_of(answered(indexed, frame_id=frame_id, group="appearance"))
    assert [hit.rank for hit in appearances] == list(range(1, len(appearances) + 1))
    assert sum(hit.appearance_frames for hit in appearances) == len(frames)
    assert appearances[0].frame_id == frames[0].frame_id
    for hit in appearances:
        assert hit.appearance_from_utc is not None and hit.appearance_to_utc is not None
        assert hit.appearance_from_utc <= hit.frame.t_utc <= hit.appearance_to_utc
    assert len(hits_of(answered(indexed, frame_id=frame_id, group="appearance", limit=1))) == 1
    single = answered(indexed, frame_id=frame_id, group="appearance", appearance_gap_s=0.0)
    assert len(hits_of(single)) == len(frames)


def test_a_hit_says_where_and_how_surely(indexed: Context) -> None:
    for hit in hits_of(answered(indexed, frame_id=frame_ids(indexed, "street")[2])):
        assert hit.box is not None
        x0, y0, x1, y1 = hit.box
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
        assert hit.on_trail or hit.false_matches is None or hit.false_matches >= 0
    for hit in hits_of(
        answered(indexed, frame_id=frame_ids(indexed, "street")[2], strategy=Strategy.MAX_SIM)
    ):
        assert hit.false_matches is None and not hit.on_trail


def shown(state: QueryState, capsys: pytest.CaptureFixture[str], *, as_json: bool) -> str:
    capsys.readouterr()  # what the query's job logged
    show_result(state, None, as_json=as_json)
    return capsys.readouterr().out


def test_json_says_what_a_hit_stands_for_and_where(
    indexed: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    state = answered(indexed, frame_id=frame_ids(indexed, "street")[2], group="appearance")
    said = json.loads(shown(state, capsys, as_json=True))["hits"]
    assert len(said) == len(hits_of(state)) > 0
    for hit, row in zip(said, state.hits, strict=True):
        assert row.appearance_from_utc is not None and row.appearance_to_utc is not None
        assert hit["appearance"] == {
            "from_utc": row.appearance_from_utc.isoformat(),
            "to_utc": row.appearance_to_utc.isoformat(),
            "frames": row.appearance_frames,
        }
        assert hit["box"] == row.box
        assert (hit["false_matches"], hit["on_trail"]) == (row.false_matches, row.on_trail)


def test_the_table_gives_span_and_frames(
    indexed: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    """Frames of the street are 2 s apart, those of the call 0.8 s: all of a camera are joined."""
    state = answered(
        indexed, frame_id=frame_ids(indexed, "street")[2], group="appearance", tau=-1.0, top_n=9
    )
    spans = {hit.frame.camera.name: hit.appearance_frames for hit in hits_of(state)}
    assert spans == {"street": 4, "call": 5}
    table = shown(state, capsys, as_json=False)
    assert "span" in table
    assert "8 s, 4" in table
    assert "3 s, 5" in table


def test_hits_of_an_older_version_can_still_be_shown(
    indexed: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    """They have no box and no span: the box is that of the region's cells, the rest is left out."""
    asked = answered(indexed, frame_id=frame_ids(indexed, "street")[2])
    sql(
        indexed,
        """update search_hits set box = null, false_matches = null, on_trail = false,
        appearance_from_utc = null, appearance_to_utc = null where query_id = %s""",
        asked.query.id,
    )
    state = query_state(indexed, asked.query.id)
    for hit, row in zip(
        json.loads(shown(state, capsys, as_json=True))["hits"], state.hits, strict=True
    ):
        assert hit["appearance"] == {"from_utc": None, "to_utc": None, "frames": 1}
        assert hit["false_matches"] is None
        cells = cells_box(np.array(row.region_cell_index), GridSize(16, 16))
        assert hit["box"] == [cells.x0, cells.y0, cells.x1, cells.y1]
    assert "street" in shown(state, capsys, as_json=False)
