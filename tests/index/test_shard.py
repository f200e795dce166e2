"""Vector files: what is written comes back, and damage of every kind is noticed."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.index.shards import (
    CELLS,
    GLOBAL_DIM,
    PATCH_DIM,
    layout_in,
    random_descriptors,
    read_blocks,
)
from worker.core.types import Descriptors
from worker.errors import (
    DescriptorInvalid,
    IndexDamaged,
    InputInvalid,
    StorageFailed,
    StorageFull,
)
from worker.index import shard
from worker.index.codec import codec_named
from worker.index.layout import HEADER_BYTES, ShardLayout
from worker.index.shard import (
    append_blocks,
    check_headers,
    damaged_blocks,
    hold_derived,
    hold_shard,
    is_held,
)


@pytest.fixture
def layout(tmp_path: Path) -> ShardLayout:
    return layout_in(tmp_path / "g1" / "s1")


def test_fp32_comes_back_to_the_bit(layout: ShardLayout) -> None:
    made = random_descriptors(5)
    parts = (slice(2), slice(2, 5))
    first, last = (Descriptors(made.global_nd[p], made.patches_ncd[p]) for p in parts)
    sums_n2 = np.concatenate([append_blocks(layout, 0, first), append_blocks(layout, 2, last)])
    np.testing.assert_array_equal(read_blocks(layout, "global", 0, 5), made.global_nd)
    np.testing.assert_array_equal(read_blocks(layout, "patch", 0, 5), made.patches_ncd)
    np.testing.assert_array_equal(read_blocks(layout, "patch", 3, 1), made.patches_ncd[3:4])
    np.testing.assert_array_equal(
        shard.read_blocks(layout, "patch", [4, 0, 4], sums_n2[[4, 0, 4]]),
        made.patches_ncd[np.array([4, 0, 4])],
    )
    assert read_blocks(layout, "global", 0, 5).dtype == np.float32


@pytest.mark.parametrize(("codec", "promise"), [("fp16", 5e-4), ("int8", 1e-2)])
def test_a_codec_keeps_cosines_within_its_promise(
    tmp_path: Path, codec: str, promise: float
) -> None:
    """With rows of four numbers, where rounding to 8 bits costs most."""
    layout = layout_in(tmp_path, codec)
    made = random_descriptors(40)
    append_blocks(layout, 0, made)
    back = read_blocks(layout, "patch", 0, 40)
    assert back.dtype == np.float32
    cosine = np.einsum("nqd,ncd->nqc", made.patches_ncd, back)
    exact = np.einsum("nqd,ncd->nqc", made.patches_ncd, made.patches_ncd)
    assert 0 < np.abs(cosine - exact).max() < promise
    np.testing.assert_allclose(np.linalg.norm(back, axis=-1), 1, atol=1e-3)


@pytest.mark.parametrize(("codec", "item_bytes"), [("fp32", 4), ("fp16", 2), ("int8", 1)])
def test_a_file_is_a_header_and_blocks_of_one_size(
    tmp_path: Path, codec: str, item_bytes: int
) -> None:
    layout = layout_in(tmp_path, codec)
    append_blocks(layout, 0, random_descriptors(3))
    size = layout.path("patch").stat().st_size
    assert size == HEADER_BYTES + 3 * CELLS * PATCH_DIM * item_bytes
    assert layout.path("global").stat().st_size == HEADER_BYTES + 3 * GLOBAL_DIM * item_bytes


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(InputInvalid, match="fp16, fp32, int8"):
        codec_named("int4")


def test_checksums_are_of_the_stored_bytes(layout: ShardLayout) -> None:
    made = random_descriptors(2)
    crc32s = append_blocks(layout, 0, made)
    first = zlib.crc32(made.patches_ncd[0].tobytes(), zlib.crc32(made.global_nd[0].tobytes()))
    assert crc32s[0].tolist() == [zlib.crc32(made.global_nd[0].tobytes()), first]
    assert damaged_blocks(layout, crc32s) == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda layout: replace(layout, spec_hash="b" * 64),
        lambda layout: replace(layout, codec=codec_named("fp16")),
        lambda layout: replace(layout, cells=CELLS // 2, patch_dim=2 * PATCH_DIM),
    ],
    ids=["spec", "codec", "grid"],
)
def test_files_of_another_spec_are_refused(
    layout: ShardLayout, change: Callable[[ShardLayout], ShardLayout]
) -> None:
    append_blocks(layout, 0, random_descriptors(4))
    before = layout.path("patch").read_bytes()
    other = change(layout)
    with pytest.raises(IndexDamaged, match=r"patch\.vec"):
        read_blocks(other, "patch", 0, 1)
    with pytest.raises(IndexDamaged, match=r"global\.vec|do not fit"):
        append_blocks(other, 4, random_descriptors(1))
    with pytest.raises(IndexDamaged, match="header"):
        check_headers(other)
    assert damaged_blocks(other, np.zeros((1, 2), dtype=np.int64)) in ({0: "global"}, {0: "patch"})
    assert layout.path("patch").read_bytes() == before


def test_swapped_files_are_refused(layout: ShardLayout) -> None:
    append_blocks(layout, 0, random_descriptors(20))
    layout.path("patch").rename(layout.folder / "other")
    layout.path("global").rename(layout.path("patch"))
    (layout.folder / "other").rename(layout.path("global"))
    with pytest.raises(IndexDamaged, match="header"):
        read_blocks(layout, "global", 0, 1)


def test_descriptors_of_another_width_are_refused_before_writing(layout: ShardLayout) -> None:
    made = random_descriptors(2)
    with pytest.raises(IndexDamaged, match="do not fit"):
        append_blocks(layout, 0, Descriptors(made.global_nd, made.patches_ncd[:, 1:]))
    with pytest.raises(IndexDamaged, match="do not fit"):
        append_blocks(layout, 0, Descriptors(made.global_nd[:1], made.patches_ncd))
    assert not layout.folder.exists()


def test_bytes_behind_the_valid_length_do_not_exist_and_are_overwritten(
    layout: ShardLayout,
) -> None:
    kept, lost, new = (random_descriptors(3, seed) for seed in range(3))
    crc32s = append_blocks(layout, 0, kept)
    append_blocks(layout, 3, lost)  # and its commit never came
    with layout.path("patch").open("ab") as file:
        file.write(b"half a block")
    assert damaged_blocks(layout, crc32s) == {}
    np.testing.assert_array_equal(read_blocks(layout, "patch", 0, 3), kept.patches_ncd)
    last = append_blocks(layout, 3, Descriptors(new.global_nd[:1], new.patches_ncd[:1]))
    crc32s = np.concatenate([crc32s, last])
    assert damaged_blocks(layout, crc32s) == {}
    np.testing.assert_array_equal(read_blocks(layout, "patch", 3, 1), new.patches_ncd[:1])
    with pytest.raises(IndexDamaged, match=r"1 blocks are damaged or missing \(4\)"):
        read_blocks(layout, "patch", 3, 2)


def test_a_first_append_starts_over_whatever_lies_there(layout: ShardLayout) -> None:
    layout.folder.mkdir(parents=True)
    layout.path("global").write_bytes(b"rubbish" * 5000)
    made = random_descriptors(2)
    assert damaged_blocks(layout, append_blocks(layout, 0, made)) == {}
    np.testing.assert_array_equal(read_blocks(layout, "global", 0, 2), made.global_nd)


@pytest.mark.parametrize("kind", ["global", "patch"])
def test_a_missing_file_is_damage_and_stays_missing(layout: ShardLayout, kind: str) -> None:
    crc32s = append_blocks(layout, 0, random_descriptors(2))
    path = layout.path(kind)  # type: ignore[arg-type]
    path.unlink()
    for use in (
        lambda: read_blocks(layout, kind, 0, 1),  # type: ignore[arg-type]
        lambda: append_blocks(layout, 2, random_descriptors(1)),
    ):
        with pytest.raises(IndexDamaged, match=f"{path} is missing"):
            use()
    assert not path.exists()
    assert damaged_blocks(layout, crc32s) == {0: kind, 1: kind}


@pytest.mark.parametrize("kind", ["global", "patch"])
def test_a_short_file_is_damage(layout: ShardLayout, kind: str) -> None:
    crc32s = append_blocks(layout, 0, random_descriptors(3))
    path = layout.path(kind)  # type: ignore[arg-type]
    os.truncate(path, path.stat().st_size - 1)
    assert damaged_blocks(layout, crc32s) == {2: kind}
    with pytest.raises(IndexDamaged, match=str(path)):
        append_blocks(layout, 3, random_descriptors(1))
    with pytest.raises(IndexDamaged, match=str(path)):
        read_blocks(layout, kind, 2, 1)  # type: ignore[arg-type]
    read_blocks(layout, kind, 0, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("harm", ["gone", "header"])
def test_late_frames_of_a_sealed_shard_are_named_as_its_blocks(
    layout: ShardLayout, harm: str
) -> None:
    """Not as places of the file that they alone are in."""
    if harm == "header":
        layout.folder.mkdir(parents=True)
        layout.path("patch").write_bytes(bytes(HEADER_BYTES))
    with pytest.raises(IndexDamaged) as caught:
        shard.read_stored(replace(layout, sealed=10), "patch", np.array([10, 12]))
    assert caught.value.blocks == (10, 12)


@pytest.mark.parametrize("kind", ["global", "patch"])
@pytest.mark.parametrize("block", [0, 65, 69])
def test_one_flipped_bit_names_its_block(layout: ShardLayout, kind: str, block: int) -> None:
    crc32s = append_blocks(layout, 0, random_descriptors(70))
    size = layout.block_bytes(kind)  # type: ignore[arg-type]
    at = HEADER_BYTES + block * size + size // 2
    with layout.path(kind).open("r+b") as file:  # type: ignore[arg-type]
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    assert damaged_blocks(layout, crc32s) == {block: kind}


@pytest.mark.parametrize("at", [0, 30, 200])
def test_a_flipped_bit_in_the_header_is_damage(layout: ShardLayout, at: int) -> None:
    append_blocks(layout, 0, random_descriptors(1))
    with layout.path("patch").open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))
    with pytest.raises(IndexDamaged, match="header"):
        read_blocks(layout, "patch", 0, 1)


def test_a_shard_has_one_writer_at_a_time(layout: ShardLayout) -> None:
    made = random_descriptors(2)
    with hold_shard(layout):
        with pytest.raises(StorageFailed, match="another worker"), hold_shard(layout, 0.1):
            raise AssertionError("two writers")
        crc32s = append_blocks(layout, 0, made)
        assert damaged_blocks(layout, crc32s) == {}, "readers are not kept out"
    with hold_shard(layout):
        append_blocks(layout, 2, made)


def test_what_is_made_from_vectors_has_a_lock_of_its_own(layout: ShardLayout) -> None:
    with hold_shard(layout), hold_derived(layout), pytest.raises(StorageFailed):
        hold_derived(layout, 0.1).__enter__()


def test_something_else_in_a_files_place_is_a_storage_error(layout: ShardLayout) -> None:
    layout.path("patch").mkdir(parents=True)
    with pytest.raises(StorageFailed, match=r"patch\.vec"):
        read_blocks(layout, "patch", 0, 1)
    with pytest.raises(StorageFailed, match=str(layout.folder)):
        append_blocks(layout, 0, random_descriptors(1))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own in memory; only root may make one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"cannot mount a small file system here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_refuses_the_append_and_keeps_what_is_valid(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "96k"):
        layout = layout_in(disk / "g1" / "s1")
        made = random_descriptors(40)
        crc32s = append_blocks(layout, 0, made)
        filler = disk / "filler"
        with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 1024)
        big = random_descriptors(200, seed=1)
        with pytest.raises(StorageFull, match=str(layout.folder)):
            append_blocks(layout, 40, big)
        assert damaged_blocks(layout, crc32s) == {}
        np.testing.assert_array_equal(read_blocks(layout, "patch", 0, 40), made.patches_ncd)
        filler.unlink()
        crc32s = np.concatenate([crc32s, append_blocks(layout, 40, big)])
        assert damaged_blocks(layout, crc32s) == {}


def test_a_full_disk_refuses_a_new_shard(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "16k"):
        layout = layout_in(disk / "g1" / "s1")
        with pytest.raises(StorageFull):
            append_blocks(layout, 0, random_descriptors(200))
        append_blocks(layout, 0, random_descriptors(1))


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """Writes behind a limit fail half-way, as they do on a failing disk; needs no privileges."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_write_that_fails_half_way_keeps_what_is_valid(
    layout: ShardLayout, file_size_limit: Callable[[int], None]
) -> None:
    crc32s = append_blocks(layout, 0, random_descriptors(3))
    file_size_limit(layout.path("patch").stat().st_size + 10)
    with pytest.raises(StorageFailed, match="too large"):
        append_blocks(layout, 3, random_descriptors(9, seed=1))
    file_size_limit(resource.RLIM_INFINITY)
    assert damaged_blocks(layout, crc32s) == {}
    crc32s = np.concatenate([crc32s, append_blocks(layout, 3, random_descriptors(9, seed=1))])
    assert damaged_blocks(layout, crc32s) == {}


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_int8_refuses_what_has_no_direction(tmp_path: Path, value: float) -> None:
    made = random_descriptors(2)
    made.patches_ncd[1, 2] = value
    with pytest.raises(DescriptorInvalid, match="no direction"):
        append_blocks(layout_in(tmp_path / "s1", "int8"), 0, made)
    assert not (tmp_path / "s1").exists()


def test_a_lock_whose_folder_was_removed_is_taken_anew(tmp_path: Path) -> None:
    """Else two writers hold one shard: whoever waited, and whoever made the folder again."""
    layout = layout_in(tmp_path / "s1")
    held = threading.Event()
    seen: list[bool] = []

    def wait() -> None:
        held.set()
        with hold_shard(layout):
            seen.append(is_held(layout.folder))

    waiting = threading.Thread(target=wait)
    with hold_shard(layout):
        waiting.start()
        held.wait()
        time.sleep(0.1)
        shutil.rmtree(layout.folder)
    waiting.join()
    assert seen == [True]


def test_a_lock_that_cannot_be_taken_anew_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = layout_in(tmp_path / "s1")

    def is_entry(_descriptor: int, _path: Path) -> bool:
        shutil.rmtree(layout.folder)
        layout.folder.write_bytes(b"in its place")
        return False

    monkeypatch.setattr(shard, "_is_entry", is_entry)
    with pytest.raises(StorageFailed, match=str(layout.folder)), hold_shard(layout):
        raise AssertionError("held")
