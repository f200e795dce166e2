"""Pinning a generation: which shards and valid lengths one query sees, from one transaction."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from models.index import IndexGeneration, Shard
from models.repositories import index as index_record
from models.repositories.index import NO_RUNS, ShardFilter, ShardRuns
from models.repositories.scope import FootageScope
from models.session import Session
from models.video import Frame
from worker.core.backbone_spec import BackboneSpec, spec_from_json
from worker.core.f_map import FMapRuns
from worker.core.search_params import SearchParams
from worker.errors import IndexDamaged
from worker.index.damage import KnownDamage, sound
from worker.index.layout import ShardLayout
from worker.index.store import IndexStore, PinnedShard

if TYPE_CHECKING:  # compiles kernels
    from worker.scan_message import ToldShard

FRAMES_PER_READ = 250_000
"""About how many frames' runs are asked for in one statement: some tens of megabytes."""
SCENE_S = 3600.0
"""How far around the query's frame its camera is looked at whatever the filters say."""


def spec_of(generation: IndexGeneration) -> BackboneSpec:
    """The spec a generation was built with."""
    return spec_from_json(generation.spec)


def layout_of(store: IndexStore, generation: IndexGeneration, shard: Shard) -> ShardLayout:
    """Where a shard's files lie now."""
    return store.layout(
        generation.id,
        shard.id,
        shard.revision,
        spec_of(generation),
        generation.codec,
        shard.sealed_count,
    )


class _Lengths(NamedTuple):
    """How far a shard is pinned, and whether its sealed patches lie elsewhere or are left out."""

    frames: int
    coded: int
    moved: bool
    away: bool


@dataclass(frozen=True, slots=True)
class FMapCache:
    """f_map runs this process has already read, by shard and revision: within one, committed runs
    never change."""

    _runs: dict[int, tuple[int, ShardRuns]] = field(default_factory=dict)
    _pinned: dict[int, PinnedShard] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def let_go(self) -> None:
        """Forget everything."""
        with self._lock:
            self._runs.clear()
            self._pinned.clear()

    def pinned(
        self, shard_id: int, layout: ShardLayout, lost: frozenset[int], lengths: _Lengths
    ) -> PinnedShard | None:
        """The shard as it was pinned last, if nothing has changed since."""
        with self._lock:
            known = self._pinned.get(shard_id)
        unchanged = (
            known is not None
            and known.layout == layout
            and known.blocks + len(lost) == lengths.frames
            and set(known.lost) == lost
            and known.coded == lengths.coded
            and (known.moved, known.away) == (lengths.moved, lengths.away)
        )
        return known if unchanged else None

    def keep(self, pinned: PinnedShard) -> None:
        """Remember a pin."""
        with self._lock:
            self._pinned[pinned.shard_id] = pinned

    def fetch(self, session: Session, shards: Sequence[Shard]) -> None:
        """Read the runs of shards of which nothing is known, many in one statement: an archive has
        thousands of shards, and each statement costs a round trip."""
        with self._lock:
            known = {shard_id: revision for shard_id, (revision, _) in self._runs.items()}
        unknown = [shard for shard in shards if known.get(shard.id) != shard.revision]
        first, frames = 0, 0
        for place, shard in enumerate(unknown, start=1):
            frames += shard.frame_count
            if frames >= FRAMES_PER_READ or place == len(unknown):
                self._fetch(session, unknown[first:place])
                first, frames = place, 0

    def _fetch(self, session: Session, shards: Sequence[Shard]) -> None:
        found = index_record.read_runs(session, [shard.id for shard in shards])
        for shard in shards:
            if shard.id in found:
                runs = _first(found[shard.id], shard.frame_count)
                _check_gapless(runs, shard)
                with self._lock:
                    self._runs[shard.id] = (shard.revision, runs)

    def read(self, session: Session, shard: Shard) -> ShardRuns:
        """Runs of a shard's first ``frame_count`` blocks; only new ones come from Postgres.

        Raises :class:`IndexDamaged` when they leave a gap.
        """
        with self._lock:
            revision, held = self._runs.get(shard.id, (shard.revision, None))
        known = held if revision == shard.revision else None
        if known is None or known.start_row.size < shard.frame_count:
            from_row = 0 if known is None else int(known.start_row[-1] + known.row_count[-1])
            fresh = index_record.read_runs(session, [shard.id], from_row).get(shard.id, NO_RUNS)
            known = _first(fresh if known is None else _joined(known, fresh), shard.frame_count)
            _check_gapless(known, shard)
            with self._lock:
                self._runs[shard.id] = (shard.revision, known)
        return _first(known, shard.frame_count)


