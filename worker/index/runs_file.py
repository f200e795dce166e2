"""Sealed patches of a shard: ``patch.runs``, in which what a camera goes on showing lies once.

Rows, stored type (rows, patch_dim), in order of the frame and cell that began them; behind them
the runs that make frames up from rows (:mod:`worker.core.cell_runs`), uint32 (runs,) starts and
(runs,) row numbers. Written once, beside, and renamed; what a frame's made-up block must be is said
by its checksum in Postgres, as for any block. The header page holds the counts, and the checksum of
the runs.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from isal import isal_zlib

from worker.core.cell_runs import CellRuns, RunFinder
from worker.core.types import BoolArray, IntArray
from worker.errors import IndexDamaged
from worker.index.layout import (
    HEADER_BYTES,
    ShardLayout,
    fsync_folder,
    header_fields,
    header_page,
    newer_format,
    open_file,
    storage_errors,
    write_all,
)

RUNS_VERSION = 1
MAX_OPEN = 128
"""Files whose runs stay mapped, each of which takes a file descriptor."""
_GAP_ROWS = 48
"""Rows that nobody asked for are read along when fewer lie between two that are wanted."""
_MAGIC = b"RISRUNS\n"


@dataclass(frozen=True, slots=True, eq=False)
class SealedRuns:
    """An open file: its runs, mapped, and where they were checked. ``identity``: of the file."""

    runs: CellRuns
    identity: tuple[int, int, int]


class RunsWriter:
    """Writes a shard's ``patch.runs``, frame after frame. Building one does no I/O.

    Whoever uses it holds :func:`worker.index.shard.hold_shard` of ``layout``.
    """

    def __init__(self, layout: ShardLayout, largest_distance: float) -> None:
        self.layout = layout
        self._finder = RunFinder(layout.cells, largest_distance)
        self._row_bytes = layout.patch_dim * layout.codec.item_bytes
        self._path = layout.path_of("patch", 0).with_suffix(".tmp")

    def add(self, stored_ncd: np.ndarray, exact_n: BoolArray) -> None:
        """The next frames, as stored; ``exact_n``: which were made up from runs before."""
        patches_ncd = self.layout.codec.decode(stored_ncd)
        before, rows = self._finder.rows, []
        for stored_cd, patches_cd, exact in zip(stored_ncd, patches_ncd, exact_n, strict=True):
            rows.append(stored_cd[self._finder.add(stored_cd, patches_cd, exact=bool(exact))])
        body = np.concatenate(rows)
        with storage_errors(self._path):
            flags = os.O_WRONLY | (os.O_CREAT | os.O_TRUNC if before == 0 else 0)
            descriptor = os.open(self._path, flags, 0o640)
            try:
                if body.size:
                    start = HEADER_BYTES + before * self._row_bytes
                    write_all(descriptor, body.data.cast("B"), start)
            finally:
                os.close(descriptor)

    def finish(self) -> CellRuns:
        """Write runs and header, sync, and rename; the folder's entry is synced too."""
        runs = self._finder.runs()
        body = _runs_body(runs)
        with storage_errors(self._path):
            descriptor = os.open(self._path, os.O_WRONLY)
            try:
                write_all(descriptor, body, _runs_offset(self.layout, runs.rows))
                write_all(descriptor, _header(self.layout, runs, isal_zlib.crc32(body)), 0)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._path.replace(self.layout.path_of("patch", 0))
            fsync_folder(self.layout.folder)
        return runs


def _runs_body(runs: CellRuns) -> bytes:
    return runs.start_m.astype("<u4").tobytes() + runs.row_m.astype("<u4").tobytes()


