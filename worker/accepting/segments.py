"""Recorded files: segment and job are recorded before a worker reads a single picture."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from unicodedata import category

from models.repositories import erasures as erasure_record
from models.repositories import jobs as job_record
from models.repositories import recordings as recording_record
from models.repositories import videos as video_record
from models.session import Session
from models.video import VideoSegment
from worker.accepting.audit import record_act
from worker.accepting.desk import Actor, Desk
from worker.accepting.feeds import listed
from worker.config import Settings
from worker.core.sampling import SamplingPolicy, policy_key, policy_to_json
from worker.errors import InputInvalid, VideoUnreadable
from worker.messages import QUEUE_OF_KIND, JobKind
from worker.secret_keys import secret_keys
from worker.tracing import carried, note
from worker.video.address import AddressRules, holds_secrets, redacted
from worker.video.download import SCHEMES, check_recording_address, without_login
from worker.video.recording_store import IncomingRecording

_HASH_CHUNK_BYTES = 1 << 20
_NAME_LETTERS = 100


@dataclass(frozen=True, slots=True)
class Submission:
    """What was accepted: ids to follow, and whether the segment was already known."""

    segment_id: int
    job_id: str
    camera_id: int
    is_new: bool
    kind: JobKind = "ingest"


@dataclass(frozen=True, slots=True)
class FileContent:
    """What a file held. ``state``: its :func:`file_state` before and after it was read."""

    sha256: str
    state: dict[str, int]


@dataclass(frozen=True, slots=True)
class Recording:
    """A file to ingest. ``start_source``: where the start comes from; ``given`` by whoever submits,
    else a guess that gives way to what is known of the same content. ``held``: it lies in the store
    of recordings; ``path`` then only says what it was called. ``fetch_url``: it is fetched from
    there first, encrypted where it holds secrets; ``path`` then is the address as it may be shown,
    ``content`` what names it. ``kind``: of the job that ingests it, ``backfill`` for what may wait.
    ``delay_s``: that job begins no sooner.
    """

    path: Path | str
    content: FileContent
    start_utc: datetime
    start_source: str
    policy: SamplingPolicy
    held: bool = False
    fetch_url: str | None = field(default=None, repr=False)
    kind: JobKind = "ingest"
    delay_s: float = 0.0


def record_segment(
    session: Session, camera_id: int, recording: Recording, actor: Actor
) -> Submission:
    """Record segment and job in the caller's transaction, which rings for a new one after its
    commit. Repeating it changes nothing. Raises :class:`InputInvalid` while an erasure of this
    camera and time is under way."""
    policy, start, source = recording.policy, recording.start_utc, recording.start_source
    if source not in ("given", "file-name"):
        # A copied or touched file has another modification time and is the same recording.
        known = video_record.segment_of_content(
            session, camera_id, recording.content.sha256, policy_key(policy)
        )
        if known is not None:
            start, source = known.start_utc, known.start_source
    segment, is_new = video_record.ensure_segment(
        session,
        {
            "camera_id": camera_id,
            "source_path": str(recording.path),
            "content_sha256": recording.content.sha256,
            "start_utc": start,
            "start_source": source,
            "policy": policy_to_json(policy),
            "policy_key": policy_key(policy),
        },
    )
    erased = _erased_since(session, segment)
    if erased:
        # What was erased is wanted back: from the start again, with what is still there kept.
        video_record.renew_segment(session, segment.id)
    if segment.job_id is not None and not _failed(session, segment) and not erased:
        return Submission(segment.id, str(segment.job_id), camera_id, is_new)
    job_id = _submit_job(session, segment.id, recording)
    record_act(
        session,
        actor,
        "segment.submit",
        segment_id=segment.id,
        camera_id=camera_id,
        start_utc=start.isoformat(),
        **(
            {"content_sha256": recording.content.sha256}
            if recording.fetch_url is None
            else {"url": str(recording.path)}
        ),
    )
    kind: JobKind = recording.kind if recording.fetch_url is None else "fetch"
    return Submission(segment.id, str(job_id), camera_id, True, kind)


def fetch_rules(settings: Settings) -> AddressRules:
    """Where recordings may be fetched from. Raises :class:`InputInvalid` where nowhere."""
    if settings.fetch_hosts is None:
        raise InputInvalid(
            "url: this server fetches no recordings; set RIS_FETCH_HOSTS to the hosts it may ask"
        )
    return AddressRules(SCHEMES, listed(settings.fetch_hosts), None)


def recording_at(
    settings: Settings,
    url: str,
    start_utc: datetime,
    policy: SamplingPolicy,
    *,
    delay_s: float = 0.0,
) -> Recording:
    """A recording that is to be fetched, ``delay_s`` from now at the earliest.

    The same address, but for user and password, with the same start and policy is the same. Raises
    :class:`InputInvalid`, :class:`AddressRefused`, and :class:`SecretKeyMissing` for an address
    with a password where there is no key.
    """
    check_recording_address(url, fetch_rules(settings))
    named = hashlib.sha256(f"url:{without_login(url)}".encode()).hexdigest()
    shown = redacted(url)
    content = FileContent(named, {})
    kept = secret_keys(settings).seal(url) if holds_secrets(url) else url
    return Recording(shown, content, start_utc, "given", policy, fetch_url=kept, delay_s=delay_s)


def fetch_address(settings: Settings, kept: str) -> str:
    """The whole address that a segment keeps, for the connection only. Raises
    :class:`SecretKeyMissing`."""
    return kept if kept.startswith(SCHEMES) else secret_keys(settings).open(kept)


def sent_name(name: str) -> str:
    """What a recording that was sent is called: its own name, without folders and controls."""
    last = name.replace("\\", "/").rpartition("/")[2]
    shown = "".join(letter for letter in last if category(letter)[0] != "C")[:_NAME_LETTERS]
    return f"sent:{shown or 'recording'}"


def keep_segment(
    desk: Desk,
    session: Session,
    camera_id: int,
    recording: Recording,
    incoming: IncomingRecording,
    actor: Actor,
) -> Submission:
    """:func:`record_segment` of a finished recording, which is kept if it is still to be ingested;
    else it is the caller's to discard. Raises ``StorageFull``, ``StorageFailed`` too."""
    recording_record.lock_recordings(session, exclusive=False)  # nobody sweeps it meanwhile
    submission = record_segment(session, camera_id, recording, actor)
    if submission.is_new:
        desk.recordings.keep(incoming)
    return submission


