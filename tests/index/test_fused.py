"""The default search on planted scenes: two fixed cameras, one walker, one look-alike scene."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from worker.core.background import (
    TARGET_FLOOR,
    background_descriptors,
)
from worker.core.compact import CODE_DIM, Codes, CompactBasis
from worker.core.f_map import FMapRuns
from worker.core.search_params import SearchParams, Strategy
from worker.core.similarity import l2_normalise
from worker.core.types import Box, Descriptors, FloatArray, GridSize
from worker.errors import RisError
from worker.index.backgrounds import BackgroundCache
from worker.index.codec import codec_named
from worker.index.compact_cache import CompactCache
from worker.index.layout import ShardLayout
from worker.index.sample import even_sample
from worker.index.shard import append_blocks
from worker.index.store import IndexStore, PinnedShard
from worker.ranked_frame import QueryDescriptors, RankedFrame
from worker.two_stage import search_shards

GRID = GridSize(8, 8)
DIM = 48
FRAMES = 24
WALK = range(4, 12)  # frames in which the walker crosses camera 1, one column a frame
OTHER_WALK = range(10, 13)  # and stands in camera 2
ROW = 3


def cell(row: int, col: int) -> int:
    return row * GRID.w + col


def walker_col(frame: int) -> int:
    return frame - WALK.start


def scene(seed: int) -> FloatArray:
    """Frames of an empty place: every cell constant but for noise."""
    rng = np.random.default_rng(seed)
    still = l2_normalise(rng.normal(size=(GRID.cells, DIM)))
    return l2_normalise(still + 0.02 * rng.normal(size=(FRAMES, GRID.cells, DIM)))


def planted() -> tuple[FloatArray, FloatArray]:
    """Patches of both cameras, float32 (FRAMES, cells, DIM)."""
    rng = np.random.default_rng(7)
    walker = l2_normalise(rng.normal(size=(2, DIM)))
    first, second = scene(1), scene(2)
    for frame in WALK:
        for part in (0, 1):
            seen = walker[part] + 0.05 * rng.normal(size=DIM)
            first[frame, cell(ROW + part, walker_col(frame))] = l2_normalise(seen)
    for frame in OTHER_WALK:
        for part in (0, 1):
            seen = walker[part] + 0.06 * rng.normal(size=DIM)  # another light
            second[frame, cell(5 + part, 2)] = l2_normalise(seen)
    return first, second


def shard(folder: Path, patches_ncd: FloatArray, camera_id: int, first_id: int) -> PinnedShard:
    n = len(patches_ncd)
    rng = np.random.default_rng(camera_id)
    made = Descriptors(l2_normalise(1 + 0.1 * rng.normal(size=(n, 4))), patches_ncd)
    layout = ShardLayout(folder, "a" * 64, codec_named("fp32"), 4, DIM, GRID.cells)
    sums_n2 = append_blocks(layout, 0, made)
    f_map = FMapRuns(
        np.arange(n, dtype=np.int64) * GRID.cells,
        np.full(n, GRID.cells, dtype=np.int64),
        np.arange(first_id, first_id + n, dtype=np.int64),
        np.zeros(n, dtype=np.int64),
    )
    t_epoch_s = np.arange(n, dtype=np.float64)
    return PinnedShard(camera_id, camera_id, n, layout, f_map, t_epoch_s, np.arange(n), sums_n2)


@pytest.fixture
def shards(tmp_path: Path) -> list[PinnedShard]:
    first, second = planted()
    return [shard(tmp_path / "s1", first, 1, 0), shard(tmp_path / "s2", second, 2, 100)]


def query_at(frame: int) -> QueryDescriptors:
    """The walker's box, drawn one cell too wide: half of it is background."""
    patches_ncd, _ = planted()
    col = walker_col(frame)
    cells = np.array([(ROW + r, col + c) for r in (0, 1) for c in (0, 1)], dtype=np.int64)
    ids = cells[:, 0] * GRID.w + cells[:, 1]
    box = Box(col / 8, ROW / 8, (col + 2) / 8, (ROW + 2) / 8)
    return QueryDescriptors(patches_ncd[frame, ids], cells, np.full(4, 0.5, np.float32), box)


def searched(
    shards: list[PinnedShard],
    frame: int | None = 7,
    **params: object,
) -> list[RankedFrame]:
    return search_shards(
        IndexStore(Path("unused")),
        shards,
        query_at(7 if frame is None else frame),
        SearchParams(**params),  # type: ignore[arg-type]
        tau=0.5,
        grid=GRID,
        exclude_frame_id=frame,
    )


