"""A backup's folder: its manifest, the bytes that it lists, and how they are copied and checked.

The manifest is written last, in one step. Until then the former one, if there is one, stays true:
files that it lists are never changed within the length that it gives, only continued, and what is
not needed any more goes after the new manifest has come.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from worker.errors import AlreadyRunning, BackupInvalid, FormatNewer, InputInvalid
from worker.index.layout import fsync_folder, storage_errors

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
LOCK = "backup.lock"
"""Made first: a folder with it and without a manifest is a backup that has not been finished."""
_CHUNK_BYTES = 1024 * 1024
_OURS = re.compile(
    r"index/g\d+/s\d+(\.\d+)?/(global\.vec|patch\.(vec|runs))"
    r"|pictures/[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{64}\.jpg"
    r"|(uploads|recordings)/[0-9a-f]{64}"
    r"|database-[0-9TZ]+\.dump"
)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """The first ``byte_count`` bytes of a file, and their SHA-256."""

    byte_count: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds. ``files`` and ``shards`` by path below the folder.

    ``shards``: of the sound ones, how many blocks, and the digest of their checksums in Postgres.
    ``problems``: what the index itself lacked when the backup was made.
    """

    ris_version: str
    schema_revision: str
    taken_utc: str
    index_made: str | None
    last_erasure: int | None
    frames: int
    database: str
    shards: Mapping[str, tuple[int, str]]
    files: Mapping[str, FileEntry]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckReport:
    """``wrong``: files that are missing or do not hold their bytes. ``extra``: files that no
    manifest lists, of a backup that was not finished."""

    files: int
    byte_count: int
    wrong: tuple[str, ...]
    extra: tuple[str, ...]


