"""Stage 1 and the whole-index patch search against brute force in numpy."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.index.shards import (
    CELLS,
    few_valued,
    layout_in,
    pinned,
    random_descriptors,
    read_blocks,
)
from worker.core.types import Descriptors
from worker.errors import IndexDamaged
from worker.index.candidates import TimeSpan, global_candidates, patch_neighbours
from worker.index.shard import append_blocks
from worker.index.store import IndexStore, PinnedShard
from worker.kernels.directions import direction_cosines

# Times of frames are halves: bounds fall on them, between them and outside.
BOUNDS_S = st.integers(-4, 44).map(lambda quarter: quarter / 4)
ASKED = given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    top_n=st.integers(1, 40),
    seed=st.integers(0, 50),
    t_from=st.none() | BOUNDS_S,
    t_to=st.none() | BOUNDS_S,
)


def made_shards(folder: Path, sizes: Sequence[int], seed: int, codec: str = "fp32"):
    """Shards whose frame ids are mixed up, with times that overlap between shards."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(sum(sizes)) + 1
    shards, start = [], 0
    for number, n in enumerate(sizes):
        shards.append(
            pinned(
                layout_in(folder / f"s{number}", codec),
                random_descriptors(n, seed=seed * 100 + number),
                ids[start : start + n].tolist(),
                (rng.integers(0, 20, n) / 2).tolist(),
                shard_id=number,
                camera_id=number % 2 + 1,
            )
        )
        start += n
    return shards


def all_globals(shards: Sequence[PinnedShard]):
    """frame id, time and stored global descriptor of every frame."""
    frame_id = np.concatenate([shard.f_map.frame_id for shard in shards])
    t_epoch_s = np.concatenate([shard.t_epoch_s for shard in shards])
    stored = [read_blocks(shard.layout, "global", 0, shard.blocks) for shard in shards]
    return frame_id, t_epoch_s, np.concatenate(stored)


