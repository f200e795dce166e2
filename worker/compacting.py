"""Compact codes are made behind ingest: beside the vectors, from the vectors, at any time again.

They let a search look at every cell of every frame. A frame that has none yet is coded by the query
worker that meets it, so nothing waits for this.
"""

from __future__ import annotations

import numpy as np
import structlog

from models.index import CompactBasis as BasisRow
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
from worker.errors import StorageFailed
from worker.index.codes_file import write_codes
from worker.index.compact_cache import codes_layout
from worker.index.revision import stored_blocks
from worker.index.sample import even_sample
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
        with context.db.transaction() as session:
            shards = codes_record.lagging_shards(session, generation.id)
        for shard in shards:
            done += _code_shard(context, lease, generation, shard.id, basis)
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


def basis_of(row: BasisRow) -> CompactBasis:
    """A recorded basis as a value."""
    axes_dk = np.frombuffer(row.axes, dtype="<f4").astype(np.float32)
    return CompactBasis(axes_dk.reshape(-1, row.code_dim), row.step)


def _code_shard(
    context: Context,
    lease: Lease,
    generation: IndexGeneration,
    shard_id: int,
    basis: CompactBasis,
) -> int:
    """Code one shard to its end; returns the frames coded."""
    done = 0
    while True:
        with context.db.snapshot() as session:
            shard = index_record.find_shard(session, shard_id)
            if shard is None or shard.coded_count >= shard.frame_count:
                return done
            pinned = pin_shard(session, context.index, FMapCache(), generation, shard)
        context.index.require_free(context.settings.min_free_bytes)
        end = min(shard.coded_count + BLOCKS_AT_ONCE, shard.frame_count)
        codes_nck = _encoded(pinned, shard.coded_count, end, basis)
        try:
            write_codes(codes_layout(pinned, basis), shard.coded_count, codes_nck)
        except StorageFailed:
            if _is_current(context, shard):
                raise
            continue  # erased or written anew meanwhile
        with context.db.transaction() as session:
            lease.record_progress(session, {"shard": shard_id, "frames": done})
            if codes_record.advance(session, shard, end):
                done += len(codes_nck)


def _is_current(context: Context, shard: Shard) -> bool:
    with context.db.transaction() as session:
        now = index_record.find_shard(session, shard.id)
    return now is not None and now.revision == shard.revision


def _encoded(pinned: PinnedShard, first: int, end: int, basis: CompactBasis) -> Codes:
    """Codes of file blocks; of a damaged one zeros, which no search looks at."""
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
