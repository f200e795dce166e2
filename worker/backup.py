"""Backup: the database as one snapshot sees it, and the files that this snapshot speaks of.

Files are copied before they are dumped for: first all that are there now, with nothing held, then
under the snapshot of the dump what has come since, which is little. Nobody waits for a backup. A
file that repair, erasure or retention removes once it is copied is in the backup, where its rows
are; one that they remove before makes this snapshot useless, and a later one is taken: rows go
before files, so that one does not speak of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import structlog

from models.index import IndexGeneration, Shard
from models.repositories import backups as backup_record
from models.repositories import index as index_record
from models.repositories import recordings as recording_record
from models.repositories import search as search_record
from models.repositories import videos as video_record
from models.repositories.backups import Moment
from models.session import Session
from worker import VERSION
from worker.accepting.audit import record_act
from worker.accepting.desk import COMMAND_LINE
from worker.backup_folder import (
    MANIFEST,
    Copier,
    FileEntry,
    Manifest,
    entry_of,
    holding_folder,
    read_manifest,
    sweep,
    write_manifest,
)
from worker.context import Context
from worker.embedded.postgres_tools import dump_database
from worker.errors import BackupInvalid, ErasedMeanwhile, InputInvalid
from worker.index.layout import HEADER_BYTES, KINDS, FileKind, ShardLayout, storage_errors
from worker.index.revision import RevisionWriter, stored_blocks
from worker.index.runs_file import has_runs, write_whole
from worker.index.shard import NO_CHECKSUM, damaged_blocks
from worker.index.store import IndexStore, PinnedShard
from worker.pinning import FMapCache, layout_of, pin_shard
from worker.services import database_url

log = structlog.get_logger()

BLOCKS_AT_ONCE = 64
"""Blocks copied at a time: what is held in memory."""
MOST_SNAPSHOTS = 20


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What the backup holds now. ``new_bytes``: copied by this run; ``removed``: files that were in
    the folder and are of no use any more; ``problems``: what the index itself lacks."""

    taken_utc: str
    frames: int
    files: int
    byte_count: int
    new_bytes: int
    removed: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What one snapshot speaks of. ``contents``: path below the folders of data -> SHA-256."""

    moment: Moment
    generations: dict[int, IndexGeneration]
    shards: list[Shard]
    contents: dict[str, str]


@dataclass(slots=True)
class _Run:
    """One backup being made. ``gone``: files that were looked for and not there; ``known_gone``:
    those of them that were so before the present snapshot: if it speaks of them, they are lost."""

    context: Context
    folder: Path
    before: Manifest | None
    files: dict[str, FileEntry] = field(default_factory=dict)
    shards: dict[str, tuple[int, str]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    known_gone: set[str] = field(default_factory=set)
    new_bytes: int = 0

    def require_free(self) -> None:
        floor = self.context.settings.min_free_bytes
        IndexStore(self.folder).require_free(floor)

    def listed(self, path: str, byte_count: int | None = None) -> FileEntry | None:
        """A file's entry in the former manifest, if the file is still as long."""
        entry = None if self.before is None else self.before.files.get(path)
        if entry is None or byte_count not in (None, entry.byte_count):
            return None
        try:
            there = (self.folder / path).stat().st_size >= entry.byte_count
        except OSError:
            return None
        return entry if there else None


def back_up(
    context: Context, folder: Path, on_progress: Callable[[str], None] = lambda _step: None
) -> BackupReport:
    """Make a backup in ``folder``, or bring the one there up to date.

    Raises :class:`InputInvalid` for a folder of something else or inside the data folder,
    :class:`BackupInvalid` for a backup of another index, :class:`StorageFull`,
    :class:`StorageFailed`, :class:`SetupFailed` without a pg_dump that suits the server.
    """
    folder = folder.resolve()
    if folder.is_relative_to(context.settings.data_dir.resolve()):
        raise InputInvalid(f"{folder} lies inside the data folder: what destroys one destroys both")
    with holding_folder(folder):
        try:
            before = read_manifest(folder)
        except BackupInvalid:
            if (folder / MANIFEST).exists():
                raise
            before = None
        run = _Run(context, folder, before)
        with context.db.snapshot() as session:
            wanted = _wanted(session)
        _require_same_index(run, wanted)
        with context.db.transaction() as session:  # footage leaves: said before it does
            record_act(session, COMMAND_LINE, "backup.write", folder=str(folder))
        on_progress(f"copying {len(wanted.shards)} shards and {len(wanted.contents)} pictures")
        _copy(run, wanted, None)
        manifest = _finish(run, on_progress)
        write_manifest(folder, manifest)
        removed = sweep(folder, manifest)
    log.info("backed_up", folder=str(folder), frames=manifest.frames)
    return BackupReport(
        taken_utc=manifest.taken_utc,
        frames=manifest.frames,
        files=len(manifest.files),
        byte_count=sum(entry.byte_count for entry in manifest.files.values()),
        new_bytes=run.new_bytes,
        removed=removed,
        problems=manifest.problems,
    )


