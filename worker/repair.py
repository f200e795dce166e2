"""Repair: damaged vectors are made anew from the kept pictures, in new files beside the old."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import structlog

from models.index import IndexGeneration, Shard
from models.repositories import index as index_record
from worker.backbones.embedder import embed_batched
from worker.context import Context
from worker.core.types import Descriptors, ImageArray
from worker.errors import IndexDamaged, RisError
from worker.generations import backbone_of, require_live_generation
from worker.index.shard import (
    ShardLayout,
    damaged_blocks,
    hold_shard,
    rewrite_blocks,
)
from worker.index.store import PinnedShard
from worker.pinning import FMapCache, pin_shard, spec_of
from worker.query_picture import frame_picture

log = structlog.get_logger()

FRAMES_AT_ONCE = 256
"""Frames made anew before files are written: what is held in memory."""


@dataclass(frozen=True, slots=True)
class RepairReport:
    """``shards``: looked at; ``frames``: made anew; ``problems``: what stays damaged, and why."""

    shards: int
    frames: int
    problems: tuple[str, ...]


def repair_index(context: Context) -> RepairReport:
    """Repair every shard of the live generation. Search and ingest go on meanwhile.

    Frames whose picture is gone too stay damaged: searches leave them out. Raises
    :class:`NotFound` for an empty index and what loading the backbone raises.
    """
    generation = require_live_generation(context)
    with context.db.transaction() as session:
        shards = index_record.select_shards(session, generation.id)
    repaired, problems = 0, []
    for shard in shards:
        try:
            found, left = _repair_shard(context, generation, shard)
        except RisError as error:
            if error.retryable:
                raise
            found, left = 0, [f"shard {shard.id}: {error}"]
        repaired += found
        problems += left
    return RepairReport(len(shards), repaired, tuple(problems))


def _repair_shard(
    context: Context, generation: IndexGeneration, shard: Shard
) -> tuple[int, list[str]]:
    """How many frames were made anew, and what could not be."""
    repaired = 0
    while True:
        with context.db.transaction() as session:
            now = index_record.find_shard(session, shard.id)
            pinned = pin_shard(session, context.index, FMapCache(), generation, now)
        made, problems = _made_anew(context, generation, pinned)
        if made is None:
            return repaired, problems
        _replace(context, generation, pinned, made)
        repaired += len(made.blocks)
        log.info("shard_repaired", shard_id=shard.id, frames=len(made.blocks))


def _damaged(pinned: PinnedShard) -> list[int]:
    try:
        return sorted(damaged_blocks(pinned.layout, pinned.sums_n2))
    except IndexDamaged as error:
        return list(error.blocks)


@dataclass(frozen=True, slots=True)
class _Made:
    """Descriptors of damaged blocks, made again."""

    blocks: list[int]
    descriptors: Descriptors


def _made_anew(
    context: Context, generation: IndexGeneration, pinned: PinnedShard
) -> tuple[_Made | None, list[str]]:
    """The first ``FRAMES_AT_ONCE`` damaged blocks whose picture is there, or None; and a line for
    each whose picture is gone as well."""
    blocks, parts, problems = list[int](), list[Descriptors](), []
    batch = context.settings.embed_batch
    damaged = _damaged(pinned)
    for start in range(0, len(damaged), batch):
        pictures = dict[int, ImageArray]()
        for block in damaged[start : start + batch]:
            frame_id = int(pinned.f_map.frame_id[block])
            try:
                pictures[block] = frame_picture(context, frame_id)
            except RisError as error:
                if error.retryable:
                    raise
                problems.append(f"shard {pinned.shard_id}: frame {frame_id} stays damaged: {error}")
        if pictures and len(blocks) < FRAMES_AT_ONCE:
            backbone = backbone_of(context, generation)
            parts.append(embed_batched(backbone, list(pictures.values()), batch))
            blocks += pictures
    if not blocks:
        return None, problems
    return _Made(blocks, _joined(parts)), problems


def _joined(parts: Sequence[Descriptors]) -> Descriptors:
    return Descriptors(
        np.concatenate([part.global_nd for part in parts]),
        np.concatenate([part.patches_ncd for part in parts]),
    )


def _replace(
    context: Context,
    generation: IndexGeneration,
    pinned: PinnedShard,
    made: _Made,
) -> None:
    """Write the next revision under the shard's lock, check it, switch, drop the old files."""
    context.index.require_free(context.settings.min_free_bytes)
    old, blocks = pinned.layout, made.blocks
    with hold_shard(old), context.db.transaction() as session:
        shard = index_record.lock_shard_by_id(session, pinned.shard_id)
        now = pin_shard(session, context.index, FMapCache(), generation, shard)
        if now.layout.folder != old.folder:
            raise IndexDamaged(f"shard {shard.id} was repaired by someone else; look again")
        new = context.index.layout(
            generation.id, shard.id, shard.revision + 1, spec_of(generation), generation.codec
        )
        sums_n2 = rewrite_blocks(old, new, now.blocks, blocks, made.descriptors)
        _check(new, now, blocks, sums_n2)
        rows = now.f_map.start_row[list(blocks)].tolist()
        sums = {row: (int(a), int(b)) for row, (a, b) in zip(rows, sums_n2, strict=True)}
        index_record.replace_files(session, shard, sums)
    shutil.rmtree(old.folder, ignore_errors=True)


def _check(new: ShardLayout, now: PinnedShard, blocks: Sequence[int], sums_n2: np.ndarray) -> None:
    """The new files hold what was made, and everything that was whole before."""
    expected_n2 = now.sums_n2.copy()
    expected_n2[list(blocks)] = sums_n2
    before = set(_damaged(now)) - set(blocks)
    wrong = set(damaged_blocks(new, expected_n2)) - before
    if wrong:
        raise IndexDamaged(f"{new.folder}: blocks {sorted(wrong)} were not written well; try again")
