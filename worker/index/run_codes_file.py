"""Compact codes of a sealed shard's rows: ``codes.runs``, beside the runs they are the codes of.

Codes int8 (rows, k); behind them, aligned to 8 bytes each, where each row's runs begin, uint32
(rows + 1,), the cell of each row, uint16 (rows,), and first and last frame of each run, uint16
(runs, 2), in order of the row. Written once, beside, and renamed; derived, and made again when
lost.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from isal import isal_zlib

from worker.core.cell_runs import CellRuns
from worker.core.compact import Codes
from worker.core.run_codes import RunCodes
from worker.errors import IndexDamaged
from worker.index.layout import (
    HEADER_BYTES,
    fsync_folder,
    header_fields,
    header_page,
    mapping_errors,
    storage_errors,
    write_all,
)

RUN_CODES_VERSION = 1
MAX_FRAMES = 1 << 16
"""Of one sealed shard: frames are numbered with 16 bits."""
_MAGIC = b"RISRUNCODES\n"
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RunCodesLayout:
    """Where a sealed shard's codes are, and of what basis."""

    folder: Path
    basis_name: str
    frames: int
    cells: int
    code_dim: int

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / "codes.runs"


def write_run_codes(layout: RunCodesLayout, runs: CellRuns, codes: Iterator[Codes]) -> None:
    """Write the codes of all rows, given in order, in a file that takes the old one's place.

    One writer at a time. Raises :class:`StorageFull` or :class:`StorageFailed`.
    """
    if runs.frames > MAX_FRAMES:
        raise IndexDamaged(f"{layout.folder}: {runs.frames} frames are more than {MAX_FRAMES}")
    part = layout.path.with_suffix(".tmp")
    tables = _tables(runs)
    with storage_errors(layout.path):
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
        try:
            at, checksum, rows = HEADER_BYTES, 0, 0
            for codes_nk in codes:
                body = np.ascontiguousarray(codes_nk).tobytes()
                write_all(descriptor, body, at)
                at, rows = at + len(body), rows + len(codes_nk)
                checksum = isal_zlib.crc32(body, checksum)
            if rows != runs.rows:
                raise IndexDamaged(f"{layout.folder}: {rows} codes for {runs.rows} rows")
            tail = b"".join([bytes(-at % 8), *tables])
            write_all(descriptor, tail, at)
            checksum = isal_zlib.crc32(tail, checksum)
            page = _header(layout, runs.rows, int(runs.row_m.size), checksum)
            write_all(descriptor, page, 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        part.replace(layout.path)
        fsync_folder(layout.folder)


def _tables(runs: CellRuns) -> list[bytes]:
    """The three tables, each filled up to 8 bytes."""
    row, cell, first, end = runs.by_row()
    offset = np.searchsorted(row, np.arange(runs.rows + 1)).astype("<u4")
    cells = np.zeros(runs.rows, dtype="<u2")
    cells[row] = cell
    spans = np.stack((first, end - 1), axis=1).astype("<u2")
    return [_filled(table.tobytes()) for table in (offset, cells, spans)]


def _filled(body: bytes) -> bytes:
    return body + bytes(-len(body) % 8)


def _header(layout: RunCodesLayout, rows: int, runs: int, checksum: int) -> bytes:
    fields = {
        "version": RUN_CODES_VERSION,
        "basis": layout.basis_name,
        "frames": layout.frames,
        "cells": layout.cells,
        "code_dim": layout.code_dim,
        "rows": rows,
        "runs": runs,
        "crc32": checksum,
    }
    return header_page(_MAGIC, fields)


def map_run_codes(layout: RunCodesLayout, *, check: bool) -> RunCodes:
    """Map a file; ``check``: read it all against its checksum first. Raises
    :class:`IndexDamaged` or :class:`StorageFailed`."""
    damaged = f"{layout.path}: damaged, or of another basis or format; run `ris repair`"
    with mapping_errors(layout.path):
        descriptor = os.open(layout.path, os.O_RDONLY)
        try:
            page = os.pread(descriptor, HEADER_BYTES, 0)
            found = _sizes(layout, page)
            if found is None:
                raise IndexDamaged(damaged)
            fields, sizes = found
            need = HEADER_BYTES + sum(-(-size // 8) * 8 for size in sizes)
            if os.fstat(descriptor).st_size < need:
                raise IndexDamaged(damaged)
            # Read, not mapped: a bad sector is an error here, and death to whoever has it mapped.
            if check and _checksum(descriptor, need) != fields["crc32"]:
                raise IndexDamaged(damaged)
            mapped = mmap.mmap(descriptor, need, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
    starts = HEADER_BYTES + np.cumsum([0, *(-(-size // 8) * 8 for size in sizes)])
    codes, offset, cell, span = (
        np.frombuffer(mapped, dtype=dtype, count=size // np.dtype(dtype).itemsize, offset=start)
        for dtype, size, start in zip(("i1", "<u4", "<u2", "<u2"), sizes, starts, strict=False)
    )
    return RunCodes(
        frames=layout.frames,
        cells=layout.cells,
        codes_rk=codes.reshape(-1, layout.code_dim),
        offset_r=offset,
        cell_r=cell,
        span_m2=span.reshape(-1, 2),
    )


def _sizes(
    layout: RunCodesLayout, page: bytes
) -> tuple[dict[str, int], tuple[int, int, int, int]] | None:
    """Fields, and bytes of codes, offsets, cells and spans; None unless the header is this
    layout's."""
    fields = header_fields(_MAGIC, page)
    if fields is None or {"rows", "runs", "crc32"} - fields.keys():
        return None
    rows, runs = fields["rows"], fields["runs"]
    if _header(layout, rows, runs, fields["crc32"]) != page:
        return None
    return fields, (rows * layout.code_dim, 4 * (rows + 1), 2 * rows, 4 * runs)


def _checksum(descriptor: int, end: int) -> int:
    checksum = 0
    for start in range(HEADER_BYTES, end, _READ_BYTES):
        body = os.pread(descriptor, min(_READ_BYTES, end - start), start)
        checksum = isal_zlib.crc32(body, checksum)
    return int(checksum)
