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
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
from isal import isal_zlib
from numpy.lib.stride_tricks import sliding_window_view

from worker.core.cell_runs import CellRuns, RunFinder
from worker.core.types import BoolArray, IntArray
from worker.errors import IndexDamaged, ObjectStoreUnavailable
from worker.index.layout import (
    HEADER_BYTES,
    ShardLayout,
    fsync_folder,
    header_fields,
    header_page,
    newer_format,
    storage_errors,
    write_all,
)
from worker.index.moved_file import MAP_NAME, MovedRuns, open_map, part_crc32s, write_map
from worker.index.part_cache import PART_BYTES, StoredObject

RUNS_VERSION = 1
MAX_OPEN = 128
"""Files whose runs stay mapped, each of which takes a file descriptor."""
_PARTS_AT_ONCE = 64
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
    stored, sound = _read_rows(layout, wanted)
    place_nc = place.reshape(rows_nc.shape)
    whole_n: BoolArray = np.logical_and.reduce(sound[place_nc], axis=1)
    return stored[place_nc], whole_n


def read_rows(layout: ShardLayout, first: int, end: int) -> tuple[np.ndarray, BoolArray]:
    """Rows as they lie in the file, stored type (n, patch_dim), and which could be read."""
    with storage_errors(layout.path_of("patch", 0)):
        return _read_rows(layout, np.arange(first, end))


def _read_rows(layout: ShardLayout, wanted: IntArray) -> tuple[np.ndarray, BoolArray]:
    """Ascending rows, from the file or from the object that it was moved to."""
    stored = np.zeros((wanted.size, layout.patch_dim), dtype=layout.codec.dtype)
    sound = np.zeros(wanted.size, dtype=np.bool_)
    tried = None
    while True:
        descriptor, _, moved = _opened(layout)
        try:
            if moved is None:
                edges = np.flatnonzero(np.diff(wanted) > _GAP_ROWS) + 1
                for first, end in pairwise([0, *edges.tolist(), wanted.size]):
                    part = slice(first, end)
                    _fill_rows(descriptor, layout, wanted[part], stored[part], sound[part])
                return stored, sound
        finally:
            os.close(descriptor)
        # What could not be read may have been brought back meanwhile, and its object removed.
        if moved.stored.url == tried:
            return stored, sound
        tried = moved.stored.url
        _fill_moved(layout, moved.stored, wanted, stored, sound)
        if sound.all():
            return stored, sound


def _opened(layout: ShardLayout) -> tuple[int, Path, MovedRuns | None]:
    """A descriptor of the file if it is here, else of the map that says where it was moved to."""
    path = layout.path_of("patch", 0)
    for _ in range(2):  # between the two looks it may have been brought back
        try:
            return os.open(path, os.O_RDONLY), path, None
        except FileNotFoundError:
            with suppress(FileNotFoundError):
                descriptor, moved = open_map(layout.folder)
                return descriptor, layout.folder / MAP_NAME, moved
    raise IndexDamaged(f"{path} is missing; run `ris verify`")


def _fill_moved(
    layout: ShardLayout, of: StoredObject, rows: IntArray, stored: np.ndarray, sound: BoolArray
) -> None:
    """Read ascending rows of an object into place: its parts that they lie in, at once."""
    row_bytes = layout.patch_dim * layout.codec.item_bytes
    first_n = HEADER_BYTES + rows * row_bytes
    first_part_n, last_part_n = first_n // PART_BYTES, (first_n + row_bytes - 1) // PART_BYTES
    inside = last_part_n < len(of.crc32s)
    if not inside.any():
        return
    wanted = np.unique(np.concatenate([first_part_n[inside], last_part_n[inside]]))
    found = _parts(layout, of, wanted.tolist())
    # Parts one behind the other: those that a row lies across are neighbours here as well.
    bodies = [found.get(part, b"").ljust(PART_BYTES, b"\0") for part in wanted.tolist()]
    body = np.frombuffer(b"".join(bodies), dtype=np.uint8)
    here = np.isin(wanted, list(found))
    place_n = np.searchsorted(wanted, first_part_n[inside])
    end_n = np.searchsorted(wanted, last_part_n[inside])
    at_n = place_n * PART_BYTES + first_n[inside] % PART_BYTES
    read = np.ascontiguousarray(sliding_window_view(body, row_bytes)[at_n])
    stored[inside] = read.view(layout.codec.dtype).reshape(-1, layout.patch_dim)
    sound[inside] = here[place_n] & here[end_n]


def _parts(layout: ShardLayout, of: StoredObject, wanted: list[int]) -> dict[int, bytes]:
    if layout.parts is None:
        raise ObjectStoreUnavailable(
            f"patches of {layout.folder} lie at {of.url}: set RIS_S3_URL to read them"
        )
    return layout.parts.parts(of, wanted)


