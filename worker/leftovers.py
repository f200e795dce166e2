"""Files that no row speaks of any more: removed durably, and only those."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog

from models.index import Shard
from models.repositories import erasures as erasure_record
from models.repositories import index as index_record
from models.repositories import offloading as offload_record
from models.repositories import recordings as recording_record
from models.repositories import videos as video_record
from models.session import DatabaseUnavailable
from worker.accepting.queries import discard_uploads
from worker.accepting.segments import discard_recordings
from worker.context import Context
from worker.errors import ObjectStoreUnavailable, StorageFailed
from worker.index.moved_file import url_in_map
from worker.index.shard import NO_CHECKSUM, is_held
from worker.moved import place_of, remove_objects, remove_objects_up_to
from worker.recording import discard_pictures

log = structlog.get_logger()

STRAY_AFTER_S = 3600.0
"""A file this old without a row is of a batch or a query whose commit never came."""
_AT_ONCE = 1000


def remove_leftovers(context: Context, erasure_id: int, leftovers: dict[str, Any]) -> None:
    """Remove what an erasure noted once its rows were gone; then take it off the note, unless its
    own worker, which goes on meanwhile, has noted more.

    Raises :class:`StorageFailed`, and :class:`ObjectStoreUnavailable` when all is removed but what
    lies on object storage, which stays noted.
    """
    if not leftovers:
        return
    for name in leftovers["shards"]:
        shutil.rmtree(context.index.root / name, ignore_errors=True)
    pictures = discard_pictures(context, leftovers["pictures"])
    discard_uploads(context, leftovers["uploads"])
    discard_recordings(context, leftovers.get("recordings", []))
    left = [name for name in leftovers["shards"] if (context.index.root / name).exists()]
    objects = leftovers.get("objects", {})
    os.sync()  # thousands of folder entries: one call for all
    rest = {"shards": left, "pictures": [], "uploads": [], "objects": objects}
    rest = rest if left or objects else {}
    with context.db.transaction() as session:
        erasure_record.count_pictures(session, erasure_id, pictures)
        erasure_record.note_rest(session, erasure_id, leftovers, rest)
    if left:
        raise StorageFailed(f"{context.index.root / left[0]} cannot be removed; check the disk")
    if objects:
        removed = remove_objects_up_to(context, objects)
        with context.db.transaction() as session:
            erasure_record.count_objects(session, erasure_id, removed)
            erasure_record.note_rest(session, erasure_id, rest, {})


def remove_strays(context: Context, older_than_s: float = STRAY_AFTER_S) -> int:
    """Remove pictures, uploads and recordings that no row names, and halves of files; returns how
    many.

    What was written in the last ``older_than_s`` may be about to be recorded and stays.
    """
    before_s = time.time() - older_than_s
    removed = 0
    for sha256s in _in_parts(context.pictures.names(before_s)):
        removed += discard_pictures(context, sha256s)
    removed += remove_stray_uploads(context, older_than_s)
    removed += remove_stray_shards(context, older_than_s)
    removed += remove_stray_recordings(context, older_than_s)
    removed += _remove_halves(context.pictures.root, before_s)
    removed += _remove_halves(context.uploads.root, before_s)
    os.sync()
    return removed


def let_go_recording(context: Context, segment_id: int) -> None:
    """Remove what lies in the data folder for a segment whose ingest has ended, unless such
    recordings are kept and nothing of it was erased meanwhile. What fails here is swept."""
    try:
        with context.db.transaction() as session:
            segment = video_record.find_segment(session, segment_id)
            if segment is None or segment.held_sha256 is None or segment.outcome is None:
                return
            reaching = erasure_record.reaching(session, segment.camera_id, segment.start_utc)
            erased = any(erasure.created_at >= segment.created_at for erasure, _ in reaching)
            if context.settings.keep_recordings and not erased:
                return
            held = recording_record.let_go(session, segment_id)
        discard_recordings(context, [] if held is None else [held])
    except (StorageFailed, DatabaseUnavailable) as error:
        log.warning("recording_left_to_the_sweep", segment_id=segment_id, detail=str(error))


def remove_stray_recordings(context: Context, older_than_s: float = STRAY_AFTER_S) -> int:
    """Remove recordings that no segment holds, those of ended ingests unless they are kept, and
    what uploads that broke off have left; returns how many."""
    before_s = time.time() - older_than_s
    if not context.settings.keep_recordings:
        with context.db.transaction() as session:
            recording_record.let_go_ended(session)
    removed = 0
    for sha256s in _in_parts(context.recordings.names(before_s)):
        removed += discard_recordings(context, sha256s)
    return removed + _remove_halves(context.recordings.root, before_s)


def discard_former(context: Context, shard: Shard, folder: Path) -> None:
    """Remove the files of a shard's former revision. What of it lies on object storage is left to
    the sweep when that cannot be reached."""
    shutil.rmtree(folder, ignore_errors=True)
    if shard.object_url is None:
        return
    try:
        remove_objects(context, [shard.object_url])
    except ObjectStoreUnavailable as error:
        log.warning("object_left_to_the_sweep", url=shard.object_url, detail=str(error))


def remove_stray_objects(context: Context, older_than_s: float = STRAY_AFTER_S) -> int:
    """Remove objects of this index that no row names, and what is kept here of any such; returns
    how many objects. Raises :class:`ObjectStoreUnavailable`.

    An upload that was never recorded leaves one, or a former revision. What a repair keeps on
    purpose stays: a folder's map names it.
    """
    index_url = None if context.objects is None else context.objects.index_url()
    if context.objects is None or index_url is None:
        return 0
    before_s, removed, kept = time.time() - older_than_s, 0, list[str]()
    for entries in context.objects.below(index_url):
        with context.db.transaction() as session:
            named = offload_record.object_urls(session)
        for entry in entries:
            if entry.url in named or _is_kept(context, entry.url) or entry.changed_s > before_s:
                kept.append(entry.url)
            else:
                removed += _remove_forsaken(context, entry.url)
    if context.index.parts is not None:
        with context.db.transaction() as session:
            kept += offload_record.object_urls(session)
        context.index.parts.discard_all_but(kept)
    return removed


def _remove_forsaken(context: Context, url: str) -> int:
    """Remove an object unless its shard names it by now; returns how many. Whoever is about to
    record it looks whether it is there, under the same lock."""
    with context.db.transaction() as session:
        shard = index_record.find_shard(session, place_of(url)[1], lock=True)
        named = shard is not None and shard.object_url == url
        return 0 if named else remove_objects(context, [url])


def _is_kept(context: Context, url: str) -> bool:
    """Whether a folder needs an object for its patches, which are not in it."""
    generation_id, shard_id, revision = place_of(url)
    for folder in context.index.folders_of(
        context.index.generation_folder(generation_id), max(0, shard_id)
    ):
        own = _named(folder)[1] == revision and url_in_map(folder) == url
        if own and not (folder / "patch.runs").exists():
            return True
    return False


def remove_stray_uploads(context: Context, older_than_s: float = STRAY_AFTER_S) -> int:
    """Remove uploads that no row names; returns how many. What was written in the last
    ``older_than_s`` may be about to be recorded and stays."""
    names = context.uploads.names(time.time() - older_than_s)
    return sum(discard_uploads(context, sha256s) for sha256s in _in_parts(names))


def remove_stray_shards(context: Context, older_than_s: float = STRAY_AFTER_S) -> int:
    """Remove folders of vectors that no row names; returns how many.

    A writer that died before its commit leaves the folder of a shard that never came to be, or of
    a revision that was never switched to. Older revisions stay: a repair keeps them on purpose.
    """
    before_s = time.time() - older_than_s
    with context.db.transaction() as session:
        revisions = index_record.shard_revisions(session)
    removed = 0
    for folder in context.index.root.glob("g*/s*"):
        shard_id, revision = _named(folder)
        if shard_id < 0 or revision <= revisions.get(shard_id, -1) or _changed_s(folder) > before_s:
            continue
        with context.db.transaction() as session:
            # Nobody is about to commit a shard, and nobody holds this one to write a revision.
            index_record.lock_generations(session, exclusive=True)
            shard = index_record.find_shard(session, shard_id, lock=True)
            if not is_held(folder) and (shard is None or revision > shard.revision):
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
    return removed


def remove_former_files(context: Context) -> int:
    """Remove files that shards had before; returns of how many revisions.

    Whoever wrote the later ones may have died before it removed them. They stay where a block is
    recorded as lost: a repair keeps them on purpose. Everything else that was sound in them is in
    the later files.
    """
    with context.db.transaction() as session:
        revisions = index_record.shard_revisions(session)
    former: dict[int, list[Path]] = {}
    for folder in context.index.root.glob("g*/s*"):
        shard_id, revision = _named(folder)
        if 0 <= revision < revisions.get(shard_id, -1):
            former.setdefault(shard_id, []).append(folder)
    if not former:
        return 0
    with context.db.transaction() as session:
        kept = index_record.shards_with_checksum(session, list(former), NO_CHECKSUM)
    folders = [folder for shard_id in former.keys() - kept for folder in former[shard_id]]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return len(folders)


def is_current(context: Context, shard: Shard) -> bool:
    """Whether the shard's files are those that were looked at: then the next revision is free."""
    with context.db.transaction() as session:
        now = index_record.find_shard(session, shard.id)
    return now is not None and now.revision == shard.revision