def _check_gapless(runs: ShardRuns, shard: Shard) -> None:
    """Block i of the files belongs to run i: a lost run would shift every frame behind it."""
    cells = shard.row_count // max(1, shard.frame_count)
    start_row = np.arange(shard.frame_count, dtype=np.int64) * cells
    if not np.array_equal(runs.start_row, start_row) or (runs.row_count != cells).any():
        raise IndexDamaged(
            f"shard {shard.id}: its {runs.start_row.size} f_map runs do not cover rows"
            f" 0..{shard.row_count} of {shard.frame_count} frames without gaps; run `ris verify`"
        )


def _joined(a: ShardRuns, b: ShardRuns) -> ShardRuns:
    columns = (np.concatenate([getattr(a, f.name), getattr(b, f.name)]) for f in fields(ShardRuns))
    return ShardRuns(*columns)


def _first(runs: ShardRuns, count: int) -> ShardRuns:
    if runs.start_row.size == count:
        return runs
    return ShardRuns(*(getattr(runs, f.name)[:count] for f in fields(ShardRuns)))


def pin_shards(
    session: Session,
    store: IndexStore,
    cache: FMapCache,
    generation: IndexGeneration,
    params: SearchParams,
    damage: KnownDamage | None = None,
    *,
    local_only: bool = False,
) -> list[PinnedShard]:
    """The shards a search with these filters may look into, each with its valid length.

    Frames of known ``damage`` are left out, and with ``local_only`` those whose patches lie on
    object storage; a shard of which nothing is left is still listed.
    """
    within = ShardFilter(params.camera_ids, params.t_from_utc, params.t_to_utc)
    shards = index_record.select_shards(session, generation.id, within)
    cache.fetch(session, shards)
    given = (session, store, cache, generation)
    return [pin_shard(*given, shard, damage, local_only=local_only) for shard in shards]


def pin_scene(
    session: Session,
    store: IndexStore,
    cache: FMapCache,
    generation: IndexGeneration,
    frame: Frame,
    damage: KnownDamage | None = None,
    *,
    local_only: bool = False,
) -> list[PinnedShard]:
    """Shards of a frame's camera around its time, to learn from and to follow through only."""
    around = timedelta(seconds=SCENE_S)
    within = ShardFilter([frame.camera_id], frame.t_utc - around, frame.t_utc + around)
    shards = index_record.select_shards(session, generation.id, within)
    cache.fetch(session, shards)
    given = (session, store, cache, generation)
    pinned = [pin_shard(*given, shard, damage, local_only=local_only) for shard in shards]
    return [replace(shard, searched=False) for shard in pinned]


def pin_shard(
    session: Session,
    store: IndexStore,
    cache: FMapCache,
    generation: IndexGeneration,
    shard: Shard,
    damage: KnownDamage | None = None,
    *,
    local_only: bool = False,
) -> PinnedShard:
    """One shard as this transaction sees it, without the frames of known damage, and with
    ``local_only`` without those whose patches object storage has."""
    layout = layout_of(store, generation, shard)
    lost = frozenset[int]() if damage is None else damage.lost(layout.folder)
    lost = frozenset(block for block in lost if block < shard.frame_count)
    # Also where a copy is said to be here: whoever was to remove it may have died in between.
    away = local_only and shard.object_url is not None
    lost |= frozenset(range(shard.sealed_count if away else 0))
    lengths = _Lengths(shard.frame_count, shard.coded_count, shard.object_only, away)
    return _pin(session, cache, shard, layout, lost, lengths)


