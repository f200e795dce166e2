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
from worker.core.run_codes import RunCodes
from worker.errors import IndexDamaged
from worker.index.codes_file import CodesLayout, MappedCodes, damaged_codes, map_codes
from worker.index.damage import FORGET_AFTER_S
from worker.index.layout import ShardLayout
from worker.index.run_codes_file import RunCodesLayout, map_run_codes
from worker.index.sample import even_sample, read_sample
from worker.index.store import PinnedShard

log = structlog.get_logger()

BASIS_FRAMES = 64
FRAMES_PER_READ = 64
_Key = tuple[str, tuple[str, tuple[int, ...]]]
"""Name of the basis, and contents of the shard."""
_Identity = tuple[str, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class _Mapped:
    """A shard's code files: of its sealed frames, and of ``blocks`` less those that came later."""

    sealed: RunCodes | None
    late: MappedCodes | None
    blocks: int
    identity: _Identity


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
    _recorded: dict[str, CompactBasis] = field(default_factory=dict)
    _fitted: dict[str, CompactBasis] = field(default_factory=dict)
    _codes: OrderedDict[_Key, tuple[int, Codes]] = field(default_factory=OrderedDict)
    _mapped: OrderedDict[str, _Mapped] = field(default_factory=OrderedDict)
    _checked: dict[str, tuple[_Identity, int]] = field(default_factory=dict)
    _broken: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def let_go(self) -> None:
        """Forget all codes, and the bases that were fitted here. Recorded ones stay what they are:
        a search that has learnt one and pinned its codes may be under way."""
        with self._lock:
            self._codes.clear()
            self._fitted.clear()
            self._mapped.clear()
            self._checked.clear()
            self._broken.clear()

    def learn(self, generation_folder: str, basis: CompactBasis) -> None:
        """Use the recorded basis of a generation; what was coded with another is forgotten."""
        with self._lock:
            self._recorded[generation_folder] = basis
            if self._fitted.pop(generation_folder, None) is not None:
                self._codes.clear()

    def knows(self, generation_folder: str, basis_name: str) -> bool:
        """Whether that basis is the one in use."""
        with self._lock:
            known = self._recorded.get(generation_folder)
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
            known = self._recorded.get(generation, self._fitted.get(generation))
        if known is not None:
            return known
        sample = even_sample(shards, BASIS_FRAMES)
        fitted = fit_basis(read_sample(shards, sample).reshape(-1, shards[0].layout.patch_dim))
        with self._lock:
            return self._recorded.get(generation) or self._fitted.setdefault(generation, fitted)

    def sealed(self, shard: PinnedShard, basis: CompactBasis) -> tuple[int, RunCodes | None]:
        """Codes of a shard's sealed rows, and how many of its blocks, from the first, they are of:
        0 and None where there are none."""
        mapped, _ = self._files(shard, basis)
        if mapped is None or mapped.sealed is None:
            return 0, None
        return int(np.searchsorted(shard.stored_n, mapped.sealed.frames)), mapped.sealed

    def chunks(
        self, shard: PinnedShard, basis: CompactBasis, size: int, first: int = 0
    ) -> Iterator[tuple[int, Codes]]:
        """A shard's codes from block ``first`` on: first block of each chunk, and int8 (``size`` or
        fewer, cells, k), or one row more per frame, which is no code."""
        mapped, coded = self._files(shard, basis)
        if mapped is not None:
            stored_n, sealed = shard.stored_n[:coded], shard.layout.sealed
            whole = coded == stored_n[-1] + 1
            for start, end in _spans(first, int(np.searchsorted(stored_n, sealed)), size):
                at = stored_n[start:end]
                assert mapped.sealed is not None
                yield start, mapped.sealed.expand(int(at[0]), int(at[-1]) + 1)[at - at[0]]
            for start, end in _spans(
                max(first, int(np.searchsorted(stored_n, sealed))), coded, size
            ):
                assert mapped.late is not None
                near = slice(start - sealed, end - sealed)
                yield start, mapped.late.rows[near if whole else stored_n[start:end] - sealed]
        if max(first, coded) < shard.blocks:
            rest = self._made(shard, basis, coded)
            for start, end in _spans(max(first, coded), shard.blocks, size):
                yield start, rest[start - coded : end - coded]

    def _coded(self, shard: PinnedShard) -> int:
        """How many of the shard's frames, from the first, have their codes in its files."""
        with self._lock:
            found_s = self._broken.get(str(shard.layout.folder), -FORGET_AFTER_S)
        if shard.coded < max(1, shard.layout.sealed) or time.monotonic() - found_s < FORGET_AFTER_S:
            return 0
        return int(np.searchsorted(shard.stored_n, shard.coded))

    def _files(self, shard: PinnedShard, basis: CompactBasis) -> tuple[_Mapped | None, int]:
        """The shard's files, checked as far as they are used, and how many of its blocks, from the
        first, they are of: None and 0 when they are not there, or damaged."""
        coded = self._coded(shard)
        if not coded:
            return None, 0
        # By shard: what was mapped of an earlier revision, or of a file that was made again since,
        # makes way, and its disk space with it.
        key = f"{shard.layout.folder.parent}/{shard.shard_id}"
        identity = _identity(shard.layout)
        with self._lock:
            known = self._mapped.get(key)
            same, checked = self._checked.get(key, (identity, 0))
            checked = checked if same == identity else 0
            if (
                known is not None
                and known.identity == identity
                and known.blocks >= int(shard.stored_n[coded - 1]) + 1
            ):
                self._mapped.move_to_end(key)
                return known, coded
        try:
            mapped = _mapped(shard, basis, checked, identity)
        except IndexDamaged as error:
            log.error("codes_damaged", detail=str(error))
            with self._lock:
                self._broken[str(shard.layout.folder)] = time.monotonic()
            return None, 0
        with self._lock:
            self._mapped[key], self._checked[key] = mapped, (identity, shard.coded)
            self._mapped.move_to_end(key)
            while len(self._mapped) > self.max_mapped:
                self._mapped.popitem(last=False)
        return mapped, coded

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


def _mapped(shard: PinnedShard, basis: CompactBasis, checked: int, identity: _Identity) -> _Mapped:
    """Map both files; blocks from ``checked`` on are checked. Raises :class:`IndexDamaged`."""
    sealed, late = shard.layout.sealed, None
    run_codes = None
    if sealed:
        run_codes = map_run_codes(run_codes_layout(shard.layout, basis), check=checked < sealed)
    if shard.coded > sealed:
        layout = codes_layout(shard, basis)
        late = map_codes(layout, shard.coded - sealed)
        wrong = damaged_codes(layout, max(0, checked - sealed), shard.coded - sealed)
        if wrong:
            raise IndexDamaged(f"{layout.path}: codes at {wrong[:5]} are damaged")
    return _Mapped(run_codes, late, shard.coded, identity)


def _identity(layout: ShardLayout) -> _Identity:
    """Tells a folder and its two files of codes from others of the same shard."""
    numbers = []
    for name in ("codes.runs", "codes.vec"):
        try:
            numbers.append((layout.folder / name).stat().st_ino)
        except OSError:
            numbers.append(0)
    return str(layout.folder), numbers[0], numbers[1]


def _spans(first: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, end)) for start in range(first, end, size))


def run_codes_layout(layout: ShardLayout, basis: CompactBasis) -> RunCodesLayout:
    """The file of the codes of a sealed shard's rows in a basis."""
    return RunCodesLayout(layout.folder, basis.name, layout.sealed, layout.cells, basis.code_dim)


def codes_layout(shard: PinnedShard, basis: CompactBasis) -> CodesLayout:
    """The file of a shard's codes in a basis, of the blocks that are not sealed."""
    return CodesLayout(shard.layout.folder, basis.name, shard.layout.cells, basis.code_dim)
