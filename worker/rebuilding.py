"""Running a reindex: embed every frame anew from its kept picture, verify, compare, then switch.

Search and ingest go on with the live generation, and frames that come meanwhile are found by the
same questions for what is missing. Each round leaves fewer of them; the last few are embedded while
commits of ingest wait, in the transaction that switches, so cameras that never pause hold up no
switch. Every block is read back before, once: how far is noted with its shard.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

import structlog

from models.index import IndexGeneration, Shard
from models.repositories import index as index_record
from models.repositories import jobs as job_record
from models.repositories import rebuilds as rebuild_record
from models.repositories.jobs import ClaimedJob
from models.repositories.rebuilds import FramePlace, place_of
from models.session import Session
from models.video import Frame
from worker.context import Context
from worker.core.comparison import options_from_json
from worker.errors import IndexDamaged, InputInvalid, NotFound
from worker.generations import backbone_of
from worker.index.store import PinnedShard
from worker.jobs import Lease, Outcome
from worker.pinning import FMapCache, pin_shard
from worker.query_picture import embed_frames
from worker.recording import IndexedFrames, append_frames
from worker.shadow import compare_generations
from worker.tracing import note, span
from worker.verify import tail_problems

log = structlog.get_logger()

CLOSING_S: Final = 2.0
"""About how long ingest may have to wait for the last frames; twice as long each time that they are
more than that allows, but no longer than half of what it waits for a lock."""
_UNMEASURED_S: Final = 1.0
_IDS_BEFORE: Final = 10_000
"""Ids are given before their frames are committed: so far back newer frames are looked for."""
_SHARDS_AT_ONCE: Final = 100


@dataclass
class _Build:
    """One slice. ``began_with``: frames that had rows when the job began. ``refused``: how often
    too many frames were missing at the end. ``frame_s``: what embedding and appending one took
    last, ``shard_s`` what reading back what is new in a shard did. ``newest``: of the frames up to
    this id, those that were there have rows; None before all were looked through."""

    context: Context
    lease: Lease
    generation: IndexGeneration
    began_with: int
    refused: int = 0
    frame_s: float = _UNMEASURED_S
    shard_s: float = 0.0
    newest: int | None = None
    runs: FMapCache = field(default_factory=FMapCache)

    def progress(self, frames: int, of: int, **more: int) -> dict[str, int]:
        """What the job tells: ``from``, where it began, for who works out how long it takes."""
        known = {"from": self.began_with, "frames": frames, "of": max(frames, of), **more}
        return known | ({"refused": self.refused} if self.refused else {})

    def at_most(self) -> int:
        """How many frames may be missing at the end."""
        longest_s = self.context.settings.lock_timeout_ms / 2000
        closing_s = min(CLOSING_S * 2.0 ** min(self.refused, 10), max(CLOSING_S, longest_s))
        return max(1, int(closing_s / (self.frame_s + self.shard_s)))

    def forget(self) -> None:
        """What was read of rows that were not committed is not known."""
        self.runs.let_go()
        self.context.index.let_go()


def run_reindex(context: Context, job: ClaimedJob, lease: Lease) -> Outcome:
    """Embed missing frames batch by batch; when none is missing, verify, compare and switch."""
    wanted = options_from_json(job.payload.get("compare"))
    generation = _generation(context, job)
    if generation.state != "building":
        raise InputInvalid(f"generation {generation.id} is {generation.state}, not building")
    backbone_of(context, generation)
    note(generation_id=generation.id)
    build = _begun(context, lease, generation)
    while True:
        if not _embed_missing(build):
            return "yield"
        with span("reindex.verify"):
            if not _verify(build):
                return "yield"
        if wanted is not None:
            with span("reindex.compare"):
                if not compare_generations(context, lease, generation, wanted, _verified(build)):
                    return "yield"
        with span("reindex.close"):
            if _close(build):
                return "finished"
        if lease.slice_over():
            return "yield"


def fail_reindex(session: Session, job: ClaimedJob, _code: str) -> None:
    """Give the generation up; the live one was never touched."""
    index_record.set_generation_state(session, int(job.payload["generation_id"]), "failed")


def _generation(context: Context, job: ClaimedJob) -> IndexGeneration:
    generation_id = int(job.payload["generation_id"])
    with context.db.transaction() as session:
        generation = index_record.find_generation(session, generation_id)
    if generation is None:
        raise NotFound(f"index generation {generation_id} is not known")
    return generation


def _begun(context: Context, lease: Lease, generation: IndexGeneration) -> _Build:
    with context.db.transaction() as session:
        found = job_record.find(session, lease.job.id)
        held = rebuild_record.count_held(session, generation.id)
    told = {} if found is None else found.progress
    began_with, refused = int(told.get("from", held)), int(told.get("refused", 0))
    return _Build(context, lease, generation, began_with, refused)


def _embed_missing(build: _Build) -> bool:
    """Look through the frames once and embed what has no rows; False when the slice is over."""
    with build.context.db.transaction() as session:
        newest = rebuild_record.newest_frame(session)
        total = index_record.count_frames(session)
        last = rebuild_record.last_begun(session, build.generation.id)
    if build.newest is not None:
        missing, found = _since(build), 0
        while missing:
            found += len(missing)
            if not _batch(build, missing, total):
                return False
            missing = _since(build)
        # Nothing among the newest: if any is missing still, it is an older one.
        build.newest = newest if found else None
        return True
    # Where the slice before came to; that nothing is missing before that, the second pass tells.
    for begin in [None] if last is None else [last, None]:
        if not _embed_behind(build, begin, total):
            return False
    build.newest = newest
    return True


def _embed_behind(build: _Build, after: FramePlace | None, total: int) -> bool:
    limit = build.context.settings.commit_batch
    while True:
        with build.context.db.transaction() as session:
            missing = rebuild_record.missing_frames(session, build.generation.id, limit, after)
        if not missing:
            return True
        if not _batch(build, missing, total):
            return False
        after = place_of(missing[-1])


def _since(build: _Build) -> list[Frame]:
    assert build.newest is not None
    limit, since = build.context.settings.commit_batch, build.newest - _IDS_BEFORE
    with build.context.db.transaction() as session:
        return rebuild_record.missing_since(session, build.generation.id, since, limit)


def _batch(build: _Build, missing: list[Frame], total: int) -> bool:
    """False when the slice is over by now."""
    with span("reindex.batch", frames=len(missing)):
        _embed_batch(build, missing, total)
    return not build.lease.slice_over()


def _embed_batch(build: _Build, frames: list[Frame], total: int) -> None:
    context, generation = build.context, build.generation
    context.index.require_free(context.settings.min_free_bytes)
    began_s = time.monotonic()
    for members in _by_camera(frames):
        embedded = _embedded(build, members)
        if embedded is None:
            continue  # some were erased meanwhile: it is asked anew what is missing
        with ExitStack() as held, context.db.transaction() as session:
            done = rebuild_record.count_held(session, generation.id) + len(members)
            build.lease.record_progress(session, build.progress(done, total))
            index_record.lock_generations(session, exclusive=False)
            if not _all_known(session, members):
                continue
            append_frames(context, session, generation, embedded, held)
    build.frame_s = (time.monotonic() - began_s) / len(frames)


def _by_camera(frames: list[Frame]) -> list[list[Frame]]:
    ordered = sorted(frames, key=lambda frame: (frame.camera_id, frame.t_utc, frame.id))
    return [list(group) for _, group in groupby(ordered, key=lambda frame: frame.camera_id)]


def _embedded(build: _Build, members: list[Frame]) -> IndexedFrames | None:
    """Descriptors of frames of one camera, from their pictures; None where some were erased."""
    context, frame_ids = build.context, [frame.id for frame in members]
    try:
        imgs_hwc = [context.pictures.load(frame.picture_sha256) for frame in members]
    except NotFound:
        with context.db.transaction() as session:
            if _all_known(session, members):
                raise
        return None
    descriptors = embed_frames(context, build.generation, frame_ids, imgs_hwc)
    times = [frame.t_utc for frame in members]
    return IndexedFrames(members[0].camera_id, frame_ids, times, descriptors)


def _all_known(session: Session, frames: list[Frame]) -> bool:
    """Whether none of them was erased."""
    frame_ids = [frame.id for frame in frames]
    return index_record.known_frames(session, frame_ids) == set(frame_ids)


def _verify(build: _Build) -> bool:
    """Read back what no reindex has read back yet; False when the slice is over. Raises
    :class:`IndexDamaged`: nothing is switched to that does not match its checksums."""
    context, generation = build.context, build.generation
    progress = _verified(build)
    while True:
        with context.db.transaction() as session:
            shards = rebuild_record.unverified_shards(session, generation.id, _SHARDS_AT_ONCE)
        if not shards:
            return True
        for shard in shards:
            # A read that failed once would cost the whole build.
            if _shard_problems(build, shard) and (again := _shard_problems(build, shard)):
                raise IndexDamaged(f"generation {generation.id}: {again[0]}; not switched")
            progress["verified"] += shard.frame_count - shard.verified_count
            with context.db.transaction() as session:
                build.lease.record_progress(session, progress)
            if build.lease.slice_over():
                return False
        if len(shards) == _SHARDS_AT_ONCE:
            build.runs.let_go()  # an archive's are too many to keep


def _verified(build: _Build) -> dict[str, int]:
    """Progress once all frames have rows."""
    with build.context.db.transaction() as session:
        held = rebuild_record.count_held(session, build.generation.id)
        verified = rebuild_record.count_verified(session, build.generation.id)
    return build.progress(held, held, verified=verified)


def _shard_problems(build: _Build, seen: Shard) -> list[str]:
    """What is wrong with what is new in a shard; where nothing is, it is noted as verified."""
    context, began_s = build.context, time.monotonic()
    with context.db.snapshot() as session:
        shard = index_record.find_shard(session, seen.id)
        pinned = None if shard is None else _pinned(build, session, shard)
    if shard is None or pinned is None:
        return []  # erased
    problems = _new_problems(build, shard, pinned)
    with context.db.transaction() as session:
        now = index_record.find_shard(session, seen.id)
        if now is None or now.revision != shard.revision:
            return []  # its files are others now, which are asked for again
        if not problems:
            build.lease.hold(session)
            rebuild_record.note_verified(session, shard)
    build.shard_s = time.monotonic() - began_s
    return problems


def _pinned(build: _Build, session: Session, shard: Shard) -> PinnedShard | str:
    """A shard as a transaction sees it, or what is wrong with its rows."""
    try:
        return pin_shard(session, build.context.index, build.runs, build.generation, shard)
    except IndexDamaged as error:
        return str(error)


def _new_problems(build: _Build, shard: Shard, pinned: PinnedShard | str) -> list[str]:
    if isinstance(pinned, str):
        return [pinned]
    return tail_problems(build.context, build.generation, shard, pinned, shard.verified_count)


def _close(build: _Build) -> bool:
    """Add the last few frames, read them back and make the generation live, in one transaction
    that no commit of ingest overlaps; False when more are missing than ingest should wait for."""
    try:
        with ExitStack() as held, build.context.db.transaction() as session:
            return _closed(build, session, held)
    except Exception:
        build.forget()
        raise


def _closed(build: _Build, session: Session, held: ExitStack) -> bool:
    context, generation = build.context, build.generation
    index_record.lock_generations(session, exclusive=True)
    build.lease.hold(session)
    frames = index_record.count_frames(session)
    in_shards = rebuild_record.count_held(session, generation.id)
    if rebuild_record.count_verified(session, generation.id) != in_shards:
        return False  # written anew since: to be read back before anybody waits for it
    late = _late(build, session, frames - in_shards)
    if late is None:
        return False
    for members in _by_camera(late):
        embedded = _embedded(build, members)
        if embedded is None:
            return False
        append_frames(context, session, generation, embedded, held)
    while shards := rebuild_record.unverified_shards(session, generation.id, _SHARDS_AT_ONCE):
        for shard in shards:
            _verify_late(build, session, shard)
    if rebuild_record.count_verified(session, generation.id) != frames:
        return False
    live = index_record.live_generation(session)
    if live is not None:
        index_record.set_generation_state(session, live.id, "retired")
    index_record.set_generation_state(session, generation.id, "live")
    build.lease.finish(session, {"frames": frames, "of": frames})
    return True


def _late(build: _Build, session: Session, count: int) -> list[Frame] | None:
    """The so many frames that are missing; None where they are too many for now, or others than
    the newest: then all frames are looked through again."""
    if count == 0:
        return []
    if build.newest is None or count < 0:
        return None
    if count > build.at_most():
        log.info("reindex_not_closed", missing=count, at_most=build.at_most())
        build.refused += 1
        return None
    since = build.newest - _IDS_BEFORE
    late = rebuild_record.missing_since(session, build.generation.id, since, count + 1)
    if len(late) == count:
        return late
    build.newest = None
    return None


def _verify_late(build: _Build, session: Session, shard: Shard) -> None:
    pinned = _pinned(build, session, shard)
    # A read that failed once would cost the whole build.
    if _new_problems(build, shard, pinned) and (again := _new_problems(build, shard, pinned)):
        raise IndexDamaged(f"generation {build.generation.id}: {again[0]}; not switched")
    rebuild_record.note_verified(session, shard)
