"""Recordings that were sent or fetched, until they are ingested: ``root/<sha256>``."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from worker.errors import IndexDamaged, NotFound, StorageFull
from worker.video.frame_store import (
    content_names,
    remove_file,
    storage_error,
    sync_folder,
)

_CHUNK_BYTES = 1 << 20
_LOOK_EVERY_BYTES = 16 << 20
"""How much is written between two looks at the free space."""


@dataclass(slots=True)
class IncomingRecording:
    """A recording that is being written beside the store: a temporary file and what is known of it.

    Written from one thread at a time. Whoever began it ends it with :meth:`RecordingStore.keep` or
    :meth:`discard`; what a crash leaves is swept.
    """

    path: Path
    stream: BinaryIO
    min_free_bytes: int
    byte_count: int = 0
    unlooked_bytes: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def write(self, chunk: bytes | bytearray) -> None:
        """Append. Raises ``StorageFull``, ``StorageFailed``."""
        self.unlooked_bytes += len(chunk)
        if self.unlooked_bytes >= _LOOK_EVERY_BYTES:
            require_free(self.path.parent, self.min_free_bytes, 0)
            self.unlooked_bytes = 0
        try:
            self.stream.write(chunk)
        except OSError as error:
            raise storage_error(error, self.path) from error
        self.digest.update(chunk)
        self.byte_count += len(chunk)

    def finish(self) -> str:
        """Have all of it on disk; its SHA-256 (hex). Raises ``StorageFull``, ``StorageFailed``."""
        try:
            self.stream.flush()
            os.fsync(self.stream.fileno())
            self.stream.close()
        except OSError as error:
            raise storage_error(error, self.path) from error
        return self.digest.hexdigest()

    def discard(self) -> None:
        """Remove it, unless it was kept."""
        with suppress(OSError):  # what cannot be removed is swept
            self.stream.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def require_free(folder: Path, min_free_bytes: int, byte_count: int) -> None:
    """Raise ``StorageFull`` where so many bytes more would go below the free-space floor."""
    place = next(one for one in (folder, *folder.parents) if one.exists())
    free_bytes = shutil.disk_usage(place).free
    if free_bytes - byte_count < min_free_bytes:
        raise StorageFull(
            f"{free_bytes} bytes free for a recording of {byte_count or 'unknown'} bytes,"
            f" RIS_MIN_FREE_BYTES asks for {min_free_bytes}; free space, and send it again"
        )


@dataclass(frozen=True, slots=True)
class RecordingStore:
    """Recordings below ``root``. The same content twice is one file."""

    root: Path

    def begin(self, min_free_bytes: int, byte_count: int = 0) -> IncomingRecording:
        """A new one of about ``byte_count`` bytes. Raises ``StorageFull``, ``StorageFailed``."""
        require_free(self.root, min_free_bytes, byte_count)
        path = self.root / f"{uuid.uuid4().hex}.tmp"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            return IncomingRecording(path, path.open("wb"), min_free_bytes)
        except OSError as error:
            raise storage_error(error, path) from error

    def keep(self, incoming: IncomingRecording) -> None:
        """Give a finished one its name, durably. The former file of that name was the same content,
        or damaged. Raises ``StorageFull``, ``StorageFailed``."""
        target = self.path(incoming.digest.hexdigest())
        try:
            incoming.path.replace(target)
            sync_folder(self.root)
        except OSError as error:
            raise storage_error(error, target) from error

    def path(self, sha256: str) -> Path:
        """Where a recording lies."""
        return self.root / sha256

    def names(self, before_s: float) -> Iterator[str]:
        """Recordings written before a time (epoch seconds)."""
        return content_names(self.root, before_s)

    def remove(self, sha256: str) -> bool:
        """Delete a recording; False when it was not there. Raises ``StorageFailed``."""
        return remove_file(self.path(sha256))

    def check(self, sha256: str) -> None:
        """Read a whole recording. Raises ``NotFound``, ``IndexDamaged`` or ``StorageFailed``."""
        path, digest = self.path(sha256), hashlib.sha256()
        try:
            with path.open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    digest.update(chunk)
        except FileNotFoundError:
            raise NotFound(f"{path} is gone; send the recording again") from None
        except OSError as error:
            raise storage_error(error, path) from error
        if digest.hexdigest() != sha256:
            raise IndexDamaged(f"{path} is damaged; send the recording again")
