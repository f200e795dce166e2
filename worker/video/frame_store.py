"""Kept pictures on disk, named by what they hold: ``root/ab/cd/<sha256>.jpg``.

A picture is in the store completely or not at all: temporary file, fsync, rename, fsync of the
folder. Storing the same picture twice is one file.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from worker.core.types import ImageArray, SizePx
from worker.errors import (
    IndexDamaged,
    InputInvalid,
    NotFound,
    RisError,
    StorageFailed,
    StorageFull,
)

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """A picture in the store. ``sha256``: lower-case hex of the JPEG file's bytes."""

    sha256: str
    byte_count: int
    size: SizePx


class FrameStore:
    """Content-addressed JPEG pictures below ``root``; ``quality`` is JPEG's, 1..100."""

    def __init__(self, root: Path, quality: int) -> None:
        self.root = root
        self._quality = quality

    def put(self, img_hwc: ImageArray) -> StoredPicture:
        """Store one picture, uint8 RGB (h, w, 3); see :meth:`put_many`."""
        return self.put_many([img_hwc])[0]

    def put_many(self, imgs_hwc: Sequence[ImageArray]) -> list[StoredPicture]:
        """Store pictures; on return all are on disk. Each new folder entry is synced once.

        Raises ``InputInvalid`` for an array that is no RGB picture, ``StorageFull`` and
        ``StorageFailed``; pictures already written then stay, whole and harmless.
        """
        stored: list[StoredPicture] = []
        changed: dict[Path, None] = {}
        for img_hwc in imgs_hwc:
            jpeg = _encode(img_hwc, self._quality)
            sha256 = hashlib.sha256(jpeg).hexdigest()
            h_px, w_px = img_hwc.shape[:2]
            stored.append(StoredPicture(sha256, len(jpeg), SizePx(h_px, w_px)))
            target = self.path(sha256)
            try:
                if target.exists():  # whoever stored it may have died before its entry was synced
                    changed |= dict.fromkeys((target.parent, target.parent.parent, self.root))
                else:
                    changed |= dict.fromkeys(_make_folders(target.parent))
                    _write_file(target, jpeg)
            except OSError as error:
                raise storage_error(error, target) from error
        for folder in changed:
            try:
                sync_folder(folder)
            except OSError as error:
                raise storage_error(error, folder) from error
        return stored

    def path(self, sha256: str) -> Path:
        """Where the picture is or would be. Raises ``InputInvalid`` for a malformed name."""
        if not _SHA256.fullmatch(sha256):
            raise InputInvalid(f"a picture name is 64 lower-case hex digits, got {sha256!r}")
        return self.root / sha256[:2] / sha256[2:4] / f"{sha256}.jpg"

    def has(self, sha256: str) -> bool:
        """Whether the picture is in the store; its bytes are not checked."""
        return self.path(sha256).is_file()

    def load(self, sha256: str) -> ImageArray:
        """The picture, uint8 RGB (h, w, 3). Raises as :meth:`read`."""
        with Image.open(io.BytesIO(self.read(sha256)), formats=["JPEG"]) as picture:
            return np.asarray(picture.convert("RGB"))

    def read(self, sha256: str) -> bytes:
        """The picture's JPEG bytes.

        Raises ``NotFound`` when it is missing and ``IndexDamaged`` when its bytes are not those
        that were stored.
        """
        path = self.path(sha256)
        try:
            jpeg = path.read_bytes()
        except FileNotFoundError:
            raise NotFound(
                f"picture {sha256} is not in the store; it was removed by retention or the data"
                " folder is not the one that was indexed"
            ) from None
        except OSError as error:
            raise storage_error(error, path) from error
        if hashlib.sha256(jpeg).hexdigest() != sha256:
            raise IndexDamaged(
                f"picture file {path} does not hold the bytes that were stored; "
                "restore it from a backup or index its video again"
            )
        return jpeg

    def names(self, before_s: float) -> Iterator[str]:
        """Content hashes of the pictures written before a time (epoch seconds)."""
        for path in self.root.glob("??/??/*.jpg"):
            with suppress(FileNotFoundError):  # removed by someone else while this walks
                if _SHA256.fullmatch(path.stem) and path.stat().st_mtime < before_s:
                    yield path.stem

    def remove(self, sha256: str) -> bool:
        """Delete the picture; False when it was not there. Raises ``StorageFailed``."""
        return remove_file(self.path(sha256))


def content_names(folder: Path, before_s: float) -> Iterator[str]:
    """Files named by their content in a flat folder, written before a time (epoch seconds)."""
    if not folder.exists():
        return
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):  # removed by someone else while this walks
            if "." not in entry.name and entry.stat().st_mtime < before_s:
                yield entry.name


def remove_file(path: Path) -> bool:
    """Delete a file; False when it was not there. Raises ``StorageFailed``."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(error, path) from error
    return True


def storage_error(error: OSError, path: Path) -> RisError:
    """``StorageFull`` for a full disk or quota, else ``StorageFailed``; both name the path."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"no space left for {path}; free some space or shorten retention")
    return StorageFailed(f"{path}: {error.strerror or error}; check the disk and its permissions")


def _encode(img_hwc: ImageArray, quality: int) -> bytes:
    if img_hwc.dtype != np.uint8 or img_hwc.ndim != 3 or img_hwc.shape[2] != 3 or not img_hwc.size:
        raise InputInvalid(
            f"a kept picture must be uint8 (h, w, 3), got {img_hwc.dtype} {img_hwc.shape}"
        )
    buffer = io.BytesIO()
    Image.fromarray(img_hwc).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def _make_folders(folder: Path) -> list[Path]:
    """Create ``folder``; returns the folders that get a new entry, the innermost first."""
    changed = [folder]
    while not changed[-1].parent.exists():
        changed.append(changed[-1].parent)
    if not folder.exists():
        changed.append(changed[-1].parent)
    folder.mkdir(parents=True, exist_ok=True)
    return changed


def _write_file(target: Path, content: bytes) -> None:
    temporary = target.with_name(f".{target.stem}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
