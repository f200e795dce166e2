"""Stage 1 of the default search on a GPU: a :class:`worker.shard_scan.ShardScan` over codes that
stay there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog

from worker.errors import DeviceFailed, RisError
from worker.index.store import PinnedShard
from worker.kernels.coarse import FRAMES_PER_CHUNK
from worker.shard_scan import LocalScan, ScanQuery, ShardScores, global_scores

if TYPE_CHECKING:  # loads torch
    from worker.kernels.held_codes import HeldCodes

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DeviceScan:
    """Shards whose codes fit the device are scanned there, to 1e-3 as ``local`` would; the others,
    and all where the device fails, by ``local``. Whole-frame cosines are made here in any case."""

    local: LocalScan
    held: HeldCodes

    def __call__(self, query: ScanQuery, shards: Sequence[PinnedShard]) -> list[ShardScores]:
        """Each pinned frame of each shard. Raises :class:`IndexDamaged`."""
        try:
            scored = self._scored(query, shards)
        except Exception as error:  # torch's, of memory or of a lost device
            if isinstance(error, RisError) and not isinstance(error, DeviceFailed):
                raise
            log.warning("device_scan_failed", detail=str(error)[:300])
            self.held.shrink()
            scored = {}
        rest = [at for at in range(len(shards)) if at not in scored]
        here = self.local(query, [shards[at] for at in rest]) if rest else []
        scored |= dict(zip(rest, here, strict=True))
        return [scored[at] for at in range(len(shards))]

    def _scored(self, query: ScanQuery, shards: Sequence[PinnedShard]) -> dict[int, ShardScores]:
        """By position, of those that fit."""
        from worker.kernels.held_codes import likeness_on_device, to_host

        fit = self.held.fitting([(shard.blocks, shard.layout.cells) for shard in shards])
        places = [at for at in range(len(shards)) if fit[at]]
        likeness = []
        for shard in (shards[at] for at in places):
            codes = self.held.codes(
                (query.basis.name, shard.contents),
                shard.blocks,
                shard.layout.cells,
                query.background_ck[shard.camera_id],
                partial(self.local.compact.chunks, shard, query.basis, FRAMES_PER_CHUNK),
            )
            likeness.append(likeness_on_device(codes, query.basis.step, query.coarse, query.zone_c))
        scanned, local = [shards[at] for at in places], self.local
        alike = global_scores(local.store, scanned, query.global_d, local.compact.threads)
        scores = zip(to_host(likeness), alike, strict=True)
        return {at: ShardScores(*both) for at, both in zip(places, scores, strict=True)}
