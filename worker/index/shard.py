"""Append-only vector files of one shard; their valid length is what Postgres says.

A shard has two files of equal-sized blocks, one block per run (frame and view):
``global.vec`` (global_dim numbers) and ``patch.vec`` (cells x patch_dim numbers, row-major cells).
Each starts with one header page that names the format, spec and widths under a checksum. Bytes
behind the valid length are left-overs of an append whose commit never came; the next append
overwrites them. Of a sealed shard the patch blocks that were there when it was sealed are in
``patch.runs`` (:mod:`worker.index.runs_file`), and ``patch.vec`` holds those that came later.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
from isal import isal_zlib

from worker.core.types import BoolArray, Descriptors, FloatArray, IntArray
from worker.errors import IndexDamaged, RisError, StorageFailed
from worker.index.layout import (
    FORMAT_VERSION,
    HEADER_BYTES,
    KINDS,
    VECTOR_MAGIC,
    FileKind,
    ShardLayout,
    begin_write_out,
    fsync_folder,
    newer_format,
    open_file,
    storage_errors,
    write_all,
)
from worker.index.runs_file import open_runs, read_made_up

LOCK_NAME = "writer.lock"
DERIVED_LOCK_NAME = "derived.lock"
NO_CHECKSUM = 2**32
"""Recorded for a block that stays damaged: no CRC-32 is equal to it."""


def append_blocks(layout: ShardLayout, valid_blocks: int, descriptors: Descriptors) -> IntArray:
    """:func:`appended_blocks` with nothing to do meanwhile; returns the checksums."""
    with appended_blocks(layout, valid_blocks, descriptors) as sums_n2:
        return sums_n2


@contextmanager
def appended_blocks(
    layout: ShardLayout, valid_blocks: int, descriptors: Descriptors
) -> Iterator[IntArray]:
    """Write n blocks behind ``valid_blocks``, and fsync them when the block is left; their
    checksums.

    The disk begins to write at once, so that what is done inside costs no time of its own.
    Checksums are int64 (n, 2): CRC-32 of the stored global block, and of it and the patch block.
    The caller holds the shard's row lock and :func:`hold_shard`, and commits afterwards. Nothing
    before ``valid_blocks`` is touched. Raises :class:`StorageFull`, :class:`StorageFailed` or
    :class:`IndexDamaged`; the valid part is intact in every case.
    """
    stored_global = layout.codec.encode(descriptors.global_nd)
    stored_patches = layout.codec.encode(descriptors.patches_ncd)
    n = descriptors.global_nd.shape[0]
    expected = ((n, *layout.block_shape("global")), (n, *layout.block_shape("patch")))
    if (stored_global.shape, stored_patches.shape) != expected:
        raise IndexDamaged(
            f"{layout.folder}: descriptors of shapes {stored_global.shape}, {stored_patches.shape}"
            f" do not fit the shard's blocks {expected}"
        )
    places = (valid_blocks, valid_blocks - layout.sealed)
    with ExitStack() as opened:
        with storage_errors(layout.folder):
            written = [
                _write_behind(layout, kind, place, stored.data.cast("B"), opened)
                for kind, place, stored in zip(
                    KINDS, places, (stored_global, stored_patches), strict=True
                )
            ]
        yield checksums(stored_global, stored_patches)
        with storage_errors(layout.folder):
            for descriptor in written:
                os.fsync(descriptor)
            if 0 in places:
                # Also when the file was there: whoever made it may have died before syncing its
                # entry.
                for folder in (layout.folder, *list(layout.folder.parents)[:3]):
                    fsync_folder(folder)


def checksums(stored_global: np.ndarray, stored_patches: np.ndarray) -> IntArray:
    """CRC-32 of each stored global block, and of it and its patch block: int64 (n, 2)."""
    sums_n2 = np.empty((len(stored_global), 2), dtype=np.int64)
    for i, (global_block, patch_block) in enumerate(
        zip(stored_global, stored_patches, strict=True)
    ):
        sums_n2[i, 0] = isal_zlib.crc32(global_block)
        sums_n2[i, 1] = isal_zlib.crc32(patch_block, int(sums_n2[i, 0]))
    return sums_n2


def hold_shard(layout: ShardLayout, wait_s: float = 2.0) -> AbstractContextManager[None]:
    """Be the only process that writes these vectors until the block is left, after the commit.

    Second fence behind the row lock: a writer that lost Postgres may still be writing, and what it
    writes must not land on what another one has committed since. Read the valid length again once
    this is held. Raises :class:`StorageFailed` when another process holds it for ``wait_s``.
    """
    return _held(layout, LOCK_NAME, wait_s)


def hold_derived(layout: ShardLayout, wait_s: float = 2.0) -> AbstractContextManager[None]:
    """Be the only process that writes codes, or what says where patches were moved to.

    Another lock than :func:`hold_shard`: whoever has this one locks the shard's row afterwards,
    and an append, which has locked the row first, must neither wait for it nor be waited for.
    """
    return _held(layout, DERIVED_LOCK_NAME, wait_s)


@contextmanager
def _held(layout: ShardLayout, name: str, wait_s: float) -> Iterator[None]:
    give_up_s = time.monotonic() + wait_s
    while True:
        descriptor = _open_lock(layout, name)
        try:
            _lock(descriptor, layout, give_up_s)
            if _is_entry(descriptor, layout.folder / name):
                yield
                return
        finally:
            os.close(descriptor)
        # Whoever held it removed the folder: that lock kept nobody out.


def _lock(descriptor: int, layout: ShardLayout, give_up_s: float) -> None:
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > give_up_s:
                raise StorageFailed(
                    f"{layout.folder} is being written by another worker; try again"
                ) from error
            time.sleep(0.02)


def _open_lock(layout: ShardLayout, name: str) -> int:
    with storage_errors(layout.folder):
        layout.folder.mkdir(parents=True, exist_ok=True)
        return os.open(layout.folder / name, os.O_RDWR | os.O_CREAT, 0o640)


def _is_entry(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def is_held(folder: Path) -> bool:
    """Whether a process holds a shard's files for writing."""
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _write_behind(
    layout: ShardLayout, kind: FileKind, place: int, body: memoryview, opened: ExitStack
) -> int:
    """Write behind ``place`` blocks of the file, which is made at 0; the open file, to be synced
    before ``opened`` closes it."""
    path = layout.path(kind)
    if place == 0:
        layout.folder.mkdir(parents=True, exist_ok=True)
    descriptor = open_file(path, os.O_RDWR | (os.O_CREAT if place == 0 else 0))
    opened.callback(os.close, descriptor)
    if place == 0:
        # A sealed shard's file has its header already, which must not be torn.
        if _header(descriptor) != layout.header(kind):
            os.ftruncate(descriptor, 0)
            write_all(descriptor, layout.header(kind), 0)
    else:
        _check_file(descriptor, layout, kind, place)
    start = HEADER_BYTES + place * layout.block_bytes(kind)
    write_all(descriptor, body, start)
    os.ftruncate(descriptor, start + len(body))
    begin_write_out(descriptor, start, len(body))
    return descriptor


