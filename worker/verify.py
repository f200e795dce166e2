"""Verify: do Postgres, vector files, kept pictures, uploads, recordings and FAISS agree?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from models.index import IndexGeneration, Shard
from models.repositories import codes as codes_record
from models.repositories import erasures as erasure_record
from models.repositories import index as index_record
from models.repositories import recordings as recording_record
from models.repositories import search as search_record
from models.repositories import videos as video_record
from models.session import Session
from worker.accepting.audit import check_chain
from worker.context import Context
from worker.errors import IndexDamaged, NotFound, RisError
from worker.generations import basis_of
from worker.index.candidates import global_candidates
from worker.index.codes_file import damaged_codes, empty_codes, map_codes
from worker.index.compact_cache import codes_layout, run_codes_layout
from worker.index.layout import FileKind
from worker.index.moved_file import MAP_NAME, url_in_map
from worker.index.run_codes_file import map_run_codes
from worker.index.shard import check_headers, damaged_blocks
from worker.index.store import PinnedShard
from worker.pinning import FMapCache, pin_shard, spec_of

SAMPLE_ROWS = 16
_SAME_COSINE = 1e-3


@dataclass(frozen=True, slots=True)
class Report:
    """What was checked and every disagreement found; ``problems`` empty means clean."""

    frames: int
    shards: int
    rows: int
    pictures: int
    uploads: int
    problems: tuple[str, ...]
    recordings: int = 0
    audit_entries: int = 0
    audit_sha256: str = ""
    """Of the last entry."""


def verify_index(context: Context, *, pictures: bool = True) -> Report:
    """Check every generation that is live or being built, and with ``pictures`` the kept ones,
    those that queries were made from, and recordings that are still to be ingested."""
    with context.db.transaction() as session:
        generations = index_record.list_generations(session)
    reports = [
        verify_generation(context, generation)
        for generation in generations
        if generation.state in ("live", "building")
    ]
    problems = [problem for report in reports for problem in report.problems]
    problems += _unfinished_erasures(context)
    with context.db.snapshot() as session:
        chain = check_chain(session)
    problems += chain.problems
    kept, uploads, recordings = 0, 0, 0
    if pictures:
        load = partial(_load_picture, context)
        kept, harmed = _unreadable(context, video_record.picture_hashes, load)
        uploads, lost = _unreadable(context, search_record.upload_hashes, context.uploads.read)
        recordings, bad = _unreadable(
            context, recording_record.recording_hashes, context.recordings.check
        )
        problems += [*harmed, *lost, *bad]
    return Report(
        frames=max((report.frames for report in reports), default=0),
        shards=sum(report.shards for report in reports),
        rows=sum(report.rows for report in reports),
        pictures=kept,
        uploads=uploads,
        recordings=recordings,
        problems=tuple(problems),
        audit_entries=chain.entries,
        audit_sha256=chain.last_sha256,
    )


def _unreadable(
    context: Context, named: Callable[[Session], set[str]], load: Callable[[str], object]
) -> tuple[int, list[str]]:
    """How many files rows name by their content, and what is wrong with those that cannot be
    loaded, unless they were erased meanwhile."""
    with context.db.transaction() as session:
        hashes = named(session)
    wrong: dict[str, str] = {}
    for sha256 in sorted(hashes):
        try:
            load(sha256)
        except RisError as error:
            wrong[sha256] = str(error)
    if wrong:
        with context.db.transaction() as session:
            still = named(session)
        wrong = {sha256: problem for sha256, problem in wrong.items() if sha256 in still}
    return len(hashes), list(wrong.values())


def _load_picture(context: Context, sha256: str) -> None:
    try:
        context.pictures.load(sha256)
    except NotFound as error:  # which does not tell everybody where pictures lie
        raise NotFound(f"{context.pictures.path(sha256)}: {error}") from error


def _unfinished_erasures(context: Context) -> list[str]:
    with context.db.transaction() as session:
        failed = [
            (erasure, job)
            for erasure, job in erasure_record.list_all(session)
            if erasure.finished_at is None and job.state == "failed"
        ]
        return [
            f"erasure {erasure.id} of camera {erasure.camera.name!r} failed before its end"
            f" ({job.error_code}): order it again with `ris erase`"
            for erasure, job in failed
            if erasure.leftovers
            or erasure_record.first_frame_utc(
                session, erasure.camera_id, erasure.from_utc, erasure.to_utc
            )
        ]


def verify_generation(
    context: Context, generation: IndexGeneration, *, codes: bool = True
) -> Report:
    """Check one generation: counts, f_map, checksums of every block, and FAISS on a sample.

    A live generation must hold every frame; one being built may still lack some. ``codes``: also
    the compact codes, which can be made again at any time.
    """
    with context.db.transaction() as session:
        frames, indexed = index_record.count_frames_and_indexed(session, generation.id)
        shards = index_record.select_shards(session, generation.id)
    problems: list[str] = []
    if generation.state == "live" and indexed != frames:
        problems.append(
            f"generation {generation.id}: {frames} frames recorded, {indexed} indexed;"
            f" `ris reindex --backbone {generation.backbone}` builds a whole one"
        )
    for shard in shards:
        problems += _verify_shard(context, generation, shard, codes)
    return Report(
        frames=indexed if generation.state == "building" else frames,
        shards=len(shards),
        rows=sum(shard.row_count for shard in shards),
        pictures=0,
        uploads=0,
        problems=tuple(problems),
    )


def _verify_shard(
    context: Context, generation: IndexGeneration, shard: Shard, codes: bool
) -> list[str]:
    """Problems of a shard, of which there are none when it was erased or written anew meanwhile."""
    while True:
        with context.db.transaction() as session:
            seen = index_record.find_shard(session, shard.id)
        if seen is None:
            return []
        problems = _problems(context, generation, seen.id, codes)
        with context.db.transaction() as session:
            now = index_record.find_shard(session, shard.id)
        if now is not None and now.revision == seen.revision:
            return problems


def _problems(
    context: Context, generation: IndexGeneration, shard_id: int, codes: bool
) -> list[str]:
    name = _name(generation, shard_id)
    try:
        with context.db.snapshot() as session:
            shard = index_record.find_shard(session, shard_id)
            if shard is None:
                return []
            pinned = pin_shard(session, context.index, FMapCache(), generation, shard)
        problems = _head_problems(generation, shard, pinned)
        wrong = damaged_blocks(pinned.layout, pinned.sums_n2)
        problems += _damage(name, pinned, wrong)
        if codes:
            found = codes_problems(context, pinned, generation, wrong)
            problems += [f"{name}: {problem}" for problem in found]
        return problems + ([] if problems else _faiss_problems(context, name, pinned))
    except RisError as error:
        return [f"{name}: {error}"]


def tail_problems(
    context: Context,
    generation: IndexGeneration,
    shard: Shard,
    pinned: PinnedShard,
    first: int,
) -> list[str]:
    """What is wrong with a shard as it was pinned, of its blocks only with those from ``first`` on,
    and without its compact codes. Raises what only keeps it from being read for now."""
    name = _name(generation, shard.id)
    try:
        problems = _head_problems(generation, shard, pinned)
        wrong = damaged_blocks(pinned.layout, pinned.sums_n2, first=first)
        problems += _damage(name, pinned, wrong)
        return problems + ([] if problems else _faiss_problems(context, name, pinned, first))
    except RisError as error:
        if error.retryable:
            raise
        return [f"{name}: {error}"]


def _name(generation: IndexGeneration, shard_id: int) -> str:
    return f"generation {generation.id} shard {shard_id}"


def _head_problems(generation: IndexGeneration, shard: Shard, pinned: PinnedShard) -> list[str]:
    """Counts, headers and what stands for moved files. Raises as :func:`check_headers`."""
    name, cells = _name(generation, shard.id), spec_of(generation).grid.cells
    problems = []
    if shard.row_count != shard.frame_count * cells:
        rows = f"{shard.row_count} rows for {shard.frame_count} x {cells} cells"
        problems.append(f"{name}: {rows} in {pinned.layout.folder}")
    check_headers(pinned.layout)
    if shard.object_only and url_in_map(pinned.layout.folder) != shard.object_url:
        named = pinned.layout.folder / MAP_NAME
        problems.append(f"{name}: {named} does not name {shard.object_url}; run `ris repair`")
    return problems


def _damage(name: str, pinned: PinnedShard, wrong: Mapping[int, FileKind]) -> list[str]:
    return [
        f"{name}: block {block} (frame {pinned.f_map.frame_id[block]}) in"
        f" {pinned.layout.path_of(kind, block)} is damaged"
        for block, kind in sorted(wrong.items())
    ]


def codes_problems(
    context: Context, pinned: PinnedShard, generation: IndexGeneration, damaged: Collection[int]
) -> list[str]:
    """What is wrong with a shard's compact codes, if it has any. ``damaged``: blocks of vectors
    that are, and have no codes for that reason."""
    if not pinned.coded:
        return []
    with context.db.transaction() as session:
        basis = codes_record.find_basis(session, generation.id)
    if basis is None:
        return [f"generation {generation.id} has codes and no basis; run `ris repair`"]
    value, sealed = basis_of(basis), pinned.layout.sealed
    layout, late = codes_layout(pinned, value), pinned.coded - sealed
    try:
        if sealed:
            map_run_codes(run_codes_layout(pinned.layout, value), check=True)
        if late <= 0:
            return []
        map_codes(layout, late)
        wrong = damaged_codes(layout, 0, late)
    except IndexDamaged as error:
        return [str(error)]
    lacking = {sealed + place for place in empty_codes(layout, late)} - set(damaged)
    return [
        *(f"{layout.path}: codes of block {sealed + place} are damaged" for place in wrong),
        *(f"{layout.path}: block {block} has no codes" for block in sorted(lacking)),
    ]


def _faiss_problems(context: Context, name: str, pinned: PinnedShard, first: int = 0) -> list[str]:
    """Each sampled frame must find itself first, with the cosine of a unit vector with itself."""
    step = max(1, (pinned.blocks - first) // SAMPLE_ROWS)
    globals_nd = context.index.global_descriptors(pinned)
    problems = []
    for block in range(first, pinned.blocks, step):
        best = global_candidates(context.index, [pinned], globals_nd[block], 1)
        if not np.isclose(best.score_n[0], 1.0, atol=_SAME_COSINE):
            problems.append(
                f"{name}: FAISS gives frame {pinned.f_map.frame_id[block]} a cosine of"
                f" {best.score_n[0]:.4f} with itself"
            )
    return problems
