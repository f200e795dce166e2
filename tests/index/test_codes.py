"""Compact codes: the fast scan against its reference, the file, and the cache over both."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.index.shards import CELLS, layout_in, pinned, random_descriptors
from worker.core.coarse import CoarseQuery, best_similarity
from worker.core.compact import Codes, CompactBasis, fit_basis
from worker.core.similarity import l2_normalise
from worker.core.types import FloatArray
from worker.errors import IndexDamaged, InputInvalid, StorageFailed
from worker.index import compact_cache, global_cache
from worker.index.codes_file import CodesLayout, damaged_codes, map_codes, write_codes
from worker.index.compact_cache import CompactCache, codes_layout, run_codes_layout
from worker.index.layout import HEADER_BYTES
from worker.index.run_codes_file import map_run_codes
from worker.index.store import PinnedShard
from worker.kernels.coarse import best_similarities


@settings(max_examples=60)
@given(
    n=st.integers(1, 200),
    cells=st.integers(1, 40),
    queries=st.integers(1, 35),
    k=st.sampled_from([4, 16, 63, 64]),
    background=st.booleans(),
    zone=st.booleans(),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_fast_scan_is_the_reference_but_for_rounding(
    n: int, cells: int, queries: int, k: int, background: bool, zone: bool, threads: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    stored = l2_normalise(rng.standard_normal((n, cells, k)))
    step = 1.5 / 127
    padded = rng.integers(-128, 128, (n, cells + int(rng.integers(0, 2)), k), dtype=np.int8)
    codes = padded[:, :cells]
    codes[:] = np.rint(stored / step)
    query_qk = l2_normalise(rng.standard_normal((queries, k)))
    background_ck = l2_normalise(rng.standard_normal((cells, k))) if background else None
    inside_c = rng.random(cells) < 0.4 if zone else None
    if inside_c is not None:
        inside_c[rng.integers(0, cells)] = True
    fast = best_similarities(
        ((start, padded[start : start + 64]) for start in range(0, n, 64)),
        n,
        step,
        query_qk,
        background_ck,
        threads,
        cells,
        inside_c,
    )
    slow = best_similarity(np.ascontiguousarray(codes), step, query_qk, background_ck, inside_c)
    assert fast.shape == slow.shape == (n, queries)
    np.testing.assert_allclose(fast, slow, atol=0.01)


def test_likeness_weighs_cells_exemplars_and_what_speaks_against() -> None:
    query = CoarseQuery(
        query_qk=np.zeros((5, 4), np.float32),
        weight_q=np.array([1, 3, 1, 1, 1], np.float32),
        lengths=[2, 1, 1, 1],
        shares=[1.0, 0.5],
        against_weight=0.3,
    )
    best_nq = np.array([[0.2, 0.4, 0.8, 0.1, 0.6]], np.float32)
    expected = ((0.2 + 3 * 0.4) / 4 + 0.5 * 0.8) / 1.5 - 0.3 * 0.6
    np.testing.assert_allclose(query.likeness(best_nq), [expected], rtol=1e-6)
    with pytest.raises(InputInvalid):
        replace(query, lengths=[1, 1])


def random_codes(n: int, seed: int = 0, k: int = 4) -> Codes:
    rng = np.random.default_rng(seed)
    return rng.integers(-127, 128, (n, CELLS, k), dtype=np.int8)


@pytest.fixture
def layout(tmp_path: Path) -> CodesLayout:
    return CodesLayout(tmp_path, "a" * 16, CELLS, 4)


def test_what_was_written_is_mapped(layout: CodesLayout) -> None:
    codes = random_codes(9)
    write_codes(layout, 0, codes[:5])
    write_codes(layout, 5, codes[5:])
    mapped = map_codes(layout, 9)
    np.testing.assert_array_equal(mapped.rows[:, :CELLS], codes)
    assert damaged_codes(layout, 0, 9) == []
    write_codes(layout, 6, codes[:3])  # what lay behind a commit that never came
    np.testing.assert_array_equal(map_codes(layout, 9).rows[6:, :CELLS], codes[:3])


def test_every_flipped_bit_and_cut_is_found(layout: CodesLayout) -> None:
    write_codes(layout, 0, random_codes(4))
    content = layout.path.read_bytes()
    rng = np.random.default_rng(1)
    used = layout.code_bytes + 4
    for number in range(200):
        block = int(rng.integers(0, 4))
        in_header = number % 4 == 0
        at = (
            int(rng.integers(0, HEADER_BYTES))
            if in_header
            else HEADER_BYTES + block * layout.block_bytes + int(rng.integers(0, used))
        )
        harmed = bytearray(content)
        harmed[at] ^= 1 << int(rng.integers(0, 8))
        layout.path.write_bytes(harmed)
        if in_header:
            with pytest.raises(IndexDamaged):
                map_codes(layout, 4)
        else:
            assert damaged_codes(layout, 0, 4) == [block]
    layout.path.write_bytes(content[:-1])
    with pytest.raises(IndexDamaged, match="shorter"):
        map_codes(layout, 4)
    assert map_codes(layout, 3).rows.shape[0] == 3
    layout.path.unlink()
    with pytest.raises(IndexDamaged, match="No such file"):
        map_codes(layout, 1)


def test_bytes_behind_a_blocks_checksum_are_checked_too(tmp_path: Path) -> None:
    layout = CodesLayout(tmp_path, "b", cells=3, code_dim=8)
    write_codes(layout, 0, random_codes(2, k=8)[:, :3])
    content = bytearray(layout.path.read_bytes())
    content[-1] ^= 1
    layout.path.write_bytes(content)
    assert damaged_codes(layout, 0, 2) == [1]


def test_codes_of_another_basis_are_not_taken(layout: CodesLayout) -> None:
    write_codes(layout, 0, random_codes(2))
    for other in (replace(layout, basis_name="b" * 16), replace(layout, code_dim=8)):
        with pytest.raises(IndexDamaged):
            map_codes(other, 2)


def test_a_folder_that_is_gone_is_told(layout: CodesLayout, tmp_path: Path) -> None:
    with pytest.raises(StorageFailed):
        write_codes(replace(layout, folder=tmp_path / "gone"), 0, random_codes(2))


@pytest.fixture
def shard(tmp_path: Path) -> PinnedShard:
    return pinned(layout_in(tmp_path / "g1" / "s1"), random_descriptors(10), range(10))


@pytest.fixture
def basis(shard: PinnedShard) -> CompactBasis:
    return fit_basis(patches(shard).reshape(-1, 4))


def patches(shard: PinnedShard) -> FloatArray:
    return shard.read("patch", np.arange(shard.blocks))


def coded(shard: PinnedShard, basis: CompactBasis, count: int) -> PinnedShard:
    """The shard with codes of its first blocks on disk, each one more than it should be."""
    write_codes(codes_layout(shard, basis), 0, basis.encode(patches(shard))[:count] + np.int8(1))
    return replace(shard, coded=count)


def read(cache: CompactCache, shard: PinnedShard, basis: CompactBasis) -> Codes:
    cache.learn(str(shard.layout.folder.parent), basis)
    parts = list(cache.chunks(shard, basis, 3))
    starts = np.cumsum([0, *(len(codes) for _, codes in parts)])[:-1]
    assert [start for start, _ in parts] == starts.tolist()
    return np.concatenate([codes[:, :CELLS] for _, codes in parts])


def test_codes_come_from_the_file_and_the_rest_from_the_vectors(
    shard: PinnedShard, basis: CompactBasis
) -> None:
    made = basis.encode(patches(shard))
    cache = CompactCache()
    for count in (6, 8, 10):
        found = read(cache, coded(shard, basis, count), basis)
        np.testing.assert_array_equal(found[:count], made[:count] + np.int8(1))
        np.testing.assert_array_equal(found[count:], made[count:])
    np.testing.assert_array_equal(read(CompactCache(), shard, basis), made)


def test_frames_left_out_are_left_out_of_the_codes(shard: PinnedShard, basis: CompactBasis) -> None:
    made = basis.encode(patches(shard))
    made[:7] += np.int8(1)
    on_disk = coded(shard, basis, 7)
    kept = np.array([0, 1, 3, 4, 6, 8, 9])
    part = replace(
        on_disk, blocks=kept.size, stored_n=kept, sums_n2=shard.sums_n2[kept], lost=(2, 5, 7)
    )
    np.testing.assert_array_equal(read(CompactCache(), part, basis), made[kept])


def test_a_damaged_file_is_not_used(shard: PinnedShard, basis: CompactBasis) -> None:
    on_disk = coded(shard, basis, 10)
    path = codes_layout(shard, basis).path
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES + 3] ^= 4
    path.write_bytes(content)
    cache = CompactCache()
    np.testing.assert_array_equal(read(cache, on_disk, basis), basis.encode(patches(shard)))
    assert CompactCache(max_bytes=0).fits([on_disk])
    small = CompactCache(max_bytes=0)
    read(small, on_disk, basis)
    assert not small.fits([on_disk])  # now that it is known to be damaged


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process may open no more files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_process_at_its_limit_finds_no_damage(shard: PinnedShard, basis: CompactBasis) -> None:
    on_disk, small = coded(shard, basis, 10), CompactCache(max_bytes=0)
    rows = run_codes_layout(replace(shard.layout, sealed=4), basis)
    with no_descriptors():
        with pytest.raises(StorageFailed, match=r"codes\.vec"):
            read(small, on_disk, basis)
        with pytest.raises(StorageFailed, match=r"codes\.runs"):
            map_run_codes(rows, check=False)
        with pytest.raises(StorageFailed, match=r"global\.vec"):
            global_cache._map(shard.layout, shard.blocks)
    assert small.fits([on_disk]) and len(read(small, on_disk, basis)) == 10


def test_another_basis_replaces_the_fitted_one(shard: PinnedShard, basis: CompactBasis) -> None:
    cache = CompactCache()
    cache.basis([shard])
    cache.let_go()
    assert not cache._fitted
    own = cache.basis([shard])
    list(cache.chunks(shard, own, 100))
    other = replace(basis, step=basis.step * 2)
    np.testing.assert_array_equal(read(cache, shard, other), other.encode(patches(shard)))
    assert cache.basis([shard]) is other
    assert cache.knows(str(shard.layout.folder.parent), other.name)
    cache.let_go()  # for an erasure that another search was told of, after this one learnt it
    assert cache.basis([shard]) is other
    assert cache.knows(str(shard.layout.folder.parent), other.name)


def test_files_are_mapped_within_a_bound_and_checked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [
        pinned(layout_in(tmp_path / "g1" / f"s{i}"), random_descriptors(4, i), range(4), shard_id=i)
        for i in range(5)
    ]
    basis = fit_basis(patches(shards[0]).reshape(-1, 4))
    on_disk = [coded(shard, basis, 4) for shard in shards]
    cache = CompactCache(max_mapped=2)
    first = [read(cache, shard, basis) for shard in on_disk]
    assert len(cache._mapped) == 2
    looked: list[range] = []

    def looks(_: CodesLayout, first_block: int, count: int) -> list[int]:
        looked.append(range(first_block, count))
        return []

    monkeypatch.setattr(compact_cache, "damaged_codes", looks)
    for shard, codes in zip(on_disk, first, strict=True):
        np.testing.assert_array_equal(read(cache, shard, basis), codes)
    assert looked and not any(looked)


def test_codes_of_a_late_search_with_the_former_basis_are_not_taken(
    shard: PinnedShard, basis: CompactBasis
) -> None:
    cache = CompactCache()
    former = replace(basis, step=basis.step * 2)
    read(cache, shard, basis)
    list(cache.chunks(shard, former, 100))  # began before the recorded basis was learnt
    np.testing.assert_array_equal(read(cache, shard, basis), basis.encode(patches(shard)))