@pytest.mark.parametrize("strategy", ["fused", "grow-rigid", "grow-elastic"])
def test_every_appearance_comes_first(shards: list[PinnedShard], strategy: str) -> None:
    ranked = searched(shards, strategy=Strategy(strategy))
    own = {frame for frame in WALK if frame != 7}
    other = {100 + frame for frame in OTHER_WALK}
    assert {hit.frame_id for hit in ranked[: len(own)]} == own  # the trail
    found = {hit.frame_id for hit in ranked[: len(own) + len(other)]}
    assert found == own | other
    assert 7 not in {hit.frame_id for hit in ranked}


def test_the_box_moves_with_the_subject(shards: list[PinnedShard]) -> None:
    for hit in searched(shards):
        if hit.frame_id in WALK:
            assert hit.box is not None
            assert hit.box.x0 == pytest.approx(min(walker_col(hit.frame_id), 6) / 8, abs=0.05)
            assert hit.box.y0 == pytest.approx(ROW / 8, abs=0.05)
        if hit.frame_id - 100 in OTHER_WALK:
            assert hit.region is not None and hit.box is not None
            assert cell(5, 2) in hit.region.cell_index


def test_frames_that_the_global_filter_drops_are_found_by_the_trail(
    shards: list[PinnedShard],
) -> None:
    ranked = searched(shards, top_n=1)
    assert {frame for frame in WALK if frame != 7} <= {hit.frame_id for hit in ranked}


def test_without_the_query_frame_there_is_no_trail(shards: list[PinnedShard]) -> None:
    """A picture from elsewhere: appearance alone, and everything in the box counts."""
    ranked = searched(shards, frame=None)
    assert len(ranked) == 2 * FRAMES
    assert max(hit.score for hit in ranked) < 1.1 + 1e-6


def test_without_the_query_frames_shard_there_is_no_trail(shards: list[PinnedShard]) -> None:
    ranked = searched(shards[1:])
    assert {hit.frame_id for hit in ranked[:3]} == {100 + frame for frame in OTHER_WALK}


@pytest.mark.parametrize("strategy", ["fused", "grow-rigid", "max-sim", "vote-majority"])
@pytest.mark.parametrize("top_n", [4, 500])
def test_a_shard_that_the_filters_leave_out_is_learnt_from_and_gives_no_hits(
    shards: list[PinnedShard], strategy: str, top_n: int
) -> None:
    """The query's own camera: what it knows of the box is used for the other one."""
    chosen, scene = Strategy(strategy), replace(shards[0], searched=False)
    beside = searched([scene, shards[1]], strategy=chosen, top_n=top_n)
    assert all(hit.frame_id >= 100 for hit in beside)
    assert len(beside) == min(top_n, FRAMES)
    if strategy in ("fused", "grow-rigid"):
        assert {hit.frame_id for hit in beside[:3]} == {100 + frame for frame in OTHER_WALK}
        both = {hit.frame_id: hit.appearance for hit in searched(shards, strategy=chosen)}
        alone = {hit.frame_id: hit.appearance for hit in searched(shards[1:], strategy=chosen)}
        for hit in beside[:3]:
            assert hit.appearance == pytest.approx(both[hit.frame_id], abs=0.005)
            assert hit.appearance != pytest.approx(alone[hit.frame_id], abs=0.02)


def test_a_camera_with_one_frame_is_searched_as_it_is(tmp_path: Path) -> None:
    first, _ = planted()
    alone = [shard(tmp_path / "one", first[8:9], 1, 8)]
    ranked = searched(alone)
    assert [hit.frame_id for hit in ranked] == [8]
    assert ranked[0].region is not None


def test_the_background_is_made_anew_only_when_the_camera_grew_by_a_step(
    shards: list[PinnedShard],
) -> None:
    cache = BackgroundCache()

    def of_first(blocks: int) -> FloatArray | None:
        part = replace(shards[0], blocks=blocks, t_epoch_s=shards[0].t_epoch_s[:blocks])
        return cache.background([part])

    made = of_first(20)
    assert made is not None
    assert of_first(20) is made
    assert of_first(24) is not made
    first, _ = planted()
    sample = even_sample(shards[:1], 64)
    reference = background_descriptors(first[[block for _, block in sample]])
    grown = of_first(24)
    assert reference is not None and grown is not None
    np.testing.assert_allclose(grown, reference, atol=1e-6)