def pin_as_told(
    session: Session,
    store: IndexStore,
    cache: FMapCache,
    generation: IndexGeneration,
    shard: Shard,
    told: ToldShard,
) -> PinnedShard | None:
    """A shard as another process pinned it; None where its files are others by now.

    Frames and codes that came since lie behind what was told, and are left out.
    """
    layout = layout_of(store, generation, shard)
    if (
        shard.generation_id != generation.id
        or (layout.folder.name, layout.sealed) != (told.folder, told.sealed)
        or shard.frame_count < told.frames
        or shard.coded_count < told.coded
    ):
        return None
    lost = frozenset(told.lost)
    lengths = _Lengths(told.frames, told.coded, shard.object_only, False)
    return _pin(session, cache, shard, layout, lost, lengths)


def _pin(
    session: Session,
    cache: FMapCache,
    shard: Shard,
    layout: ShardLayout,
    lost: frozenset[int],
    lengths: _Lengths,
) -> PinnedShard:
    """The first so many frames of a shard, of which so many are coded, without the lost ones."""
    known = cache.pinned(shard.id, layout, lost, lengths)
    if known is not None:
        return known
    runs = _first(cache.read(session, shard), lengths.frames)
    kept = np.flatnonzero(sound(lost, lengths.frames)).astype(np.int64)
    pinned = PinnedShard(
        shard_id=shard.id,
        camera_id=shard.camera_id,
        blocks=kept.size,
        layout=layout,
        f_map=FMapRuns(
            runs.start_row[kept], runs.row_count[kept], runs.frame_id[kept], runs.view[kept]
        ),
        t_epoch_s=runs.t_epoch_s[kept],
        stored_n=kept,
        sums_n2=np.stack((runs.global_crc32, runs.crc32), axis=1)[kept],
        lost=tuple(sorted(lost)),
        lost_t_epoch_s=tuple(runs.t_epoch_s[sorted(lost)].tolist()),
        coded=lengths.coded,
        moved=lengths.moved,
        away=lengths.away,
    )
    cache.keep(pinned)
    return pinned


def within_times(shard: PinnedShard, scope: FootageScope) -> PinnedShard:
    """A shard without the frames outside the scope's times: what is learnt from it, searched and
    counted is of the others alone. They are left out as lost ones are, so that no cache takes it
    for the whole shard."""
    inside_n = np.ones(shard.blocks, dtype=np.bool_)
    if scope.from_utc is not None:
        inside_n &= shard.t_epoch_s >= scope.from_utc.timestamp()
    if scope.to_utc is not None:
        inside_n &= shard.t_epoch_s < scope.to_utc.timestamp()
    if inside_n.all():
        return shard
    kept, cut = np.flatnonzero(inside_n), np.flatnonzero(~inside_n)
    times = dict(zip(shard.lost, shard.lost_t_epoch_s, strict=True))
    times |= dict(zip(shard.stored_n[cut].tolist(), shard.t_epoch_s[cut].tolist(), strict=True))
    f_map = shard.f_map
    return replace(
        shard,
        blocks=kept.size,
        f_map=FMapRuns(
            f_map.start_row[kept], f_map.row_count[kept], f_map.frame_id[kept], f_map.view[kept]
        ),
        t_epoch_s=shard.t_epoch_s[kept],
        stored_n=shard.stored_n[kept],
        sums_n2=shard.sums_n2[kept],
        lost=tuple(sorted(times)),
        lost_t_epoch_s=tuple(times[block] for block in sorted(times)),
    )