def has_runs(layout: ShardLayout) -> bool:
    """Whether the sealed patches are here, or known where."""
    return layout.path_of("patch", 0).exists() or (layout.folder / MAP_NAME).exists()


def runs_bytes(layout: ShardLayout) -> int:
    """Bytes of the sealed patches, wherever they lie. Raises :class:`IndexDamaged`."""
    descriptor, _, moved = _opened(layout)
    try:
        return os.fstat(descriptor).st_size if moved is None else moved.stored.byte_count
    finally:
        os.close(descriptor)


def map_of(layout: ShardLayout, stored: StoredObject) -> None:
    """Write the map to the object that ``patch.runs`` was copied to, from it, or from the object if
    it is not here. Raises :class:`IndexDamaged` when neither is sound."""
    path = layout.path_of("patch", 0)
    if path.exists() and part_crc32s(path) == stored.crc32s:
        with storage_errors(path), path.open("rb") as file:
            page, runs = _page_and_runs(layout, file)
    else:
        found = _parts(layout, stored, list(range(len(stored.crc32s))))
        body = b"".join(found[part] for part in sorted(found))
        if len(body) != stored.byte_count:
            raise IndexDamaged(f"{stored.url} is damaged or missing; run `ris repair`")
        page, runs = _page_and_runs(layout, BytesIO(body))
    write_map(layout.folder, stored, page, runs)


def _page_and_runs(layout: ShardLayout, file: BinaryIO) -> tuple[bytes, bytes]:
    page = file.read(HEADER_BYTES)
    fields = header_fields(_MAGIC, page)
    if fields is None:
        path = layout.path_of("patch", 0)
        raise IndexDamaged(f"{path}: header is damaged; run `ris repair`")
    file.seek(_runs_offset(layout, fields["rows"]))
    return page, file.read()


def write_whole(layout: ShardLayout, target: Path, *, holes: bool = False) -> None:
    """Write all of a moved ``patch.runs`` to a file, synced. Raises :class:`IndexDamaged` when its
    object is not sound, unless ``holes`` may be left where it is not."""
    descriptor, moved = open_map(layout.folder)
    os.close(descriptor)
    stored = moved.stored
    part = target.with_suffix(".tmp")
    with storage_errors(target):
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
        try:
            for first in range(0, len(stored.crc32s), _PARTS_AT_ONCE):
                wanted = range(first, min(first + _PARTS_AT_ONCE, len(stored.crc32s)))
                found = _parts(layout, stored, list(wanted))
                if len(found) < len(wanted) and not holes:
                    raise IndexDamaged(f"{stored.url} is damaged or missing; run `ris repair`")
                for number, body in found.items():
                    write_all(descriptor, body, number * PART_BYTES)
            os.ftruncate(descriptor, stored.byte_count)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        part.replace(target)
        fsync_folder(target.parent)


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
    with storage_errors(layout.path_of("patch", 0)):
        descriptor, path, moved = _opened(layout)
        try:
            return _known_runs(layout, descriptor, path, moved)
        finally:
            os.close(descriptor)


def _known_runs(
    layout: ShardLayout, descriptor: int, path: Path, moved: MovedRuns | None
) -> CellRuns:
    found = os.fstat(descriptor)
    identity = (found.st_ino, found.st_size, found.st_mtime_ns)
    # By shard, not by revision: what is replaced makes way.
    key = layout.folder.with_name(layout.folder.name.partition(".")[0])
    with _open_lock:
        known = _open.get(key)
        if known is not None and known.identity == identity:
            _open.move_to_end(key)
            return known.runs
    runs = _map_runs(layout, descriptor, path, moved)
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


def _map_runs(
    layout: ShardLayout, descriptor: int, path: Path, moved: MovedRuns | None
) -> CellRuns:
    damaged = f"{path}: header or runs are damaged, or of another spec or codec"
    page = _read(descriptor, HEADER_BYTES, 0) if moved is None else moved.page
    newer = newer_format(path, _MAGIC, page, RUNS_VERSION)
    if newer is not None:
        raise newer
    fields = header_fields(_MAGIC, page)
    if fields is None:
        raise IndexDamaged(f"{damaged}; run `ris verify`")
    offset, size = _runs_offset(layout, fields["rows"]), 8 * fields["runs"]
    offset = offset if moved is None else moved.runs_offset
    body = _read(descriptor, size, offset)  # read, not mapped: a bad sector is an error here
    if len(body) != size or isal_zlib.crc32(body) != fields["runs_crc32"]:
        raise IndexDamaged(f"{damaged}; run `ris verify`")
    mapped = mmap.mmap(descriptor, offset + size, prot=mmap.PROT_READ)
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