def test_a_sample_does_not_depend_on_how_shards_are_cut(
    tmp_path: Path, shards: list[PinnedShard]
) -> None:
    first, _ = planted()
    whole = even_sample(shards[:1], 7)
    parts = [shard(tmp_path / "a", first[:10], 1, 0), shard(tmp_path / "b", first[10:], 1, 10)]
    parts[1] = replace(parts[1], t_epoch_s=parts[1].t_epoch_s + 10)
    cut = even_sample(parts, 7)
    assert [block for _, block in whole] == [10 * at + block for at, block in cut]
    assert len(whole) == 7


def test_the_score_is_that_of_plain_loops(shards: list[PinnedShard]) -> None:
    """The parity oracle of the fast path, for a picture (no trail, no exemplars)."""
    query = query_at(7)
    patches = dict(zip((1, 2), planted(), strict=True))
    appearance: dict[tuple[int, int], float] = {}
    sample = [block for _, block in even_sample(shards[:1], 64)]  # the same blocks of both cameras
    for camera, frames in patches.items():
        background = background_descriptors(frames[sample])
        assert background is not None
        for at in range(FRAMES):
            total = 0.0
            for q in query.patches_qd:
                best = -np.inf
                for c in range(GRID.cells):
                    new = 1 - float(frames[at, c] @ background[c])
                    weight = min(1.0, max(TARGET_FLOOR, new / 0.2)) ** 0.5
                    best = max(best, float(q @ frames[at, c]) * weight)
                total += best / len(query.patches_qd)
            appearance[camera, at] = total
    for hit in searched(shards, frame=None):
        camera, at = (2, hit.frame_id - 100) if hit.frame_id >= 100 else (1, hit.frame_id)
        before, after = max(0, at - 1), min(FRAMES - 1, at + 1)
        smooth = (
            appearance[camera, before] + 2 * appearance[camera, at] + appearance[camera, after]
        ) / 4
        assert hit.score == pytest.approx(smooth + 0.1 * hit.global_score, abs=1e-5)


@pytest.mark.parametrize("strategy", ["fused", "grow-elastic"])
def test_the_shortlist_holds_what_comes_first_among_all(
    shards: list[PinnedShard], strategy: str
) -> None:
    """Coarse codes choose, full descriptors score: the best of all are among the candidates."""
    everything = searched(shards, strategy=Strategy(strategy))
    gated = searched(shards, strategy=Strategy(strategy), top_n=12)
    best = {hit.frame_id for hit in everything[:10]}  # seven on the trail, three in camera 2
    assert {hit.frame_id for hit in gated[:10]} == best
    assert {hit.frame_id for hit in gated} >= {frame for frame in WALK if frame != 7}


def test_without_memory_for_codes_the_global_filter_chooses(shards: list[PinnedShard]) -> None:
    cache = CompactCache(max_bytes=FRAMES * GRID.cells * CODE_DIM)  # one camera of the two
    assert not cache.fits(shards)
    ranked = search_shards(
        IndexStore(Path("unused")),
        shards,
        query_at(7),
        SearchParams(top_n=4),
        tau=0.5,
        grid=GRID,
        exclude_frame_id=7,
        compact=cache,
    )
    assert {frame for frame in WALK if frame != 7} <= {hit.frame_id for hit in ranked}


def test_codes_are_read_once_and_the_oldest_make_room(shards: list[PinnedShard]) -> None:
    cache = CompactCache(max_bytes=FRAMES * GRID.cells * DIM)
    basis = cache.basis(shards)
    first = codes_of(cache, shards[0], basis)
    assert np.shares_memory(codes_of(cache, shards[0], basis), first)
    codes_of(cache, shards[1], basis)  # no room for both
    assert not np.shares_memory(codes_of(cache, shards[0], basis), first)
    shorter = replace(shards[0], blocks=5, t_epoch_s=shards[0].t_epoch_s[:5])
    grown = CompactCache()
    early = codes_of(grown, shorter, basis)
    np.testing.assert_array_equal(codes_of(grown, shards[0], basis)[:5], early)


def codes_of(cache: CompactCache, shard: PinnedShard, basis: CompactBasis) -> Codes:
    ((start, codes),) = cache.chunks(shard, basis, 10_000)
    assert start == 0
    return codes


