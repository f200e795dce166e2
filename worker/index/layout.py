"""Where the files of a shard lie, what their blocks look like, and how bytes become durable."""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from worker.errors import FormatNewer, IndexDamaged, StorageFailed, StorageFull
from worker.index.codec import Codec
from worker.index.part_cache import PartCache

FORMAT_VERSION = 1
HEADER_BYTES = 4096
VECTOR_MAGIC = b"RISVEC\n"

FileKind = Literal["global", "patch"]
_SYNC_FILE_RANGE = getattr(ctypes.CDLL(None), "sync_file_range", None)
_SYNC_FILE_RANGE_WRITE = 2
KINDS: tuple[FileKind, ...] = ("global", "patch")


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """Where a shard's files are and what a block of each looks like."""

    folder: Path
    spec_hash: str
    codec: Codec
    global_dim: int
    patch_dim: int
    cells: int
    sealed: int = 0
    """Leading frames whose patches are in ``patch.runs``."""
    parts: PartCache | None = field(default=None, compare=False, repr=False)
    """How parts of ``patch.runs`` are read when it lies on object storage; None: not at all."""

    def path(self, kind: FileKind) -> Path:
        """The file of one kind that is appended to."""
        return self.folder / f"{kind}.vec"

    def path_of(self, kind: FileKind, block: int) -> Path:
        """The file that holds a block."""
        sealed = kind == "patch" and block < self.sealed
        return self.folder / "patch.runs" if sealed else self.path(kind)

    def block_shape(self, kind: FileKind) -> tuple[int, ...]:
        """Shape of one block in numbers."""
        return (self.global_dim,) if kind == "global" else (self.cells, self.patch_dim)

    def block_bytes(self, kind: FileKind) -> int:
        """Bytes of one block."""
        return math.prod(self.block_shape(kind)) * self.codec.item_bytes

    def header(self, kind: FileKind) -> bytes:
        """The header page: magic, JSON, CRC-32 of both, zero-padded."""
        return _vector_header(
            FORMAT_VERSION, kind, self.spec_hash, self.codec.name, self.block_shape(kind)
        )


@lru_cache(64)  # every read compares one
def _vector_header(
    version: int, kind: FileKind, spec_hash: str, codec_name: str, block_shape: tuple[int, ...]
) -> bytes:
    fields = {
        "version": version,
        "kind": kind,
        "spec_hash": spec_hash,
        "codec": codec_name,
        "block_shape": list(block_shape),
    }
    return header_page(VECTOR_MAGIC, fields)


def header_page(magic: bytes, fields: Mapping[str, Any]) -> bytes:
    """Magic, JSON, CRC-32 of both, filled up with zeros to a page."""
    body = magic + json.dumps(fields, sort_keys=True).encode() + b"\n"
    body += f"{zlib.crc32(body):08x}\n".encode()
    return body.ljust(HEADER_BYTES, b"\0")


def header_fields(magic: bytes, page: bytes) -> dict[str, Any] | None:
    """The fields of a page of that kind; None unless its checksum is right."""
    body, _, checksum = page.rstrip(b"\0").removesuffix(b"\n").rpartition(b"\n")
    body += b"\n"
    if not body.startswith(magic) or checksum != f"{zlib.crc32(body):08x}".encode():
        return None
    fields: dict[str, Any] = json.loads(body[len(magic) :])
    return fields


def newer_format(path: Path, magic: bytes, page: bytes, version: int) -> FormatNewer | None:
    """The error for a file that a newer RIS wrote; None for any other."""
    fields = header_fields(magic, page)
    found = None if fields is None else fields.get("version")
    if not isinstance(found, int) or found <= version:
        return None
    return FormatNewer(
        f"{path} is of format version {found}, written by a newer RIS; this one reads up to version"
        f" {version}: update RIS"
    )


def open_file(path: Path, flags: int) -> int:
    """A descriptor. Raises :class:`IndexDamaged` when the file is missing."""
    try:
        return os.open(path, flags, 0o640)
    except FileNotFoundError as error:
        raise IndexDamaged(f"{path} is missing; run `ris verify`") from error


def write_all(descriptor: int, body: memoryview | bytes, offset: int) -> None:
    """Write a body at an offset, however many calls that takes."""
    view = memoryview(body)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


def begin_write_out(descriptor: int, offset: int, size: int) -> None:
    """Have the disk begin to write what was written to a file, so that a later fsync waits less. A
    hint: nothing is durable by it, and where the system has no such call nothing happens."""
    if _SYNC_FILE_RANGE is not None:
        place, length = ctypes.c_int64(offset), ctypes.c_int64(size)
        _SYNC_FILE_RANGE(descriptor, place, length, _SYNC_FILE_RANGE_WRITE)


def fsync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors(place: Path) -> Iterator[None]:
    """Errors of the disk as :class:`StorageFull` or :class:`StorageFailed`, naming the place."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"{place}: disk full, nothing recorded; free space") from error
        raise StorageFailed(f"{place}: {error.strerror or error}; check the disk") from error


@contextmanager
def mapping_errors(path: Path) -> Iterator[None]:
    """Errors of a file as :class:`IndexDamaged`; :class:`StorageFailed` where this process may open
    or map no more: the file is as sound as before."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise StorageFailed(f"{path}: {error.strerror}; raise this process's limit") from error
        raise IndexDamaged(f"{path}: {error.strerror}; run `ris repair`") from error
