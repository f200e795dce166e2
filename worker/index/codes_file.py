"""Compact codes on disk, beside the vectors they were made from: ``codes.vec`` of a shard.

One block per frame: its codes, int8 (cells, k), and one more row of which the first four bytes
are their CRC-32, so that all rows of a file lie behind each other. Derived: how many blocks are
valid is what Postgres says, and a file that is lost or damaged is made again.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from isal import isal_zlib

from worker.core.compact import Codes
from worker.errors import IndexDamaged
from worker.index.layout import (
    HEADER_BYTES,
    fsync_folder,
    header_page,
    mapping_errors,
    storage_errors,
    write_all,
)

CODES_VERSION = 1
_BLOCKS_PER_CHECK = 64
_MAGIC = b"RISCODES\n"


@dataclass(frozen=True, slots=True)
class CodesLayout:
    """Where a shard's codes are and what a block looks like."""

    folder: Path
    basis_name: str
    cells: int
    code_dim: int

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / "codes.vec"

    @property
    def code_bytes(self) -> int:
        """Bytes of one frame's codes."""
        return self.cells * self.code_dim

    @property
    def block_bytes(self) -> int:
        """Bytes of one block: one row more."""
        return self.code_bytes + self.code_dim

    def header(self) -> bytes:
        """The header page: magic, JSON, CRC-32 of both, zero-padded."""
        fields = {
            "version": CODES_VERSION,
            "basis": self.basis_name,
            "cells": self.cells,
            "code_dim": self.code_dim,
        }
        return header_page(_MAGIC, fields)


def write_codes(layout: CodesLayout, start: int, codes_nck: Codes) -> None:
    """Write codes behind block ``start`` and sync them; 0 begins a new file in the old one's place.

    A file that is mapped is never cut: whoever reads it would die. One writer at a time. Raises
    :class:`StorageFull` or :class:`StorageFailed`, the latter also when the shard's folder is gone.
    """
    n = codes_nck.shape[0]
    blocks = np.zeros((n, layout.block_bytes), dtype=np.uint8)
    blocks[:, : layout.code_bytes] = codes_nck.reshape(n, -1).view(np.uint8)
    sums = np.array([_checksum(block, layout) for block in blocks], dtype="<u4")
    blocks[:, layout.code_bytes : layout.code_bytes + 4] = sums.view(np.uint8).reshape(n, 4)
    with storage_errors(layout.path):
        path = layout.path if start else layout.path.with_suffix(".tmp")
        flags = os.O_WRONLY | (0 if start else os.O_CREAT | os.O_TRUNC)
        descriptor = os.open(path, flags, 0o640)
        try:
            if start == 0:
                write_all(descriptor, layout.header(), 0)
            offset = HEADER_BYTES + start * layout.block_bytes
            write_all(descriptor, blocks.data.cast("B"), offset)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if start == 0:
            path.replace(layout.path)
            fsync_folder(layout.folder)


def _checksum(block: np.ndarray, layout: CodesLayout) -> int:
    return int(isal_zlib.crc32(block[: layout.code_bytes]))


@dataclass(frozen=True, slots=True, eq=False)
class MappedCodes:
    """The first blocks of a file, mapped: pages are shared with every process and reclaimable.

    ``blocks``: uint8 (count, block_bytes).
    """

    layout: CodesLayout
    blocks: np.ndarray

    @property
    def rows(self) -> Codes:
        """int8 (count, cells + 1, k), contiguous, a view; the last row of each is no code."""
        rows: Codes = self.blocks.view(np.int8).reshape(
            len(self.blocks), self.layout.cells + 1, self.layout.code_dim
        )
        return rows


def damaged_codes(layout: CodesLayout, first: int, count: int) -> list[int]:
    """Blocks ``first`` to ``count`` whose codes do not match their checksum or cannot be read.

    Read, not mapped: a bad sector is an error here, and death for a process that has it mapped.
    """
    wrong: list[int] = []
    for at, blocks in _read_blocks(layout, first, count):
        wrong += [i for i, block in zip(at, blocks, strict=True) if not _is_sound(block, layout)]
    return wrong


def empty_codes(layout: CodesLayout, count: int) -> list[int]:
    """Which of the first ``count`` blocks hold no codes: their vectors could not be read."""
    return [
        i
        for at, blocks in _read_blocks(layout, 0, count)
        for i, block in zip(at, blocks, strict=True)
        if not block[: layout.code_bytes].any()
    ]


def _read_blocks(layout: CodesLayout, first: int, count: int) -> Iterator[tuple[range, np.ndarray]]:
    """Blocks as they lie in the file, uint8 (n, block_bytes); what cannot be read is zeros."""
    with mapping_errors(layout.path):
        descriptor = os.open(layout.path, os.O_RDONLY)
    try:
        for start in range(first, count, _BLOCKS_PER_CHECK):
            at = range(start, min(start + _BLOCKS_PER_CHECK, count))
            size = len(at) * layout.block_bytes
            try:
                body = os.pread(descriptor, size, HEADER_BYTES + start * layout.block_bytes)
            except OSError:
                body = b""
            yield at, np.frombuffer(body.ljust(size, b"\0"), dtype=np.uint8).reshape(len(at), -1)
    finally:
        os.close(descriptor)


def _is_sound(block: np.ndarray, layout: CodesLayout) -> bool:
    at = layout.code_bytes
    same = _checksum(block, layout) == int(block[at : at + 4].view("<u4")[0])
    return same and not block[at + 4 :].any()


def map_codes(layout: CodesLayout, count: int) -> MappedCodes:
    """Map the first ``count`` blocks. Raises :class:`IndexDamaged` when they are not all there, or
    :class:`StorageFailed`."""
    with mapping_errors(layout.path):
        return _map_codes(layout, count)


def _map_codes(layout: CodesLayout, count: int) -> MappedCodes:
    need = HEADER_BYTES + count * layout.block_bytes
    descriptor = os.open(layout.path, os.O_RDONLY)
    try:
        if os.pread(descriptor, HEADER_BYTES, 0) != layout.header():
            raise IndexDamaged(f"{layout.path}: header is damaged or of another basis")
        if os.fstat(descriptor).st_size < need:
            raise IndexDamaged(f"{layout.path}: shorter than {need} bytes; run `ris repair`")
        mapped = mmap.mmap(descriptor, need, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)
    body = np.frombuffer(mapped, dtype=np.uint8, offset=HEADER_BYTES)
    return MappedCodes(layout, body.reshape(count, layout.block_bytes))