@settings(max_examples=40, deadline=None)
@ASKED
def test_candidates_are_those_of_brute_force_and_never_fewer(
    sizes: list[int], top_n: int, seed: int, t_from: float | None, t_to: float | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shards = made_shards(Path(folder), sizes, seed)
        query_d = random_descriptors(1, seed=999).global_nd[0]
        frame_id, t_epoch_s, global_nd = all_globals(shards)
        inside = np.ones(frame_id.size, dtype=bool)
        if t_from is not None:
            inside &= t_epoch_s >= t_from
        if t_to is not None:
            inside &= t_epoch_s < t_to
        score = (global_nd @ query_d)[inside]
        order = np.lexsort((frame_id[inside], -score))[:top_n]
        found = global_candidates(
            IndexStore(Path(folder)),
            shards,
            query_d,
            top_n,
            t_from_epoch_s=t_from,
            t_to_epoch_s=t_to,
        )
        assert found.count == min(top_n, int(inside.sum()))
        assert found.frame_id.tolist() == frame_id[inside][order].tolist()
        np.testing.assert_allclose(found.score_n, score[order], atol=1e-6)
        for position, block, frame in zip(
            found.shard_position, found.block, found.frame_id, strict=True
        ):
            assert shards[position].f_map.frame_id[block] == frame


@settings(max_examples=40, deadline=None)
@ASKED
def test_bytes_give_the_candidates_of_brute_force(
    sizes: list[int], top_n: int, seed: int, t_from: float | None, t_to: float | None
) -> None:
    span = TimeSpan(t_from_epoch_s=t_from, t_to_epoch_s=t_to)
    with tempfile.TemporaryDirectory() as folder:
        shards = made_shards(Path(folder), sizes, seed, codec="int8")
        query_d = random_descriptors(1, seed=999).global_nd[0]
        store = IndexStore(Path(folder))
        decoded = global_candidates(store, shards, query_d, top_n, **span)
        found = global_candidates(
            store, shards, query_d, top_n, int8_cosines=direction_cosines, **span
        )
    assert found.count == decoded.count
    np.testing.assert_allclose(found.score_n, decoded.score_n, atol=1e-5)  # rounding may swap two
    for position, block, frame in zip(
        found.shard_position, found.block, found.frame_id, strict=True
    ):
        assert shards[position].f_map.frame_id[block] == frame
        assert t_from is None or shards[position].t_epoch_s[block] >= t_from
        assert t_to is None or shards[position].t_epoch_s[block] < t_to
    assert np.unique(found.frame_id).size == found.count


def test_equal_frames_of_bytes_are_ordered_by_id(tmp_path: Path) -> None:
    one = random_descriptors(1)
    same = Descriptors(np.repeat(one.global_nd, 4, 0), np.repeat(one.patches_ncd, 4, 0))
    shards = [
        pinned(layout_in(tmp_path / "a", "int8"), same, [8, 3, 5, 2], shard_id=1),
        pinned(layout_in(tmp_path / "b", "int8"), same, [7, 1, 6, 4], shard_id=2),
    ]
    found = global_candidates(
        IndexStore(tmp_path), shards, one.global_nd[0], 3, int8_cosines=direction_cosines
    )
    assert found.frame_id.tolist() == [1, 2, 3]


def test_more_candidates_than_frames_are_all_frames(tmp_path: Path) -> None:
    shards = made_shards(tmp_path, [3, 2], seed=1)
    query_d = random_descriptors(1).global_nd[0]
    found = global_candidates(IndexStore(tmp_path), shards, query_d, 10_000)
    assert sorted(found.frame_id.tolist()) == [1, 2, 3, 4, 5]


def test_equal_frames_are_ordered_by_id(tmp_path: Path) -> None:
    one = random_descriptors(1)
    same = Descriptors(np.repeat(one.global_nd, 4, 0), np.repeat(one.patches_ncd, 4, 0))
    shards = [
        pinned(layout_in(tmp_path / "a"), same, [8, 3, 5, 2], shard_id=1),
        pinned(layout_in(tmp_path / "b"), same, [7, 1, 6, 4], shard_id=2),
    ]
    found = global_candidates(IndexStore(tmp_path), shards, one.global_nd[0], 8)
    assert found.frame_id.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_no_shard_or_an_empty_time_span_is_no_candidate(tmp_path: Path) -> None:
    query_d = random_descriptors(1).global_nd[0]
    store = IndexStore(tmp_path)
    assert global_candidates(store, [], query_d, 5).count == 0
    shards = made_shards(tmp_path, [3], seed=1)
    assert global_candidates(store, shards, query_d, 5, t_from_epoch_s=1e9).count == 0
    assert global_candidates(store, shards, query_d, 5, t_to_epoch_s=-1.0).count == 0


def test_rows_appended_later_are_seen_and_older_pins_do_not_see_them(tmp_path: Path) -> None:
    made = random_descriptors(5)
    layout = layout_in(tmp_path / "s1")
    first = pinned(layout, Descriptors(made.global_nd[:3], made.patches_ncd[:3]), [1, 2, 3])
    store = IndexStore(tmp_path)
    query_d = made.global_nd[4]
    assert global_candidates(store, [first], query_d, 9).count == 3
    later = pinned(layout_in(tmp_path / "other"), made, [1, 2, 3, 4, 5])
    append_blocks(layout, 3, Descriptors(made.global_nd[3:], made.patches_ncd[3:]))
    later = replace(later, layout=layout)
    assert global_candidates(store, [later], query_d, 9).frame_id[0] == 5
    assert global_candidates(store, [first], query_d, 9).count == 3
    np.testing.assert_array_equal(store.global_descriptors(later), made.global_nd)


@pytest.mark.parametrize("codec", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("blocks_per_read", [1, 3, 64])
def test_patch_neighbours_are_those_of_brute_force(
    tmp_path: Path, codec: str, blocks_per_read: int
) -> None:
    shards = made_shards(tmp_path, [5, 2, 7], seed=3, codec=codec)
    query_qd = random_descriptors(1, seed=77).patches_ncd[0]
    patches = np.concatenate([read_blocks(s.layout, "patch", 0, s.blocks) for s in shards])
    frame_id = np.repeat(np.concatenate([s.f_map.frame_id for s in shards]), CELLS)
    cosine = query_qd @ patches.reshape(-1, patches.shape[2]).T
    order = np.argsort(-cosine, axis=1)[:, :10]
    score, frames = patch_neighbours(shards, query_qd, 10, blocks_per_read)
    np.testing.assert_allclose(score, np.take_along_axis(cosine, order, 1), atol=1e-6)
    np.testing.assert_array_equal(frames, frame_id[order])


def test_fewer_patches_than_neighbours_leave_empty_slots(tmp_path: Path) -> None:
    shards = made_shards(tmp_path, [1], seed=3)
    query_qd = random_descriptors(1, seed=77).patches_ncd[0]
    score, frames = patch_neighbours(shards, query_qd, CELLS + 2)
    assert (frames[:, :CELLS] == 1).all()
    assert (frames[:, CELLS:] == -1).all()
    assert np.isneginf(score[:, CELLS:]).all()


def test_a_nan_in_the_files_is_damage_not_another_frame(tmp_path: Path) -> None:
    made = few_valued(3, seed=1)
    made.global_nd[1] = np.nan
    made.patches_ncd[1] = np.nan
    shards = [pinned(layout_in(tmp_path / "s1"), made, [1, 2, 3])]
    query = random_descriptors(1)
    with pytest.raises(IndexDamaged, match=r"s1.*NaN"):
        global_candidates(IndexStore(tmp_path), shards, query.global_nd[0], 3)
    with pytest.raises(IndexDamaged, match=r"s1.*NaN"):
        patch_neighbours(shards, query.patches_ncd[0], 3 * CELLS)
