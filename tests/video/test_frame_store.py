from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from worker.core.types import ImageArray, SizePx
from worker.errors import IndexDamaged, InputInvalid, NotFound, StorageFailed, StorageFull
from worker.video.frame_store import FrameStore, storage_error


def picture(seed: int, h_px: int = 48, w_px: int = 64) -> ImageArray:
    """Smooth noise, so that JPEG keeps it well."""
    coarse = np.random.default_rng(seed).integers(0, 256, (h_px // 16, w_px // 16, 3), np.uint8)
    return coarse.repeat(16, axis=0).repeat(16, axis=1)


def files_below(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_constructor_touches_nothing(tmp_path: Path) -> None:
    FrameStore(tmp_path / "kept", 90)
    assert not (tmp_path / "kept").exists()


def test_a_picture_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    store = FrameStore(tmp_path / "deep" / "kept", 95)
    stored = store.put(picture(1))
    path = store.path(stored.sha256)
    assert stored.size == SizePx(48, 64)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == stored.sha256
    assert path.stat().st_size == stored.byte_count
    assert path.relative_to(tmp_path / "deep" / "kept").parts == (
        stored.sha256[:2],
        stored.sha256[2:4],
        f"{stored.sha256}.jpg",
    )
    loaded = store.load(stored.sha256)
    assert loaded.shape == (48, 64, 3)
    assert np.abs(loaded.astype(int) - picture(1)).mean() < 12


def test_storing_the_same_picture_again_writes_nothing(tmp_path: Path) -> None:
    store = FrameStore(tmp_path, 90)
    first = store.put(picture(1))
    before = store.path(first.sha256).stat()
    again = store.put_many([picture(1), picture(1), picture(2)])
    after = store.path(first.sha256).stat()
    assert again[0] == again[1] == first != again[2]
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert len(files_below(tmp_path)) == 2


def test_put_many_keeps_order_and_leaves_no_temporary_files(tmp_path: Path) -> None:
    store = FrameStore(tmp_path, 80)
    stored = store.put_many([picture(seed) for seed in range(20)])
    assert [one.sha256 for one in stored] == [store.put(picture(s)).sha256 for s in range(20)]
    assert {path.stem for path in files_below(tmp_path)} == {one.sha256 for one in stored}
    assert store.put_many([]) == []


def test_remove_and_has(tmp_path: Path) -> None:
    store = FrameStore(tmp_path, 90)
    sha256 = store.put(picture(1)).sha256
    assert store.has(sha256)
    assert store.remove(sha256)
    assert not store.has(sha256)
    assert not store.remove(sha256)
    with pytest.raises(NotFound, match=sha256):
        store.load(sha256)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_bytes_are_never_returned(tmp_path: Path, damage: str) -> None:
    store = FrameStore(tmp_path, 90)
    sha256 = store.put(picture(1)).sha256
    path = store.path(sha256)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: {"cut": -5, "flipped": None, "empty": 0}[damage]])
    with pytest.raises(IndexDamaged, match=sha256):
        store.load(sha256)


@pytest.mark.parametrize("name", ["", "ab", "../../etc/passwd", "A" * 64, "g" * 64, "a" * 65])
def test_names_that_are_no_hash_are_refused(tmp_path: Path, name: str) -> None:
    store = FrameStore(tmp_path, 90)
    for ask in (store.path, store.has, store.load, store.remove):
        with pytest.raises(InputInvalid):
            ask(name)


@pytest.mark.parametrize(
    "img",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_picture_are_refused(tmp_path: Path, img: ImageArray) -> None:
    with pytest.raises(InputInvalid, match="uint8"):
        FrameStore(tmp_path, 90).put(img)
    assert files_below(tmp_path) == []


def test_a_root_that_is_a_file_is_a_storage_failure(tmp_path: Path) -> None:
    root = tmp_path / "kept"
    root.write_text("in the way")
    with pytest.raises(StorageFailed, match="kept"):
        FrameStore(root, 90).put(picture(1))


def test_a_full_device_is_told_apart_from_a_failing_one(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="No space") as full,
        Path("/dev/full").open("wb", 0) as device,
    ):
        device.write(b"x")
    assert isinstance(storage_error(full.value, tmp_path), StorageFull)
    assert isinstance(storage_error(OSError(errno.EDQUOT, "quota"), tmp_path), StorageFull)
    failed = storage_error(OSError(errno.EIO, os.strerror(errno.EIO)), tmp_path)
    assert isinstance(failed, StorageFailed)
    assert str(tmp_path) in str(failed)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    store = FrameStore(tmp_path, 90)
    sha256 = FrameStore(tmp_path / "other", 90).put(picture(1)).sha256
    store.path(sha256).parent.parent.mkdir()
    store.path(sha256).parent.write_text("in the way")
    with pytest.raises(StorageFailed):
        store.put(picture(1))
    assert not store.has(sha256)
    assert [path for path in files_below(tmp_path) if path.suffix == ".tmp"] == []
