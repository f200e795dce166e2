"""Filters are exact, from Postgres to the answer: every frame they let in and none besides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from models.repositories import index as index_record
from models.repositories import videos as video_record
from tests.conftest import Services
from tests.parts import fresh_context, sql
from worker import pinning
from worker.context import Context
from worker.core.search_params import SearchParams, Strategy
from worker.core.types import Box, FloatArray
from worker.core.zone import zone_cells
from worker.describe import describe_query
from worker.errors import IndexDamaged
from worker.generations import ensure_live_generation
from worker.pinning import FMapCache
from worker.recording import PictureBatch, prepare_batch, record_batch
from worker.search import search_generation

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
SPAN_S = 60
FRAMES = 40


@pytest.fixture(scope="module")
def indexed(
    services: Services, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Context]:
    """Three cameras of forty frames each, out of order, in many shards of a minute, some with a
    frame just at its edge."""
    folder = tmp_path_factory.mktemp("filters")
    with fresh_context(
        services.database_url, template_database, folder, backbone="tiny-a", shard_span_s=SPAN_S
    ) as context:
        generation = ensure_live_generation(context)
        rng = np.random.default_rng(3)
        for camera in ("a", "b", "c"):
            with context.db.transaction() as session:
                known = video_record.ensure_camera(session, camera)
                segment, _ = video_record.ensure_segment(
                    session,
                    {
                        "camera_id": known.id,
                        "source_path": "made up",
                        "content_sha256": "0" * 64,
                        "start_utc": START,
                        "start_source": "given",
                        "policy": {},
                        "policy_key": "x",
                    },
                )
            seconds = rng.choice(20 * SPAN_S, FRAMES, replace=False)
            seconds[:4] = np.array([0, SPAN_S, 2 * SPAN_S, 2 * SPAN_S - 1])
            seconds = np.unique(seconds)
            rng.shuffle(seconds)
            pictures = list(rng.integers(0, 255, (len(seconds), 32, 32, 3), dtype=np.uint8))
            times = [START + timedelta(seconds=int(at)) for at in seconds]
            batch = PictureBatch(times, [int(at) for at in seconds], pictures, pictures)
            prepared = prepare_batch(context, context.backbone("tiny-a"), batch)
            with ExitStack() as held, context.db.transaction() as session:
                record_batch(context, session, segment, generation, prepared, held)
        yield context


moments = st.one_of(
    st.none(),
    st.integers(-2, 22).map(lambda minute: START + timedelta(minutes=minute)),
    st.floats(-10, 20 * SPAN_S + 10).map(lambda at: START + timedelta(seconds=round(at, 3))),
)


@settings(max_examples=80)
@given(
    cameras=st.one_of(st.none(), st.sets(st.integers(1, 3), min_size=1)),
    begin=moments,
    end=moments,
    own=st.integers(1, 100),
    strategy=st.sampled_from([Strategy.FUSED, Strategy.MAX_SIM, Strategy.WHOLE_FRAME]),
)
def test_every_frame_that_is_let_in_is_searched_and_no_other(
    indexed: Context,
    cameras: set[int] | None,
    begin: datetime | None,
    end: datetime | None,
    own: int,
    strategy: Strategy,
) -> None:
    if begin is not None and end is not None and begin >= end:
        begin, end = end, begin
        if begin == end:
            end = end + timedelta(seconds=1)
    params = SearchParams(
        camera_ids=None if cameras is None else tuple(sorted(cameras)),
        t_from_utc=begin,
        t_to_utc=end,
        strategy=strategy,
        top_n=1000,
    )
    generation = ensure_live_generation(indexed)
    given_query = (indexed, generation, Box(0.2, 0.2, 0.8, 0.8), params)
    found = search_generation(
        indexed,
        generation,
        describe_query(*given_query, frame_id=own, picture_sha256=None),
        params,
        exclude_frame_id=own,
    )
    expected = {
        frame_id
        for frame_id, camera_id, t_utc in sql(indexed, "select id, camera_id, t_utc from frames")
        if (cameras is None or camera_id in cameras)
        and (begin is None or t_utc >= begin)
        and (end is None or t_utc < end)
    }
    ids = [frame.frame_id for frame in found.ranked]
    assert len(ids) == len(set(ids))
    assert set(ids) == expected - {own}


sides = st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(
    lambda side: abs(side[0] - side[1]) > 0.01
)
ZONED = (
    SearchParams(strategy=Strategy.FUSED, top_n=1000),
    SearchParams(strategy=Strategy.FUSED, top_n=5),
    SearchParams(strategy=Strategy.MAX_SIM, top_n=1000),
    SearchParams(strategy=Strategy.GROW_ELASTIC, top_n=1000),
    SearchParams(strategy=Strategy.PAPER_RIGID),
    SearchParams(strategy=Strategy.VOTE_WEIGHTED, top_n=1000, tau=-1.0),
    SearchParams(strategy=Strategy.VOTE_MAJORITY, vote_scope="index", k=3, tau=-1.0),
)


def stored_patches(context: Context) -> dict[int, FloatArray]:
    """What the index holds of every frame, float32 (cells, d)."""
    generation = ensure_live_generation(context)
    with context.db.snapshot() as session:
        pinned = pinning.pin_shards(
            session, context.index, context.f_maps, generation, SearchParams()
        )
    return {
        int(shard.f_map.frame_id[block]): shard.read("patch", [block])[0]
        for shard in pinned
        for block in range(shard.blocks)
    }


@settings(max_examples=60, deadline=None)
@given(x=sides, y=sides, own=st.integers(1, 100), asked=st.sampled_from(ZONED))
def test_nothing_outside_a_zone_matches_and_everything_inside_it_does(
    indexed: Context, x: tuple[float, float], y: tuple[float, float], own: int, asked: SearchParams
) -> None:
    zone = Box(min(x), min(y), max(x), max(y))
    params = replace(asked, zone=zone)
    generation = ensure_live_generation(indexed)
    box = Box(0.2, 0.2, 0.8, 0.8)
    query = describe_query(indexed, generation, box, params, frame_id=own, picture_sha256=None)
    found = search_generation(indexed, generation, query, params, exclude_frame_id=own).ranked
    grid = pinning.spec_of(generation).grid
    inside_c = zone_cells(zone, grid)
    assert inside_c is not None
    for frame in found:
        assert frame.region is None or inside_c[frame.region.cell_index].all()
    patches = {i: cd[inside_c] for i, cd in stored_patches(indexed).items() if i != own}
    if params.strategy is Strategy.MAX_SIM:
        best = {i: float((query.patches_qd @ cd.T).max(axis=1).mean()) for i, cd in patches.items()}
        assert {frame.frame_id for frame in found} == set(best)
        for frame in found:
            assert frame.score == pytest.approx(best[frame.frame_id], abs=1e-5)
            assert frame.region is None or frame.similarity <= 1 + 1e-5
    if params.strategy is Strategy.VOTE_MAJORITY:
        ids = np.repeat(list(patches), [len(cd) for cd in patches.values()])
        cosine_qm = query.patches_qd @ np.concatenate(list(patches.values())).T
        level_q = np.sort(cosine_qm, axis=1)[:, -min(3, cosine_qm.shape[1])]
        for frame in found:  # equal cosines leave open whose vote it is
            own_qm = cosine_qm[:, ids == frame.frame_id]
            most = int((own_qm >= level_q[:, None] - 1e-5).sum())
            least = int((own_qm > level_q[:, None] + 1e-5).sum())
            assert least <= frame.score <= most
    if params.strategy is Strategy.FUSED and params.top_n > len(patches):
        assert {frame.frame_id for frame in found} == set(patches)


@pytest.mark.parametrize("frames_per_read", [1, 50, 250_000])
def test_runs_read_together_are_the_rows_of_postgres(
    indexed: Context, monkeypatch: pytest.MonkeyPatch, frames_per_read: int
) -> None:
    """Whatever number of shards one statement takes."""
    monkeypatch.setattr(pinning, "FRAMES_PER_READ", frames_per_read)
    context = indexed.with_own_caches()
    generation = ensure_live_generation(context)
    with context.db.snapshot() as session:
        pinned = pinning.pin_shards(
            session, context.index, context.f_maps, generation, SearchParams()
        )
    rows = sql(
        context,
        """select r.start_row, r.row_count, r.frame_id, r.view, r.global_crc32, r.crc32,
               extract(epoch from f.t_utc)::float8
           from f_map_runs r join frames f on f.id = r.frame_id join shards s on s.id = r.shard_id
           order by s.camera_id, s.bucket_utc, r.start_row""",
    )
    read = [
        (*whole, t_epoch_s)
        for shard in pinned
        for *whole, t_epoch_s in zip(
            shard.f_map.start_row.tolist(),
            shard.f_map.row_count.tolist(),
            shard.f_map.frame_id.tolist(),
            shard.f_map.view.tolist(),
            *shard.sums_n2.T.tolist(),
            shard.t_epoch_s.tolist(),
            strict=True,
        )
    ]
    assert len(pinned) > 20
    assert read == rows


def test_a_run_that_is_missing_is_damage(indexed: Context) -> None:
    generation = ensure_live_generation(indexed)
    with indexed.db.transaction() as session:
        shard = index_record.select_shards(session, generation.id)[0]
        last = int(index_record.read_runs(session, [shard.id])[shard.id].start_row[-1])
        session.execute(
            text(f"delete from f_map_runs where shard_id = {shard.id} and start_row = {last}")
        )
        with pytest.raises(IndexDamaged, match=f"shard {shard.id}.*run `ris verify`"):
            FMapCache().fetch(session, [shard])
        session.rollback()
