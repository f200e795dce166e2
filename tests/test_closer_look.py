"""A closer look at real pictures with the default backbone: finer boxes, missing pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.repositories import videos as video_record
from tests.conftest import Services
from tests.parts import HANDLERS, fresh_context, ingested, sql
from worker.accepting.queries import query_state, submit_query
from worker.backbones.base import Backbone
from worker.closer_look import look_closer
from worker.context import Context
from worker.core.metrics import box_iou
from worker.core.search_params import SearchParams, Strategy
from worker.core.trail import shifted_box
from worker.core.types import Box, ImageArray, Region
from worker.errors import StorageFailed, WeightsMissing
from worker.generations import require_live_generation
from worker.jobs import run_job
from worker.query_picture import cut_out, frame_picture
from worker.ranked_frame import RankedFrame

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
CYCLIST = Box(0.30, 0.35, 0.55, 0.85)
PLACES = (Box(0.11, 0.42, 0.21, 0.70), Box(0.63, 0.33, 0.73, 0.61), Box(0.41, 0.07, 0.51, 0.35))
"""Where the cyclist is pasted: by no grid."""


@pytest.fixture(scope="module")
def street(
    services: Services,
    template_database: str,
    tmp_path_factory: pytest.TempPathFactory,
    footage: dict[str, Path],
) -> Iterator[Context]:
    """A street, and a phone call into whose first three frames a cyclist was pasted."""
    folder = tmp_path_factory.mktemp("looks")
    with fresh_context(services.database_url, template_database, folder) as made:
        ingested(made, footage["bikes"], "street", 4.0, start_utc=START)
        ingested(made, footage["car"], "call", 0.8, start_utc=START)
        cyclist = cut_out(frame_picture(made, ids(made, "street")[0]), CYCLIST)
        for frame_id, place in zip(ids(made, "call"), PLACES, strict=False):
            pasted = made.pictures.put(paste(frame_picture(made, frame_id), cyclist, place))
            sql(
                made, "update frames set picture_sha256 = %s where id = %s", pasted.sha256, frame_id
            )
        yield made


def ids(context: Context, camera: str) -> list[int]:
    with context.db.transaction() as session:
        found = video_record.camera_named(session, camera)
        assert found is not None
        camera_id = found.id
    query = "select id from frames where camera_id = %s order by t_utc"
    return [frame_id for (frame_id,) in sql(context, query, camera_id)]


def paste(img_hwc: ImageArray, subject_hwc: ImageArray, place: Box) -> ImageArray:
    h_px, w_px = img_hwc.shape[:2]
    x0, y0, x1, y1 = (
        round(v) for v in (place.x0 * w_px, place.y0 * h_px, place.x1 * w_px, place.y1 * h_px)
    )
    made = img_hwc.copy()
    made[y0:y1, x0:x1] = np.asarray(Image.fromarray(subject_hwc).resize((x1 - x0, y1 - y0)))
    return made


def hit(frame_id: int, box: Box | None, region: Region | None = None) -> RankedFrame:
    return RankedFrame(
        frame_id=frame_id,
        camera_id=1,
        t_epoch_s=0.0,
        score=1.0,
        global_score=1.0,
        stage1_score=1.0,
        similarity=1.0,
        coverage=1.0,
        region=region,
        box=box,
    )


def looked(context: Context, hits: list[RankedFrame], query_frame: int) -> list[RankedFrame]:
    generation = require_live_generation(context)
    return look_closer(context, generation, hits, PLACES[0], frame_id=query_frame)


@pytest.mark.parametrize(
    ("to", "d_x", "d_y"), [(1, 0.06, -0.05), (1, -0.05, 0.08), (2, 0.03, 0.07)]
)
def test_a_box_is_moved_onto_the_subject(street: Context, to: int, d_x: float, d_y: float) -> None:
    """The box given is about a cell off."""
    call = ids(street, "call")
    off = shifted_box(
        PLACES[0], PLACES[to].x0 - PLACES[0].x0 + d_x, PLACES[to].y0 - PLACES[0].y0 + d_y
    )
    (found,) = looked(street, [hit(call[to], off)], call[0])
    assert found.box is not None
    assert box_iou(found.box, PLACES[to]) > max(0.6, box_iou(off, PLACES[to]) + 0.1)


def test_without_a_box_the_look_starts_at_the_region(street: Context) -> None:
    call = ids(street, "call")
    cells = np.array([7 * 16 + 10, 7 * 16 + 11, 8 * 16 + 10])
    region = Region(np.arange(3), cells, np.ones(3, dtype=np.float32))
    first, second = looked(street, [hit(call[1], None, region), hit(call[1], None)], call[0])
    assert first.box is not None and box_iou(first.box, PLACES[1]) > 0.6
    assert second.box is None, "neither box nor region: nowhere to look"


def test_nothing_else_of_a_hit_changes(street: Context) -> None:
    call = ids(street, "call")
    given = [hit(call[1], PLACES[1]), hit(call[2], PLACES[1])]
    found = looked(street, given, call[0])
    assert [replace(one, box=None) for one in found] == [replace(one, box=None) for one in given]
    assert looked(street, [], call[0]) == []


def test_a_picture_that_is_gone_costs_its_own_box_only(street: Context) -> None:
    call = ids(street, "call")
    off = shifted_box(PLACES[1], 0.05, 0.0)
    (sha256,) = sql(street, "select picture_sha256 from frames where id = %s", call[4])[0]
    path = street.pictures.path(sha256)
    content = path.read_bytes()
    path.unlink()
    try:
        gone, there = looked(street, [hit(call[4], off), hit(call[1], off)], call[0])
        assert gone.box == off
        assert there.box != off
        assert looked(street, [hit(call[1], off)], call[4]) == [hit(call[1], off)]
    finally:
        path.write_bytes(content)


def refusing(error: Exception) -> Backbone:
    raise error


def test_missing_weights_and_a_failing_disk_leave_the_boxes(street: Context) -> None:
    call = ids(street, "call")
    given = [hit(call[1], PLACES[0])]
    without = replace(street, backbone=lambda name: refusing(WeightsMissing(name)))
    assert looked(without, given, call[0]) == given
    failing = replace(street, backbone=lambda name: refusing(StorageFailed(name)))
    assert looked(failing, given, call[0]) == given


def boxes_of(context: Context, params: SearchParams) -> list[list[float] | None]:
    frame_id = ids(context, "street")[0]
    query_id = submit_query(context, CYCLIST, params, frame_id=frame_id)
    run_job(context, query_state(context, query_id).query.job_id, HANDLERS)
    state = query_state(context, query_id)
    assert state.state == "done", state.error_detail
    return [shown.box for shown in state.hits]


def test_the_first_hits_of_an_answer_are_looked_at(street: Context) -> None:
    params = SearchParams(group="frame", tau=-1.0)
    plain = boxes_of(street, replace(params, close_looks=0))
    two = boxes_of(street, replace(params, close_looks=2))
    every = boxes_of(street, params)
    assert len(plain) == len(two) == len(every) > 3
    assert two[:2] == every[:2]
    assert two[2:] == plain[2:]
    assert sum(a != b for a, b in zip(plain, every, strict=True)) > 3
    for strategy in (Strategy.PAPER_RIGID, Strategy.PAPER_MAJORITY):
        literal = SearchParams(group="frame", strategy=strategy)
        assert boxes_of(street, literal) == boxes_of(street, replace(literal, close_looks=0))