def _runs_offset(layout: ShardLayout, rows: int) -> int:
    end = HEADER_BYTES + rows * layout.patch_dim * layout.codec.item_bytes
    return -(-end // 8) * 8


def _header(layout: ShardLayout, runs: CellRuns, runs_crc32: int) -> bytes:
    fields = {
        "version": RUNS_VERSION,
        "spec_hash": layout.spec_hash,
        "codec": layout.codec.name,
        "cells": layout.cells,
        "patch_dim": layout.patch_dim,
        "frames": runs.frames,
        "rows": runs.rows,
        "runs": int(runs.start_m.size),
        "runs_crc32": runs_crc32,
    }
    return header_page(_MAGIC, fields)


def read_made_up(layout: ShardLayout, at: IntArray) -> tuple[np.ndarray, BoolArray]:
    """Sealed frames made up from rows, stored type (n, cells, patch_dim), and of which all rows
    could be read: bool (n,). Raises :class:`IndexDamaged` when runs or header are not sound."""
    runs = open_runs(layout)
    rows_nc = runs.rows_of(at)
    wanted, place = np.unique(rows_nc, return_inverse=True)
    stored = np.zeros((wanted.size, layout.patch_dim), dtype=layout.codec.dtype)
    sound = np.zeros(wanted.size, dtype=np.bool_)
    descriptor = open_file(layout.path_of("patch", 0), os.O_RDONLY)
    try:
        edges = np.flatnonzero(np.diff(wanted) > _GAP_ROWS) + 1
        for first, end in pairwise([0, *edges.tolist(), wanted.size]):
            part = slice(first, end)
            _fill_rows(descriptor, layout, wanted[part], stored[part], sound[part])
    finally:
        os.close(descriptor)
    place_nc = place.reshape(rows_nc.shape)
    whole_n: BoolArray = np.logical_and.reduce(sound[place_nc], axis=1)
    return stored[place_nc], whole_n


def read_rows(layout: ShardLayout, first: int, end: int) -> tuple[np.ndarray, BoolArray]:
    """Rows as they lie in the file, stored type (n, patch_dim), and which could be read."""
    stored = np.zeros((end - first, layout.patch_dim), dtype=layout.codec.dtype)
    sound = np.zeros(end - first, dtype=np.bool_)
    with storage_errors(layout.path_of("patch", 0)):
        descriptor = open_file(layout.path_of("patch", 0), os.O_RDONLY)
        try:
            _fill_rows(descriptor, layout, np.arange(first, end), stored, sound)
        finally:
            os.close(descriptor)
    return stored, sound


def _fill_rows(
    descriptor: int, layout: ShardLayout, rows: IntArray, stored: np.ndarray, sound: BoolArray
) -> None:
    """Read ascending rows that lie close together into place."""
    if not rows.size:
        return
    first, count = int(rows[0]), int(rows[-1] - rows[0]) + 1
    row_bytes = layout.patch_dim * layout.codec.item_bytes
    try:
        body = os.pread(descriptor, count * row_bytes, HEADER_BYTES + first * row_bytes)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        if rows.size > 1:  # one bad sector must not cost its neighbours
            for i in range(rows.size):
                _fill_rows(descriptor, layout, rows[i : i + 1], stored[i : i + 1], sound[i : i + 1])
        return
    have = len(body) // row_bytes
    read = np.frombuffer(body, dtype=layout.codec.dtype, count=have * layout.patch_dim)
    here = rows - first < have
    stored[here] = read.reshape(have, layout.patch_dim)[(rows - first)[here]]
    sound[here] = True


_open: OrderedDict[Path, SealedRuns] = OrderedDict()
_open_lock = threading.Lock()


def open_runs(layout: ShardLayout) -> CellRuns:
    """The runs of a sealed shard, checked once and kept mapped. Raises :class:`IndexDamaged` or
    :class:`StorageFailed`."""
    path = layout.path_of("patch", 0)
    with storage_errors(path):
        return _open_runs(layout, path)


def _open_runs(layout: ShardLayout, path: Path) -> CellRuns:
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise IndexDamaged(f"{path} is missing; run `ris verify`") from error
    identity = (found.st_ino, found.st_size, found.st_mtime_ns)
    # By shard, not by revision: what is replaced makes way.
    key = layout.folder.with_name(layout.folder.name.partition(".")[0])
    with _open_lock:
        known = _open.get(key)
        if known is not None and known.identity == identity:
            _open.move_to_end(key)
            return known.runs
    runs = _map_runs(layout, path)
    with _open_lock:
        _open[key] = SealedRuns(runs, identity)
        _open.move_to_end(key)
        while len(_open) > MAX_OPEN:
            _open.popitem(last=False)
    return runs


def let_go_of_runs() -> None:
    """Unmap all files; they are opened again when they are asked for."""
    with _open_lock:
        _open.clear()


def _map_runs(layout: ShardLayout, path: Path) -> CellRuns:
    damaged = f"{path}: header or runs are damaged, or of another spec or codec"
    descriptor = open_file(path, os.O_RDONLY)
    try:
        page = _read(descriptor, HEADER_BYTES, 0)
        newer = newer_format(path, _MAGIC, page, RUNS_VERSION)
        if newer is not None:
            raise newer
        fields = header_fields(_MAGIC, page)
        if fields is None:
            raise IndexDamaged(f"{damaged}; run `ris verify`")
        offset, size = _runs_offset(layout, fields["rows"]), 8 * fields["runs"]
        body = _read(descriptor, size, offset)  # read, not mapped: a bad sector is an error here
        if len(body) != size or isal_zlib.crc32(body) != fields["runs_crc32"]:
            raise IndexDamaged(f"{damaged}; run `ris verify`")
        mapped = mmap.mmap(descriptor, offset + size, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)
    both = np.frombuffer(mapped, dtype="<u4", offset=offset).reshape(2, -1)
    runs = CellRuns(fields["frames"], layout.cells, fields["rows"], both[0], both[1])
    if _header(layout, runs, fields["runs_crc32"]) != page or runs.frames != layout.sealed:
        raise IndexDamaged(f"{damaged}; run `ris verify`")
    return runs


def _read(descriptor: int, size: int, offset: int) -> bytes:
    """Bytes; fewer where the file ends or cannot be read."""
    try:
        return os.pread(descriptor, size, offset)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""
