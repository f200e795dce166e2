"""Uploaded query pictures, byte for byte, named by their content: ``root/<sha256>``."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from worker.errors import IndexDamaged, NotFound, StorageFull
from worker.video.frame_store import (
    content_names,
    remove_file,
    storage_error,
    sync_folder,
)


@dataclass(frozen=True, slots=True)
class UploadStore:
    """Uploads below ``root``. The same upload twice is one file."""

    root: Path

    def put(self, content: bytes) -> str:
        """Store an upload durably; its SHA-256 (hex). Raises ``StorageFull``, ``StorageFailed``."""
        sha256 = hashlib.sha256(content).hexdigest()
        target = self.root / sha256
        try:
            if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == sha256:
                sync_folder(self.root)  # whoever stored it may have died before that
                return sha256
        except OSError as error:
            raise storage_error(error, target) from error
        temporary = target.with_suffix(f".{uuid.uuid4().hex}.tmp")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
            sync_folder(self.root)
        except OSError as error:
            with suppress(OSError):  # then it is swept
                temporary.unlink(missing_ok=True)
            raise storage_error(error, target) from error
        return sha256

    def require_free(self, min_free_bytes: int) -> None:
        """Raise ``StorageFull`` below the free-space floor, before anything is written."""
        place = next(one for one in (self.root, *self.root.parents) if one.exists())
        free_bytes = shutil.disk_usage(place).free
        if free_bytes < min_free_bytes:
            raise StorageFull(
                f"{free_bytes} bytes free for uploads, RIS_MIN_FREE_BYTES asks for"
                f" {min_free_bytes}; free space, or ask on an indexed frame"
            )

    def names(self, before_s: float) -> Iterator[str]:
        """Uploads written before a time (epoch seconds)."""
        return content_names(self.root, before_s)

    def remove(self, sha256: str) -> bool:
        """Delete an upload; False when it was not there. Raises ``StorageFailed``."""
        return remove_file(self.root / sha256)

    def load(self, sha256: str) -> bytes:
        """The bytes of an upload, for whoever asked with it: errors do not tell where it lies.
        Raises ``NotFound``, ``IndexDamaged`` or ``StorageFailed``."""
        try:
            return self.read(sha256)
        except NotFound:
            raise NotFound(f"uploaded picture {sha256} is gone; submit the query again") from None
        except IndexDamaged:
            raise IndexDamaged(
                f"uploaded picture {sha256} is damaged; submit the query again"
            ) from None

    def read(self, sha256: str) -> bytes:
        """The same; errors name the file."""
        path = self.root / sha256
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise NotFound(f"{path} is gone; submit the query again") from None
        except OSError as error:
            raise storage_error(error, path) from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise IndexDamaged(f"{path} is damaged; submit the query again")
        return content