def _finish(run: _Run, on_progress: Callable[[str], None]) -> Manifest:
    """Copy what has come since and dump, both of one snapshot, again until no file is missed."""
    for _ in range(MOST_SNAPSHOTS):
        run.known_gone, run.gone = run.gone, set()
        with run.context.db.snapshot() as session:
            wanted = _wanted(session)
            _copy(run, wanted, session)
            if run.gone <= run.known_gone:
                on_progress("dumping the database")
                return _dump(run, wanted, backup_record.export_snapshot(session))
        log.info("backup_looks_again", gone=len(run.gone - run.known_gone))
    raise ErasedMeanwhile(
        f"files went while they were copied, {MOST_SNAPSHOTS} times in a row: run it again"
    )


def _dump(run: _Run, wanted: _Wanted, snapshot: str) -> Manifest:
    configured = run.context.settings
    taken = wanted.moment.taken_utc
    name = f"database-{taken:%Y%m%dT%H%M%S%fZ}.dump"
    run.require_free()
    url = database_url(configured)
    dump_database(url, snapshot, run.folder / name, given=configured.database_url is not None)
    run.files[name] = entry_of(run.folder / name)
    run.new_bytes += run.files[name].byte_count
    folders = [_name(run, wanted, shard) for shard in wanted.shards]
    names = ("global.vec", "patch.vec", "patch.runs")
    paths = [f"{folder}/{file}" for folder in folders for file in names]
    paths += [*wanted.contents, name]
    made = wanted.moment.index_made
    named = {*folders, *wanted.contents}
    return Manifest(
        ris_version=VERSION,
        schema_revision=wanted.moment.schema_revision,
        taken_utc=taken.isoformat(),
        index_made=None if made is None else made.isoformat(),
        last_erasure=wanted.moment.last_erasure,
        frames=wanted.moment.frames,
        database=name,
        shards={folder: run.shards[folder] for folder in folders if folder in run.shards},
        files={path: run.files[path] for path in paths if path in run.files},
        problems=tuple(what for path, what in sorted(run.problems.items()) if path in named),
    )


def _wanted(session: Session) -> _Wanted:
    backup_record.take_time(session)
    pictures = video_record.picture_hashes(session)
    contents = {f"pictures/{name[:2]}/{name[2:4]}/{name}.jpg": name for name in sorted(pictures)}
    contents |= {f"uploads/{name}": name for name in sorted(search_record.upload_hashes(session))}
    held = recording_record.recording_hashes(session)
    contents |= {f"recordings/{name}": name for name in sorted(held)}
    return _Wanted(
        moment=backup_record.moment(session),
        generations={one.id: one for one in index_record.list_generations(session)},
        shards=backup_record.shards_with_files(session),
        contents=contents,
    )


def _require_same_index(run: _Run, wanted: _Wanted) -> None:
    made = wanted.moment.index_made
    if run.before is not None and run.before.index_made not in (
        None,
        None if made is None else made.isoformat(),
    ):
        raise _another_index(run)


def _another_index(run: _Run) -> BackupInvalid:
    return BackupInvalid(
        f"{run.folder} holds a backup of another index, or of what this one was before a restore:"
        " give an empty folder"
    )


def _copy(run: _Run, wanted: _Wanted, session: Session | None) -> None:
    """Bring files into the folder. Without a session each shard is as it is when its turn comes."""
    for shard in wanted.shards:
        if session is not None:
            _copy_shard(run, wanted, session, shard)
            continue
        with run.context.db.snapshot() as own:
            now = index_record.find_shard(own, shard.id)
            if now is not None and now.frame_count:
                _copy_shard(run, wanted, own, now)
    _copy_contents(run, wanted.contents)


def _layout(run: _Run, wanted: _Wanted, shard: Shard) -> ShardLayout:
    return layout_of(run.context.index, wanted.generations[shard.generation_id], shard)


def _name(run: _Run, wanted: _Wanted, shard: Shard) -> str:
    folder = _layout(run, wanted, shard).folder
    return str("index" / folder.relative_to(run.context.index.root))


def _copy_shard(run: _Run, wanted: _Wanted, session: Session, shard: Shard) -> None:
    layout, name = _layout(run, wanted, shard), _name(run, wanted, shard)
    if run.shards.get(name, (0, ""))[0] == shard.frame_count:
        return
    former = None if run.before is None else run.before.shards.get(name)
    if former is not None:
        blocks, digest = former
        now = backup_record.checksums_digest(session, shard.id, blocks)
        if now != digest or blocks > shard.frame_count:
            raise _another_index(run)
        kept = {
            f"{name}/{kind}.vec": run.listed(f"{name}/{kind}.vec", _length(layout, kind, blocks))
            for kind in KINDS
        }
        if layout.sealed:
            kept[f"{name}/patch.runs"] = run.listed(f"{name}/patch.runs")
        if blocks == shard.frame_count and all(kept.values()):
            run.files |= {path: entry for path, entry in kept.items() if entry is not None}
            run.shards[name] = former
            return
    pinned = pin_shard(
        session, run.context.index, FMapCache(), wanted.generations[shard.generation_id], shard
    )
    if not _append_blocks(run, name, pinned):
        run.gone.add(name)
        return
    if name not in run.problems:  # else the next backup looks at it again
        digest = backup_record.checksums_digest(session, shard.id, shard.frame_count)
        run.shards[name] = (shard.frame_count, digest)


