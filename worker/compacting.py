"""Compact codes are made behind ingest: beside the vectors, from the vectors, at any time again.

They let a search look at every cell of every frame. A frame that has none yet is coded by the query
worker that meets it, so nothing waits for this.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import structlog

from models.index import IndexGeneration, Shard
from models.repositories import codes as codes_record
from models.repositories import index as index_record
from models.repositories import jobs as job_record
from models.repositories.jobs import ClaimedJob
from models.session import Session
from worker.context import Context
from worker.core.compact import Codes, CompactBasis, fit_basis
from worker.core.search_params import SearchParams
from worker.core.types import FloatArray
from worker.errors import DescriptorInvalid, IndexDamaged
from worker.generations import basis_of
from worker.index.codes_file import map_codes, write_codes
from worker.index.compact_cache import codes_layout, run_codes_layout
from worker.index.layout import ShardLayout
from worker.index.revision import stored_blocks
from worker.index.run_codes_file import map_run_codes, write_run_codes
from worker.index.runs_file import open_runs, read_rows
from worker.index.sample import even_sample
from worker.index.shard import hold_derived
from worker.index.store import PinnedShard
from worker.jobs import Lease, Outcome
from worker.messages import INGEST_QUEUE
from worker.pinning import FMapCache, pin_shard, pin_shards

log = structlog.get_logger()

MIN_FRAMES = 1024
"""A basis is recorded for good: not before there is something to fit it on."""
MIN_LAG = 256
"""Frames without codes that are worth a job; fewer are coded in memory."""
BASIS_FRAMES = 256
BLOCKS_AT_ONCE = 256
ROWS_AT_ONCE = 65_536


def submit_due(context: Context) -> bool:
    """Order codes for what lacks them; False when nothing does, or it is under way."""
    with context.db.transaction() as session:
        due = [
            generation_id
            for generation_id, frames, lag in codes_record.lag_by_generation(session)
            if frames >= MIN_FRAMES and lag >= MIN_LAG
        ]
        if not due or codes_record.is_open(session):
            return False
        job_id = job_record.submit(session, "compact", INGEST_QUEUE, {})
    context.ring(job_id, "compact")
    return True


@dataclass(frozen=True, slots=True)
class _Run:
    """One slice of the work on one generation."""

    context: Context
    lease: Lease
    generation: IndexGeneration
    basis: CompactBasis
    f_maps: FMapCache


def run_compact(context: Context, job: ClaimedJob, lease: Lease) -> Outcome:
    """Code every shard that lags behind, oldest first, generation by generation."""
    with context.db.transaction() as session:
        lags = codes_record.lag_by_generation(session)
        generations = [
            index_record.find_generation(session, generation_id)
            for generation_id, frames, _ in lags
            if frames >= MIN_FRAMES
        ]
    done = 0
    for generation in generations:
        if generation is None:
            continue
        basis = _ensure_basis(context, generation)
        run = _Run(context, lease, generation, basis, FMapCache())
        with context.db.transaction() as session:
            shards = codes_record.lagging_shards(session, generation.id)
        for shard in shards:
            try:
                done += _code_shard(run, shard.id)
            except (IndexDamaged, DescriptorInvalid) as error:
                log.error("shard_not_coded", shard_id=shard.id, detail=str(error))
            if lease.slice_over():
                return "yield"
    with context.db.transaction() as session:
        lease.finish(session, {"frames": done})
    return "finished"


def _ensure_basis(context: Context, generation: IndexGeneration) -> CompactBasis:
    """The generation's basis, fitted on frames taken evenly from all it holds if there is none."""
    with context.db.transaction() as session:
        known = codes_record.find_basis(session, generation.id)
    if known is None:
        with context.db.snapshot() as session:
            shards = pin_shards(session, context.index, FMapCache(), generation, SearchParams())
        sample = _sample(shards)
        fitted = fit_basis(sample.reshape(-1, sample.shape[-1]))
        with context.db.transaction() as session:
            codes_record.record_basis(
                session,
                generation_id=generation.id,
                name=fitted.name,
                axes=fitted.axes_dk.astype("<f4").tobytes(),
                code_dim=fitted.code_dim,
                step=fitted.step,
                frame_count=len(sample),
            )
        with context.db.transaction() as session:
            known = codes_record.find_basis(session, generation.id)
        assert known is not None
    return basis_of(known)


