"""Append-only vector files of one shard; their valid length is what Postgres says.

A shard has two files of equal-sized blocks, one block per run (frame and view):
``global.vec`` (global_dim numbers) and ``patch.vec`` (cells x patch_dim numbers, row-major cells).
Each starts with one header page that names the format, spec and widths under a checksum. Bytes
behind the valid length are left-overs of an append whose commit never came; the next append
overwrites them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from worker.core.types import Descriptors, FloatArray
from worker.errors import IndexDamaged, StorageFailed, StorageFull
from worker.index.codec import Codec

FORMAT_VERSION = 1
HEADER_BYTES = 4096
_MAGIC = b"RISVEC\n"

FileKind = Literal["global", "patch"]


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """Where a shard's files are and what a block of each looks like."""

    folder: Path
    spec_hash: str
    codec: Codec
    global_dim: int
    patch_dim: int
    cells: int

    def path(self, kind: FileKind) -> Path:
        """The file of one kind."""
        return self.folder / f"{kind}.vec"

    def block_shape(self, kind: FileKind) -> tuple[int, ...]:
        """Shape of one block in numbers."""
        return (self.global_dim,) if kind == "global" else (self.cells, self.patch_dim)

    def block_bytes(self, kind: FileKind) -> int:
        """Bytes of one block."""
        return int(np.prod(self.block_shape(kind))) * self.codec.item_bytes

    def header(self, kind: FileKind) -> bytes:
        """The header page: magic, JSON, CRC-32 of both, zero-padded."""
        fields = {
            "version": FORMAT_VERSION,
            "kind": kind,
            "spec_hash": self.spec_hash,
            "codec": self.codec.name,
            "block_shape": list(self.block_shape(kind)),
        }
        body = _MAGIC + json.dumps(fields, sort_keys=True).encode() + b"\n"
        body += f"{zlib.crc32(body):08x}\n".encode()
        return body.ljust(HEADER_BYTES, b"\0")


def append_blocks(layout: ShardLayout, valid_blocks: int, descriptors: Descriptors) -> list[int]:
    """Write n blocks behind ``valid_blocks`` and fsync them; returns n CRC-32s over both blocks.

    The caller holds the shard's row lock and commits afterwards. Nothing before ``valid_blocks``
    is touched. Raises :class:`StorageFull`, :class:`StorageFailed` or :class:`IndexDamaged`; the
    valid part is intact in every case.
    """
    stored_global = layout.codec.encode(descriptors.global_nd)
    stored_patches = layout.codec.encode(descriptors.patches_ncd)
    n = stored_global.shape[0]
    expected = ((n, *layout.block_shape("global")), (n, *layout.block_shape("patch")))
    if (stored_global.shape, stored_patches.shape) != expected:
        raise IndexDamaged(
            f"{layout.folder}: descriptors of shapes {stored_global.shape}, {stored_patches.shape}"
            f" do not fit the shard's blocks {expected}"
        )
    with _storage_errors(layout.folder):
        _append_file(layout, "global", valid_blocks, stored_global.tobytes())
        _append_file(layout, "patch", valid_blocks, stored_patches.tobytes())
    return [
        zlib.crc32(stored_patches[i].tobytes(), zlib.crc32(stored_global[i].tobytes()))
        for i in range(n)
    ]


def _append_file(layout: ShardLayout, kind: FileKind, valid_blocks: int, body: bytes) -> None:
    path = layout.path(kind)
    if valid_blocks == 0:
        layout.folder.mkdir(parents=True, exist_ok=True)
    descriptor = _open(path, os.O_RDWR | (os.O_CREAT if valid_blocks == 0 else 0))
    try:
        _lock(descriptor, path)
        if valid_blocks == 0:
            os.ftruncate(descriptor, 0)
            _write_all(descriptor, layout.header(kind), 0)
        else:
            _check_file(descriptor, layout, kind, valid_blocks)
        start = HEADER_BYTES + valid_blocks * layout.block_bytes(kind)
        _write_all(descriptor, body, start)
        os.ftruncate(descriptor, start + len(body))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if valid_blocks == 0:
        # Also when the file was there: whoever made it may have died before syncing its entry.
        for folder in (layout.folder, *list(layout.folder.parents)[:3]):
            fsync_folder(folder)


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags, 0o640)
    except FileNotFoundError as error:
        raise IndexDamaged(f"{path} is missing; run `ris verify`") from error


