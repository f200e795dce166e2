"""Stage 2 over vector files against core on the full similarity matrix: chunks change nothing."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.index.shards import CELLS, PATCH_DIM, few_valued, layout_in, pinned, random_descriptors
from worker.core.ranking import max_similarity_score
from worker.core.region_growing import coverage, grow_region, grow_seedless, region_score
from worker.core.search_params import SearchParams, Strategy
from worker.core.similarity import cosine_matrix
from worker.core.types import Descriptors, GridSize
from worker.core.voting import (
    Neighbours,
    VoteArray,
    majority_vote,
    nearest_neighbours,
    unique_vote,
    weighted_unique_vote,
    weighted_vote,
)
from worker.errors import IndexDamaged
from worker.index.candidates import global_candidates
from worker.index.store import IndexStore, PinnedShard
from worker.patch_cosines import candidate_similarities
from worker.ranked_frame import QueryDescriptors, RankedFrame
from worker.two_stage import exhaustive, search_shards

GRID = GridSize(2, 3)
QUERY_CELLS = np.array([(0, 0), (0, 1), (1, 1), (1, 2)], dtype=np.int64)
VOTES: dict[str, Callable[[Neighbours, int], VoteArray]] = {
    "vote-majority": majority_vote,
    "vote-unique": unique_vote,
    "vote-weighted": lambda near, n: weighted_vote(near, n, 1e-3),
    "vote-weighted-unique": lambda near, n: weighted_unique_vote(near, n, 1e-3),
}


def split(folder: Path, made: Descriptors, sizes: Sequence[int]) -> list[PinnedShard]:
    """Frames 1..n in file order, cut into shards."""
    shards, start = [], 0
    for number, n in enumerate(sizes):
        part = Descriptors(made.global_nd[start : start + n], made.patches_ncd[start : start + n])
        shards.append(
            pinned(
                layout_in(folder / f"s{number}"),
                part,
                range(start + 1, start + n + 1),
                shard_id=number,
                t_epoch_s=range(start, start + n),
            )
        )
        start += n
    return shards


def query_of(made: Descriptors) -> QueryDescriptors:
    patches_qd = made.patches_ncd[0][: len(QUERY_CELLS)]
    return QueryDescriptors(patches_qd, QUERY_CELLS, made.global_nd[0])


def searched(
    folder: Path, shards: Sequence[PinnedShard], query: QueryDescriptors, **params: object
) -> list[RankedFrame]:
    return search_shards(
        IndexStore(folder),
        shards,
        query,
        SearchParams(**params),  # type: ignore[arg-type]
        tau=0.5,
        grid=GRID,
    )


@pytest.mark.parametrize("frames_per_chunk", [1, 2, 64])
def test_candidate_similarities_are_the_cosine_matrix(
    tmp_path: Path, frames_per_chunk: int
) -> None:
    made = random_descriptors(9)
    shards = split(tmp_path, made, [2, 4, 3])
    query = query_of(random_descriptors(1, seed=5))
    candidates = global_candidates(IndexStore(tmp_path), shards, query.global_d, 7)
    seen = []
    for chunk in candidate_similarities(shards, candidates, query.patches_qd, frames_per_chunk):
        assert len(chunk.position) <= frames_per_chunk
        for position, similarity_qc in zip(chunk.position, chunk.similarity_mqc, strict=True):
            frame = candidates.frame_id[position]
            expected = cosine_matrix(query.patches_qd, made.patches_ncd[frame - 1])
            np.testing.assert_allclose(similarity_qc, expected, atol=1e-6)
            seen.append(int(position))
    assert sorted(seen) == list(range(7))


@settings(max_examples=25, deadline=None)
@given(
    strategy=st.sampled_from(sorted(VOTES)),
    n=st.integers(1, 80),
    cuts=st.lists(st.integers(1, 40), max_size=3),
    k=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_votes_are_those_of_the_reference_ties_included(
    strategy: str, n: int, cuts: list[int], k: int, seed: int
) -> None:
    """Whole-number descriptors tie often and exactly: the better candidate must win each tie."""
    made = few_valued(n, seed)
    query = query_of(few_valued(1, seed + 1000))
    bounds = sorted({0, n, *(cut for cut in cuts if cut < n)})
    sizes = [b - a for a, b in itertools.pairwise(bounds)]
    with tempfile.TemporaryDirectory() as folder:
        shards = split(Path(folder), made, sizes)
        candidates = global_candidates(IndexStore(Path(folder)), shards, query.global_d, 200)
        in_order = made.patches_ncd[candidates.frame_id - 1].reshape(-1, PATCH_DIM)
        neighbours = nearest_neighbours(
            cosine_matrix(query.patches_qd, in_order), np.repeat(np.arange(n), CELLS), k
        )
        expected = VOTES[strategy](neighbours, n)
        ranked = searched(Path(folder), shards, query, strategy=Strategy(strategy), k=k)
    votes = {hit.frame_id: hit.score for hit in ranked}
    expected_votes = dict(zip(candidates.frame_id.tolist(), expected.tolist(), strict=True))
    assert votes == pytest.approx(expected_votes, rel=1e-9)
    keys = [(-hit.score, -hit.global_score, hit.frame_id) for hit in ranked]
    assert keys == sorted(keys)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("mode", ["rigid", "elastic"])
def test_growing_is_that_of_core(tmp_path: Path, mode: str, alpha: float) -> None:
    made = random_descriptors(90)
    shards = split(tmp_path, made, [70, 20])
    query = query_of(random_descriptors(1, seed=5))
    ranked = searched(
        tmp_path, shards, query, strategy=Strategy(f"grow-{mode}"), tau=0.5, alpha=alpha, limit=90
    )
    assert len(ranked) == 90
    for hit in ranked:
        similarity_qc = cosine_matrix(query.patches_qd, made.patches_ncd[hit.frame_id - 1])
        region = grow_seedless(similarity_qc, QUERY_CELLS, GRID, 0.5, mode)  # type: ignore[arg-type]
        if region is None:
            assert (hit.region, hit.score, hit.coverage, hit.similarity) == (None, 0.0, 0.0, 0.0)
            continue
        assert hit.region is not None
        np.testing.assert_array_equal(hit.region.query_index, region.query_index)
        np.testing.assert_array_equal(hit.region.cell_index, region.cell_index)
        expected = region_score(similarity_qc, region, alpha, "distinct")
        assert hit.score == pytest.approx(expected, abs=1e-6)
        assert hit.coverage == coverage(region, 4, "distinct")


@pytest.mark.parametrize("mode", ["rigid", "elastic"])
def test_the_papers_growing_is_that_of_core(tmp_path: Path, mode: str) -> None:
    made = random_descriptors(90)
    shards = split(tmp_path, made, [50, 40])
    query = query_of(random_descriptors(1, seed=5))
    ranked = searched(tmp_path, shards, query, strategy=Strategy(f"paper-{mode}"), k_s=2)
    assert len(ranked) == 50
    for hit in ranked:
        similarity_qc = cosine_matrix(query.patches_qd, made.patches_ncd[hit.frame_id - 1])
        region = grow_region(similarity_qc, QUERY_CELLS, GRID, 0.6, mode, k=5, k_s=2)  # type: ignore[arg-type]
        expected = 0.0
        if region is not None:
            expected = region_score(similarity_qc, region, 1.0, "literal")
        assert hit.score == pytest.approx(expected, abs=1e-6)


def test_max_similarity_and_its_proof_are_those_of_core(tmp_path: Path) -> None:
    made = random_descriptors(70)
    shards = split(tmp_path, made, [70])
    query = query_of(random_descriptors(1, seed=5))
    ranked = searched(tmp_path, shards, query, strategy=Strategy.MAX_SIM, limit=10)
    for place, hit in enumerate(ranked):
        similarity_qc = cosine_matrix(query.patches_qd, made.patches_ncd[hit.frame_id - 1])
        assert hit.score == pytest.approx(max_similarity_score(similarity_qc), abs=1e-6)
        region = grow_seedless(similarity_qc, QUERY_CELLS, GRID, 0.5, "rigid")
        if place >= 10 or region is None:
            assert hit.region is None
        else:
            assert hit.region is not None
            np.testing.assert_array_equal(hit.region.cell_index, region.cell_index)
    default = searched(tmp_path, shards, query, limit=10)
    fused = searched(tmp_path, shards, query, strategy=Strategy.FUSED, limit=10)
    assert [hit.score for hit in default] == [hit.score for hit in fused]


def test_the_whole_frame_baseline_is_the_global_score(tmp_path: Path) -> None:
    made = random_descriptors(20)
    shards = split(tmp_path, made, [12, 8])
    query = query_of(random_descriptors(1, seed=5))
    ranked = searched(tmp_path, shards, query, strategy=Strategy.WHOLE_FRAME)
    score = made.global_nd @ query.global_d
    assert [hit.frame_id for hit in ranked] == (np.argsort(-score) + 1).tolist()


@pytest.mark.parametrize("strategy", sorted(Strategy))
def test_files_cut_in_other_ways_give_the_same_ranking(tmp_path: Path, strategy: Strategy) -> None:
    """Ties too: chunks, shards and reads are no part of the result."""
    made = few_valued(130, seed=4)
    query = query_of(few_valued(1, seed=8))
    rankings = []
    for number, sizes in enumerate(([130], [1, 128, 1], [40, 50, 40])):
        folder = tmp_path / str(number)
        ranked = searched(folder, split(folder, made, sizes), query, strategy=strategy, k=7)
        rankings.append([(hit.frame_id, hit.score) for hit in ranked])
    assert rankings[0] == rankings[1] == rankings[2]


@pytest.mark.parametrize("strategy", ["max-sim", "vote-unique", "grow-rigid", "whole-frame"])
def test_an_excluded_frame_costs_no_candidate(tmp_path: Path, strategy: str) -> None:
    made = random_descriptors(20)
    shards = split(tmp_path, made, [20])
    query = query_of(made)
    ranked = search_shards(
        IndexStore(tmp_path),
        shards,
        query,
        SearchParams(strategy=Strategy(strategy), top_n=6, tau=0.5),
        tau=0.5,
        grid=GRID,
        exclude_frame_id=1,
    )
    score = made.global_nd @ query.global_d
    assert {hit.frame_id for hit in ranked} == set((np.argsort(-score)[1:7] + 1).tolist())


def test_nothing_to_search_is_no_hit(tmp_path: Path) -> None:
    query = query_of(random_descriptors(1))
    for strategy in Strategy:
        assert searched(tmp_path, [], query, strategy=strategy) == []


def test_an_exhaustive_search_keeps_every_frame() -> None:
    assert exhaustive(SearchParams(top_n=3), 500).top_n == 500
    assert exhaustive(SearchParams(), 0).top_n == 1
    assert exhaustive(SearchParams(), 50_000).top_n == 10_000


def test_a_cut_off_patch_file_is_damage(tmp_path: Path) -> None:
    shards = split(tmp_path, random_descriptors(4), [4])
    with shards[0].layout.path("patch").open("r+b") as file:
        file.truncate(4400)
    with pytest.raises(IndexDamaged, match=r"patch\.vec"):
        searched(tmp_path, shards, query_of(random_descriptors(1)))


@pytest.mark.parametrize("strategy", sorted(VOTES))
def test_votes_over_the_whole_index_equal_votes_over_every_frame_as_candidate(
    tmp_path: Path, strategy: str
) -> None:
    shards = split(tmp_path, random_descriptors(9), [2, 4, 3])
    query = query_of(random_descriptors(1, seed=5))
    gated = searched(tmp_path, shards, query, strategy=Strategy(strategy), top_n=9)
    whole = searched(tmp_path, shards, query, strategy=Strategy(strategy), vote_scope="index")
    voted = [(hit.frame_id, hit.score) for hit in gated if hit.score > 0]
    assert [hit.frame_id for hit in whole] == [frame_id for frame_id, _ in voted]
    assert [hit.score for hit in whole] == pytest.approx([score for _, score in voted])


def test_votes_over_the_whole_index_respect_time_and_the_excluded_frame(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    made = random_descriptors(9)
    shards = split(tmp_path, made, [2, 4, 3])
    params = SearchParams(
        strategy=Strategy.VOTE_UNIQUE,
        vote_scope="index",
        t_from_utc=datetime.fromtimestamp(float(shards[1].t_epoch_s[1]), UTC),
        k=50,
    )
    found = search_shards(
        IndexStore(tmp_path), shards, query_of(made), params, tau=0.5, grid=GRID, exclude_frame_id=5
    )
    least = shards[1].t_epoch_s[1]
    expected = {
        int(frame_id)
        for shard in shards
        for frame_id, t in zip(shard.f_map.frame_id, shard.t_epoch_s, strict=True)
        if t >= least and frame_id != 5
    }
    assert {hit.frame_id for hit in found} == expected
    empty = SearchParams(
        strategy=Strategy.VOTE_UNIQUE,
        vote_scope="index",
        t_from_utc=datetime.fromtimestamp(4e9, UTC),
    )
    assert (
        search_shards(IndexStore(tmp_path), shards, query_of(made), empty, tau=0.5, grid=GRID) == []
    )