def _check_file(descriptor: int, layout: ShardLayout, kind: FileKind, blocks: int) -> None:
    path = layout.path(kind)
    found = os.pread(descriptor, HEADER_BYTES, 0)
    if found != layout.header(kind):
        raise _bad_header(layout, kind, found)
    need = HEADER_BYTES + blocks * layout.block_bytes(kind)
    have = os.fstat(descriptor).st_size
    if have < need:
        raise IndexDamaged(f"{path}: {have} bytes, Postgres says {need}; run `ris verify`")


def check_headers(layout: ShardLayout) -> None:
    """Raise :class:`IndexDamaged` unless all files are there and have their header."""
    for kind in KINDS:
        read_stored(layout, kind, np.empty(0, dtype=np.int64))
    if layout.sealed:
        open_runs(layout)


def read_blocks(
    layout: ShardLayout, kind: FileKind, blocks: Sequence[int] | IntArray, sums_n2: IntArray
) -> FloatArray:
    """Some blocks as float32 (n, *block_shape): :func:`read_checked`, decoded."""
    return layout.codec.decode(read_checked(layout, kind, blocks, sums_n2))


def read_checked(
    layout: ShardLayout,
    kind: FileKind,
    blocks: Sequence[int] | IntArray,
    sums_n2: IntArray,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Some blocks as they are stored, (n, *block_shape), in that order, each checked against its
    checksum; in ``out``, an array of that shape and type, if given.

    ``sums_n2``: int64 (n, 2), checksums of these blocks as :func:`append_blocks` gave them; -1 in
    the first column: not known, not checked. Raises :class:`IndexDamaged` naming every block that
    is missing, cut off or not what was written.
    """
    at = np.asarray(blocks, dtype=np.int64)
    stored, sound = read_stored(layout, kind, at, out=out)
    sound &= sums_n2[:, 0] < NO_CHECKSUM
    for i in np.flatnonzero(sound & (sums_n2[:, 0] >= 0)):
        if kind == "global":
            sound[i] = isal_zlib.crc32(stored[i]) == sums_n2[i, 0]
        else:
            sound[i] = isal_zlib.crc32(stored[i], int(sums_n2[i, 0])) == sums_n2[i, 1]
    if not sound.all():
        raise _damaged(layout, kind, at[~sound].tolist())
    return stored


def damaged_blocks(
    layout: ShardLayout, sums_n2: IntArray, step: int = 64, *, first: int = 0
) -> dict[int, FileKind]:
    """Which of the first n blocks, but for those before ``first``, cannot be read, or do not match
    their checksums, int64 (n, 2); and in which file.

    A file without its header holds none that can be read. Where the checksum of the global block is
    not known (-1), damage of either is laid to the patch file.
    """
    wrong: dict[int, FileKind] = {}
    for kind in KINDS:
        try:
            read_stored(layout, kind, np.empty(0, dtype=np.int64))
        except IndexDamaged:
            begin = max(first, layout.sealed if kind == "patch" else 0)
            wrong |= dict.fromkeys(range(begin, len(sums_n2)), kind)
    for start in range(first, len(sums_n2), step):
        at = np.arange(start, min(start + step, len(sums_n2)))
        stored_global, sound_global = read_stored(layout, "global", at, header=False)
        stored_patches, sound_patch = read_stored(layout, "patch", at, header=False)
        found_n2, asked_n2 = checksums(stored_global, stored_patches), sums_n2[at]
        sound_global &= (asked_n2[:, 0] < 0) | (found_n2[:, 0] == asked_n2[:, 0])
        sound_patch &= ~sound_global | (found_n2[:, 1] == asked_n2[:, 1])
        wrong |= dict.fromkeys(at[~sound_patch].tolist(), "patch")
        wrong |= dict.fromkeys(at[~sound_global].tolist(), "global")
    return wrong


def _damaged(layout: ShardLayout, kind: FileKind, blocks: Sequence[int]) -> IndexDamaged:
    shown = ", ".join(map(str, blocks[:5])) + (", ..." if len(blocks) > 5 else "")
    path = layout.path_of(kind, blocks[0])
    return IndexDamaged(
        f"{path}: {len(blocks)} blocks are damaged or missing ({shown}); run"
        " `ris verify`, then `ris repair`",
        folder=str(layout.folder),
        blocks=blocks,
    )


def read_stored(
    layout: ShardLayout,
    kind: FileKind,
    at: IntArray,
    *,
    header: bool = True,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, BoolArray]:
    """Stored blocks (n, *block_shape), in ``out`` if given, and which of them were there to read:
    bool (n,). What was not is zeros.

    Sealed ones are made up from their rows. Raises :class:`IndexDamaged`, for all of them, without
    the file or its header, and :class:`FormatNewer`; with ``header`` False those are not asked for,
    and nothing is there to read in a file that is not.
    """
    sealed = layout.sealed if kind == "patch" else 0
    if out is None:
        out = np.empty((at.size, *layout.block_shape(kind)), dtype=layout.codec.dtype)
    late = at >= sealed
    if late.all():
        return out, _read_file(layout, kind, at, sealed, header, out)
    if late.any():
        sound = np.zeros(at.size, dtype=np.bool_)
        for part in (late, ~late):
            out[part], sound[part] = read_stored(layout, kind, at[part], header=header)
        return out, sound
    with storage_errors(layout.path_of(kind, 0)):
        try:
            out[:], sound = read_made_up(layout, at)
        except IndexDamaged as error:
            if header:
                raise _unreadable(layout, at, str(error)) from error
            out[:], sound = 0, np.zeros(at.size, dtype=np.bool_)
    return out, sound


def _read_file(
    layout: ShardLayout, kind: FileKind, at: IntArray, first: int, header: bool, out: np.ndarray
) -> BoolArray:
    """Blocks of the file that is appended to, whose first one is ``first``."""
    sound = np.zeros(at.size, dtype=np.bool_)
    with storage_errors(layout.path(kind)):
        try:
            descriptor = open_file(layout.path(kind), os.O_RDONLY)
        except IndexDamaged as error:
            if not header:
                out[:] = 0
                return sound
            raise _unreadable(layout, at, str(error)) from error
        try:
            found = _header(descriptor) if header else layout.header(kind)
            if found != layout.header(kind):
                raise _bad_header(layout, kind, found, at)
            # Neighbouring blocks are read at once.
            edges = [0, *(np.flatnonzero(np.diff(at) != 1) + 1).tolist(), at.size]
            for start, end in pairwise(edges):
                part = slice(start, end)
                _fill(descriptor, layout, kind, at[part] - first, out[part], sound[part])
        finally:
            os.close(descriptor)
    if not sound.all():
        out[~sound] = 0
    return sound


def _unreadable(layout: ShardLayout, at: IntArray, message: str) -> IndexDamaged:
    return IndexDamaged(message, folder=str(layout.folder), blocks=at.tolist())


def _fill(
    descriptor: int,
    layout: ShardLayout,
    kind: FileKind,
    at: IntArray,
    stored: np.ndarray,
    sound: BoolArray,
) -> None:
    """Read neighbouring blocks into place; what is cut off or unreadable stays unsound."""
    if at.size == 0:
        return
    view = stored.data.cast("B")
    offset, have = HEADER_BYTES + int(at[0]) * layout.block_bytes(kind), 0
    try:
        while have < len(view) and (count := os.preadv(descriptor, [view[have:]], offset + have)):
            have += count
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        if at.size > 1:  # one bad sector must not cost its neighbours
            for i in range(at.size):
                _fill(descriptor, layout, kind, at[i : i + 1], stored[i : i + 1], sound[i : i + 1])
        return
    sound[: have // layout.block_bytes(kind)] = True


def _header(descriptor: int) -> bytes:
    try:
        return os.pread(descriptor, HEADER_BYTES, 0)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""


def _bad_header(
    layout: ShardLayout, kind: FileKind, found: bytes, at: IntArray | None = None
) -> RisError:
    """The error that a header other than the expected one stands for. ``at``: blocks asked for."""
    newer = newer_format(layout.path(kind), VECTOR_MAGIC, found, FORMAT_VERSION)
    if newer is not None:  # no damage: a repair would write it anew in the old format
        return newer
    message = (
        f"{layout.path(kind)}: header is damaged or of another spec or codec; run `ris verify`"
    )
    return IndexDamaged(message) if at is None else _unreadable(layout, at, message)
