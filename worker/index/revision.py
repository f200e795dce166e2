"""A shard's files written anew as its next revision, beside the ones that are read meanwhile."""

from __future__ import annotations

import os

import numpy as np

from worker.core.types import BoolArray, IntArray
from worker.index.layout import (
    HEADER_BYTES,
    KINDS,
    FileKind,
    ShardLayout,
    fsync_folder,
    storage_errors,
    write_all,
)
from worker.index.shard import LOCK_NAME, checksums, read_stored


class RevisionWriter:
    """Files of a shard's next revision, written block after block; nothing of theirs is valid yet.

    Whoever uses it holds :func:`hold_shard` of ``layout``.
    """

    def __init__(self, layout: ShardLayout) -> None:
        self.layout = layout
        self.sums: list[IntArray] = []

    def clear(self) -> None:
        """Remove what a writer that died left of this revision: nothing would, later."""
        with storage_errors(self.layout.folder):
            for path in sorted(self.layout.folder.iterdir()):
                if path.name != LOCK_NAME:
                    path.unlink()

    def write(self, start: int, stored_global: np.ndarray, stored_patches: np.ndarray) -> None:
        """Write stored blocks behind ``start``, which begins anew at 0. Nothing is synced. Patches
        of sealed blocks are not written: they are in a file of their own."""
        self.put("global", start, stored_global)
        sealed = min(len(stored_patches), max(0, self.layout.sealed - start))
        if sealed < len(stored_patches) or start == 0:
            place = max(0, start - self.layout.sealed)
            self.put("patch", place, stored_patches[sealed:])
        self.sums.append(checksums(stored_global, stored_patches))

    def put(self, kind: FileKind, place: int, stored: np.ndarray) -> None:
        """Write stored blocks at a place of one file, which begins anew at 0."""
        with storage_errors(self.layout.folder):
            flags = os.O_WRONLY | (os.O_CREAT | os.O_TRUNC if place == 0 else 0)
            descriptor = os.open(self.layout.path(kind), flags, 0o640)
            try:
                if place == 0:
                    write_all(descriptor, self.layout.header(kind), 0)
                if stored.size:
                    offset = HEADER_BYTES + place * self.layout.block_bytes(kind)
                    write_all(descriptor, stored.data.cast("B"), offset)
            finally:
                os.close(descriptor)

    def sync(self) -> IntArray:
        """Make everything durable; the checksums of all blocks written, int64 (n, 2)."""
        with storage_errors(self.layout.folder):
            for kind in KINDS:
                descriptor = os.open(self.layout.path(kind), os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            for folder in (self.layout.folder, self.layout.folder.parent):
                fsync_folder(folder)
        return np.concatenate([np.empty((0, 2), dtype=np.int64), *self.sums])


def stored_blocks(
    layout: ShardLayout, at: IntArray, sums_n2: IntArray
) -> tuple[np.ndarray, np.ndarray, BoolArray]:
    """Blocks as they lie in both files, whatever their headers say: stored type (n, global_dim) and
    (n, cells, patch_dim); and which of them match their checksums int64 (n, 2): bool (n,).

    What cannot be read is zeros. A read that failed once may not fail again: it is tried twice,
    since whoever asks may give up for good what is not sound.
    """
    found = _stored_once(layout, at, sums_n2)
    return found if found[2].all() else _stored_once(layout, at, sums_n2)


def _stored_once(
    layout: ShardLayout, at: IntArray, sums_n2: IntArray
) -> tuple[np.ndarray, np.ndarray, BoolArray]:
    stored_global, sound = read_stored(layout, "global", at, header=False)
    stored_patches, sound_patch = read_stored(layout, "patch", at, header=False)
    found_n2 = checksums(stored_global, stored_patches)
    known = sums_n2[:, 0] >= 0
    sound &= sound_patch & (found_n2[:, 1] == sums_n2[:, 1])
    sound &= ~known | (found_n2[:, 0] == sums_n2[:, 0])
    return stored_global, stored_patches, sound