def _length(layout: ShardLayout, kind: FileKind, blocks: int) -> int:
    """Bytes of a shard's file that holds so many blocks beside the sealed ones."""
    own = blocks - (layout.sealed if kind == "patch" else 0)
    return HEADER_BYTES + own * layout.block_bytes(kind)


def _copy_runs(run: _Run, name: str, pinned: PinnedShard, copy: ShardLayout) -> None:
    """A shard's sealed patches as they are: whether they are sound is seen with the blocks."""
    sealed = np.arange(copy.sealed)
    sound = copy.path_of("patch", 0).is_file() and not damaged_blocks(copy, pinned.sums_n2[sealed])
    if not sound and not pinned.layout.path_of("patch", 0).exists():
        if has_runs(pinned.layout):
            write_whole(pinned.layout, copy.path_of("patch", 0), holes=True)
    elif not sound:
        copier = Copier()
        copier.copy(pinned.layout.path_of("patch", 0), copy.path_of("patch", 0), None)
        copier.flush(run.folder)


def _append_blocks(run: _Run, name: str, pinned: PinnedShard) -> bool:
    """Continue the copy of a shard behind its last sound block; False when the shard has gone."""
    run.require_free()
    copy = replace(pinned.layout, folder=run.folder / name, parts=None)
    with storage_errors(copy.folder):
        copy.folder.mkdir(parents=True, exist_ok=True)
    if copy.sealed:
        _copy_runs(run, name, pinned, copy)
    whole = all(copy.path(kind).is_file() for kind in KINDS)
    first = min(damaged_blocks(copy, pinned.sums_n2), default=pinned.blocks) if whole else 0
    writer, damaged = RevisionWriter(copy), list[int]()
    for start in range(first, pinned.blocks, BLOCKS_AT_ONCE):
        at = np.arange(start, min(start + BLOCKS_AT_ONCE, pinned.blocks))
        sums_n2 = pinned.sums_n2[at]
        stored_global, stored_patches, sound = stored_blocks(pinned.layout, at, sums_n2)
        writer.write(start, stored_global, stored_patches)
        damaged += at[~sound & (sums_n2[:, 0] != NO_CHECKSUM)].tolist()
    there = all(pinned.layout.path(kind).exists() for kind in KINDS)
    there = there and (not copy.sealed or has_runs(pinned.layout))
    if damaged and not there and name not in run.known_gone:
        return False
    if writer.sums:
        writer.sync()
    run.problems.pop(name, None)
    if damaged:
        run.problems[name] = (
            f"{name}: {len(damaged)} blocks are damaged or missing in the index itself (the first:"
            f" {damaged[0]}); run `ris repair`, then `ris backup` again"
        )
    with storage_errors(copy.folder):
        for kind in KINDS:
            byte_count = _length(copy, kind, pinned.blocks)
            run.files[f"{name}/{kind}.vec"] = entry_of(copy.path(kind), byte_count)
            run.new_bytes += byte_count - (_length(copy, kind, first) if first else 0)
        if copy.sealed and copy.path_of("patch", 0).is_file():
            run.files[f"{name}/patch.runs"] = entry_of(copy.path_of("patch", 0))
            run.new_bytes += 0 if first else run.files[f"{name}/patch.runs"].byte_count
    return True


def _copy_contents(run: _Run, contents: dict[str, str]) -> None:
    """Pictures, uploads and recordings, which are named by their content and never change."""
    copier = Copier()
    copied = dict[str, FileEntry]()
    root = run.context.settings.data_dir.resolve()
    for number, (path, sha256) in enumerate(contents.items()):
        if path in run.files:
            continue
        known = run.listed(path) or _left_over(run.folder / path, sha256)
        if known is not None and known.sha256 == sha256:
            run.files[path] = known
            continue
        if number % BLOCKS_AT_ONCE == 0:
            run.require_free()
        count = copier.copy(root / path, run.folder / path, sha256)
        if count >= 0:
            copied[path] = FileEntry(count, sha256)
    copier.flush(run.folder)
    run.files |= copied
    for path in copied:
        run.problems.pop(path, None)
    run.new_bytes += sum(entry.byte_count for entry in copied.values())
    for source in copier.missing | copier.damaged:
        path = str(source.relative_to(root))
        run.problems[path] = f"{path} is damaged or missing in the index itself; see `ris verify`"
    run.gone |= {str(source.relative_to(root)) for source in copier.missing}


def _left_over(target: Path, sha256: str) -> FileEntry | None:
    """What a backup that was not finished has copied already, if it is whole."""
    try:
        found = entry_of(target)
    except OSError:
        return None
    return found if found.sha256 == sha256 else None
