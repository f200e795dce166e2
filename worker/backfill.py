"""An archive: all recordings below a folder, ingested once, behind everything that just happens.

Few jobs are open at a time, so that it can be stopped at any moment; begun again it passes over
what is known by path, size and modification time without reading it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from models.repositories import videos as video_record
from models.repositories import watching as watch_record
from models.repositories.watching import FileState, KnownFile
from worker.accepting.desk import COMMAND_LINE
from worker.accepting.segments import record_segment
from worker.context import Context
from worker.core.sampling import SamplingPolicy, policy_key
from worker.errors import InputInvalid, VideoUnreadable
from worker.ingest import recording_of
from worker.recorder_folders import NameRules, recordings_below

MOST_OPEN: Final = 64
_AT_ONCE: Final = 200
_POLL_S: Final = 0.2


@dataclass(slots=True)
class Backfill:
    """How far it is. ``known``: files that were ingested before; ``done`` counts them too.
    ``failed``: file, code and detail. ``waiting``: why a job is tried again."""

    files: int = 0
    byte_count: int = 0
    done: int = 0
    done_bytes: int = 0
    known: int = 0
    frames: int = 0
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    waiting: str | None = None


@dataclass(frozen=True, slots=True)
class _Open:
    path: str
    size_bytes: int


def ingest_folder(
    context: Context,
    folder: Path,
    rules: NameRules,
    policy: SamplingPolicy,
    tell: Callable[[Backfill], None] = lambda _how_far: None,
    *,
    wait: bool = True,
) -> Backfill:
    """Ingest every recording below a folder. Repeating it changes nothing.

    ``wait`` False: all are submitted, and none is waited for. Raises :class:`InputInvalid` for a
    folder that cannot be read; files that are no good are in ``failed``.
    """
    folder = folder.resolve()
    try:
        found = sorted(recordings_below(folder))
    except OSError as error:
        raise InputInvalid(f"{folder}: {error.strerror or error}") from error
    sizes = sum(size for _, (size, _) in found)
    how_far, waiting = Backfill(len(found), sizes), dict[uuid.UUID, _Open]()
    tell(how_far)
    for path, state, known in _with_known(context, folder, found, policy):
        try:
            job_id = _submit(context, folder, path, state, known, rules, policy, how_far)
        except (InputInvalid, VideoUnreadable) as error:
            how_far.failed.append((str(folder / path), error.code, str(error)))
            _count(how_far, state[0])
            tell(how_far)
        else:
            waiting[job_id] = _Open(str(folder / path), state[0])
        while wait and len(waiting) >= MOST_OPEN:
            _follow(context, waiting, how_far, tell)
    while wait and waiting:
        _follow(context, waiting, how_far, tell)
    return how_far


def _with_known(
    context: Context,
    folder: Path,
    found: Sequence[tuple[str, FileState]],
    policy: SamplingPolicy,
) -> Iterator[tuple[str, FileState, list[KnownFile]]]:
    for start in range(0, len(found), _AT_ONCE):
        part = found[start : start + _AT_ONCE]
        with context.db.transaction() as session:
            names = [str(folder / path) for path, _ in part]
            known = watch_record.known_files(session, names, policy_key(policy))
        for path, state in part:
            yield path, state, known.get(str(folder / path), [])


def _submit(
    context: Context,
    folder: Path,
    path: str,
    state: FileState,
    known: Sequence[KnownFile],
    rules: NameRules,
    policy: SamplingPolicy,
    how_far: Backfill,
) -> uuid.UUID:
    """The job of a file; one that is known has it already."""
    camera_name, start = rules.read(path)
    for one in known:
        if one.camera == camera_name and one.state == state and _same_start(one, start):
            how_far.known += 1
            return one.job_id
    recording = recording_of(context, folder / path, policy, start, "file-name", "backfill")
    with context.db.transaction() as session:
        camera = video_record.ensure_camera(session, camera_name)
        made = record_segment(session, camera.id, recording, COMMAND_LINE)
    job_id = uuid.UUID(made.job_id)
    if made.is_new:
        context.ring(job_id, made.kind)
    else:
        how_far.known += 1
    return job_id


def _same_start(known: KnownFile, start: datetime | None) -> bool:
    return start is None or known.start_utc == start


def _count(how_far: Backfill, size_bytes: int) -> None:
    how_far.done += 1
    how_far.done_bytes += size_bytes


def _follow(
    context: Context,
    waiting: dict[uuid.UUID, _Open],
    how_far: Backfill,
    tell: Callable[[Backfill], None],
) -> None:
    """Look once at the jobs that are waited for; rest where none has ended."""
    with context.db.transaction() as session:
        ends = watch_record.job_ends(session, list(waiting))
    how_far.waiting = None
    ended = 0
    for job_id in waiting.keys() - ends.keys():  # its footage was erased since, and then it
        _count(how_far, waiting.pop(job_id).size_bytes)
        ended += 1
    for job_id, (state, frames, code, detail) in ends.items():
        if state not in ("done", "failed"):
            how_far.waiting = how_far.waiting or detail
            continue
        one = waiting.pop(job_id)
        ended += 1
        how_far.frames += frames
        _count(how_far, one.size_bytes)
        if state == "failed":
            how_far.failed.append((one.path, str(code), str(detail)))
    tell(how_far)
    if not ended:
        time.sleep(_POLL_S)