@pytest.mark.parametrize("top_n", [3, 1000])
def test_time_filters_hold_for_shortlist_and_trail(shards: list[PinnedShard], top_n: int) -> None:
    """The trail may look outside the filter to follow; it may not answer from there."""
    ranked = searched(shards, top_n=top_n, t_from_utc=datetime.fromtimestamp(9, UTC))
    assert ranked
    assert all(hit.frame_id % 100 >= 9 for hit in ranked)


def test_each_lever_can_be_left_out(shards: list[PinnedShard]) -> None:
    whole = {hit.frame_id: hit.score for hit in searched(shards)}
    for lever in ("background", "trail", "exemplars", "time", "whole-frame"):
        ranked = searched(shards, without=(lever,))
        assert {hit.frame_id: hit.score for hit in ranked} != whole
        if lever == "trail":
            assert not any(hit.on_trail for hit in ranked)
    bare = searched(shards, without=("background", "trail", "exemplars", "time", "whole-frame"))
    plain = {hit.frame_id: hit for hit in searched(shards, strategy=Strategy.MAX_SIM)}
    for hit in bare:
        assert hit.score == pytest.approx(plain[hit.frame_id].score, abs=1e-5)


@pytest.mark.parametrize("whole", [False, True])
def test_a_box_of_one_cell_and_one_of_the_whole_frame(
    shards: list[PinnedShard], whole: bool
) -> None:
    patches_ncd, _ = planted()
    ids = np.arange(GRID.cells) if whole else np.array([cell(ROW, walker_col(7))])
    cells = np.stack(np.divmod(ids, GRID.w), axis=1).astype(np.int64)
    box = Box(0, 0, 1, 1) if whole else Box(3 / 8, 3 / 8, 4 / 8, 4 / 8)
    query = QueryDescriptors(patches_ncd[7, ids], cells, np.full(4, 0.5, np.float32), box)
    ranked = search_shards(
        IndexStore(Path("unused")),
        shards,
        query,
        SearchParams(),
        tau=0.5,
        grid=GRID,
        exclude_frame_id=7,
    )
    own = {frame for frame in WALK if frame != 7}
    assert {hit.frame_id for hit in ranked[: len(own)]} == own
    assert all(np.isfinite(hit.score) for hit in ranked)
    for hit in ranked:
        assert hit.box is None or 0 <= hit.box.x0 < hit.box.x1 <= 1


def test_a_nan_in_the_index_is_a_typed_error_and_no_ranking(tmp_path: Path) -> None:
    first, _ = planted()
    first[20, 5] = np.nan
    with pytest.raises(RisError):
        searched([shard(tmp_path / "s1", first, 1, 0)])


def test_of_frames_that_are_all_alike_none_is_followed(tmp_path: Path) -> None:
    """An empty place all day: what is in the box is background, everywhere."""
    empty = scene(5)
    ranked = searched([shard(tmp_path / "s1", empty, 1, 0)])
    assert len(ranked) == FRAMES - 1
    assert not any(hit.on_trail for hit in ranked)


def test_nothing_is_followed_across_a_gap_in_the_recording(tmp_path: Path) -> None:
    first, _ = planted()
    pinned = shard(tmp_path / "s1", first, 1, 0)
    later = np.arange(FRAMES) >= 9
    gap = replace(pinned, t_epoch_s=pinned.t_epoch_s + 3600.0 * later)
    ranked = searched([gap])
    followed = {hit.frame_id for hit in ranked if hit.on_trail}
    assert followed == {frame for frame in WALK if frame < 9 and frame != 7}


def test_chance_is_judged_on_all_frames_of_the_search(shards: list[PinnedShard]) -> None:
    """Whether 6 or all frames go on to stage 2, a hit is stated about alike."""
    whole = {hit.frame_id: hit.false_matches for hit in searched(shards)}
    for hit in searched(shards, top_n=6):
        stated, known = hit.false_matches, whole[hit.frame_id]
        assert stated is not None and known is not None
        assert stated == pytest.approx(known, rel=0.6, abs=0.3)


def test_without_a_look_at_all_frames_nothing_is_said_of_chance(
    shards: list[PinnedShard],
) -> None:
    ranked = search_shards(
        IndexStore(Path("unused")),
        shards,
        query_at(7),
        SearchParams(top_n=4),
        tau=0.5,
        grid=GRID,
        exclude_frame_id=7,
        compact=CompactCache(max_bytes=0),
    )
    assert all(hit.false_matches is None for hit in ranked)
