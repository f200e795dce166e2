"""Parts of objects that were read last, on the local disk, within a bound.

An object is read in parts of ``PART_BYTES``. Of each object there is one sparse file in which parts
lie where they lie in the object. Whether a part is there is asked of its bytes: they have the
checksum that Postgres recorded, or they are fetched; so half a write, a hole and rot are all the
same, nothing needs to be synced, and a file may be removed under a reader at any time. Processes
share the folder: one of them fetches, under a file lock, what several want.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from isal import isal_zlib

log = structlog.get_logger()

PART_BYTES = 256 * 1024
_PAGE = 4096
_FETCH_LOCKS = 64
_SPACE_LOCK = "space.lock"

Fetch = Callable[[str, Sequence[tuple[int, int]]], list[bytes]]
"""Bytes of ``[first, end)`` spans of an object, short where it ends, empty where it is not."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A file on object storage. ``crc32s``: CRC-32 of each part of ``PART_BYTES``, the last one
    shorter."""

    url: str
    byte_count: int
    crc32s: tuple[int, ...]

    def span(self, part: int) -> tuple[int, int]:
        """Where a part lies: ``[first, end)``."""
        return part * PART_BYTES, min((part + 1) * PART_BYTES, self.byte_count)

    def is_part(self, part: int, body: bytes) -> bool:
        """Whether these bytes are that part."""
        first, end = self.span(part)
        return len(body) == end - first and isal_zlib.crc32(body) == self.crc32s[part]


@dataclass(frozen=True, slots=True)
class PartCache:
    """Parts under ``root``, which take ``max_bytes`` of disk at most. Building one does no I/O."""

    root: Path
    max_bytes: int
    fetch: Fetch

    def parts(self, stored: StoredObject, wanted: Sequence[int]) -> dict[int, bytes]:
        """The wanted parts of an object that could be had and are what was written.

        Raises :class:`ObjectStoreUnavailable`.
        """
        path = self._path(stored.url)
        found = _cached(path, stored, wanted)
        if len(found) == len(wanted):
            return found
        with self._locked(f"fetch-{int(path.stem, 16) % _FETCH_LOCKS:02}.lock"):
            found |= _cached(path, stored, [part for part in wanted if part not in found])
            missing = [part for part in wanted if part not in found]
            fetched = self._fetched(stored, missing)
            self._keep(path, stored, fetched)
        return found | fetched

    def _fetched(self, stored: StoredObject, missing: Sequence[int]) -> dict[int, bytes]:
        fetched: dict[int, bytes] = {}
        for _ in range(2):  # what was harmed on its way comes whole the second time
            left = [part for part in missing if part not in fetched]
            if not left:
                break
            bodies = self.fetch(stored.url, [stored.span(part) for part in left])
            together = zip(left, bodies, strict=True)
            fetched |= {part: body for part, body in together if stored.is_part(part, body)}
        return fetched

    def _keep(self, path: Path, stored: StoredObject, fetched: dict[int, bytes]) -> None:
        """Put parts into the object's file; not at all where there is no room for them."""
        need = sum(-(-len(body) // _PAGE) * _PAGE for body in fetched.values())
        if not need or need > self.max_bytes:
            return
        try:
            with self._locked(_SPACE_LOCK):
                self._make_room(need)
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o640)
                try:
                    for part, body in fetched.items():
                        os.pwrite(descriptor, body, stored.span(part)[0])
                finally:
                    os.close(descriptor)
        except OSError as error:
            log.warning("part_not_cached", path=str(path), detail=str(error))

    def _make_room(self, need: int) -> None:
        """Remove the files that were not read for longest until ``need`` more bytes fit."""
        files = []
        for entry in os.scandir(self.root):
            if entry.name.endswith(".parts"):
                stat = entry.stat()
                files.append((stat.st_mtime_ns, stat.st_blocks * 512, entry.path))
        used = sum(byte_count for _, byte_count, _ in files)
        for _, byte_count, name in sorted(files):
            if used + need <= self.max_bytes:
                break
            Path(name).unlink(missing_ok=True)
            used -= byte_count

    def used_bytes(self) -> int:
        """Disk space that cached parts take."""
        try:
            return sum(path.stat().st_blocks * 512 for path in self.root.glob("*.parts"))
        except FileNotFoundError:  # removed meanwhile
            return self.used_bytes()

    def discard(self, url: str) -> None:
        """Forget an object."""
        self._path(url).unlink(missing_ok=True)

    def discard_all_but(self, urls: Sequence[str]) -> int:
        """Forget all other objects; returns how many there were."""
        kept, removed = {self._path(url).name for url in urls}, 0
        for path in self.root.glob("*.parts"):
            if path.name not in kept:
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def _path(self, url: str) -> Path:
        return self.root / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.parts"

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root / name, os.O_RDWR | os.O_CREAT, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _cached(path: Path, stored: StoredObject, wanted: Sequence[int]) -> dict[int, bytes]:
    """Those parts that the file holds."""
    found = {}
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return {}
    try:
        os.utime(descriptor)  # what was read last goes last
        for part in wanted:
            first, end = stored.span(part)
            body = os.pread(descriptor, end - first, first)
            if stored.is_part(part, body):
                found[part] = body
    except OSError as error:
        log.warning("cache_not_read", path=str(path), detail=str(error))
    finally:
        os.close(descriptor)
    return found