def read_manifest(folder: Path) -> Manifest:
    """Raises :class:`BackupInvalid` without one that is whole, :class:`FormatNewer`."""
    path = folder / MANIFEST
    try:
        fields = json.loads(path.read_text())
        version = fields["format"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise FormatNewer(
                f"{folder} is a backup of format version {version}, made by RIS"
                f" {fields.get('ris_version')}; this RIS reads up to version {FORMAT_VERSION}:"
                " update RIS"
            )
        return _manifest(fields)
    except FileNotFoundError:
        raise BackupInvalid(
            f"{path} is missing: {folder} is no backup, or one that was not finished; run"
            " `ris backup` into it again"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BackupInvalid(f"{path} is damaged ({error!r}); take another backup") from error


def _manifest(fields: dict[str, Any]) -> Manifest:
    files = {path: FileEntry(int(size), str(sha256)) for path, size, sha256 in fields["files"]}
    if strange := [path for path in files if not _OURS.fullmatch(path)]:
        raise ValueError(f"{strange[0]!r} is no file of a backup")
    return Manifest(
        ris_version=fields["ris_version"],
        schema_revision=fields["schema_revision"],
        taken_utc=fields["taken"],
        index_made=fields["index_made"],
        last_erasure=fields["last_erasure"],
        frames=fields["frames"],
        database=fields["database"],
        shards={path: (blocks, digest) for path, blocks, digest in fields["shards"]},
        files=files,
        problems=tuple(fields["problems"]),
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make a backup what ``manifest`` says, in one step; everything it lists is synced before."""
    fields = {
        "format": FORMAT_VERSION,
        "ris_version": manifest.ris_version,
        "schema_revision": manifest.schema_revision,
        "taken": manifest.taken_utc,
        "index_made": manifest.index_made,
        "last_erasure": manifest.last_erasure,
        "frames": manifest.frames,
        "database": manifest.database,
        "problems": manifest.problems,
        "shards": [[path, *shard] for path, shard in sorted(manifest.shards.items())],
        "files": [[p, one.byte_count, one.sha256] for p, one in sorted(manifest.files.items())],
    }
    path = folder / MANIFEST
    with storage_errors(path):
        draft = path.with_suffix(".tmp")
        with draft.open("w") as stream:
            json.dump(fields, stream, indent=0)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
        fsync_folder(folder)


@contextmanager
def holding_folder(folder: Path) -> Iterator[None]:
    """Be the only one who writes a backup there.

    Raises :class:`InputInvalid` for a folder of something else, :class:`AlreadyRunning`.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir()}
        if names and not names & {MANIFEST, LOCK}:
            raise InputInvalid(f"{folder} is not empty and holds no backup: give another folder")
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunning(
                f"another `ris backup` writes into {folder}: wait for it"
            ) from error
        yield
    finally:
        os.close(descriptor)


def check_folder(folder: Path, manifest: Manifest) -> CheckReport:
    """Read every byte that a manifest lists."""
    wrong = []
    for path, entry in sorted(manifest.files.items()):
        try:
            found = entry_of(folder / path, entry.byte_count)
        except OSError as error:
            wrong.append(f"{path}: {error.strerror or error}")
            continue
        if found.byte_count < entry.byte_count:
            wrong.append(f"{path}: {found.byte_count} of {entry.byte_count} bytes are there")
        elif found != entry:
            wrong.append(f"{path}: its bytes are not those that were backed up")
    return CheckReport(
        files=len(manifest.files),
        byte_count=sum(entry.byte_count for entry in manifest.files.values()),
        wrong=tuple(wrong),
        extra=tuple(_unlisted(folder, manifest)),
    )


def entry_of(path: Path, byte_count: int | None = None) -> FileEntry:
    """The first bytes of a file, or all of them, as they are. Raises :class:`OSError`."""
    digest, count = hashlib.sha256(), 0
    with path.open("rb") as stream:
        for chunk in _chunks_of(stream, byte_count):
            digest.update(chunk)
            count += len(chunk)
    return FileEntry(count, digest.hexdigest())


def _chunks_of(stream: BinaryIO, byte_count: int | None) -> Iterator[bytes]:
    """The first bytes of an open file, or all of them."""
    left = byte_count
    while chunk := stream.read(_CHUNK_BYTES if left is None else min(_CHUNK_BYTES, left)):
        left = None if left is None else left - len(chunk)
        yield chunk


def _unlisted(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Files of a backup, or halves of them, that the manifest does not list."""
    places = [*folder.glob("database-*.dump*")]
    for name in ("index", "pictures", "uploads", "recordings"):
        places += (path for path in (folder / name).rglob("*") if path.is_file())
    for path in places:
        relative = str(path.relative_to(folder))
        if relative not in manifest.files:
            yield relative


def sweep(folder: Path, manifest: Manifest) -> int:
    """Remove what the manifest does not list: erased footage above all; returns how many files."""
    gone = list(_unlisted(folder, manifest))
    with storage_errors(folder):
        for path in gone:
            (folder / path).unlink(missing_ok=True)
        for path, entry in manifest.files.items():
            if (folder / path).stat().st_size > entry.byte_count:
                os.truncate(folder / path, entry.byte_count)
        for parent in {(folder / path).parent for path in gone}:
            with suppress(OSError):  # others are still in it
                parent.rmdir()
        os.sync()  # thousands of folder entries: one call for all
    return len(gone)


@dataclass(slots=True)
class Copier:
    """Copies whole files so that each is there completely, with the bytes it should have, or not.

    :meth:`copy` notes failures in ``missing`` and ``damaged``; nothing is durable before
    :meth:`flush`, which syncs many at once and gives them their names.
    """

    missing: set[Path] = field(default_factory=set)
    damaged: set[Path] = field(default_factory=set)
    _drafts: list[tuple[Path, Path]] = field(default_factory=list)
    _folders: set[Path] = field(default_factory=set)

    def copy(
        self, source: Path, target: Path, sha256: str | None, byte_count: int | None = None
    ) -> int:
        """Copy the first ``byte_count`` bytes, or all; returns how many, -1 where it failed.
        ``sha256`` None: whatever can be read of the file."""
        draft = target.with_name(f".{target.name}.tmp")
        with storage_errors(target):
            if target.parent not in self._folders:
                target.parent.mkdir(parents=True, exist_ok=True)
                self._folders.add(target.parent)
            digest, count = hashlib.sha256(), 0
            with draft.open("wb") as stream:
                for chunk in self._chunks(source, byte_count):
                    stream.write(chunk)
                    digest.update(chunk)
                    count += len(chunk)
            if source in self.missing or sha256 not in (None, digest.hexdigest()):
                draft.unlink()
                if source not in self.missing:
                    self.damaged.add(source)
                return -1
        self._drafts.append((draft, target))
        if len(self._drafts) == 256:
            self._name()
        return count

    def _chunks(self, source: Path, byte_count: int | None) -> Iterable[bytes]:
        """What can be read of a file; reading is its fault, writing the target's."""
        try:
            with source.open("rb") as stream:
                yield from _chunks_of(stream, byte_count)
        except FileNotFoundError:
            self.missing.add(source)
        except OSError as error:
            if error.errno != errno.EIO:
                raise

    def _name(self) -> None:
        # All written before the first is synced: the disk gets them as one.
        for draft, target in self._drafts:
            with storage_errors(target), draft.open("rb") as stream:
                os.fsync(stream.fileno())
        for draft, target in self._drafts:
            with storage_errors(target):
                draft.replace(target)
        self._drafts.clear()

    def flush(self, root: Path) -> None:
        """Make durable what was copied, with every folder up to ``root``."""
        self._name()
        folders = set(self._folders)
        for folder in self._folders:
            folders |= {parent for parent in folder.parents if parent.is_relative_to(root)}
        with storage_errors(root):
            for folder in folders:
                fsync_folder(folder)
        self._folders.clear()
