"""Examples of a person: what is confirmed is searched for and followed, what is refused is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.index.test_fused import (
    GRID,
    OTHER_WALK,
    ROW,
    WALK,
    planted,
    query_at,
    shard,
    walker_col,
)
from worker.core.search_params import SearchParams, Strategy
from worker.core.types import Box
from worker.index.store import IndexStore, PinnedShard
from worker.ranked_frame import ExampleDescriptors, QueryDescriptors, RankedFrame
from worker.two_stage import search_shards


@pytest.fixture
def shards(tmp_path: Path) -> list[PinnedShard]:
    first, second = planted()
    return [shard(tmp_path / "s1", first, 1, 0), shard(tmp_path / "s2", second, 2, 100)]


def example(frame_id: int, row: int, col: int, rows: int = 2, cols: int = 1) -> ExampleDescriptors:
    """A box of whole cells on a planted frame."""
    first, second = planted()
    patches_cd = first[frame_id] if frame_id < 100 else second[frame_id - 100]
    cells = np.array([(row + r, col + c) for r in range(rows) for c in range(cols)], dtype=np.int64)
    box = Box(col / GRID.w, row / GRID.h, (col + cols) / GRID.w, (row + rows) / GRID.h)
    return ExampleDescriptors(frame_id, patches_cd[cells[:, 0] * GRID.w + cells[:, 1]], cells, box)


def searched(
    shards: list[PinnedShard], query: QueryDescriptors, frame: int | None = 7, **params: object
) -> list[RankedFrame]:
    return search_shards(
        IndexStore(Path("unused")),
        shards,
        query,
        SearchParams(**params),  # type: ignore[arg-type]
        tau=0.5,
        grid=GRID,
        exclude_frame_id=frame,
    )


def followed(ranked: list[RankedFrame]) -> set[int]:
    return {hit.frame_id for hit in ranked if hit.on_trail}


@pytest.mark.parametrize("top_n", [3, 500])
def test_more_is_followed_through_its_own_camera(shards: list[PinnedShard], top_n: int) -> None:
    alone = searched(shards, query_at(7), top_n=top_n)
    assert all(frame_id < 100 for frame_id in followed(alone))
    more = example(100 + OTHER_WALK[0], 5, 2)
    ranked = searched(shards, replace(query_at(7), more=(more,)), top_n=top_n)
    other = {frame_id for frame_id in followed(ranked) if frame_id >= 100}
    assert {100 + frame for frame in OTHER_WALK} <= other
    boxes = {hit.frame_id: hit.box for hit in ranked}
    assert boxes[100 + OTHER_WALK[0]] == more.box, "its own frame shows the box that was drawn"


def test_more_helps_a_picture_from_elsewhere(shards: list[PinnedShard]) -> None:
    """No frame of its own, no trail: the example brings both."""
    assert followed(searched(shards, query_at(7), frame=None)) == set()
    more = example(7, ROW, walker_col(7))
    ranked = searched(shards, replace(query_at(7), more=(more,)), frame=None)
    assert set(WALK) <= followed(ranked)
    assert {hit.frame_id for hit in ranked[: len(WALK)]} == set(WALK)


def test_less_on_a_followed_frame_ends_the_trail_there(shards: list[PinnedShard]) -> None:
    before = followed(searched(shards, query_at(7)))
    wrong = 9
    assert {6, 8, 9, 10} <= before
    less = example(wrong, ROW, walker_col(wrong))
    after = followed(searched(shards, replace(query_at(7), less=(less,))))
    assert after - {7} == {frame for frame in before if frame < wrong} - {7}


def test_less_beside_the_trail_leaves_it(shards: list[PinnedShard]) -> None:
    before = followed(searched(shards, query_at(7)))
    less = example(9, 0, 0)
    assert followed(searched(shards, replace(query_at(7), less=(less,)))) == before


@pytest.mark.parametrize("strategy", ["fused", "grow-rigid"])
@pytest.mark.parametrize("top_n", [14, 500])
def test_what_is_like_less_falls_behind(
    shards: list[PinnedShard], strategy: str, top_n: int
) -> None:
    less = example(100 + OTHER_WALK[0], 5, 2)
    before, after = (
        {
            hit.frame_id: hit.appearance
            for hit in searched(shards, query, strategy=Strategy(strategy), top_n=top_n)
        }
        for query in (query_at(7), replace(query_at(7), less=(less,)))
    )
    fallen = [100 + frame for frame in OTHER_WALK if 100 + frame in before]
    assert fallen
    for frame_id in fallen:
        likeness, now = before[frame_id], after.get(frame_id)
        assert likeness is not None and (now is None or now < likeness - 0.1)


def test_no_examples_change_nothing(shards: list[PinnedShard]) -> None:
    plain = searched(shards, query_at(7))
    empty = searched(shards, replace(query_at(7), more=(), less=()))
    assert [(hit.frame_id, hit.score) for hit in plain] == [
        (hit.frame_id, hit.score) for hit in empty
    ]


def test_an_example_on_a_frame_that_is_not_searched_still_counts(
    shards: list[PinnedShard],
) -> None:
    """Its camera is filtered out: it is not followed, but searched for."""
    more = example(100 + OTHER_WALK[0], 5, 2)
    alone, helped = (
        searched(shards[:1], query) for query in (query_at(7), replace(query_at(7), more=(more,)))
    )
    assert followed(alone) == followed(helped)
    assert [hit.score for hit in alone] != [hit.score for hit in helped]