def discard_recordings(desk: Desk, sha256s: Sequence[str]) -> int:
    """Remove those of these recordings that no segment holds any more; returns how many."""
    with desk.db.transaction() as session:
        recording_record.lock_recordings(session, exclusive=True)
        unheld = recording_record.unheld(session, sha256s)
        return sum(desk.recordings.remove(sha256) for sha256 in sorted(unheld))


def _failed(session: Session, segment: VideoSegment) -> bool:
    """Whether its last ingest failed; a segment whose decoder was killed half-way is partial."""
    if segment.outcome == "partial" and segment.job_id is not None:
        job = job_record.find(session, segment.job_id)
        return job is not None and job.state == "failed"
    return segment.outcome == "failed"


def _submit_job(session: Session, segment_id: int, recording: Recording) -> uuid.UUID:
    if recording.fetch_url is None:
        payload = {"segment_id": segment_id, "file": recording.content.state}
        kind = recording.kind
    else:
        payload, kind = {"segment_id": segment_id}, "fetch"
    job_id = job_record.submit(
        session, kind, QUEUE_OF_KIND[kind], payload | carried(), delay_s=recording.delay_s
    )
    note(segment_id=segment_id, job_id=job_id)
    video_record.set_segment(
        session,
        segment_id,
        job_id=job_id,
        outcome=None,
        source_path=str(recording.path),
        held_sha256=recording.content.sha256 if recording.held else None,
        fetch_url=recording.fetch_url,
    )
    return job_id


def _erased_since(session: Session, segment: VideoSegment) -> bool:
    """Whether frames that the segment can have were erased since it was accepted.

    Raises :class:`InputInvalid` while such an erasure is under way: it would take what comes in.
    """
    reaching = erasure_record.reaching(session, segment.camera_id, segment.start_utc)
    open_ids = [erasure.id for erasure, state in reaching if state in ("queued", "running")]
    if open_ids:
        refused = InputInvalid(
            f"erasure {open_ids[0]} of this camera and time is under way: submit the file again"
            " when `ris erasures` says that it is done"
        )
        refused.again = True
        raise refused
    return any(erasure.created_at >= segment.created_at for erasure, _ in reaching)


def read_content(path: Path) -> FileContent:
    """Hash and state of a file that nobody is writing to.

    Raises :class:`VideoUnreadable`, also when it changed meanwhile: the hash would be that of a
    part of it, and the whole would be ingested again later.
    """
    _require_regular(path)
    try:
        before = file_state(path)
        sha256 = hash_file(path)
        after = file_state(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    if before != after:
        raise VideoUnreadable(
            f"{path} changed while it was read: submit it when its recorder has closed it"
        )
    return FileContent(sha256, before)


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file. Raises :class:`VideoUnreadable`."""
    digest = hashlib.sha256()
    _require_regular(path)
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_HASH_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()


def _require_regular(path: Path) -> None:
    if any(category(letter) == "Cs" for letter in str(path)):
        raise VideoUnreadable(f"{str(path)!r} is not a UTF-8 name; rename the file")
    if path.exists() and not path.is_file():  # opening a pipe or a device could wait for ever
        raise VideoUnreadable(f"{path} is not a regular file; name a readable video file")


def _unreadable(path: Path, error: OSError) -> VideoUnreadable:
    return VideoUnreadable(f"{path}: {error.strerror or error}; name a readable video file")


def file_state(path: Path) -> dict[str, int]:
    """What tells cheaply that a file is still the one that was accepted."""
    found = path.stat()
    return {"size_bytes": found.st_size, "mtime_ns": found.st_mtime_ns}
