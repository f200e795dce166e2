"""``patch.map``: in place of ``patch.runs``, where that lies on object storage and what it holds.

The header page names the object. Behind it are the header page of ``patch.runs``, the checksums of
the object's parts (uint32) and the runs, as they are in ``patch.runs``: with them it is known which
parts the rows of a frame lie in. Written beside and renamed; made again from Postgres and the
object when it is lost.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from isal import isal_zlib

from worker.errors import IndexDamaged
from worker.index.layout import (
    HEADER_BYTES,
    fsync_folder,
    header_fields,
    header_page,
    newer_format,
    storage_errors,
    write_all,
)
from worker.index.part_cache import PART_BYTES, StoredObject

MAP_NAME = "patch.map"
MAP_VERSION = 1
_MAGIC = b"RISMAP\n"


@dataclass(frozen=True, slots=True)
class MovedRuns:
    """A read map. ``page``: the header of ``patch.runs``; ``runs_offset``: of the runs in the map's
    file."""

    stored: StoredObject
    page: bytes
    runs_offset: int


def write_map(folder: Path, stored: StoredObject, page: bytes, runs: bytes) -> None:
    """Write a folder's map, synced. Raises :class:`StorageFull` or :class:`StorageFailed`."""
    table = np.array(stored.crc32s, dtype="<u4").tobytes()
    fields = {
        "version": MAP_VERSION,
        "url": stored.url,
        "bytes": stored.byte_count,
        "part_bytes": PART_BYTES,
        "crc32": isal_zlib.crc32(page + table),
    }
    path = folder / MAP_NAME
    part = path.with_suffix(f".{os.getpid()}.tmp")
    with storage_errors(path):
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
        try:
            body = header_page(_MAGIC, fields) + page + table
            write_all(descriptor, body.ljust(_runs_offset(stored), b"\0") + runs, 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        part.replace(path)
        fsync_folder(folder)


def _runs_offset(stored: StoredObject) -> int:
    return -(-(2 * HEADER_BYTES + 4 * len(stored.crc32s)) // 8) * 8


def open_map(folder: Path) -> tuple[int, MovedRuns]:
    """A descriptor of a folder's map, and what it says. Raises FileNotFoundError, and
    :class:`IndexDamaged` when it is not sound."""
    path = folder / MAP_NAME
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return descriptor, _read_map(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise


def _read_map(descriptor: int, path: Path) -> MovedRuns:
    damaged = IndexDamaged(f"{path} is damaged; run `ris verify`")
    try:
        head = os.pread(descriptor, HEADER_BYTES, 0)
        newer = newer_format(path, _MAGIC, head, MAP_VERSION)
        if newer is not None:
            raise newer
        fields = header_fields(_MAGIC, head)
        if fields is None or fields["part_bytes"] != PART_BYTES:
            raise damaged
        size = 4 * -(-fields["bytes"] // PART_BYTES)
        body = os.pread(descriptor, HEADER_BYTES + size, HEADER_BYTES)
    except OSError as error:
        raise damaged from error
    if isal_zlib.crc32(body) != fields["crc32"]:
        raise damaged
    crc32s = tuple(np.frombuffer(body, dtype="<u4", offset=HEADER_BYTES).tolist())
    stored = StoredObject(fields["url"], fields["bytes"], crc32s)
    return MovedRuns(stored, body[:HEADER_BYTES], _runs_offset(stored))


def url_in_map(folder: Path) -> str | None:
    """The object that a folder's map names; None without a sound map."""
    try:
        descriptor, moved = open_map(folder)
    except (OSError, IndexDamaged):
        return None
    os.close(descriptor)
    return moved.stored.url


def part_crc32s(path: Path) -> tuple[int, ...]:
    """CRC-32 of each part of a file."""
    found = []
    with storage_errors(path), path.open("rb") as file:
        while body := file.read(PART_BYTES):
            found.append(isal_zlib.crc32(body))
    return tuple(found)