def _write_all(descriptor: int, body: bytes, offset: int) -> None:
    view = memoryview(body)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


def _lock(descriptor: int, path: Path) -> None:
    """Second fence behind the row lock: a writer that lost Postgres may still be writing."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StorageFailed(f"{path} is being written by another worker; tried again") from error


def _check_file(descriptor: int, layout: ShardLayout, kind: FileKind, blocks: int) -> None:
    path = layout.path(kind)
    if os.pread(descriptor, HEADER_BYTES, 0) != layout.header(kind):
        raise IndexDamaged(
            f"{path}: header is damaged or of another format, spec or codec; run `ris verify`"
        )
    need = HEADER_BYTES + blocks * layout.block_bytes(kind)
    have = os.fstat(descriptor).st_size
    if have < need:
        raise IndexDamaged(f"{path}: {have} bytes, Postgres says {need}; run `ris verify`")


def fsync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _storage_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"{place}: disk full, nothing recorded; free space") from error
        raise StorageFailed(f"{place}: {error.strerror or error}; check the disk") from error


def read_blocks(layout: ShardLayout, kind: FileKind, start: int, count: int) -> FloatArray:
    """Blocks [start, start + count) as float32 (count, *block_shape), by pread.

    Raises :class:`IndexDamaged` when the file is missing, too short or of another spec.
    """
    with _opened(layout, kind, start + count) as descriptor:
        return layout.codec.decode(_read(descriptor, layout, kind, start, count))


@contextmanager
def _opened(layout: ShardLayout, kind: FileKind, blocks: int) -> Iterator[int]:
    """A file to read, checked to hold ``blocks`` blocks; its I/O errors become typed ones."""
    with _storage_errors(layout.path(kind)):
        descriptor = _open(layout.path(kind), os.O_RDONLY)
        try:
            _check_file(descriptor, layout, kind, blocks)
            yield descriptor
        finally:
            os.close(descriptor)


def _read(
    descriptor: int, layout: ShardLayout, kind: FileKind, start: int, count: int
) -> np.ndarray:
    size = layout.block_bytes(kind)
    body = os.pread(descriptor, count * size, HEADER_BYTES + start * size)
    if len(body) != count * size:
        raise IndexDamaged(f"{layout.path(kind)}: short read at block {start}; run `ris verify`")
    stored = np.frombuffer(body, dtype=layout.codec.dtype)
    return stored.reshape(count, *layout.block_shape(kind))


def read_patches(layout: ShardLayout, blocks: Sequence[int]) -> FloatArray:
    """Patch descriptors of some blocks, float32 (len(blocks), cells, patch_dim), in that order."""
    out = np.empty((len(blocks), layout.cells, layout.patch_dim), dtype=np.float32)
    with _opened(layout, "patch", max(blocks, default=-1) + 1) as descriptor:
        for position, block in enumerate(blocks):
            out[position] = _read(descriptor, layout, "patch", block, 1)[0]
    return out


def damaged_blocks(layout: ShardLayout, crc32s: Sequence[int], step: int = 64) -> list[int]:
    """Blocks whose stored bytes do not match their CRC-32. Raises :class:`IndexDamaged`."""
    n = len(crc32s)
    wrong = []
    with _opened(layout, "global", n) as global_file, _opened(layout, "patch", n) as patch_file:
        for start in range(0, n, step):
            count = min(step, n - start)
            stored_global = _read(global_file, layout, "global", start, count)
            stored_patches = _read(patch_file, layout, "patch", start, count)
            for i in range(count):
                crc = zlib.crc32(
                    stored_patches[i].tobytes(), zlib.crc32(stored_global[i].tobytes())
                )
                if crc != crc32s[start + i]:
                    wrong.append(start + i)
    return wrong
