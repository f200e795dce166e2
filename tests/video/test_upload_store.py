from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest

from worker.errors import IndexDamaged, NotFound, StorageFailed
from worker.video.upload_store import UploadStore


def broken(*_given: Any, **_named: Any) -> Any:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def store(tmp_path: Path) -> UploadStore:
    return UploadStore(tmp_path / "uploads")


def test_an_upload_comes_back_byte_for_byte(store: UploadStore) -> None:
    sha256 = store.put(b"picture")
    assert store.put(b"picture") == sha256 and store.load(sha256) == b"picture"
    assert [path.name for path in store.root.iterdir()] == [sha256]


def test_what_is_damaged_or_gone_is_told_and_put_right(store: UploadStore) -> None:
    sha256 = store.put(b"picture")
    path = store.root / sha256
    path.write_bytes(b"other")
    with pytest.raises(IndexDamaged, match=sha256):
        store.load(sha256)
    path.unlink()
    with pytest.raises(NotFound, match=sha256):
        store.load(sha256)
    path.write_bytes(b"other")
    assert store.put(b"picture") == sha256 and store.load(sha256) == b"picture"


def test_a_failing_disk_is_told_by_name(
    store: UploadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = store.put(b"picture")
    with monkeypatch.context() as patched:
        patched.setattr(io, "open", broken)
        with pytest.raises(StorageFailed, match=sha256):
            store.load(sha256)
        with pytest.raises(StorageFailed, match=sha256):
            store.put(b"picture")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        for content in (b"picture", b"another"):  # also an entry that is there may not be durable
            with pytest.raises(StorageFailed):
                store.put(content)
    assert [path.name for path in store.root.iterdir()] == [sha256]