def discard_revision(context: Context, shard_id: int, revision: int, folder: Path) -> None:
    """Remove a shard's next revision, which was given up; the caller still holds it.

    Not what Postgres says is the shard's: when the connection was lost at the commit, it may have
    been switched to all the same. The row lock waits for a commit that is under way. Where Postgres
    cannot be asked, the files are left to the sweep.
    """
    try:
        with context.db.transaction() as session:
            shard = index_record.find_shard(session, shard_id, lock=True)
            if shard is None or shard.revision < revision:
                shutil.rmtree(folder, ignore_errors=True)
    except DatabaseUnavailable as error:
        log.warning("revision_left_to_the_sweep", folder=str(folder), detail=str(error))


def _named(folder: Path) -> tuple[int, int]:
    """Shard and revision that a folder is named by; (-1, -1) for another name."""
    shard_id, _, revision = folder.name.removeprefix("s").partition(".")
    if not shard_id.isdigit() or not (revision or "0").isdigit():
        return -1, -1
    return int(shard_id), int(revision or 0)


def _changed_s(path: Path) -> float:
    """When it was changed, epoch seconds; now, if it has gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


def _in_parts(names: Iterator[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for name in names:
        part.append(name)
        if len(part) == _AT_ONCE:
            yield part
            part = []
    if part:
        yield part


def _remove_halves(root: Path, before_s: float) -> int:
    """Temporary files of writers that died."""
    removed = 0
    for path in root.rglob("*.tmp"):
        if _changed_s(path) < before_s:
            path.unlink(missing_ok=True)
            removed += 1
    return removed
