"""Repair: damaged vectors are made anew from the kept pictures, in new files beside the old."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import structlog

from models.index import IndexGeneration, Shard
from models.repositories import codes as codes_record
from models.repositories import index as index_record
from models.session import Session
from worker.accepting.audit import record_act
from worker.accepting.desk import COMMAND_LINE
from worker.context import Context
from worker.core.types import ImageArray, IntArray
from worker.errors import IndexDamaged, RisError, StorageFailed, StorageFull
from worker.generations import require_live_generation
from worker.index.layout import ShardLayout
from worker.index.revision import RevisionWriter, stored_blocks
from worker.index.shard import NO_CHECKSUM, check_headers, damaged_blocks, hold_derived, hold_shard
from worker.index.store import PinnedShard
from worker.leftovers import discard_former, discard_revision, is_current, remove_former_files
from worker.moved import restore_map
from worker.pinning import FMapCache, pin_shard
from worker.query_picture import embed_frames, frame_picture
from worker.verify import codes_problems

log = structlog.get_logger()

BLOCKS_AT_ONCE = 32
"""Blocks copied, and frames made anew, at a time: what is held in memory."""


@dataclass(frozen=True, slots=True)
class RepairReport:
    """``shards``: looked at; ``repaired``: written anew; ``frames``: of those, made anew from their
    pictures; ``problems``: what stays damaged, and why."""

    shards: int
    repaired: int
    frames: int
    problems: tuple[str, ...]


def repair_index(context: Context) -> RepairReport:
    """Repair every shard of the live generation. Search and ingest go on meanwhile.

    Frames whose picture is gone too stay damaged: searches leave them out, and the old files are
    kept. Raises :class:`NotFound` for an empty index, :class:`StorageFull`, and what loading the
    backbone raises where it is needed.
    """
    generation = require_live_generation(context)
    with context.db.transaction() as session:
        shards = index_record.select_shards(session, generation.id)
        record_act(session, COMMAND_LINE, "repair.begin", generation_id=generation.id)
    repaired, frames, problems = 0, 0, list[str]()
    for shard in shards:
        try:
            done = _repair_shard(context, generation, shard.id)
        except StorageFull:
            raise
        except RisError as error:
            problems.append(f"shard {shard.id}: {error}")
            continue
        repaired += done.switched
        frames += done.frames
        problems += done.problems
    remove_former_files(context)
    return RepairReport(len(shards), repaired, frames, tuple(problems))


@dataclass(slots=True)
class _Repaired:
    """What became of one shard. ``left``: blocks that stay damaged."""

    switched: bool = False
    frames: int = 0
    left: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def _repair_shard(context: Context, generation: IndexGeneration, shard_id: int) -> _Repaired:
    with context.db.snapshot() as session:
        shard = index_record.find_shard(session, shard_id)
        if shard is None:
            return _Repaired()  # erased meanwhile
        pinned = _pin(context, session, generation, shard)
    done = _Repaired()
    _restore_map(pinned.layout, shard)
    damaged = damaged_blocks(pinned.layout, pinned.sums_n2)
    if codes_problems(context, pinned, generation, damaged):
        with context.db.transaction() as session:
            codes_record.reset(session, shard_id)  # they are made again behind ingest
    if not damaged and _has_headers(pinned.layout):
        return done
    context.index.require_free(context.settings.min_free_bytes)
    new = context.index.at_revision(pinned.layout, shard_id, shard.revision + 1)
    with hold_shard(new):
        if not is_current(context, shard):
            return done  # erased, or written anew by someone else, meanwhile: look again next time
        writer = RevisionWriter(new)
        try:
            writer.clear()
            # Blocks that are valid never change: copying them needs no lock of the shard.
            _write(context, generation, pinned, 0, writer, done)
            if done.frames or not _has_headers(pinned.layout):
                _switch(context, generation, pinned, writer, done)
        finally:
            if not done.switched:
                discard_revision(context, shard_id, shard.revision + 1, new.folder)
    old = pinned.layout.folder
    if done.switched and done.left:
        done.problems.append(f"shard {shard_id}: what could not be repaired is kept in {old}")
    elif done.switched:
        discard_former(context, shard, old)
    log.info("shard_repaired", shard_id=shard_id, frames=done.frames, left=len(done.left))
    return done


def _restore_map(layout: ShardLayout, shard: Shard) -> None:
    """What says where moved patches lie is made from what Postgres says and the object; where that
    fails they are made anew, as any that are damaged."""
    there = layout.path_of("patch", 0).exists() or not layout.folder.exists()
    if shard.object_url is None or there:
        return
    try:
        with hold_derived(layout):
            restore_map(layout, shard)
    except IndexDamaged as error:
        log.warning("map_not_restored", shard_id=shard.id, detail=str(error))


def _has_headers(layout: ShardLayout) -> bool:
    try:
        check_headers(layout)
    except IndexDamaged:
        return False
    return True


def _write(
    context: Context,
    generation: IndexGeneration,
    pinned: PinnedShard,
    first: int,
    writer: RevisionWriter,
    done: _Repaired,
) -> None:
    """Write blocks ``first``.. of the pinned shard: sound ones as they are, others anew."""
    for start in range(first, pinned.blocks, BLOCKS_AT_ONCE):
        at = np.arange(start, min(start + BLOCKS_AT_ONCE, pinned.blocks))
        stored_global, stored_patches, sound = stored_blocks(pinned.layout, at, pinned.sums_n2[at])
        pictures = _pictures(context, pinned, at[~sound], done)
        if pictures:
            made = embed_frames(
                context,
                generation,
                [int(pinned.f_map.frame_id[block]) for block in pictures],
                list(pictures.values()),
            )
            places = np.array(list(pictures)) - start
            stored_global[places] = writer.layout.codec.encode(made.global_nd)
            stored_patches[places] = writer.layout.codec.encode(made.patches_ncd)
            done.frames += len(pictures)
        writer.write(start, stored_global, stored_patches)


def _pictures(
    context: Context, pinned: PinnedShard, blocks: IntArray, done: _Repaired
) -> dict[int, ImageArray]:
    """The kept pictures of damaged blocks; those that are gone as well are noted."""
    pictures = {}
    for block in blocks.tolist():
        frame_id = int(pinned.f_map.frame_id[block])
        try:
            pictures[block] = _read_twice(context, frame_id)
        except RisError as error:
            done.left.append(block)
            done.problems.append(
                f"shard {pinned.shard_id}: frame {frame_id} stays damaged: {error}"
            )
    return pictures


def _read_twice(context: Context, frame_id: int) -> ImageArray:
    """A kept picture; a read that failed once may not fail again."""
    try:
        return frame_picture(context, frame_id)
    except StorageFailed:
        return frame_picture(context, frame_id)


def _switch(
    context: Context,
    generation: IndexGeneration,
    pinned: PinnedShard,
    writer: RevisionWriter,
    done: _Repaired,
) -> None:
    """Under the shard's row lock: add what was appended meanwhile, check, make it the shard's."""
    with context.db.transaction() as session:
        shard = index_record.find_shard(session, pinned.shard_id, lock=True)
        if shard is None:
            raise IndexDamaged(f"{pinned.layout.folder} was erased meanwhile")
        now = _pin(context, session, generation, shard)
        if now.layout.folder != pinned.layout.folder:
            raise IndexDamaged(f"{pinned.layout.folder} was written anew by someone else meanwhile")
        _write(context, generation, now, pinned.blocks, writer, done)
        # Old versions kept no checksum of the global block: now there is one.
        recorded_n2 = writer.sync()
        recorded_n2[done.left, 0] = NO_CHECKSUM
        recorded_n2[done.left, 1] = now.sums_n2[done.left, 1]  # of what was lost, not of its rest
        if sorted(damaged_blocks(writer.layout, recorded_n2)) != sorted(done.left):
            raise IndexDamaged(f"{writer.layout.folder} was not written well; try again")
        changed = np.flatnonzero((recorded_n2 != now.sums_n2).any(axis=1))
        rows, sums = now.f_map.start_row[changed].tolist(), recorded_n2[changed].tolist()
        merged = int(changed[0]) if changed.size else now.blocks
        index_record.replace_files(session, shard, dict(zip(rows, sums, strict=True)), merged)
    done.switched = True


def _pin(
    context: Context, session: Session, generation: IndexGeneration, shard: Shard
) -> PinnedShard:
    return pin_shard(session, context.index, FMapCache(), generation, shard)
