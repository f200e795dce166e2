"""Compact codes of shards: mapped from their files, or made in memory within a bound."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog

from worker.core.compact import CODE_DIM, Codes, CompactBasis, fit_basis
from worker.errors import IndexDamaged
from worker.index.codes_file import CodesLayout, MappedCodes, damaged_codes, map_codes
from worker.index.damage import FORGET_AFTER_S
from worker.index.sample import even_sample, read_sample
from worker.index.store import PinnedShard

log = structlog.get_logger()

BASIS_FRAMES = 64
FRAMES_PER_READ = 64
_Key = tuple[str, tuple[str, tuple[int, ...]]]
"""Name of the basis, and contents of the shard."""


@dataclass(frozen=True, slots=True)
class CompactCache:
    """Codes of the shards searched last, at most ``max_bytes`` of them in memory, and at most
    ``max_mapped`` files mapped, each of which takes a file descriptor. Safe to share between
    threads.

    Building one does no I/O. A generation whose basis is recorded has most of its codes in files;
    what is not there yet is coded here, once. Without a recorded basis the first search fits one.
    """

    max_bytes: int = 512 * 1024 * 1024
    threads: int = 1
    max_mapped: int = 256
    _bases: dict[str, CompactBasis] = field(default_factory=dict)
    _codes: OrderedDict[_Key, tuple[int, Codes]] = field(default_factory=OrderedDict)
    _mapped: OrderedDict[str, MappedCodes] = field(default_factory=OrderedDict)
    _checked: dict[str, int] = field(default_factory=dict)
    _broken: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def let_go(self) -> None:
        """Forget all codes, and the bases, which were fitted on them."""
        with self._lock:
            self._codes.clear()
            self._bases.clear()
            self._mapped.clear()
            self._checked.clear()
            self._broken.clear()

    def learn(self, generation_folder: str, basis: CompactBasis) -> None:
        """Use the recorded basis of a generation; what was coded with another is forgotten."""
        with self._lock:
            known = self._bases.get(generation_folder)
            self._bases[generation_folder] = basis
            if known is not None and known.name != basis.name:
                self._codes.clear()

    def knows(self, generation_folder: str, basis_name: str) -> bool:
        """Whether that basis is the one in use."""
        with self._lock:
            known = self._bases.get(generation_folder)
        return known is not None and known.name == basis_name

    def fits(self, shards: Sequence[PinnedShard]) -> bool:
        """Whether the codes that are in no file may lie in memory together."""
        if not any(shard.blocks for shard in shards):
            return False
        to_code = sum(
            (shard.blocks - self._coded(shard)) * shard.layout.cells * CODE_DIM for shard in shards
        )
        return to_code <= self.max_bytes

    def basis(self, shards: Sequence[PinnedShard]) -> CompactBasis:
        """The generation's basis: the recorded one, or else fitted on frames taken evenly."""
        generation = str(shards[0].layout.folder.parent)
        with self._lock:
            known = self._bases.get(generation)
        if known is not None:
            return known
        sample = even_sample(shards, BASIS_FRAMES)
        fitted = fit_basis(read_sample(shards, sample).reshape(-1, shards[0].layout.patch_dim))
        with self._lock:
            return self._bases.setdefault(generation, fitted)

    def chunks(
        self, shard: PinnedShard, basis: CompactBasis, size: int
    ) -> Iterator[tuple[int, Codes]]:
        """A shard's codes in order: first block, and int8 (``size`` or fewer, cells, k), or one row
        more per frame, which is no code."""
        coded = self._coded(shard)
        mapped = self._map(shard, basis, coded) if coded else None
        if mapped is None:
            coded = 0
        else:
            codes, whole = mapped.rows, coded == shard.stored_n[coded - 1] + 1
            for start in range(0, coded, size):
                end = min(start + size, coded)
                at = slice(start, end) if whole else shard.stored_n[start:end]
                yield start, codes[at]
        if coded < shard.blocks:
            rest = self._made(shard, basis, coded)
            for start in range(coded, shard.blocks, size):
                yield start, rest[start - coded : start - coded + size]

    def _coded(self, shard: PinnedShard) -> int:
        """How many of the shard's frames, from the first, have their codes in its file."""
        with self._lock:
            found_s = self._broken.get(str(shard.layout.folder), -FORGET_AFTER_S)
        if shard.coded == 0 or time.monotonic() - found_s < FORGET_AFTER_S:
            return 0
        return int(np.searchsorted(shard.stored_n, shard.coded))

    def _map(self, shard: PinnedShard, basis: CompactBasis, coded: int) -> MappedCodes | None:
        """The shard's file, checked as far as it is used; None when it is damaged."""
        key, need = str(shard.layout.folder), int(shard.stored_n[coded - 1]) + 1
        with self._lock:
            known, checked = self._mapped.get(key), self._checked.get(key, 0)
            if known is not None and known.blocks.shape[0] >= need:
                self._mapped.move_to_end(key)
                return known
        layout = codes_layout(shard, basis)
        try:
            mapped = map_codes(layout, shard.coded)
            wrong = damaged_codes(layout, checked, shard.coded)
            if wrong:
                raise IndexDamaged(f"{layout.path}: codes of blocks {wrong[:5]} are damaged")
        except IndexDamaged as error:
            log.error("codes_damaged", detail=str(error))
            with self._lock:
                self._broken[key] = time.monotonic()
            return None
        with self._lock:
            self._mapped[key], self._checked[key] = mapped, shard.coded
            self._mapped.move_to_end(key)
            while len(self._mapped) > self.max_mapped:
                self._mapped.popitem(last=False)
        return mapped

    def _made(self, shard: PinnedShard, basis: CompactBasis, first: int) -> Codes:
        """int8 (blocks - first, cells, k); only blocks that are new since are read."""
        key = (basis.name, shard.contents)
        with self._lock:
            begin, known = self._codes.get(key, (first, None))
        if known is not None and begin <= first <= begin + known.shape[0]:
            known = known[first - begin :]
        else:
            known = None
        have = first if known is None else first + known.shape[0]
        if have < shard.blocks:
            fresh = [
                basis.encode(
                    shard.read(
                        "patch", np.arange(start, min(start + FRAMES_PER_READ, shard.blocks))
                    )
                )
                for start in range(have, shard.blocks, FRAMES_PER_READ)
            ]
            known = np.concatenate(fresh if known is None else [known, *fresh])
        assert known is not None
        with self._lock:
            self._codes[key] = (first, known)
            self._codes.move_to_end(key)
            while sum(codes.nbytes for _, codes in self._codes.values()) > self.max_bytes:
                self._codes.popitem(last=False)
        return known[: shard.blocks - first]


def codes_layout(shard: PinnedShard, basis: CompactBasis) -> CodesLayout:
    """The file of a shard's codes in a basis."""
    return CodesLayout(shard.layout.folder, basis.name, shard.layout.cells, basis.code_dim)