def _sample(shards: list[PinnedShard]) -> FloatArray:
    """Sound patches of frames taken evenly, float32 (n, c, d)."""
    blocks: dict[int, list[int]] = {}
    for position, block in even_sample(shards, BASIS_FRAMES):
        blocks.setdefault(position, []).append(block)
    found = []
    for position, members in blocks.items():
        shard, at = shards[position], np.array(members)
        _, stored_patches, sound = stored_blocks(shard.layout, at, shard.sums_n2[at])
        found.append(shard.layout.codec.decode(stored_patches[sound]))
    return np.concatenate(found)


def _code_shard(run: _Run, shard_id: int) -> int:
    """Code one shard to its end, or until the slice is over; returns the frames coded."""
    done = 0
    while True:
        with run.context.db.snapshot() as session:
            shard = index_record.find_shard(session, shard_id)
            if shard is None or shard.coded_count >= shard.frame_count:
                return done
            pinned = pin_shard(session, run.context.index, run.f_maps, run.generation, shard)
        run.context.index.require_free(run.context.settings.min_free_bytes)
        if shard.coded_count and not _has_codes(pinned, run.basis):
            with run.context.db.transaction() as session:
                codes_record.reset(session, shard_id)  # the file is lost: from the start
            continue
        first, sealed = shard.coded_count, shard.sealed_count
        end = sealed if first < sealed else min(first + BLOCKS_AT_ONCE, shard.frame_count)
        if first >= sealed:
            codes_nck = _encoded(pinned, first, end, run.basis)
        # Held until the commit: a worker that was frozen here must not write over what came since.
        with hold_derived(pinned.layout):
            if not _is_current(run.context, shard):
                continue
            if first < sealed:
                code_rows(pinned.layout, run.basis)
            else:
                write_codes(codes_layout(pinned, run.basis), first - sealed, codes_nck)
            with run.context.db.transaction() as session:
                run.lease.record_progress(session, {"shard": shard_id, "frames": done})
                if codes_record.advance(session, shard, end):
                    done += end - first
        if run.lease.slice_over():
            return done


def code_rows(layout: ShardLayout, basis: CompactBasis) -> None:
    """Write the codes of a sealed shard's rows. Raises :class:`IndexDamaged` for rows that cannot
    be read or are NaN; whether they are what they were, is said where frames are made up."""
    runs = open_runs(layout)

    def codes() -> Iterator[Codes]:
        for first in range(0, runs.rows, ROWS_AT_ONCE):
            stored, sound = read_rows(layout, first, min(first + ROWS_AT_ONCE, runs.rows))
            if not sound.all():
                raise IndexDamaged(f"{layout.path_of('patch', 0)}: rows cannot be read")
            yield basis.encode(layout.codec.decode(stored))

    write_run_codes(run_codes_layout(layout, basis), runs, codes())


def _has_codes(pinned: PinnedShard, basis: CompactBasis) -> bool:
    sealed = pinned.layout.sealed
    try:
        if sealed:
            map_run_codes(run_codes_layout(pinned.layout, basis), check=False)
        if pinned.coded > sealed:
            map_codes(codes_layout(pinned, basis), pinned.coded - sealed)
    except IndexDamaged as error:
        log.warning("codes_lost", detail=str(error))
        return False
    return True


def _is_current(context: Context, shard: Shard) -> bool:
    """Whether the shard's files are those that were pinned, and nobody has coded them since."""
    with context.db.transaction() as session:
        now = index_record.find_shard(session, shard.id)
    return now is not None and (now.revision, now.coded_count) == (
        shard.revision,
        shard.coded_count,
    )


def _encoded(pinned: PinnedShard, first: int, end: int, basis: CompactBasis) -> Codes:
    """Codes of file blocks; of a damaged one zeros, which no search looks at. `ris verify` names
    them where the vectors are sound after all."""
    at = np.arange(first, end)
    _, stored_patches, sound = stored_blocks(pinned.layout, at, pinned.sums_n2[at])
    codes = np.zeros((len(at), pinned.layout.cells, basis.code_dim), dtype=np.int8)
    codes[sound] = basis.encode(pinned.layout.codec.decode(stored_patches[sound]))
    return codes


def learn_basis(context: Context, session: Session, generation: IndexGeneration) -> None:
    """Let this process's searches use the generation's recorded basis, if there is one."""
    folder = str(context.index.generation_folder(generation.id))
    name = codes_record.basis_name(session, generation.id)
    if name is None or context.compact.knows(folder, name):
        return
    row = codes_record.find_basis(session, generation.id)
    if row is not None:
        context.compact.learn(folder, basis_of(row))
