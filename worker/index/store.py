"""The index store of one data folder: names shard folders and keeps what readers reuse.

A reader pins a generation by taking a list of :class:`PinnedShard` (with valid lengths) from
Postgres in one transaction; everything it sees afterwards lies inside those lengths.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from worker.core.backbone_spec import BackboneSpec
from worker.core.f_map import FMapRuns
from worker.core.types import FloatArray, IntArray
from worker.errors import StorageFull
from worker.index.codec import codec_named
from worker.index.global_cache import GlobalCache
from worker.index.layout import FileKind, ShardLayout
from worker.index.part_cache import PartCache
from worker.index.runs_file import let_go_of_runs
from worker.index.shard import read_blocks, read_checked

Contents = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class PinnedShard:
    """A shard as one transaction saw it: ``blocks`` frames, in the order they were written.

    Frames that are known to be damaged are not among them, so "block" here is a position in this
    list; ``stored_n`` int64 (blocks,) says which block of the files it is. ``sums_n2``: int64
    (blocks, 2), their checksums. ``lost``: the file blocks left out, and their times. ``searched``:
    False for a shard that the filters leave out: it is learnt from and followed through, and gives
    no hits. ``coded``: how many file blocks have their compact codes on disk. ``moved``: patches of
    sealed frames lie on object storage. ``away``: those frames are left out too for that.
    """

    shard_id: int
    camera_id: int
    blocks: int
    layout: ShardLayout
    f_map: FMapRuns
    t_epoch_s: np.ndarray
    """Frame time per block, float64 (blocks,)."""
    stored_n: IntArray
    sums_n2: IntArray
    lost: tuple[int, ...] = ()
    lost_t_epoch_s: tuple[float, ...] = ()
    searched: bool = True
    coded: int = 0
    moved: bool = False
    away: bool = False

    @property
    def contents(self) -> Contents:
        """What a cache may be kept by: equal for pins of the same files with the same frames lost,
        whose blocks are then the same as far as both go."""
        return str(self.layout.folder), self.lost

    def read(self, kind: FileKind, blocks: Sequence[int] | IntArray) -> FloatArray:
        """Some blocks as float32 (n, *shape), checked. Raises :class:`IndexDamaged`."""
        at = np.asarray(blocks, dtype=np.int64)
        return read_blocks(self.layout, kind, self.stored_n[at], self.sums_n2[at])

    def stored_patches(
        self, blocks: Sequence[int] | IntArray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Patches of some blocks as they are stored, (n, cells, d), in ``out`` if given, checked.
        Raises as above."""
        at = np.asarray(blocks, dtype=np.int64)
        return read_checked(self.layout, "patch", self.stored_n[at], self.sums_n2[at], out)


@dataclass(frozen=True, slots=True)
class IndexStore:
    """Vector files under ``root``. Building one does no I/O; safe to share between threads."""

    root: Path
    parts: PartCache | None = None
    _globals: GlobalCache = field(default_factory=GlobalCache)

    def layout(
        self,
        generation_id: int,
        shard_id: int,
        revision: int,
        spec: BackboneSpec,
        codec_name: str,
        sealed: int = 0,
    ) -> ShardLayout:
        """The layout of one shard's files. What is written anew is of a higher revision."""
        return ShardLayout(
            folder=self.generation_folder(generation_id) / _folder_name(shard_id, revision),
            spec_hash=spec.spec_hash,
            codec=codec_named(codec_name),
            global_dim=spec.global_dim,
            patch_dim=spec.patch_dim,
            cells=spec.grid.cells,
            sealed=sealed,
            parts=self.parts,
        )

    def at_revision(
        self, layout: ShardLayout, shard_id: int, revision: int, sealed: int = 0
    ) -> ShardLayout:
        """The same shard's layout at another revision."""
        folder = layout.folder.parent / _folder_name(shard_id, revision)
        return replace(layout, folder=folder, sealed=sealed)

    def folders_of(self, generation_folder: Path, shard_id: int) -> list[Path]:
        """Every folder a shard has, of whatever revision."""
        first = generation_folder / _folder_name(shard_id, 0)
        later = sorted(generation_folder.glob(f"{first.name}.*"))
        return [folder for folder in (first, *later) if folder.exists()]

    def bytes_of(self, generation_id: int) -> int:
        """Bytes of a generation's files."""
        files = self.generation_folder(generation_id).rglob("*")
        return sum(path.stat().st_size for path in files if path.is_file())

    def generation_folder(self, generation_id: int) -> Path:
        """All shards of one generation lie here."""
        return self.root / f"g{generation_id}"

    def let_go(self) -> None:
        """Forget what was read; files are not touched."""
        self._globals.let_go()
        let_go_of_runs()

    def global_descriptors(self, shard: PinnedShard) -> FloatArray:
        """float32 (blocks, global_dim), unit rows; what was decoded last is kept."""
        return self._globals.decoded(shard)

    def stored_globals(self, shard: PinnedShard) -> np.ndarray:
        """The same as they are stored, mapped. Raises :class:`IndexDamaged`."""
        return self._globals.stored(shard)

    def require_free(self, min_free_bytes: int) -> None:
        """Raise :class:`StorageFull` below the free-space floor, before anything is written."""
        place = next(p for p in (self.root, *self.root.parents) if p.exists())
        free_bytes = shutil.disk_usage(place).free
        if free_bytes < min_free_bytes:
            raise StorageFull(
                f"{place}: {free_bytes} bytes free, RIS_MIN_FREE_BYTES asks for {min_free_bytes};"
                " free space; jobs that wait for it go on by themselves"
            )


def _folder_name(shard_id: int, revision: int) -> str:
    return f"s{shard_id}" if revision == 0 else f"s{shard_id}.{revision}"
